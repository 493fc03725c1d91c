"""Read pictures and masks of any format as upright 8-bit grey or colour. tifffile reads TIFFs that Pillow cannot."""

import math
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from images import bit_depth
from images.bit_depth import DEEPEST, UnusableError, check_depth, image_from_array, print_once, tiff_tag, to_eight_bit
from runtime.errors import MissingFileError, UserError, UserFileError

Size = tuple[int, int]  # (width, height)
TIFF = {".tif", ".tiff"}
JPEG = {".jpg", ".jpeg", ".jpe", ".jfif"}
NETPBM = {".pbm", ".pgm", ".ppm", ".pnm", ".pfm"}
SUFFIXES = {".png", ".bmp", ".webp", ".gif", ".tga", ".jp2", ".j2k", ".avif", *JPEG, *TIFF, *NETPBM}
COVERED = 0.5  # of a picture; masks that cover more of most pictures may be inverted
RGB, BGR = ORDERS = ("rgb", "bgr")  # of the colours in an array
CHANNELS = (1, 3, 4)  # grey; colour; colour and transparency
LARGEST_LABEL = 127  # a mask without a value above it holds labels 0…n, of which all but 0 are defects
MOST_PIXELS = 20_000**2  # larger pictures are refused: a file of kilobytes can claim any number of pixels
LARGE = 178_956_970  # pixels (Pillow's own limit); larger pictures are read one at a time and reduced in strips
REDUCED = 4  # times the final side; a large picture is reduced by whole numbers to this, then resized
LYING = (5, 6, 7, 8)  # values of ORIENTATION that change width and height
PLANAR, SEPARATE = 284, 2  # a TIFF tag, and its value for colours in separate planes
INKS = 5  # the value of PHOTOMETRIC for CMYK
OPENING, READING = threading.Lock(), threading.Lock()
UNREADABLE = (  # what Pillow and tifffile raise on a damaged file
    *(OSError, EOFError, SyntaxError, ValueError, struct.error, zlib.error, Image.DecompressionBombError),
    *(LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, RuntimeError, tifffile.TiffFileError),
)


def read_picture(path: Path, channels: int = 3, bits: int = DEEPEST) -> Image.Image:
    """Return a picture upright, 8 bit, as RGB or (channels = 1) grey; `bits` are in use in files of 16."""
    picture = open_upright(path, bits)
    with naming_file(path):
        return to_channels(picture, channels, bits)


def read_reduced(
    path: Path, channels: int, target: Callable[[int, int], Size], bits: int = DEEPEST
) -> tuple[Image.Image, Size]:
    """Return a picture for a resize to `target(width, height)`, reduced if it is large, and its original size."""
    header = read_header(path)
    with READING if header and math.prod(header[0]) > LARGE else nullcontext():
        picture = open_upright(path, bits)
        with naming_file(path):
            factors = reduction_factors(picture.size, target(*picture.size))
            return reduce_picture(picture, factors, channels, bits), picture.size


def as_image(picture: object, channels: int = 3, bits: int = DEEPEST, *, order: str = RGB) -> Image.Image:
    """Return a path, a PIL image, an array or a tensor as `read_picture` does; `order` is that of an array's colours.

    Raise UserError for anything else.
    """
    if order not in ORDERS:
        raise UserError(f"channels is {order!r}; it should be {' or '.join(ORDERS)}")
    if isinstance(picture, (np.ndarray, Tensor)):
        return to_channels(image_from_array(as_pixels(picture, order), bits), channels, bits)
    if not isinstance(picture, (str, Path, Image.Image)):
        raise UserError(f"{type(picture).__name__} is not a picture; give a path, a PIL image, an array or a tensor")
    if order != RGB:
        raise UserError(f"channels={order!r} is for arrays and tensors; leave it out for {type(picture).__name__}")
    if isinstance(picture, (str, Path)):
        return read_picture(Path(picture), channels, bits)
    if picture.getexif().get(bit_depth.ORIENTATION, 1) != 1:
        print_once("the EXIF data of a picture in memory turn it: maps, masks and boxes fit the turned picture")
    return to_channels(picture, channels, bits)


