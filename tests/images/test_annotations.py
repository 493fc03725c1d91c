"""Annotations of three programs become masks, and unusable ones end with an error message that names the file."""

import base64
import io

import numpy as np
import pytest
from annotation_files import SIZE, SQUARE, coco, label_studio, labelme, labelme_shape, write_json
from PIL import Image

from images.annotations import CORNERS, read_annotations


def square_mask():
    mask = np.zeros((30, 40), bool)
    mask[6:20, 5:15] = True
    return mask


def ragged_mask():
    """Return a mask with holes and ragged rows."""
    mask = np.random.default_rng(0).random((30, 40)) < 0.3
    mask[10:20, 10:30] = True
    return mask


def read_one(tmp_path, content, name="x.json"):
    (annotation,) = read_annotations(write_json(tmp_path / name, content))
    return annotation


def run_lengths(mask):
    """Return COCO's run lengths, counted pixel by pixel."""
    runs, value = [0], False
    for pixel in mask.T.ravel():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


def pack_counts(runs):
    """Return COCO's packed run lengths, character by character."""
    text = ""
    for index, run in enumerate(runs):
        rest = run - runs[index - 2] if index > 2 else run
        while True:
            code, rest = rest & 31, rest >> 5
            more = rest != (-1 if code & 16 else 0)
            text += chr(code + 32 * more + 48)
            if not more:
                break
    return text


def test_labelme_polygons_rectangles_and_masks_mark_their_pixels(tmp_path):
    file = io.BytesIO()
    Image.fromarray(ragged_mask()[10:20, 10:30].astype(np.uint8)).save(file, "PNG")
    part = labelme_shape("mask", [[10, 10], [29, 19]], mask=base64.b64encode(file.getvalue()).decode())
    polygon = labelme_shape("polygon", SQUARE)
    for shape in (polygon, labelme_shape("rectangle", [[15, 20], [5, 6]])):
        annotation = read_one(tmp_path, labelme([shape]), "000.json")
        np.testing.assert_array_equal(annotation.mask(SIZE), square_mask())
        assert annotation.picture.stem == "000"
    expected = square_mask()
    expected[10:20, 10:30] |= ragged_mask()[10:20, 10:30]
    np.testing.assert_array_equal(read_one(tmp_path, labelme([polygon, part])).mask(SIZE), expected)


def test_a_labelme_circle_is_round(tmp_path):
    mask = read_one(tmp_path, labelme([labelme_shape("circle", [[20, 15], [20, 25]])])).mask(SIZE)
    rows, columns = np.mgrid[:30, :40] + 0.5
    assert np.count_nonzero(mask ^ (np.hypot(rows - 15, columns - 20) < 10)) <= 4


@pytest.mark.parametrize("pack", [list, pack_counts])
def test_coco_run_lengths_restore_the_mask(pack, tmp_path):
    annotation = read_one(tmp_path, coco({"size": [30, 40], "counts": pack(run_lengths(ragged_mask()))}))
    np.testing.assert_array_equal(annotation.mask(SIZE), ragged_mask())
    assert annotation.picture.as_posix() == "crack/000.png"


def test_packed_counts_of_pycocotools_are_read(tmp_path):
    """pycocotools 2.0.11 wrote them."""
    stripes = np.indices((5, 4)).sum(axis=0) % 3 == 0
    content = coco({"size": [5, 4], "counts": "01201000O10OO"})
    content["images"][0] |= {"width": 4, "height": 5}
    np.testing.assert_array_equal(read_one(tmp_path, content).mask((4, 5)), stripes)


def test_coco_polygons_and_boxes_mark_their_pixels(tmp_path):
    flat = [value for point in SQUARE for value in point]
    for content in (coco([flat]), coco([], bbox=[5, 6, 10, 14])):
        np.testing.assert_array_equal(read_one(tmp_path, content).mask(SIZE), square_mask())


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("rectanglelabels", {"x": 12.5, "y": 20, "width": 25, "height": 14 / 30 * 100, "rotation": 0}),
        ("rectangle", {"x": 12.5, "y": 20, "width": 25, "height": 14 / 30 * 100}),
        ("rectanglelabels", {"x": 37.5, "y": 20, "width": 14 / 40 * 100, "height": 10 / 30 * 100, "rotation": 90}),
        ("polygonlabels", {"points": [[x / 40 * 100, y / 30 * 100] for x, y in SQUARE]}),
    ],
)
def test_label_studio_shapes_are_in_percent(kind, value, tmp_path):
    mask = read_one(tmp_path, label_studio({"type": kind, "value": value})).mask(SIZE)
    np.testing.assert_array_equal(mask, square_mask())


