"""Read what is drawn in LabelMe, in Label Studio or as COCO, and turn it into masks of defects or of regions.

Every shape counts, whatever its label; lines, points and keypoints are refused, as they have no area.
Coordinates count pixels from the picture's corner: a rectangle from 2 to 5 covers pixels 2, 3 and 4.
"""

import base64
import binascii
import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from runtime.errors import UserError

Mask = NDArray[np.bool_]  # (H, W)
Points = NDArray[np.float64]  # (N, 2): x, y
Size = tuple[int, int]  # width, height
Shape = Callable[[Mask], None]  # draws itself into a mask
Json = dict[str, Any]  # an object whose content is not checked yet

CORNERS = 128  # of the polygon that stands for a circle or an ellipse
UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")  # Label Studio puts it before the name of an uploaded file
FARTHEST = 1e6  # pixels; largest distance of a point from the picture's corner
MOST_PIXELS = 2**28  # of one run-length encoding
MALFORMED = (  # what reading raises on unexpected content
    *(KeyError, IndexError, TypeError, ValueError, AttributeError),
    *(OverflowError, RecursionError, OSError, binascii.Error),
)


class Annotation(NamedTuple):
    """The annotation of one picture: its file, the picture's path and size as the file states them, and the shapes."""

    file: Path
    picture: PurePosixPath
    size: Size | None
    shapes: tuple[Shape, ...]

    def mask(self, size: Size) -> Mask:
        """Return the union of the shapes. Raise UserError for a picture of another size and for an empty mask."""
        if self.size and self.size != size:
            stated, own = (f"{width}×{height}" for width, height in (self.size, size))
            sizes = f"states {stated} pixels for {self.picture}, but it has {own}"
            raise UserError(f"{self.file} {sizes}; draw on the picture itself")
        mask = np.zeros(size[::-1], bool)
        with report_malformed(self.file):
            for shape in self.shapes:
                shape(mask)
        if not mask.any():
            raise UserError(f"{self.file} marks no pixel of {self.picture}; draw on the picture, or remove it")
        return mask


def read_annotations(path: Path) -> list[Annotation]:
    """Return an annotation for each picture of a JSON file. Raise UserError where it can't be read."""
    with report_malformed(path):
        return list(parse_annotations(path, json.loads(path.read_text("utf-8-sig"))))


@contextmanager
def report_malformed(path: Path) -> Iterator[None]:
    """Raise UserError with the file's name for malformed content."""
    try:
        yield
    except MALFORMED as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        message = f"{path} can't be read as LabelMe, COCO or Label Studio: {reason}"
        raise UserError(f"{message}; export it again, or correct it there") from error


def parse_annotations(path: Path, content: object) -> Iterator[Annotation]:
    if isinstance(content, dict) and "shapes" in content:  # LabelMe; its imagePath is often a path on another computer
        size = stated_size(content.get("imageWidth"), content.get("imageHeight"))
        yield Annotation(path, PurePosixPath(path.name), size, tuple(map(labelme_shape, content["shapes"])))
    elif isinstance(content, dict) and {"images", "annotations"} <= content.keys():
        yield from parse_coco(path, content)
    elif isinstance(content, list) and all(
        isinstance(task, dict) and {"data", "annotations"} <= task.keys() for task in content
    ):
        yield from parse_label_studio(path, content)
    else:
        parts = "shapes, nor images and annotations, nor tasks with data and annotations"
        raise UserError(f"it has neither {parts} (Label Studio's JSON, not JSON-MIN)")


def labelme_shape(shape: Json) -> Shape:
    kind = shape.get("shape_type") or "polygon"
    if kind not in ("polygon", "rectangle", "circle", "mask"):
        raise UserError(f"a {kind!r} has no area; draw a polygon instead")
    points = as_points(shape["points"])
    if kind == "polygon":
        return polygon(points)
    if kind == "rectangle":
        return polygon(box(*points.min(axis=0), *points.max(axis=0)))
    if kind == "circle":
        radius = float(np.hypot(*(points[1] - points[0])))
        return polygon(ellipse(points[0], radius, radius))
    with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as picture:
        return partial_mask(np.array(picture.convert("L")) > 0, points[0])


def parse_coco(path: Path, content: Json) -> Iterator[Annotation]:
    shapes: dict[object, list[Shape]] = {}
    for entry in content["annotations"]:
        shapes.setdefault(entry["image_id"], []).extend(coco_shapes(entry))
    for image in content["images"]:
        if shapes.get(image["id"]):
            size = stated_size(image.get("width"), image.get("height"))
            picture = PurePosixPath(image["file_name"].replace("\\", "/"))
            yield Annotation(path, picture, size, tuple(shapes[image["id"]]))


def coco_shapes(entry: Json) -> Iterator[Shape]:
    segmentation = entry.get("segmentation")
    if isinstance(segmentation, dict):
        height, width = map(int, segmentation["size"])
        counts = segmentation["counts"]
        runs = np.array(unpack_counts(counts) if isinstance(counts, str) else counts, np.int64)
        yield run_length_mask(runs, (width, height))
    elif segmentation:
        yield from (polygon(as_points(np.reshape(ring, (-1, 2)))) for ring in segmentation)
    elif entry.get("keypoints"):
        raise UserError("keypoints have no area; draw a polygon instead")
    elif entry.get("bbox"):
        left, top, across, down = map(float, entry["bbox"])
        yield polygon(box(left, top, left + across, top + down))


