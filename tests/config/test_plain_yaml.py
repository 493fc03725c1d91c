import re

import pytest

from config.load import load_settings, with_overrides
from config.plain_yaml import read_yaml_file
from runtime.errors import UserError


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("data: !!python/object/apply:os.system ['touch owned']", "could not determine a constructor for the tag"),
        ("data: !!python/object/new:os.system ['touch owned']", "could not determine a constructor for the tag"),
        ("data: !!python/name:os.system", "could not determine a constructor for the tag"),
        ("data: &a [x]\nmodel: *a", "*a is an alias, which is not allowed here; write its value out"),
        (
            "a0: &a0 [lol]\n" + "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 20)),
            "*a0 is an alias",
        ),
        (
            "a0: &a0 {k: v}\n"
            + "\n".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 20)),
            "*a0 is an alias",
        ),
        ("data: &a {x: *a}", "is an alias"),
        ("[" * 20_000, "more than 10 nested brackets"),
        ("data: " + "1:" * 30_000 + "1", "Exceeds the limit"),
        ("x" * 70_000, "it has more than 65536 bytes"),
    ],
    ids=["apply", "new", "name", "alias", "laughs", "merged laughs", "itself", "brackets", "sixties", "long"],
)
def test_a_hostile_file_runs_no_code_and_fills_no_memory(tmp_path, monkeypatch, text, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        load_settings("c.yaml")
    assert len(str(caught.value)) < 1000 and not (tmp_path / "owned").exists()
    with pytest.raises(ValueError, match="not a YAML value|should be|holds no sections"):
        with_overrides({"data": "x"}, [f"data.name={text[6:]}"])


@pytest.mark.parametrize(
    ("codec", "name"),
    [
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16"),
        ("utf-16-be", "UTF-16"),
        ("utf-32", "UTF-32"),
        ("cp1252", "Latin-1 or Windows-1252"),
    ],
)
def test_a_text_in_another_encoding_is_named(tmp_path, codec, name):
    (tmp_path / "c.yaml").write_bytes("data:\r\n  category: Gehäuse # „groß“\r\n".encode(codec))
    with pytest.raises(UserError, match=f"c.yaml is text in {name}; save it as UTF-8"):
        read_yaml_file(tmp_path / "c.yaml")


def test_utf_8_is_read_with_and_without_its_mark(tmp_path):
    for codec in ("utf-8", "utf-8-sig"):
        (tmp_path / "c.yaml").write_bytes("data: {category: Gehäuse}".encode(codec))
        assert read_yaml_file(tmp_path / "c.yaml") == {"data": {"category": "Gehäuse"}}


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\0\0\0", bytes(range(256)), b"\xff\xfe\x00\xd8\x00"])
def test_what_is_no_text_is_refused(tmp_path, content):
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"c\.yaml is not a text file; --config takes a YAML file"):
        read_yaml_file(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("data: {}\nmodel:\n  w: 3\n  v: 1\n  w: 4\n", "w", "3 and 5"),
        ("data: {}\nmodel: {w: 3}\ndata:\n  category: x\n", "data", "1 and 3"),
        ("model: {w: 3, w: 3}\n", "w", "1 and 1"),
    ],
)
def test_a_key_that_stands_twice_is_an_error_with_both_lines(tmp_path, text, key, lines):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"c\.yaml: the key {key} is in lines {lines}; remove one"):
        read_yaml_file(tmp_path / "c.yaml")