def as_pixels(picture: NDArray | Tensor, order: str) -> NDArray:
    """Return an array or tensor as (H, W) or (H, W, 3 or 4), red first. Raise UserError where it is not a picture."""
    if isinstance(picture, Tensor):
        tensor = picture.detach().cpu()
        values = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    else:
        values = picture
    described = f"{'a tensor' if isinstance(picture, Tensor) else 'an array'} {values.shape} of {values.dtype}"
    first, last = (values.shape[0] in CHANNELS, values.shape[2] in CHANNELS) if values.ndim == 3 else (False, False)
    if first and last:
        raise UserError(f"{described} may have its channels first or last; give (H, W, 3) with sides above 4 pixels")
    if first:
        values = np.moveaxis(values, 0, 2)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    is_colour = values.ndim == 3 and (first or last) and values.dtype != np.bool_
    has_values = values.dtype in bit_depth.GREY_TYPES or np.issubdtype(values.dtype, np.floating)
    if not ((values.ndim == 2 or is_colour) and has_values and values.size):
        remedy = "give (H, W), or (H, W, C) or (C, H, W) with 1, 3 or 4 channels, of 8 or 16 bits, or of 0…1 as floats"
        raise UserError(f"{described} is not a picture; {remedy}")
    if order == BGR and values.ndim == 3:
        values = values[..., [2, 1, 0, 3][: values.shape[2]]]
    return values


def to_channels(picture: Image.Image, channels: int = 3, bits: int = DEEPEST) -> Image.Image:
    """Return a picture turned as its EXIF says, 8 bit, RGB or (channels = 1) grey, transparency on white."""
    if 0 in picture.size:
        raise UnusableError("it has no pixels", "replace or remove it")
    picture = ImageOps.exif_transpose(to_eight_bit(picture, bits))
    return on_background(picture, "white").convert("L" if channels == 1 else "RGB")