def unpack_counts(text: str) -> list[int]:
    """Return the run lengths that COCO packs into text; a character holds five bits, the lowest first."""
    counts: list[int] = []
    value = shift = 0
    for code in (ord(character) - 48 for character in text):
        if not 0 <= code < 64:
            raise UserError("a segmentation's counts are damaged")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))  # the fourth and later ones are differences
        value = shift = 0
    return counts


def run_length_mask(runs: NDArray[np.int64], own_size: Size) -> Shape:
    """Return a mask from the lengths of its normal and defective runs, in turn, column by column."""
    width, height = own_size
    if width * height > MOST_PIXELS or runs.min(initial=0) < 0 or int(runs.sum()) != width * height:
        raise UserError(f"a segmentation's counts do not make {width}×{height} pixels")
    values = np.arange(len(runs)) % 2 == 1

    def draw(mask: Mask) -> None:
        if mask.shape != (height, width):
            own = f"{mask.shape[1]}×{mask.shape[0]}"
            raise UserError(f"a shape was drawn on {width}×{height} pixels, the picture has {own}")
        mask |= np.repeat(values, runs).reshape(width, height).T

    return draw


def parse_label_studio(path: Path, content: list[Json]) -> Iterator[Annotation]:
    """Yield the shapes of all annotators, without cancelled annotations and predictions."""
    for task in content:
        entries = [entry for entry in task["annotations"] if not entry.get("was_cancelled")]
        results = [result for entry in entries for result in entry["result"] if "original_width" in result]
        if results:
            size = stated_size(results[0]["original_width"], results[0]["original_height"])
            values = (task["data"].get("image"), *task["data"].values())
            address, *_ = (value for value in values if isinstance(value, str))
            yield Annotation(path, path_in_address(address), size, tuple(map(label_studio_shape, results)))


def label_studio_shape(result: Json) -> Shape:
    """Return a shape given in percent; a rectangle is rotated about its corner, an ellipse about its centre."""
    value = result["value"]
    percent = np.array((int(result["original_width"]), int(result["original_height"]))) / 100
    kind = result["type"].removesuffix("labels")
    if kind == "polygon":
        return polygon(as_points(value["points"]) * percent)
    if kind == "brush":
        raise UserError("a brush label is not read; export masks as PNG, or draw polygons")
    if kind not in ("rectangle", "ellipse"):
        raise UserError(f"a {result['type']!r} has no known area; draw a rectangle, an ellipse or a polygon")
    centre = np.array([value["x"], value["y"]], float) * percent
    extent_keys = ("width", "height") if kind == "rectangle" else ("radiusX", "radiusY")
    extent = np.array([value[key] for key in extent_keys], float) * percent
    points = box(*centre, *(centre + extent)) if kind == "rectangle" else ellipse(centre, *extent)
    return polygon(rotate(points, centre, float(value.get("rotation") or 0)))


def path_in_address(text: str) -> PurePosixPath:
    """Return the path of the picture in the address of a Label Studio task, without the prefix of an upload."""
    address = urlsplit(text.replace("\\", "/"))
    local = parse_qs(address.query).get("d")
    path = PurePosixPath(local[0] if local else unquote(address.path))
    return path.with_name(UPLOAD_PREFIX.sub("", path.name)) if "upload" in path.parts else path


def polygon(points: Points) -> Shape:
    """Return the pixels whose centres lie inside or, where there are none, those on the outline."""
    from skimage.draw import polygon as pixels_inside  # slow to load, and few need it
    from skimage.draw import polygon_perimeter

    if len(points) < 3:
        raise UserError(f"a shape of {len(points)} points has no area; draw a polygon instead")
    columns, rows = points.T - 0.5

    def draw(mask: Mask) -> None:
        pixels = pixels_inside(rows, columns, mask.shape)
        if len(pixels[0]) == 0:
            outline = (rows.round().astype(int), columns.round().astype(int))
            pixels = polygon_perimeter(*outline, mask.shape, clip=False)
        mask[pixels] = True

    return draw


def partial_mask(part: Mask, corner: Points) -> Shape:
    """Return a mask of a part of the picture whose upper left pixel is at `corner`."""
    left, top = (round(float(coordinate)) for coordinate in corner)
    height, width = part.shape

    def draw(mask: Mask) -> None:
        if left < 0 or top < 0 or left + width > mask.shape[1] or top + height > mask.shape[0]:
            raise UserError(f"a mask of {width}×{height} pixels at {left}, {top} leaves the picture")
        mask[top : top + height, left : left + width] |= part

    return draw


def box(left: float, top: float, right: float, bottom: float) -> Points:
    return as_points([(left, top), (right, top), (right, bottom), (left, bottom)])


def ellipse(centre: Points, radius_x: float, radius_y: float) -> Points:
    angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    return as_points(centre + np.stack([radius_x * np.cos(angles), radius_y * np.sin(angles)], axis=1))


def rotate(points: Points, about: Points, degrees: float) -> Points:
    """Return the points rotated clockwise, because y points down."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return as_points((points - about) @ np.array([[cosine, sine], [-sine, cosine]]) + about)


def as_points(values: ArrayLike) -> Points:
    points = np.array(values, np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 2 or not (np.abs(points) < FARTHEST).all():
        raise UserError("a shape's points are not pairs of numbers in or near the picture")
    return points


def stated_size(width: float | str | None, height: float | str | None) -> Size | None:
    return (int(width), int(height)) if width and height else None
