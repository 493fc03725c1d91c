"""Pixels of any depth as 8 bits, by fixed scales.

16 bits are scaled by 65535, or by what a TIFF says that it holds (12 bits: 4095). Floating-point values are scaled by the smallest of 1, 255
and 65535 that holds them; never by the file's own range, which would make a picture's brightness depend on its brightest pixel.
"""

import math
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime.errors import UserError

WHITES = (1, 255, 65535)
BEYOND = 0.01  # of white, by which resampled floating-point values may overshoot
GREY_TYPES = (np.uint8, np.uint16, np.bool_)
STRIP = 512  # rows that are worked on at once, as numbers of another type take several times the memory
ORIENTATION, BITS, PHOTOMETRIC = 274, 258, 262  # TIFF tags
WHITE_IS_ZERO = 0  # a value of the last

SAID: set[str] = set()  # words of which one a run is enough
SAYING = threading.Lock()


class UnusableError(UserError):
    """A picture that can't be read or used. The message may also name the file and the remedy, `reason` does not."""

    def __init__(self, message: str, reason: str = ""):
        super().__init__(message)  # alone in `args`, as worker processes rebuild an error of its message
        self.reason = reason or message


def unusable(reason: str, remedy: str) -> UnusableError:
    return UnusableError(f"{reason}; {remedy}", reason)


def eight_bit(picture: Image.Image) -> Image.Image:
    """The picture with deep grey scaled to 8 bits; others as they are. Raises ValueError for values beyond 16 bits."""
    if picture.mode != "F" and not picture.mode.startswith("I"):  # 16-bit grey, which Pillow opens as I;16 or I
        return picture
    tags, bits = tags_of(picture), tags_of(picture).get(BITS, (16,))[0]
    white = 2 ** min(bits, 16) - 1
    if picture.mode in ("I", "F"):
        extremes = [(strip.min(), strip.max()) for _, strip in strips(picture)]
        low, high = (np.array(values).astype(float) for values in zip(*extremes, strict=True))
        if picture.mode == "F":
            white = white_of(low.min(), high.max())
        elif low.min() < 0 or high.max() > white:
            raise beyond_sixteen_bits(low.min(), high.max())
    grey = Image.new("L", picture.size)
    for top, strip in strips(picture):
        grey.paste(
            Image.fromarray(scaled_to_bytes(strip, white, inverted=tags.get(PHOTOMETRIC) == WHITE_IS_ZERO)), (0, top)
        )
    if ORIENTATION in picture.getexif():
        grey.getexif()[ORIENTATION] = picture.getexif()[ORIENTATION]
    return grey


def strips(picture: Image.Image) -> Iterator[tuple[int, NDArray[Any]]]:
    """(first row, its pixels) of STRIP rows each."""
    for top in range(0, picture.height, STRIP):
        yield top, np.asarray(picture.crop((0, top, picture.width, min(top + STRIP, picture.height))))


def tags_of(picture: Image.Image) -> Mapping[int, Any]:
    """Of a TIFF file; nothing of others."""
    return getattr(picture, "tag_v2", {})


def image_of(values: NDArray[Any]) -> Image.Image:
    """(H, W) or (H, W, 1…4) of numbers that are not negative as a picture: grey, grey with alpha, colour, colour with alpha."""
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.dtype == np.uint16 and values.ndim == 3:
        values = (values >> 8).astype(np.uint8)  # as Pillow reads files of that kind
    if values.dtype not in GREY_TYPES:
        values = scaled_to_bytes(values, white_of(values.min(), values.max()))
    return Image.fromarray(values)


def white_of(low: float, high: float) -> int:
    """The value of white: the smallest of 1, 255 and 65535 that holds all values of a picture, which go from `low` to `high`.

    Raises ValueError where none does.
    """
    for white in WHITES:
        if -BEYOND * high <= low and high <= (1 + BEYOND) * white:
            say_once("floating-point pictures: white is the smallest of 1, 255 and 65535 that holds a picture's values")
            return white
    if not math.isfinite(low + high):
        raise unusable("it holds values that are not finite", "save it with values of 0…1")
    raise unusable(f"its values go from {low:g} to {high:g}, neither 0…1 nor 0…255 nor 0…65535", "scale them")


def beyond_sixteen_bits(low: float, high: float) -> UnusableError:
    return unusable(f"its values go from {low:.0f} to {high:.0f}, beyond 16 bits", "save it with 8 or 16 bits")


def scaled_to_bytes(values: NDArray[Any], white: float, inverted: bool = False) -> NDArray[np.uint8]:
    """0…white → 0…255, rounded; what lies beyond is clipped. `inverted`: white…0."""
    scaled = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), STRIP):
        part = slice(top, top + STRIP)
        scaled[part] = (values[part].astype(np.float32) / (white / 255)).clip(0, 255).round()
    return 255 - scaled if inverted else scaled


def say_once(words: str) -> None:
    """A line on standard error, the first time in a process."""
    with SAYING:
        new = words not in SAID
        SAID.add(words)
    if new:
        print(words, file=sys.stderr, flush=True)
