"""Defects at the border of a picture, where the published tables do not look."""

from pathlib import Path

import numpy as np
from conftest import write_picture
from PIL import Image

Place = tuple[slice, slice]
UPPER_BORDER = (slice(0, 3), slice(8, 40))


def add_border_defect(category: Path, name: str = "000", *places: Place) -> Path:
    """Add a test picture of the kind `edge`, white in these places, with its mask; return its path."""
    pixels = np.array(Image.open(category / "test" / "good" / "000.png"))
    mask = np.zeros(pixels.shape[:2], np.uint8)
    for place in places or (UPPER_BORDER,):
        pixels[place], mask[place] = 255, 255
    path = category / "test" / "edge" / f"{name}.png"
    write_picture(path, pixels)
    write_picture(category / "ground_truth" / "edge" / f"{name}_mask.png", mask)
    return path
