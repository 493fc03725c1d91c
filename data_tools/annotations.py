"""Defects drawn in LabelMe, in Label Studio or as COCO, as masks.

LabelMe: polygons, rectangles, circles and masks. COCO: polygons, both run-length encodings, and boxes where there is no segmentation.
Label Studio (its JSON export): rectangles, ellipses and polygons. Every shape is a defect, whatever its label; what has no area
(lines, points, key points) is refused. Coordinates are pixels from the picture's corner: a rectangle from 2 to 5 covers pixels 2, 3 and 4.
"""

import base64
import binascii
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.draw import polygon as pixels_inside
from skimage.draw import polygon_perimeter

from runtime.errors import UserError

Mask = NDArray[np.bool_]
Points = NDArray[np.float64]  # (N, 2): x, y
Size = tuple[int, int]  # width, height
Shape = Callable[[Size], Mask]

CORNERS = 128  # of the polygon that stands for a circle or an ellipse
UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")  # that Label Studio puts before a file's name
FARTHEST = 1e6  # pixels, of a point from the picture's corner
MOST_RUNS = 2**28  # pixels of one run-length encoding
WRONG = (
    KeyError,
    IndexError,
    TypeError,
    ValueError,
    AttributeError,
    OverflowError,
    RecursionError,
    OSError,
    binascii.Error,
)


@dataclass(frozen=True)
class Annotation:
    """What is drawn on one picture: in which file, the picture's path as that tells it, its size where told, and the shapes."""

    file: Path
    picture: PurePosixPath
    size: Size | None
    shapes: tuple[Shape, ...]

    def mask(self, size: Size) -> Mask:
        """(H, W), true within any shape. Raises ValueError where it was drawn on a picture of another size, and where nothing is marked."""
        if self.size not in (None, size):
            raise UserError(
                f"{self.file} has {self.picture} as {self.size[0]}×{self.size[1]} pixels, but it is {size[0]}×{size[1]}; "  # type: ignore[index]
                "draw on the picture itself"
            )
        mask = np.zeros(size[::-1], bool)
        for shape in self.shapes:
            with_name(self.file, lambda shape=shape: np.logical_or(mask, shape(size), out=mask))  # type: ignore[misc]
        if not mask.any():
            raise UserError(f"{self.file} marks no pixel of {self.picture}; draw its defects, or take the picture out")
        return mask


def read_annotations(path: Path) -> list[Annotation]:
    """All pictures that a JSON file has shapes of. Raises ValueError, naming the file, for what can't be read."""
    return with_name(path, lambda: list(annotations_of(path, json.loads(path.read_text(encoding="utf-8-sig")))))


def with_name(path: Path, work: Callable[[], Any]) -> Any:
    """What `work` gives; what it finds wrong is said of the file."""
    try:
        return work()
    except WRONG as error:
        said = f"it lacks {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise UserError(
            f"{path} can't be read as LabelMe, COCO or Label Studio: {said}; export it again, or correct it there"
        ) from error


def annotations_of(path: Path, content: Any) -> Iterator[Annotation]:
    if isinstance(content, dict) and "shapes" in content:
        yield from labelme(path, content)
    elif isinstance(content, dict) and "images" in content and "annotations" in content:
        yield from coco(path, content)
    elif isinstance(content, list) and all(
        isinstance(task, dict) and "data" in task and "annotations" in task for task in content
    ):
        yield from label_studio(path, content)
    else:
        raise UserError(
            "it has neither shapes, nor images and annotations, nor tasks with data and annotations (Label Studio's JSON, not JSON-MIN)"
        )


def labelme(path: Path, content: dict[str, Any]) -> Iterator[Annotation]:
    """The picture is found by the file's own name: imagePath is often that of another machine."""
    size = stated_size(content.get("imageWidth"), content.get("imageHeight"))
    yield Annotation(path, PurePosixPath(path.name), size, tuple(labelme_shape(shape) for shape in content["shapes"]))


def labelme_shape(shape: dict[str, Any]) -> Shape:
    kind = shape.get("shape_type") or "polygon"
    if kind not in ("polygon", "rectangle", "circle", "mask"):
        raise UserError(f"a {kind!r} has no area; draw a polygon in its place")
    points = as_points(shape["points"])
    if kind == "polygon":
        return outline(points)
    if kind == "rectangle":
        return outline(box(*points.min(axis=0), *points.max(axis=0)))
    if kind == "circle":
        radius = float(np.hypot(*(points[1] - points[0])))
        return outline(ellipse(points[0], radius, radius))
    with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as picture:
        return place_mask(np.array(picture.convert("L")) > 0, points[0])


def coco(path: Path, content: dict[str, Any]) -> Iterator[Annotation]:
    shapes: dict[Any, list[Shape]] = {}
    for entry in content["annotations"]:
        shapes.setdefault(entry["image_id"], []).extend(coco_shapes(entry))
    for image in content["images"]:
        if shapes.get(image["id"]):
            size = stated_size(image.get("width"), image.get("height"))
            yield Annotation(
                path, PurePosixPath(image["file_name"].replace("\\", "/")), size, tuple(shapes[image["id"]])
            )


def coco_shapes(entry: dict[str, Any]) -> Iterator[Shape]:
    drawn = entry.get("segmentation")
    if isinstance(drawn, dict):
        height, width = (int(extent) for extent in drawn["size"])
        counts = drawn["counts"]
        yield runs_by_column(
            np.array(packed_counts(counts) if isinstance(counts, str) else counts, np.int64), (width, height)
        )
    elif drawn:
        yield from (outline(as_points(np.reshape(ring, (-1, 2)))) for ring in drawn)
    elif entry.get("keypoints"):
        raise UserError("keypoints have no area; draw a polygon in their place")
    elif entry.get("bbox"):
        left, top, across, down = map(float, entry["bbox"])
        yield outline(box(left, top, left + across, top + down))


