"""Regions are read from pictures and drawings, and resized without vanishing."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from images.region import JudgedRegion, read_region


def half(height=40, width=60):
    mask = np.zeros((height, width), bool)
    mask[:, : width // 2] = True
    return mask


@pytest.fixture
def region(tmp_path):
    Image.fromarray(half()).save(tmp_path / "region.png")
    return read_region(tmp_path / "region.png")


def labelme(path, points, **more):
    shape = {"shape_type": "polygon", "points": points}
    path.write_text(json.dumps({"shapes": [shape], "imageWidth": 60, "imageHeight": 40, **more}))
    return path


def test_a_drawing_and_a_picture_of_it_are_one_region(region, tmp_path):
    drawn = read_region(labelme(tmp_path / "region.json", [[0, 0], [30, 0], [30, 40], [0, 40]]))
    np.testing.assert_array_equal(drawn.mask, region.mask)
    assert drawn.hash == region.hash and region.size == (60, 40)
    assert region.hash != JudgedRegion(region.path, region.mask.T).hash != JudgedRegion(region.path, ~region.mask).hash


def test_values_inside_are_selected_at_any_size(region):
    maps = torch.arange(2.0 * 20 * 30).view(2, 20, 30)
    torch.testing.assert_close(region.select(maps), maps[:, :, :15].flatten(1))
    assert region.resized(1, 1).all() and region.resized(2, 2).tolist() == [[True, False]] * 2


def test_a_small_region_does_not_vanish():
    dot = np.zeros((64, 64), bool)
    dot[33, 50] = True
    assert JudgedRegion(None, dot).resized(8, 8).nonzero().tolist() == [[4, 6]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda path: path, "no data.region at"),
        (lambda path: Image.new("L", (6, 4)).save(path), "all black, so nothing is judged"),
        (lambda path: path.write_bytes(b"no picture"), "its content is not a picture"),
    ],
)
def test_what_is_no_region_is_refused(content, message, tmp_path):
    content(tmp_path / "region.png")
    with pytest.raises((ValueError, OSError), match=message):
        read_region(tmp_path / "region.png")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"imageWidth": None}, "does not state the size of its picture"),
        ({"imageWidth": -60}, "does not state the size of its picture"),
        ({"imageWidth": 10**9}, "region.json can't be read: "),
        ({"shapes": []}, "marks no pixel"),
        ({"shapes": [{"shape_type": "line", "points": [[0, 0], [1, 1]]}]}, "a 'line' has no area"),
    ],
)
def test_a_drawing_without_an_area_is_refused(content, message, tmp_path):
    path = labelme(tmp_path / "region.json", [[0, 0], [30, 0], [30, 40]], **content)
    with pytest.raises(ValueError, match=message):
        read_region(path)
    path.write_text(json.dumps({"images": [], "annotations": []}))
    with pytest.raises(ValueError, match="has shapes on 0 pictures"):
        read_region(path)


def test_a_turned_picture_has_its_upright_size(region, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 60)).save(tmp_path / "turned.jpg", exif=exif)
    region.check_file(tmp_path / "turned.jpg")
    Image.new("RGB", (40, 60)).save(tmp_path / "upright.jpg")
    with pytest.raises(ValueError, match=r"region.png is 60×40 pixels, .*upright.jpg is 40×60; draw it on a picture"):
        region.check_file(tmp_path / "upright.jpg")
