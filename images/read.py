"""One picture or one mask, whatever its format and mode: upright, 8 bit, grey or colour.

What Pillow reads is read by Pillow, other TIFF files (deep colour, floating-point numbers of 16 and 64 bits) by tifffile.
"""

import math
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from images.bit_depth import (
    BITS,
    GREY_TYPES,
    ORIENTATION,
    STRIP,
    WHITE_IS_ZERO,
    WHITES,
    UnusableError,
    beyond_sixteen_bits,
    eight_bit,
    image_of,
    say_once,
    tags_of,
    unusable,
)
from runtime.errors import MissingFileError, UserError, UserFileError

TIFF = {".tif", ".tiff"}
JPEG = {".jpg", ".jpeg", ".jpe", ".jfif"}
PLAIN = {".pbm", ".pgm", ".ppm", ".pnm", ".pfm"}
SUFFIXES = {".png", ".bmp", ".webp", ".gif", ".tga", ".jp2", ".j2k", ".avif", *JPEG, *TIFF, *PLAIN}
LARGEST_LABEL = 127  # masks with no value above it hold labels 0…n, of which any but 0 is a defect

MOST_PIXELS = 20_000**2  # more are refused: a file of kilobytes can claim any number
LARGE = 178_956_970  # pixels that Pillow opens by itself; above, one is read at a time, and reduced by whole numbers before it is resized
KEPT = 4  # times the pixels that it is shown with are left of each side by that

PLANES, APART = 284, 2  # a TIFF tag and its value for colours one after the other
INKS = 5  # a value of PHOTOMETRIC

OPENING, READING = threading.Lock(), threading.Lock()

UNREADABLE = (  # what Pillow and tifffile raise on a file that is spoilt or no picture
    *(UnidentifiedImageError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, tifffile.TiffFileError),
    *(
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        AssertionError,
        RuntimeError,
        Image.DecompressionBombError,
    ),
)

Size = tuple[int, int]


def read_picture(path: Path, channels: int = 3) -> Image.Image:
    """The picture upright, as RGB or (channels = 1) grey, 8 bit."""
    picture = open_upright(path)
    return read_named(path, lambda: to_channels(picture, channels))


def read_shown(path: Path, channels: int, shown: Callable[[int, int], Size]) -> tuple[Image.Image, Size]:
    """`read_picture` for what is to be resized to `shown(width, height)`, and its own (width, height): a large one comes reduced."""
    seen = read_header(path)
    with READING if seen and math.prod(seen[0]) > LARGE else nullcontext():
        picture = open_upright(path)
        return read_named(
            path, lambda: reduced(picture, reduction(picture.size, shown(*picture.size)), channels)
        ), picture.size


def as_image(picture: object, channels: int = 3) -> Image.Image:
    """A picture given as a path, a PIL image or an array, as `read_picture` gives it. Raises ValueError for anything else."""
    if isinstance(picture, (str, Path)):
        return read_picture(Path(picture), channels)
    if isinstance(picture, Image.Image):
        return to_channels(picture, channels)
    if not isinstance(picture, np.ndarray):
        raise UserError(f"{type(picture).__name__} is not a picture; give a path, a PIL image or an array")
    shaped = picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] in (3, 4) and picture.dtype != np.bool_)
    if not (shaped and (picture.dtype in GREY_TYPES or np.issubdtype(picture.dtype, np.floating))) or picture.size == 0:
        raise UserError(
            f"an array {picture.shape} of {picture.dtype} is not a picture; give (H, W) or (H, W, 3 or 4) of 8 or 16 bits, or of 0…1 as floats"
        )
    return to_channels(image_of(picture), channels)


def to_channels(picture: Image.Image, channels: int = 3) -> Image.Image:
    """Upright as its EXIF says, RGB or (channels = 1) grey, 8 bit; deeper values are scaled, transparency is put on white.

    Raises ValueError for values beyond 16 bits, and where there are no pixels.
    """
    if 0 in picture.size:
        raise unusable("it has no pixels", "replace or remove it")
    picture = ImageOps.exif_transpose(eight_bit(picture))
    return on_background(picture, "white").convert("L" if channels == 1 else "RGB")


