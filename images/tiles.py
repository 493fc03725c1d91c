"""Overlapping square tiles of pictures, put together again without seams."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from runtime.errors import UserError

OVERLAP = 0.25  # of a tile's side that neighbours share, at least


def cut_tiles(pictures: Tensor, size: int) -> Tensor:
    """(B, C, H, W) → (B·N, C, size, size), picture by picture and row by row; one of size × size is its only tile. Raises ValueError where
    they are smaller."""
    _, _, height, width = pictures.shape
    places = tile_corners(height, width, size)
    return torch.stack([pictures[..., top : top + size, left : left + size] for top, left in places], dim=1).flatten(
        0, 1
    )


def merge_tiles(tiles: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `cut`: (…, B·N, C, size, size) → (…, *shape), shape (B, C, H, W); each tile fades out towards its border where others
    overlap it."""
    size, (batch, _, height, width) = tiles.shape[-1], shape
    pieces = tiles.unflatten(-4, (batch, -1))  # (…, B, N, C, size, size)
    if (height, width) == (size, size):
        return pieces.squeeze(-4)
    total, weights = tiles.new_zeros(*tiles.shape[:-4], *shape), tiles.new_zeros(height, width)
    weight = tile_weights(size).to(tiles)
    for piece, (top, left) in zip(pieces.unbind(-4), tile_corners(height, width, size), strict=True):
        total[..., top : top + size, left : left + size] += piece * weight
        weights[top : top + size, left : left + size] += weight
    return total / weights


def tile_corners(height: int, width: int, size: int) -> list[tuple[int, int]]:
    """(top, left) of each tile."""
    return [(top, left) for top in tile_starts(height, size) for left in tile_starts(width, size)]


def tile_starts(extent: int, size: int) -> list[int]:
    """Where tiles begin along `extent` pixels: evenly, the first and the last at the border, neighbours sharing OVERLAP or more."""
    if extent < size:
        raise UserError(f"{extent} pixels hold no tile of {size}; enlarge the picture")
    steps = math.ceil((extent - size) / max(1, math.floor(size * (1 - OVERLAP))))
    return [round(step * (extent - size) / steps) for step in range(steps + 1)] if steps else [0]


def tile_weights(size: int) -> Tensor:
    """(size, size): 1 inside, falling linearly over the overlap towards the border, above 0 everywhere."""
    distance = (
        torch.minimum(torch.arange(size), torch.arange(size - 1, -1, -1)) + 0.5
    )  # of each pixel's centre from the border
    ramp = (distance / (OVERLAP * size)).clamp(max=1)
    return ramp[:, None] * ramp[None, :]
