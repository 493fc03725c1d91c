"""The resize of the exported graph equals Pillow's to the last bit, and that of maps torch's."""

import numpy as np
import pytest
import torch
from PIL import Image

from anomaly_map import resize_maps
from export.resize import resize_map, resize_pixels, to_grey

SIZES = [(32, 32), (33, 31), (5, 9), (400, 130), (130, 400), (1, 1), (2000, 7), (7, 2000)]


@pytest.mark.parametrize("size", [*SIZES, (52, 64), (52, 65), (33, 26), (33, 27)])
def test_pixels_are_those_of_pillow(size):
    """size is (width, height); the target is 32×24."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((32, 24), Image.Resampling.BILINEAR))
    found = resize_pixels(torch.from_numpy(pixels).permute(2, 0, 1).float(), 24, 32)
    np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), expected)


def test_grey_is_that_of_pillow():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    found = to_grey(torch.from_numpy(pixels).permute(2, 0, 1).float())
    np.testing.assert_array_equal(found[0].numpy(), np.asarray(Image.fromarray(pixels).convert("L")))


@pytest.mark.parametrize("size", [(16, 16), (40, 90), (7, 3), (16, 100)])
def test_a_map_is_resized_as_the_detector_does(size):
    values = torch.rand(16, 16)
    torch.testing.assert_close(resize_map(values, *size), resize_maps(values[None, None], size)[0, 0])