def reduction_factors(size: Size, target: Size) -> Size:
    """Return the whole numbers that divide a picture's sides before the resize; (1, 1) unless it is large."""
    if math.prod(size) <= LARGE:
        return 1, 1
    across, down = (max(1, side // (REDUCED * final)) for side, final in zip(size, target, strict=True))
    return across, down


def reduce_picture(picture: Image.Image, factors: Size, channels: int, bits: int) -> Image.Image:
    """Return `to_channels(picture, channels, bits).reduce(factors)`, strip by strip to save memory."""
    if factors == (1, 1):
        return to_channels(picture, channels, bits)
    picture = to_eight_bit(picture, bits)
    rows = max(1, bit_depth.STRIP // factors[1]) * factors[1]
    boxes = [(0, top, picture.width, min(top + rows, picture.height)) for top in range(0, picture.height, rows)]
    strips = [to_channels(picture.crop(box), channels).reduce(factors) for box in boxes]
    reduced = Image.new(strips[0].mode, (strips[0].width, sum(strip.height for strip in strips)))
    for number, strip in enumerate(strips):
        reduced.paste(strip, (0, number * rows // factors[1]))
    return reduced


def on_background(picture: Image.Image, colour: str) -> Image.Image:
    if not picture.has_transparency_data:
        return picture
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, colour), picture)


def open_upright(path: Path, bits: int = DEEPEST) -> Image.Image:
    """Return the first frame or page in its stored mode, upright. Raise UserError if it cannot be read."""
    with naming_file(path), reading_errors(path):
        with open_picture(path) as picture:
            check_pixels(picture.size)
            # a JPEG in MPO format holds a second picture, which phones add
            if getattr(picture, "is_animated", False) and picture.format != "MPO":
                report_first(path)
            deep = None if bits == DEEPEST else read_deep_colour(path, picture)
            turn = picture.getexif().get(bit_depth.ORIENTATION)  # Pillow turns a TIFF when it loads it
            picture.load()
        if deep is not None:
            turn = turn or picture.getexif().get(bit_depth.ORIENTATION, 1)  # a PNG may have it at its end
            picture = image_from_array(deep, bits)
            picture.getexif()[bit_depth.ORIENTATION] = turn
        ImageOps.exif_transpose(picture, in_place=True)
    return picture


def report_first(path: Path) -> None:
    suffix = path.suffix.lower()
    print_once(f"{suffix} files of several {'pages' if suffix in TIFF else 'frames'}: the first one is taken")


def read_header(path: Path) -> tuple[Size, str] | None:
    """Return the size before any turn and Pillow's mode; None for a file that Pillow cannot read."""
    try:
        with open_unlimited(path) as picture:
            return picture.size, picture.mode
    except UNREADABLE:
        return None


def read_size(path: Path) -> Size | None:
    """Return the upright size by the header alone; None for a file that Pillow cannot read."""
    try:
        with open_unlimited(path) as picture:
            knows_turn = picture.format == "TIFF" or "exif" in picture.info  # a PNG without would be read as a whole
            turn = picture.getexif().get(bit_depth.ORIENTATION) if knows_turn else None
            return picture.size[::-1] if turn in LYING else picture.size
    except UNREADABLE:
        return None


def open_picture(path: Path) -> Image.Image:
    try:
        picture = open_unlimited(path)
    except UnidentifiedImageError:
        if path.suffix.lower() not in TIFF or path.stat().st_size == 0:
            raise
        return read_first_page(path)
    pillow_fails = tiff_tag(picture, PLANAR) == SEPARATE and tiff_tag(picture, bit_depth.BITS, 8) > 8
    return read_first_page(path) if pillow_fails else picture


def highest_value(path: Path) -> int | None:
    """Return the highest value of a file of 16 bits; None for another one, or where the file declares fewer bits."""
    with naming_file(path), reading_errors(path), open_picture(path) as picture:
        check_pixels(picture.size)
        if (values := read_deep_colour(path, picture)) is not None:
            return int(values.max())
        if not picture.mode.startswith("I") or bit_depth.declared_bits(picture) < DEEPEST:
            return None
        return max(int(strip.max()) for _, strip in bit_depth.iterate_strips(picture))


def read_deep_colour(path: Path, picture: Image.Image) -> NDArray[np.uint16] | None:
    """Return (H, W, C) of a file with 16 bits a colour, of which Pillow reads the upper 8; None for another file."""
    if picture.mode not in ("RGB", "RGBA", "LA"):
        return None
    if picture.format == "PNG" and any(str(tile[3]).endswith(";16B") for tile in getattr(picture, "tile", ())):
        content = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
        return np.moveaxis(decode_image(content, ImageReadMode.UNCHANGED).numpy(), 0, 2)
    if path.suffix.lower() in TIFF and tiff_tag(picture, bit_depth.BITS, DEEPEST) == DEEPEST:
        values = read_page_values(path)[0]
        return values if values.dtype == np.uint16 else None
    return None


def open_unlimited(path: Path) -> Image.Image:
    """Open a picture without Pillow's limit, which holds for the whole process; `check_pixels` must follow."""
    with OPENING:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(path)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def check_pixels(size: Size) -> None:
    if math.prod(size) > MOST_PIXELS:
        reason = f"its {size[0]:,}×{size[1]:,} pixels are more than the {MOST_PIXELS:,} that are read"
        raise UnusableError(reason, "make it smaller")


def read_first_page(path: Path) -> Image.Image:
    """Return the first page of a TIFF file that Pillow cannot read. Raise UnusableError unless it is grey or colour."""
    values, photometric, orientation = read_page_values(path)
    picture = image_from_array(values)
    if photometric == bit_depth.WHITE_IS_ZERO:
        picture = ImageOps.invert(picture.convert("L"))
    if photometric == INKS:
        picture = Image.frombytes("CMYK", picture.size, picture.tobytes())
    if orientation is not None:
        picture.getexif()[bit_depth.ORIENTATION] = orientation
    return picture


def read_page_values(path: Path) -> tuple[NDArray, int, int | None]:
    """Return the values (H, W) or (H, W, C) of a TIFF file's first page, its photometric tag and its orientation."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        if len(file.pages) > 1:
            report_first(path)
        sides = [(axis, side) for axis, side in zip(page.axes, page.shape, strict=True) if side > 1 or axis in "YX"]
        axes = "".join(axis for axis, _ in sides)
        if axes not in ("YX", "YXS", "SYX") or page.samplesperpixel > 4 or page.dtype is None:
            raise UnusableError(f"its pixels have {page.samplesperpixel} values", "save it as grey or colour")
        check_pixels((page.imagewidth, page.imagelength))
        values = page.asarray().reshape([side for _, side in sides])
        photometric, turn = int(page.photometric), page.tags.get(bit_depth.ORIENTATION)
    values = np.moveaxis(values, 0, 2) if axes == "SYX" else values
    if values.dtype.kind in "iu" and values.dtype.itemsize > 1:
        check_depth(values.min(), values.max())
        values = values.astype(np.uint16)
    elif values.dtype == np.int8:
        values = values.view(np.uint8)  # as Pillow reads grey of this kind
    return values, photometric, None if turn is None else int(turn.value)


@contextmanager
def reading_errors(path: Path) -> Iterator[None]:
    """Turn errors of Pillow and tifffile into UserErrors."""
    try:
        yield
    except FileNotFoundError:
        raise MissingFileError(f"no picture at {path}") from None
    except PermissionError:
        raise UserFileError(f"no permission to read {path}; change it and run again") from None
    except UnusableError:
        raise
    except UNREADABLE as error:
        if "imagecodecs" in str(error):  # tifffile needs this package for all compressions but deflate
            raise UnusableError("its compression is not supported", "save it uncompressed") from error
        reason = "it is cut short" if "truncated" in str(error) else "its content is not a picture"
        raise UnusableError(reason if path.stat().st_size else "it is empty", "replace or remove it") from error


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Put the file's name into a ValueError about its content."""
    try:
        yield
    except UserFileError:
        raise
    except ValueError as error:
        named = UnusableError(f"{path} can't be read: {error}")
        named.reason = getattr(error, "reason", str(error))
        raise named from error


def read_mask(path: Path, picture_size: Size, picture_path: Path, size: Size) -> NDArray[np.bool_]:
    """Return a mask, true where defective, as `size` (width, height). Raise UserError unless it fits its picture."""
    values, are_labels = read_mask_values(path)
    if values.shape[::-1] != picture_size:
        actual, expected = ("×".join(map(str, sides)) for sides in (values.shape[::-1], picture_size))
        problem = f"mask {path} is {actual}, its picture {picture_path} {expected}"
        raise UserError(f"{problem}; make them the same, or set data.mask=False")
    return resize_mask(mask_levels(values, are_labels), size)


def check_mask_size(path: Path, picture_path: Path) -> None:
    """Raise UserError unless a mask has its picture's size; read files as a whole only where their headers differ."""
    mask, picture = read_header(path), read_header(picture_path)
    if mask and picture and mask[0] != picture[0]:  # an EXIF turn may make up for it
        read_mask(path, open_upright(picture_path).size, picture_path, (1, 1))


def read_full_mask(path: Path) -> NDArray[np.bool_]:
    """Return a mask (H, W) in its own size, true where defective."""
    return is_marked(mask_levels(*read_mask_values(path)))


def resize_mask(levels: NDArray[np.uint8], size: Size) -> NDArray[np.bool_]:
    """Return the mask of `mask_levels` as `size` (width, height), made binary after the resize."""
    return is_marked(np.asarray(Image.fromarray(levels).resize(size, Image.Resampling.BILINEAR)))


def is_marked(levels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return levels > LARGEST_LABEL


def mask_levels(values: NDArray, are_labels: bool) -> NDArray[np.uint8]:
    """Return (H, W), above LARGEST_LABEL where defective: grey as it is, labels 0…n as 0 and 255."""
    is_grey = not are_labels and values.max(initial=0) > LARGEST_LABEL
    return (values if is_grey else np.where(values > 0, 255, 0)).astype(np.uint8)


def read_mask_values(path: Path) -> tuple[NDArray, bool]:
    """Return the values (H, W) of a mask, and whether they are labels, of which all but 0 are defects."""
    mask = open_upright(path)
    mask = to_eight_bit(mask) if mask.mode == "F" else mask
    are_labels = mask.mode == "P" or mask.mode.startswith("I")  # a palette, or more than 8 bits
    return np.asarray(mask if are_labels else on_background(mask, "black").convert("L")), are_labels
