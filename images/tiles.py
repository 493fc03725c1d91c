"""Overlapping tiles of pictures, and the seamless merge of their maps. A `Shape` is (height, width)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from runtime.errors import UserError

OVERLAP = 0.25  # smallest share of a tile's side that neighbours have in common

Shape = Sequence[int]


def cut_tiles(pictures: Tensor, tile: Shape) -> Tensor:
    """Cut pictures (B, C, H, W) into N tiles (h, w) each: (B·N, C, h, w), picture by picture and row by row."""
    height, width = tile
    corners = tile_corners(pictures.shape[-2:], tile)
    tiles = [pictures[..., top : top + height, left : left + width] for top, left in corners]  # N times (B, C, h, w)
    return torch.stack(tiles, dim=1).flatten(0, 1)


def merge_tiles(tiles: Tensor, shape: Sequence[int]) -> Tensor:
    """Merge the tiles of `cut_tiles`: (…, B·N, C, h, w) → (…, *shape) with shape (B, C, H, W).

    Where tiles overlap, the result is their mean. Weights fall linearly over the overlap towards a tile's border.
    """
    (height, width), batch, extent = tiles.shape[-2:], shape[0], shape[-2:]
    pieces = tiles.unflatten(-4, (batch, -1))  # (…, B, N, C, h, w)
    if tuple(extent) == (height, width):
        return pieces.squeeze(-4)
    total, weights = tiles.new_zeros(*tiles.shape[:-4], *shape), tiles.new_zeros(*extent)
    weight = (border_ramp(height)[:, None] * border_ramp(width)).to(tiles)  # (h, w)
    for piece, (top, left) in zip(pieces.unbind(-4), tile_corners(extent, (height, width)), strict=True):
        total[..., top : top + height, left : left + width] += piece * weight
        weights[top : top + height, left : left + width] += weight
    return total / weights


def border_ramp(size: int) -> Tensor:
    """Return the weights along the side of a tile: 1, but falling towards both ends."""
    pixel = torch.arange(size)
    distance = torch.minimum(pixel, pixel.flip(0)) + 0.5  # from a pixel's centre to the border
    return (distance / (OVERLAP * size)).clamp(max=1)


def tile_corners(extent: Shape, tile: Shape) -> list[tuple[int, int]]:
    """Return (top, left) of each tile of a picture (height, width), row by row."""
    tops, lefts = (tile_starts(length, side) for length, side in zip(extent, tile, strict=True))
    return [(top, left) for top in tops for left in lefts]


def tile_starts(extent: int, size: int) -> list[int]:
    """Return the first pixels of the tiles along `extent` pixels. Raise UserError if no tile fits."""
    if extent < size:
        raise UserError(f"{extent} pixels hold no tile of {size}; enlarge the picture")
    steps = math.ceil((extent - size) / max(1, math.floor(size * (1 - OVERLAP))))
    return [round(step * (extent - size) / steps) for step in range(steps + 1)] if steps else [0]
