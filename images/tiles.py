"""Overlapping square tiles of pictures, and the seamless merge of their maps."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from runtime.errors import UserError

OVERLAP = 0.25  # smallest share of a tile's side that neighbours have in common


def cut_tiles(pictures: Tensor, size: int) -> Tensor:
    """Cut pictures (B, C, H, W) into N tiles each: (B·N, C, size, size), picture by picture and row by row."""
    corners = tile_corners(pictures.shape[-2], pictures.shape[-1], size)
    tiles = [pictures[..., top : top + size, left : left + size] for top, left in corners]  # N times (B, C, size, size)
    return torch.stack(tiles, dim=1).flatten(0, 1)


def merge_tiles(tiles: Tensor, shape: Sequence[int]) -> Tensor:
    """Merge the tiles of `cut_tiles`: (…, B·N, C, size, size) → (…, *shape) with shape (B, C, H, W).

    Where tiles overlap, the result is their mean. Weights fall linearly over the overlap towards a tile's border.
    """
    size, (batch, _, height, width) = tiles.shape[-1], shape
    pieces = tiles.unflatten(-4, (batch, -1))  # (…, B, N, C, size, size)
    if (height, width) == (size, size):
        return pieces.squeeze(-4)
    total, weights = tiles.new_zeros(*tiles.shape[:-4], *shape), tiles.new_zeros(height, width)
    pixel = torch.arange(size)
    distance = torch.minimum(pixel, pixel.flip(0)) + 0.5  # from a pixel's centre to the border
    ramp = (distance / (OVERLAP * size)).clamp(max=1)
    weight = (ramp[:, None] * ramp).to(tiles)  # (size, size)
    for piece, (top, left) in zip(pieces.unbind(-4), tile_corners(height, width, size), strict=True):
        total[..., top : top + size, left : left + size] += piece * weight
        weights[top : top + size, left : left + size] += weight
    return total / weights


def tile_corners(height: int, width: int, size: int) -> list[tuple[int, int]]:
    """Return (top, left) of each tile, row by row."""
    return [(top, left) for top in tile_starts(height, size) for left in tile_starts(width, size)]


def tile_starts(extent: int, size: int) -> list[int]:
    """Return the first pixels of the tiles along `extent` pixels. Raise UserError if no tile fits."""
    if extent < size:
        raise UserError(f"{extent} pixels hold no tile of {size}; enlarge the picture")
    steps = math.ceil((extent - size) / max(1, math.floor(size * (1 - OVERLAP))))
    return [round(step * (extent - size) / steps) for step in range(steps + 1)] if steps else [0]
