import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from data_tools.annotations import CORNERS, read_annotations

SIZE = (40, 30)  # width, height
SQUARE = [[5, 6], [15, 6], [15, 20], [5, 20]]


def square():
    mask = np.zeros((30, 40), bool)
    mask[6:20, 5:15] = True
    return mask


def blot():
    """A form with holes and ragged rows, by a seed."""
    mask = np.random.default_rng(0).random((30, 40)) < 0.3
    mask[10:20, 10:30] = True
    return mask


def written(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def only(path):
    (annotation,) = read_annotations(path)
    return annotation


def labelme(shapes, size=SIZE):
    width, height = size
    return {
        "version": "5.4.1",
        "flags": {},
        "shapes": shapes,
        "imagePath": "..\\\\other.jpg",
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def labelme_shape(kind, points, **more):
    return {"label": "scratch", "points": points, "group_id": None, "shape_type": kind, "flags": {}, **more}


def coco(segmentation, **more):
    return {
        "images": [
            {"id": 7, "file_name": "crack/000.png", "width": 40, "height": 30},
            {"id": 8, "file_name": "good/1.png"},
        ],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 1, "segmentation": segmentation, "iscrowd": 0, **more}],
        "categories": [{"id": 1, "name": "crack"}],
    }


def studio(*results, image="/data/upload/1/1a2b3c4d-000.png", **more):
    results = [
        {"original_width": 40, "original_height": 30, "from_name": "label", "to_name": "image", **result}
        for result in results
    ]
    return [
        {
            "id": 1,
            "data": {"image": image},
            "annotations": [{"id": 1, "was_cancelled": False, "result": results, **more}],
            "predictions": [],
        }
    ]


def column_runs(mask):
    """COCO's run lengths, run by run."""
    runs, value = [0], False
    for pixel in mask.T.ravel():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


def packed(runs):
    """COCO's compression of run lengths, sign by sign."""
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
    Image.fromarray(blot()[10:20, 10:30].astype(np.uint8)).save(file, "PNG")
    inner = labelme_shape("mask", [[10, 10], [29, 19]], mask=base64.b64encode(file.getvalue()).decode())
    for shape in (labelme_shape("polygon", SQUARE), labelme_shape("rectangle", [[15, 20], [5, 6]])):
        annotation = only(written(tmp_path / "000.json", labelme([shape])))
        np.testing.assert_array_equal(annotation.mask(SIZE), square())
        assert annotation.picture.stem == "000"
    both = only(written(tmp_path / "000.json", labelme([labelme_shape("polygon", SQUARE), inner]))).mask(SIZE)
    wanted = square()
    wanted[10:20, 10:30] |= blot()[10:20, 10:30]
    np.testing.assert_array_equal(both, wanted)


def test_a_labelme_circle_is_round(tmp_path):
    mask = only(written(tmp_path / "a.json", labelme([labelme_shape("circle", [[20, 15], [20, 25]])]))).mask(SIZE)
    rows, columns = np.mgrid[:30, :40] + 0.5
    assert np.count_nonzero(mask ^ (np.hypot(rows - 15, columns - 20) < 10)) <= 4


@pytest.mark.parametrize("compressed", [False, True])
def test_coco_run_lengths_give_the_mask_back(compressed, tmp_path):
    runs = column_runs(blot())
    annotation = only(
        written(tmp_path / "coco.json", coco({"size": [30, 40], "counts": packed(runs) if compressed else runs}))
    )
    np.testing.assert_array_equal(annotation.mask(SIZE), blot())
    assert annotation.picture.as_posix() == "crack/000.png"


def test_encodings_of_other_programs_are_read(tmp_path):
    """As pycocotools 2.0.11 wrote them."""
    stripes = np.indices((5, 4)).sum(axis=0) % 3 == 0
    content = coco({"size": [5, 4], "counts": "01201000O10OO"})
    content["images"][0] |= {"width": 4, "height": 5}
    np.testing.assert_array_equal(only(written(tmp_path / "coco.json", content)).mask((4, 5)), stripes)


def test_coco_polygons_and_boxes(tmp_path):
    flat = [value for point in SQUARE for value in point]
    for content in (coco([flat]), coco([], bbox=[5, 6, 10, 14])):
        np.testing.assert_array_equal(only(written(tmp_path / "coco.json", content)).mask(SIZE), square())


