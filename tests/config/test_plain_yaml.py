import re

import pytest

from config.load import load_settings, with_overrides


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
