"""A category whose pictures have chosen shapes, and settings for maps with memories on them."""

import shutil

import numpy as np
from conftest import write_picture

MEMORY = ("score.parts=[memory, wide_memory, pixel]", "model.unet_size=16", "metrics.centre_crop=1")


def shaped_category(root, shapes):
    """Create <root>/data/nut of stripes: shapes are (width, height), taken in turns; defective pictures have a spot."""
    rng, folder = np.random.default_rng(0), root / "data" / "nut"
    shutil.rmtree(folder, ignore_errors=True)

    def normal(number):
        width, height = shapes[number % len(shapes)]
        stripes = (np.arange(width) // 4 % 2 * 90 + 80).astype(np.uint8)
        return np.tile(stripes, (height, 1)) + rng.integers(0, 20, (height, width)).astype(np.uint8)

    for number in range(12):
        write_picture(folder / "train" / "good" / f"{number:03}.png", normal(number))
    for number in range(4):
        write_picture(folder / "test" / "good" / f"{number:03}.png", normal(number))
        spotted = normal(number)
        mask = np.zeros_like(spotted)
        spot = (slice(4, 11), slice(spotted.shape[1] - 14, spotted.shape[1] - 7))
        spotted[spot], mask[spot] = 255, 255
        write_picture(folder / "test" / "spot" / f"{number:03}.png", spotted)
        write_picture(folder / "ground_truth" / "spot" / f"{number:03}_mask.png", mask)
    return folder