def test_label_studio_shapes_are_in_percent(tmp_path):
    percent = {"x": 12.5, "y": 20, "width": 25, "height": 14 / 30 * 100}
    polygon = {"points": [[x / 40 * 100, y / 30 * 100] for x, y in SQUARE]}
    for kind, value in (
        ("rectanglelabels", {**percent, "rotation": 0}),
        ("polygonlabels", polygon),
        ("rectangle", percent),
    ):
        np.testing.assert_array_equal(
            only(written(tmp_path / "x.json", studio({"type": kind, "value": value}))).mask(SIZE), square()
        )
    turned = {
        "type": "rectanglelabels",
        "value": {"x": 37.5, "y": 20, "width": 14 / 40 * 100, "height": 10 / 30 * 100, "rotation": 90},
    }
    np.testing.assert_array_equal(only(written(tmp_path / "x.json", studio(turned))).mask(SIZE), square())
    ellipse = {"type": "ellipselabels", "value": {"x": 50, "y": 50, "radiusX": 25, "radiusY": 20, "rotation": 0}}
    mask = only(written(tmp_path / "x.json", studio(ellipse))).mask(SIZE)
    rows, columns = np.mgrid[:30, :40] + 0.5
    assert np.count_nonzero(mask ^ (np.hypot((rows - 15) / 6, (columns - 20) / 10) < 1)) <= CORNERS // 32


@pytest.mark.parametrize(
    "image",
    [
        "/data/upload/1/1a2b3c4d-000.png",
        "/data/local-files/?d=pictures%2F000.png",
        "s3://bucket/a%20b/000.png",
        "https://host/000.png?token=x",
    ],
)
def test_a_task_is_found_by_its_pictures_name(image, tmp_path):
    result = {"type": "rectanglelabels", "value": {"x": 0, "y": 0, "width": 50, "height": 50}}
    assert only(written(tmp_path / "x.json", studio(result, image=image))).picture.name == "000.png"


def test_what_was_cancelled_or_is_no_shape_is_passed_over(tmp_path):
    result = {"type": "rectanglelabels", "value": {"x": 0, "y": 0, "width": 50, "height": 50}}
    assert not read_annotations(written(tmp_path / "x.json", studio(result, was_cancelled=True)))
    tasks = studio(result)
    tasks[0]["annotations"][0]["result"].append({"type": "choices", "value": {"choices": ["bad"]}})
    assert len(only(written(tmp_path / "x.json", tasks)).shapes) == 1


def test_a_hairline_is_marked_where_it_runs(tmp_path):
    mask = only(
        written(tmp_path / "a.json", labelme([labelme_shape("polygon", [[2, 10.5], [30, 10.6], [2, 10.6]])]))
    ).mask(SIZE)
    assert mask[10, 3:29].all() and mask[:9].sum() == mask[13:].sum() == 0


def test_shapes_that_reach_beyond_the_picture_are_cut(tmp_path):
    mask = only(written(tmp_path / "a.json", labelme([labelme_shape("rectangle", [[-10, -10], [5, 400]])]))).mask(SIZE)
    assert mask[:, :5].all() and mask.sum() == 5 * 30


@pytest.mark.parametrize(
    ("content", "said"),
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
        (studio({"type": "keypointlabels", "value": {"x": 1, "y": 1}}), "'keypointlabels' has no area"),
        (
            studio({"type": "brushlabels", "value": {"format": "rle", "rle": [0, 0, 0, 80]}}),
            "a brush label is not read; export masks as PNG, or draw polygons",
        ),
        ([{**studio({"type": "rectangle"})[0], "data": {}}], "can't be read as LabelMe"),
        ([{"image": "a.png", "label": []}], "not JSON-MIN"),
        ({"a": 1}, "neither shapes, nor images and annotations"),
        (7, "neither shapes"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_file(content, said, tmp_path):
    path = written(tmp_path / "x.json", content)
    with pytest.raises(ValueError, match="x.json") as caught:
        only(path).mask(SIZE)
    assert said in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "\xff"])
def test_what_is_no_json_is_said(content, tmp_path):
    (tmp_path / "x.json").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match="x.json can't be read"):
        read_annotations(tmp_path / "x.json")


def test_another_pictures_size_and_empty_masks_are_refused(tmp_path):
    annotation = only(written(tmp_path / "x.json", labelme([labelme_shape("polygon", SQUARE)], size=(400, 300))))
    with pytest.raises(
        ValueError, match=r"x.json has x.json as 400×300 pixels, but it is 40×30; draw on the picture itself"
    ):
        annotation.mask(SIZE)
    for shapes in ([], [labelme_shape("rectangle", [[100, 100], [200, 200]])]):
        with pytest.raises(ValueError, match="marks no pixel"):
            only(written(tmp_path / "x.json", labelme(shapes))).mask(SIZE)