def test_a_label_studio_ellipse_is_an_ellipse(tmp_path):
    value = {"x": 50, "y": 50, "radiusX": 25, "radiusY": 20, "rotation": 0}
    mask = read_one(tmp_path, label_studio({"type": "ellipselabels", "value": value})).mask(SIZE)
    rows, columns = np.mgrid[:30, :40] + 0.5
    assert np.count_nonzero(mask ^ (np.hypot((rows - 15) / 6, (columns - 20) / 10) < 1)) <= CORNERS // 32


RECTANGLE = {"type": "rectanglelabels", "value": {"x": 0, "y": 0, "width": 50, "height": 50}}


@pytest.mark.parametrize(
    "address",
    [
        "/data/upload/1/1a2b3c4d-000.png",
        "/data/local-files/?d=pictures%2F000.png",
        "s3://bucket/a%20b/000.png",
        "https://host/000.png?token=x",
    ],
)
def test_a_task_belongs_to_the_picture_in_its_address(address, tmp_path):
    assert read_one(tmp_path, label_studio(RECTANGLE, image=address)).picture.name == "000.png"


def test_cancelled_annotations_and_choices_are_ignored(tmp_path):
    assert not read_annotations(write_json(tmp_path / "x.json", label_studio(RECTANGLE, was_cancelled=True)))
    tasks = label_studio(RECTANGLE)
    tasks[0]["annotations"][0]["result"].append({"type": "choices", "value": {"choices": ["bad"]}})
    assert len(read_one(tmp_path, tasks).shapes) == 1


def test_a_very_thin_polygon_marks_the_pixels_on_its_outline(tmp_path):
    thin = labelme_shape("polygon", [[2, 10.5], [30, 10.6], [2, 10.6]])
    mask = read_one(tmp_path, labelme([thin])).mask(SIZE)
    assert mask[10, 3:29].all() and mask[:9].sum() == mask[13:].sum() == 0


def test_shapes_are_cut_at_the_picture_border(tmp_path):
    mask = read_one(tmp_path, labelme([labelme_shape("rectangle", [[-10, -10], [5, 400]])])).mask(SIZE)
    assert mask[:, :5].all() and mask.sum() == 5 * 30


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (labelme([labelme_shape("linestrip", SQUARE)]), "a 'linestrip' has no area"),
        (labelme([labelme_shape("point", [[1, 1]])]), "a 'point' has no area"),
        (labelme([labelme_shape("polygon", SQUARE[:2])]), "a shape of 2 points has no area"),
        (labelme([labelme_shape("polygon", [[1, float("nan")], [2, 2], [3, 3]])]), "not pairs of numbers"),
        (labelme([labelme_shape("polygon", [[1, 1e300], [2, 2], [3, 3]])]), "not pairs of numbers"),
        (labelme([labelme_shape("polygon", "abc")]), "can't be read as LabelMe"),
        (labelme([labelme_shape("mask", [[1, 1], [2, 2]], mask="!!!!")]), "can't be read as LabelMe"),
        (labelme([{"label": "x"}]), "it lacks 'points'"),
        (coco({"size": [30, 40], "counts": [5, 5]}), "do not make 40×30 pixels"),
        (coco({"size": [30, 40], "counts": "\x00~"}), "counts are damaged"),
        (coco({"size": [10**6, 10**6], "counts": [10**12]}), "do not make"),
        (label_studio({"type": "keypointlabels", "value": {"x": 1, "y": 1}}), "'keypointlabels' has no known area"),
        (label_studio({"type": "brushlabels", "value": {"format": "rle"}}), "a brush label is not read; export masks"),
        ([{**label_studio({"type": "rectangle"})[0], "data": {}}], "can't be read as LabelMe"),
        ([{"image": "a.png", "label": []}], "not JSON-MIN"),
        ({"a": 1}, "neither shapes, nor images and annotations"),
        (7, "neither shapes"),
    ],
)
def test_an_unusable_annotation_ends_with_an_error_that_names_the_file(content, message, tmp_path):
    with pytest.raises(ValueError, match="x.json") as caught:
        read_one(tmp_path, content).mask(SIZE)
    assert message in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "\xff"])
def test_a_file_that_is_no_json_ends_with_an_error(content, tmp_path):
    (tmp_path / "x.json").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match="x.json can't be read"):
        read_annotations(tmp_path / "x.json")


def test_another_pictures_size_and_empty_masks_are_refused(tmp_path):
    annotation = read_one(tmp_path, labelme([labelme_shape("polygon", SQUARE)], size=(400, 300)))
    with pytest.raises(ValueError, match=r"x.json states 400×300 pixels for x.json, but it has 40×30; draw on the"):
        annotation.mask(SIZE)
    for shapes in ([], [labelme_shape("rectangle", [[100, 100], [200, 200]])]):
        with pytest.raises(ValueError, match="marks no pixel"):
            read_one(tmp_path, labelme(shapes)).mask(SIZE)
