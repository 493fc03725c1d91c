"""Overlapping square tiles of a picture, and their maps put together again without seams."""

import math

import torch
from torch import Tensor

OVERLAP = 0.25  # of a tile's side that neighbours share, at least


def cut(picture: Tensor, size: int) -> Tensor:
    """(C, H, W) → (N, C, size, size), row by row; a picture of size × size is its only tile. Raises ValueError where it is smaller."""
    _, height, width = picture.shape
    return torch.stack([picture[:, top : top + size, left : left + size] for top, left in corners(height, width, size)])


def merge(tiles: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `cut`: (N, C, size, size) → (C, height, width), each tile fading out towards its border where others overlap it."""
    size = tiles.shape[-1]
    if (height, width) == (size, size):
        return tiles[0]
    total, weights = tiles.new_zeros(tiles.shape[1], height, width), tiles.new_zeros(height, width)
    weight = fade(size).to(tiles)
    for tile, (top, left) in zip(tiles, corners(height, width, size), strict=True):
        total[:, top : top + size, left : left + size] += tile * weight
        weights[top : top + size, left : left + size] += weight
    return total / weights


def corners(height: int, width: int, size: int) -> list[tuple[int, int]]:
    """(top, left) of each tile."""
    return [(top, left) for top in starts(height, size) for left in starts(width, size)]


def starts(extent: int, size: int) -> list[int]:
    """Where tiles begin along `extent` pixels: evenly, the first and the last at the border, neighbours sharing OVERLAP or more."""
    if extent < size:
        raise ValueError(f"{extent} pixels hold no tile of {size}; enlarge the picture")
    steps = math.ceil((extent - size) / max(1, math.floor(size * (1 - OVERLAP))))
    return [round(step * (extent - size) / steps) for step in range(steps + 1)] if steps else [0]


def fade(size: int) -> Tensor:
    """(size, size): 1 inside, falling linearly over the overlap towards the border, above 0 everywhere."""
    distance = torch.minimum(torch.arange(size), torch.arange(size - 1, -1, -1)) + 0.5  # of each pixel's centre from the border
    ramp = (distance / (OVERLAP * size)).clamp(max=1)
    return ramp[:, None] * ramp[None, :]
