"""Resize by matrix products whose weights follow from the sizes, so that one graph takes pictures of any size.

The filter is that of Pillow's BILINEAR and torch's antialiased one: a triangle, widened where pictures get smaller.
"""

from collections.abc import Sequence
from typing import Any, cast

import PIL
import torch
from torch import Tensor

DOWN_FIRST_SINCE = 13  # version of Pillow
HALF_BITS = 11  # half of the bits of Pillow's fixed-point weights: float32 holds all sums of such halves exactly
LUMA = (19595.0, 38470.0, 7471.0)  # Pillow's weights of red, green and blue in grey, of 65536


def resize_map(values: Tensor, height: int, width: int) -> Tensor:
    """Return values (h, w) resized to (height, width), as `resize_maps` does."""
    return mean_weights(values.shape[0], height) @ values @ mean_weights(values.shape[1], width).T


def translate_resize(values: Any, shape: Sequence[int], *_: object) -> Any:
    """Return the ONNX nodes of torch's antialiased resize to `shape`, as runtimes differ in their own."""
    from onnx import numpy_helper
    from onnxscript import opset18 as op

    down, across = (
        op.Constant(value=numpy_helper.from_array(mean_weights(source, target).numpy()))
        for source, target in zip(values.shape[-2:], shape, strict=True)
    )
    return op.MatMul(op.MatMul(down, values), op.Transpose(across, perm=[1, 0]))  # type: ignore[type-var]


def mean_weights(source: int, target: int) -> Tensor:
    """Return the weights (target, source) of a resize; those of each row sum to 1."""
    weights = triangle_weights(source, target).float()
    return weights / weights.sum(dim=1, keepdim=True)


def resize_pixels(pixels: Tensor, height: int, width: int) -> Tensor:
    """Return whole numbers of 0…255, (C, H, W) in float32, resized to the last bit as this Pillow does."""

    def across_first(pixels: Tensor) -> Tensor:
        return resize_rows(resize_rows(pixels, width).mT, height).mT.contiguous()  # as the other one

    def down_first(pixels: Tensor) -> Tensor:
        return resize_rows(resize_rows(pixels.mT, height).mT, width)

    if int(PIL.__version__.partition(".")[0]) < DOWN_FIRST_SINCE:
        return across_first(pixels)
    source_height, source_width = (torch.full((1,), side)[0] for side in pixels.shape[1:])
    down, across = source_height - height, source_width - width
    is_tall = (down > 0) & (down > 2 * across)  # the height shrinks far more than the width
    if torch.compiler.is_exporting():
        return torch.cond(is_tall, down_first, across_first, (pixels,))
    return down_first(pixels) if is_tall else across_first(pixels)


def to_grey(pixels: Tensor) -> Tensor:
    """Return pixels (3, H, W) of 0…255 as grey (1, H, W), rounded as Pillow rounds."""
    weights = torch.tensor(LUMA)[:, None, None]
    return (((pixels * weights).sum(dim=0, keepdim=True) + 2**15) / 2**16).floor()


def resize_rows(pixels: Tensor, size: int) -> Tensor:
    """Return pixels (C, H, size) of (C, H, W): each row resized and rounded, with weights of 2 · HALF_BITS bits."""
    weights = triangle_weights(pixels.shape[2], size)
    total = weights.sum(dim=1, keepdim=True)
    upper, rest = divide(weights * 2**HALF_BITS, total)
    lower, rest = divide(rest * 2**HALF_BITS, total)
    lower = lower + (2 * rest >= total).long()
    carried = (pixels @ lower.T.float() / 2**HALF_BITS).floor()
    return ((pixels @ upper.T.float() + carried + 2 ** (HALF_BITS - 1)) / 2**HALF_BITS).floor()


def triangle_weights(source: int, target: int) -> Tensor:
    """Return the weights (target, source) of a resize, not normalised.

    In units of 1 / (2 · target) source pixels all distances are whole numbers, which every backend computes exactly.
    """
    centres = (2 * torch.arange(target) + 1)[:, None] * source
    distances = ((2 * torch.arange(source) + 1) * target - centres).abs()
    reach = cast(int, torch.sym_max(source, target))  # in a graph for all sizes it is symbolic
    return (2 * reach - distances).clamp_min(0)


def divide(numerators: Tensor, denominators: Tensor) -> tuple[Tensor, Tensor]:
    """Return quotients and remainders of whole numbers; a product corrects the quotients of float32."""
    quotients = (numerators.float() / denominators.float()).floor().long()
    rest = numerators - quotients * denominators
    missing = (rest >= denominators).long() - (rest < 0).long()
    return quotients + missing, rest - missing * denominators