def packed_counts(text: str) -> list[int]:
    """COCO's compressed run lengths: five bits to a sign, lowest first, and from the fourth on as differences from the one but last."""
    counts: list[int] = []
    value = shift = 0
    for code in (ord(sign) - 48 for sign in text):
        if not 0 <= code < 64:
            raise UserError("a segmentation's counts are damaged")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return counts


def runs_by_column(counts: NDArray[np.int64], own: Size) -> Shape:
    """Lengths of runs of nothing and of defect, by turns, down one column after the other."""
    width, height = own
    if width * height > MOST_RUNS or counts.min(initial=0) < 0 or int(counts.sum()) != width * height:
        raise UserError(f"a segmentation's counts do not make {width}×{height} pixels")
    values = np.arange(len(counts)) % 2 == 1

    def mask(size: Size) -> Mask:
        if size != own:
            raise UserError(f"a shape was drawn on {width}×{height} pixels, the picture has {size[0]}×{size[1]}")
        return np.repeat(values, counts).reshape(width, height).T

    return mask


def label_studio(path: Path, content: list[dict[str, Any]]) -> Iterator[Annotation]:
    """All annotators' shapes together, without cancelled ones; predictions are not read."""
    for task in content:
        kept = [entry for entry in task["annotations"] if not entry.get("was_cancelled")]
        results = [result for entry in kept for result in entry["result"] if "original_width" in result]
        if results:
            size = stated_size(results[0]["original_width"], results[0]["original_height"])
            told = [value for value in (task["data"].get("image"), *task["data"].values()) if isinstance(value, str)]
            yield Annotation(path, address_path(told[0]), size, tuple(label_studio_shape(result) for result in results))


def label_studio_shape(result: dict[str, Any]) -> Shape:
    """Places are percent of the picture; a rectangle is turned about its corner, an ellipse about its middle."""
    value, size = result["value"], (int(result["original_width"]), int(result["original_height"]))
    percent = np.array(size) / 100
    kind = result["type"].removesuffix("labels")
    if kind == "polygon":
        return outline(as_points(value["points"]) * percent)
    if kind == "rectangle":
        corner = np.array([value["x"], value["y"]], float) * percent
        extent = np.array([value["width"], value["height"]], float) * percent
        return outline(rotate_points(box(*corner, *(corner + extent)), corner, float(value.get("rotation") or 0)))
    if kind == "ellipse":
        middle = np.array([value["x"], value["y"]], float) * percent
        radii = np.array([value["radiusX"], value["radiusY"]], float) * percent
        return outline(rotate_points(ellipse(middle, *radii), middle, float(value.get("rotation") or 0)))
    if kind == "brush":
        raise UserError("a brush label is not read; export masks as PNG, or draw polygons")
    raise UserError(f"a {result['type']!r} has no area that is known here; draw a rectangle, an ellipse or a polygon")


def outline(points: Points) -> Shape:
    """The pixels whose middle lies inside; of one so thin that there are none, those that its line runs through."""
    if len(points) < 3:
        raise UserError(f"a shape of {len(points)} points has no area; draw a polygon in its place")
    columns, rows = points.T - 0.5

    def mask(size: Size) -> Mask:
        drawn = np.zeros(size[::-1], bool)
        drawn[pixels_inside(rows, columns, drawn.shape)] = True
        if not drawn.any():
            drawn[polygon_perimeter(rows.round().astype(int), columns.round().astype(int), drawn.shape, clip=False)] = (
                True
            )
        return drawn

    return mask


def place_mask(part: Mask, corner: Points) -> Shape:
    """A mask of a part of the picture, whose upper left pixel is at `corner`."""
    left, top = (round(float(place)) for place in corner)

    def mask(size: Size) -> Mask:
        drawn = np.zeros(size[::-1], bool)
        if left < 0 or top < 0 or left + part.shape[1] > size[0] or top + part.shape[0] > size[1]:
            raise UserError(f"a mask of {part.shape[1]}×{part.shape[0]} pixels at {left}, {top} leaves the picture")
        drawn[top : top + part.shape[0], left : left + part.shape[1]] = part
        return drawn

    return mask


def box(left: float, top: float, right: float, bottom: float) -> Points:
    return as_points([(left, top), (right, top), (right, bottom), (left, bottom)])


def ellipse(middle: Points, across: float, down: float) -> Points:
    angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    return as_points(middle + np.stack([across * np.cos(angles), down * np.sin(angles)], axis=1))


def rotate_points(points: Points, about: Points, degrees: float) -> Points:
    """Clockwise, as y points down."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return as_points((points - about) @ np.array([[cosine, sine], [-sine, cosine]]) + about)


def as_points(values: Any) -> Points:
    points = np.array(values, np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 2 or not (np.abs(points) < FARTHEST).all():
        raise UserError("a shape's points are not pairs of numbers in or near the picture")
    return points


def stated_size(width: Any, height: Any) -> Size | None:
    return (int(width), int(height)) if width and height else None


def address_path(told: str) -> PurePosixPath:
    """The picture's path in the address that a task has it under; an uploaded file under its own name."""
    address = urlsplit(told.replace("\\", "/"))
    local = parse_qs(address.query).get("d")
    path = PurePosixPath(local[0] if local else unquote(address.path))
    return path.with_name(UPLOAD_PREFIX.sub("", path.name)) if "upload" in path.parts else path
