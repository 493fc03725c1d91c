import json

import pytest

from reports.manifest import FORMAT, MANIFEST, differences, flatten_values, is_result_of, load_manifest
from reports.writer import Writer

INPUTS = {
    "settings": {"data": {"name": "own", "category": "nut"}, "model": {"seed": 0, "w": 3}},
    "versions": {"torch": "2"},
    "data": {"test": ["a", 1]},
    "weights": "ff",
}


def write(folder, inputs):
    Writer(folder).manifest(inputs, {"detection": 1.23}, {"pro": 0.5})


def test_a_manifest_comes_back(tmp_path):
    write(tmp_path, INPUTS)
    for path in (tmp_path, tmp_path / MANIFEST):
        manifest = load_manifest(path)
        assert {name: manifest[name] for name in INPUTS} == INPUTS
        assert (manifest["category"], manifest["data_set"], manifest["metrics"]) == ("nut", "own", {"pro": 0.5})


def test_only_equal_inputs_have_the_same_result(tmp_path):
    write(tmp_path, INPUTS)
    other = {**INPUTS, "settings": {**INPUTS["settings"], "model": {"seed": 0, "w": 4}}, "versions": {"torch": "3"}}
    assert is_result_of(tmp_path, INPUTS) and not is_result_of(tmp_path, other)
    assert list(differences(INPUTS, other)) == ["model.w was 3, is 4", "torch was 2, is 3"]
    assert not is_result_of(tmp_path / "none", INPUTS)


def test_values_are_flattened_to_dotted_names():
    assert dict(flatten_values("", {"a": {"b": 1, "c": [2]}, "d": None})) == {"a.b": 1, "a.c": [2], "d": None}


@pytest.mark.parametrize("change", [{"format": "x"}, {"settings": []}, {"settings": {"model": 1}}, {"category": 1}])
def test_a_damaged_manifest_is_an_error_message(tmp_path, change):
    write(tmp_path, INPUTS)
    content = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps({**content, **change}))
    with pytest.raises(ValueError, match=f"is not a manifest of this version .{FORMAT}"):
        load_manifest(tmp_path)
