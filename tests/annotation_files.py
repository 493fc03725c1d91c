"""Annotations as LabelMe, COCO and Label Studio export them."""

import json
from pathlib import Path

SIZE = (40, 30)  # width, height
SQUARE = [[5, 6], [15, 6], [15, 20], [5, 20]]


def write_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def labelme(shapes: list, size: tuple[int, int] = SIZE) -> dict:
    paths = {"imagePath": "..\\\\other.jpg", "imageData": None}
    return {"version": "5.4.1", "flags": {}, "shapes": shapes, **paths, "imageHeight": size[1], "imageWidth": size[0]}


def labelme_shape(kind: str, points: object, **more: object) -> dict:
    return {"label": "scratch", "points": points, "group_id": None, "shape_type": kind, "flags": {}, **more}


def coco(segmentation: object, **more: object) -> dict:
    first = {"id": 7, "file_name": "crack/000.png", "width": 40, "height": 30}
    entry = {"id": 1, "image_id": 7, "category_id": 1, "segmentation": segmentation, "iscrowd": 0, **more}
    return {
        "images": [first, {"id": 8, "file_name": "good/1.png"}],
        "annotations": [entry],
        "categories": [{"id": 1, "name": "crack"}],
    }


def label_studio(*results: dict, image: str = "/data/upload/1/1a2b3c4d-000.png", **more: object) -> list:
    common = {"original_width": 40, "original_height": 30, "from_name": "label", "to_name": "image"}
    entry = {"id": 1, "was_cancelled": False, "result": [{**common, **result} for result in results], **more}
    return [{"id": 1, "data": {"image": image}, "annotations": [entry], "predictions": []}]
