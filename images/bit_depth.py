"""Convert pixels of any depth to 8 bits. The scale is fixed: a picture's own range would vary with its content.

16 bits are divided by 65535, or by the largest value that a TIFF's tags declare (12 bits: 4095). Where files of 16 bits
hold fewer, as from cameras of 12 bits, the caller passes `bits`, the same for all pictures of a category.
Floating-point values are divided by the smallest of 1, 255 and 65535 that holds them.
"""

import math
import sys
import threading
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime.errors import UserError

WHITES = (1, 255, 65535)
DEEPEST = 16  # bits
DEPTHS = (8, 10, 12, 14, DEEPEST)  # bits of cameras
OVERSHOOT = 0.01  # of white; floating-point values may exceed it by this after a resize
GREY_TYPES = (np.uint8, np.uint16, np.bool_)
STRIP = 512  # rows that are converted at once, as wider numbers take several times the memory
ORIENTATION, BITS, PHOTOMETRIC = 274, 258, 262  # TIFF tags
WHITE_IS_ZERO = 0  # a value of PHOTOMETRIC
PRINTED: set[str] = set()  # lines of `print_once`
PRINTING = threading.Lock()


class UnusableError(UserError):
    """A picture that cannot be read or used. The message may also name the file and the remedy, `reason` does not."""

    def __init__(self, reason: str, remedy: str = ""):
        super().__init__(f"{reason}; {remedy}" if remedy else reason)  # worker processes rebuild it from this alone
        self.reason = reason


def to_eight_bit(picture: Image.Image, bits: int = DEEPEST) -> Image.Image:
    """Return deep grey scaled to 8 bits, and other pictures as they are. Raise UnusableError for more than 16 bits."""
    if picture.mode != "F" and not picture.mode.startswith("I"):  # Pillow opens 16-bit grey as I;16 or I
        return picture
    declared = declared_bits(picture)
    white = white_of(declared if declared < DEEPEST else bits)
    if picture.mode in ("I", "F"):
        extremes = np.array([(strip.min(), strip.max()) for _, strip in iterate_strips(picture)], float)
        low, high = extremes[:, 0].min(), extremes[:, 1].max()
        if picture.mode == "F":
            white = white_level(low, high)
        else:
            check_depth(low, high, white_of(declared))
    inverted = tiff_tag(picture, PHOTOMETRIC) == WHITE_IS_ZERO
    grey = Image.new("L", picture.size)
    for top, strip in iterate_strips(picture):
        scaled = scale_to_bytes(strip, white)
        grey.paste(Image.fromarray(255 - scaled if inverted else scaled), (0, top))
    if ORIENTATION in picture.getexif():
        grey.getexif()[ORIENTATION] = picture.getexif()[ORIENTATION]
    return grey


def declared_bits(picture: Image.Image) -> int:
    return min(tiff_tag(picture, BITS, DEEPEST), DEEPEST)


def white_of(bits: int) -> int:
    return 2**bits - 1


def smallest_depth(highest: int) -> int:
    """Return the fewest bits, of DEPTHS, that hold values up to `highest`; DEEPEST where all pixels are black."""
    return next((bits for bits in DEPTHS if 0 < highest <= white_of(bits)), DEEPEST)


def iterate_strips(picture: Image.Image) -> Iterator[tuple[int, NDArray]]:
    """Yield (first row, pixels) of STRIP rows each."""
    for top in range(0, picture.height, STRIP):
        yield top, np.asarray(picture.crop((0, top, picture.width, min(top + STRIP, picture.height))))


def tiff_tag(picture: Image.Image, tag: int, default: int = -1) -> int:
    """Return a tag's value, or the first of its values; `default` if it is not there or the file is no TIFF."""
    value = getattr(picture, "tag_v2", {}).get(tag, default)
    return value[0] if isinstance(value, tuple) else value


def image_from_array(values: NDArray, bits: int = DEEPEST) -> Image.Image:
    """Return (H, W) or (H, W, 1 to 4), without negative numbers, as grey, grey + alpha, RGB or RGBA."""
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.dtype == np.uint16 and values.ndim == 3:
        # the first as Pillow reads files of this kind
        values = (values >> 8).astype(np.uint8) if bits == DEEPEST else scale_to_bytes(values, white_of(bits))
    if values.dtype not in GREY_TYPES:
        values = scale_to_bytes(values, white_level(values.min(), values.max()))
    return Image.fromarray(values)


def white_level(low: float, high: float) -> int:
    """Return the smallest of WHITES that holds values from `low` to `high`. Raise UnusableError if none does."""
    for white in WHITES:
        if -OVERSHOOT * high <= low and high <= (1 + OVERSHOOT) * white:
            print_once("floating-point pictures: white is the smallest of 1, 255 and 65535 that holds all values")
            return white
    if not math.isfinite(low + high):
        raise UnusableError("it holds values that are not finite", "save it with values of 0…1")
    raise UnusableError(f"its values go from {low:g} to {high:g}, neither 0…1 nor 0…255 nor 0…65535", "scale them")


def check_depth(low: float, high: float, white: int = WHITES[-1]) -> None:
    """Raise UnusableError for whole numbers below 0 or above `white`."""
    if low < 0 or high > white:
        raise UnusableError(f"its values go from {low:.0f} to {high:.0f}, beyond 16 bits", "save it with 8 or 16 bits")


def scale_to_bytes(values: NDArray, white: float) -> NDArray[np.uint8]:
    """Return 0…white as 0…255, rounded and clipped."""
    if values.dtype == np.uint16 and values.max(initial=0) > white:
        print_once(f"values above {white}, which is white in the normal pictures, are clipped")
    scaled = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), STRIP):
        part = slice(top, top + STRIP)
        scaled[part] = (values[part].astype(np.float32) / (white / 255)).clip(0, 255).round()
    return scaled


def print_once(line: str) -> None:
    """Print a line on standard error unless this process has printed it before."""
    with PRINTING:
        if line not in PRINTED:
            print(line, file=sys.stderr, flush=True)
        PRINTED.add(line)