def reduction(own: Size, shown: Size) -> Size:
    """By which whole numbers a picture's sides are divided before it is resized: (1, 1) for all but large ones, whose result is exact."""
    if math.prod(own) <= LARGE:
        return 1, 1
    across, down = (max(1, side // (KEPT * target)) for side, target in zip(own, shown, strict=True))
    return across, down


def reduced(picture: Image.Image, factors: Size, channels: int) -> Image.Image:
    """`standardised(picture, channels).reduce(factors)`, with no second copy of the picture's size in memory."""
    if factors == (1, 1):
        return to_channels(picture, channels)
    picture = eight_bit(picture)
    rows = max(1, STRIP // factors[1]) * factors[1]
    parts = [
        to_channels(picture.crop((0, top, picture.width, min(top + rows, picture.height))), channels).reduce(factors)
        for top in range(0, picture.height, rows)
    ]
    whole = Image.new(parts[0].mode, (parts[0].width, sum(part.height for part in parts)))
    for number, part in enumerate(parts):
        whole.paste(part, (0, number * rows // factors[1]))
    return whole


def on_background(picture: Image.Image, colour: str) -> Image.Image:
    if not picture.has_transparency_data:
        return picture
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, colour), picture)


def open_upright(path: Path) -> Image.Image:
    """The picture as it is stored, turned as its EXIF says; of several frames or pages the first. Raises ValueError, FileNotFoundError."""
    with reading_errors(path):
        with open_picture(path) as picture:
            if (
                getattr(picture, "is_animated", False) and picture.format != "MPO"
            ):  # phones hide a second picture behind a JPEG
                say_once(
                    f"{path.suffix.lower()} files of several {'pages' if path.suffix.lower() in TIFF else 'frames'}: the first one is taken"
                )
            picture.load()
        ImageOps.exif_transpose(picture, in_place=True)
    return picture


def read_header(path: Path) -> tuple[Size, str] | None:
    """(width, height) before it is turned, and Pillow's mode; None for a file that Pillow can't read."""
    try:
        with unlimited_open(path) as picture:
            return picture.size, picture.mode
    except (*UNREADABLE, OSError):
        return None


@contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """The picture with its header read, or all of it where Pillow can't hold it. Raises ValueError for more than MOST_PIXELS."""
    try:
        picture: Image.Image = unlimited_open(path)
        if tags_of(picture).get(PLANES) == APART and tags_of(picture).get(BITS, (8,))[0] > 8:  # which Pillow gets wrong
            picture = first_page(path)
    except UnidentifiedImageError:
        if path.suffix.lower() not in TIFF or path.stat().st_size == 0:
            raise
        picture = first_page(path)
    with picture:
        check_pixels(picture.size)
        yield picture


def unlimited_open(path: Path) -> Image.Image:
    """Pillow's own check, which is one for the whole process, warns of pictures that are read here; `check_pixels` follows at once."""
    with OPENING:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(path)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def check_pixels(size: Size) -> None:
    if math.prod(size) > MOST_PIXELS:
        raise unusable(
            f"its {size[0]:,}×{size[1]:,} pixels are more than the {MOST_PIXELS:,} that are read", "make it smaller"
        )


def first_page(path: Path) -> Image.Image:
    """The first page of a TIFF file that Pillow can't hold, as 8 bits. Raises ValueError for what is neither grey nor colour."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        if len(file.pages) > 1:
            say_once(f"{path.suffix.lower()} files of several pages: the first one is taken")
        axes = "".join(axis for axis, length in zip(page.axes, page.shape, strict=True) if length > 1 or axis in "YX")
        if axes not in ("YX", "YXS", "SYX") or page.samplesperpixel > 4 or page.dtype is None:
            raise unusable(f"its pixels have {page.samplesperpixel} values", "save it as grey or colour")
        check_pixels((page.imagewidth, page.imagelength))
        values = page.asarray().reshape(
            [length for length, axis in zip(page.shape, page.axes, strict=True) if length > 1 or axis in "YX"]
        )
        inverted, inks, orientation = (
            page.photometric == WHITE_IS_ZERO,
            page.photometric == INKS,
            page.tags.get(ORIENTATION),
        )
    values = np.moveaxis(values, 0, 2) if axes == "SYX" else values
    if values.dtype.kind in "iu" and values.dtype.itemsize > 1:
        if values.min() < 0 or values.max() > WHITES[-1]:
            raise beyond_sixteen_bits(values.min(), values.max())
        values = values.astype(np.uint16)
    elif values.dtype == np.int8:
        values = values.view(np.uint8)  # as Pillow reads grey of that kind
    picture = image_of(values)
    if inverted:
        picture = ImageOps.invert(picture.convert("L"))
    if inks:
        picture = Image.frombytes("CMYK", picture.size, picture.tobytes())
    if orientation is not None:
        picture.getexif()[ORIENTATION] = int(orientation.value)
    return picture


@contextmanager
def reading_errors(path: Path) -> Iterator[None]:
    """Errors of Pillow and tifffile as one that names the file and the remedy."""
    try:
        yield
    except FileNotFoundError:
        raise MissingFileError(f"no picture at {path}") from None
    except PermissionError:
        raise UserFileError(f"no permission to read {path}; change it and run again") from None
    except UnusableError as error:
        raise of_file(path, error) from None
    except (*UNREADABLE, OSError) as error:
        if "imagecodecs" in str(error):  # which tifffile asks for, but for deflate
            raise of_file(path, unusable("its compression is not known here", "save it uncompressed")) from error
        reason = (
            "it is empty"
            if path.stat().st_size == 0
            else "it is cut short"
            if "truncated" in str(error)
            else "its content is not a picture"
        )
        raise of_file(path, unusable(reason, "replace or remove it")) from error


def read_named(path: Path, read: Callable[[], Image.Image]) -> Image.Image:
    """Return what `read` gives. Raise its ValueError, of a picture's content, with the file's name."""
    try:
        return read()
    except ValueError as error:
        raise of_file(path, error) from error


def of_file(path: Path, error: ValueError) -> UnusableError:
    """Return the error with the file's name in its message."""
    return UnusableError(
        f"{path} can't be read: {error}", error.reason if isinstance(error, UnusableError) else str(error)
    )


def read_mask(path: Path, picture_size: Size, picture_path: Path, size: int) -> NDArray[np.bool_]:
    """(size, size), true where defective; binary after the resize, not before."""
    values, labels = mask_values(path)
    if values.shape[::-1] != picture_size:
        raise UserError(
            f"mask {path} is {values.shape[1]}×{values.shape[0]}, its picture {picture_path} {picture_size[0]}×{picture_size[1]}; "
            "make them the same, or set data.mask=False"
        )
    resized = Image.fromarray(mask_levels(values, labels)).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized) > LARGEST_LABEL


def defective(path: Path) -> NDArray[np.bool_]:
    """(H, W) of a mask file, in its own size."""
    return mask_levels(*mask_values(path)) > LARGEST_LABEL


def mask_levels(values: NDArray[Any], labels: bool) -> NDArray[np.uint8]:
    """(H, W), above LARGEST_LABEL where defective: grey as it stands, labels 0…n as 0 and 255."""
    grey = values if not labels and values.max(initial=0) > LARGEST_LABEL else np.where(values > 0, 255, 0)
    return grey.astype(np.uint8)


def mask_values(path: Path) -> tuple[NDArray[Any], bool]:
    """(H, W), and whether they are labels as they stand, of which any but 0 is a defect: palette indices and deep values are."""
    mask = open_upright(path)
    mask = eight_bit(mask) if mask.mode == "F" else mask
    labels = mask.mode == "P" or mask.mode.startswith("I")
    return np.asarray(mask if labels else on_background(mask, "black").convert("L")), labels
