"""No name from data or configuration leaves its folder."""

import os
from pathlib import PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from config.load import build_settings
from reports.writer import Writer
from runtime.errors import UserError
from storage import safe_names

PARTS = st.sampled_from(
    [
        "..",
        ".",
        "",
        "a",
        "a.png",
        "con",
        "NUL.png",
        "c:",
        "\\",
        "..\\..",
        "a\\b",
        "x" * 300,
        "ü" * 200,
        "a. ",
        ".. ",
        "\0",
        "\n",
        "\udcff",
        "-",
    ]
)
NAMES = st.one_of(st.lists(PARTS, min_size=1, max_size=4).map("/".join), st.text(max_size=12)).filter(
    lambda name: PurePosixPath(name).name
)


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../a",
        "a/../..",
        "/etc",
        "//host/share",
        "\\\\host\\share",
        "..\\a",
        "a\\..\\..",
        "c:\\a",
        "c:a",
        "C:/a",
        "\\a",
        "a\0b",
        "a\nb",
        "a\x1b[2J",
        ".. ",
        "a/.../b",
    ],
)
def test_a_name_that_leaves_its_folder_is_refused_on_all_systems(tmp_path, name):
    assert not safe_names.stays_inside(name, windows=False) and not safe_names.stays_inside(name, windows=True)
    for key in ("data.category", "model.exp_name"):
        section, leaf = key.split(".")
        content = {
            "data": {"name": "own", "data_dir": "d", "category": "nut"},
            "model": {"w": 1, "epochs": 1, "load_chp": 1},
        }
        content[section][leaf] = name
        with pytest.raises(ValueError, match="both must name a folder that lies inside its parent|it should be a name"):
            build_settings(content)
    with pytest.raises(ValueError, match="rename the picture"):
        Writer(tmp_path).picture(name, Image.new("L", (1, 1)), "figures")


@pytest.mark.parametrize(
    "name", ["con", "aux", "NUL.txt", "sub/com1", "lpt9 .png", "ab:c", "nut.", "a /b", "a|b", "what?", 'a"b', "<a>"]
)
def test_a_reserved_name_is_refused_on_windows(name):
    assert not safe_names.stays_inside(name, windows=True) and safe_names.stays_inside(name, windows=False)
    assert safe_names.stays_inside(safe_names.safe_path(name, windows=True), windows=True)


@pytest.mark.parametrize("name", ["bottle", "a/b", "my nut", "2024", "Блеск", "a.b", "...a", "console", "-x", "=1"])
def test_ordinary_names_stay_unchanged(name):
    assert safe_names.stays_inside(name, windows=True) and safe_names.safe_path(name, windows=True) == name


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.lists(NAMES, min_size=1, max_size=6, unique=True), st.booleans())
def test_file_names_of_pictures_are_safe_and_unique(pictures, windows):
    stems = safe_names.file_stems(pictures, windows)
    assert list(stems) == pictures
    for stem in stems.values():
        assert stem and safe_names.stays_inside(f"{stem}.png", windows)
        assert all(len(os.fsencode(part)) <= 240 for part in stem.split("/"))
        assert not PurePosixPath(stem).is_absolute() and ".." not in PureWindowsPath(stem).parts
    distinct = {str(PurePosixPath(name)).lstrip("/") for name in pictures}
    if len(distinct) == len(pictures):
        assert len(set(stems.values())) == len(pictures)


def test_long_names_get_files(tmp_path):
    stems = safe_names.file_stems(["x" * 251 + ".png", "x" * 250 + "y.png"])
    for stem in stems.values():
        Writer(tmp_path).picture(f"{stem}.tiff", Image.new("F", (2, 2)), "anomaly_maps")
    assert len(list((tmp_path / "anomaly_maps").iterdir())) == 2


def test_no_two_pictures_share_a_stem():
    paths = ["test/crack/001.png", "test/good/001.PNG"]
    assert safe_names.file_stems(paths) == {path: path[:-4] for path in paths}
    names = ["a.png", "a.jpg", "a.jpg.png", "a.PNG", "b/a.png", "1.001.png", "c"]
    stems = safe_names.file_stems(names)
    assert len(set(stems.values())) == len(names) and stems["b/a.png"] == "b/a" and stems["a.jpg"] == "a.jpg"


@pytest.mark.parametrize("name", ["", ".", "/", "//"])
def test_a_name_that_is_no_file_is_the_users_error(name):
    with pytest.raises(UserError, match="is not the name of a picture"):
        safe_names.file_stems(["a.png", name])
