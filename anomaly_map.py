"""Distances between a picture and its reconstruction, the anomaly map (Sec. 4.2 of the paper), and regions in it.

Maps are (B, 1, H, W) unless a docstring says otherwise.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import find_objects, label
from torch import Tensor

PATCH = 3  # positions; side of the neighbourhood whose features are averaged
KERNEL_REACH = 4  # sigmas; half the width of the Gaussian kernel, so 33×33 pixels for sigma 4
MAXIMUM = "maximum"  # the published pooling of a map into an image score
EIGHT_CONNECTED = np.ones((3, 3))  # the neighbours of a pixel that belong to its region


class Region(NamedTuple):
    """A defect: its box (left, top, right, bottom; the last two are exclusive), area in pixels and highest score."""

    box: tuple[int, int, int, int]
    area: int
    peak: float


def pixel_distance(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Return D_p, the mean over the channels of |x_0 − y_0|; (B, C, H, W) → (B, 1, H, W)."""
    return (reconstruction - target).abs().mean(dim=1, keepdim=True)


def feature_distance(features_a: Sequence[Tensor], features_b: Sequence[Tensor], size: int | tuple[int, int]) -> Tensor:
    """Return D_f, the cosine distance of patch features, summed over all layers but the first.

    Features are lists of maps (B, C_j, H_j, W_j), layer1 first → (B, 1, *size). Each layer adds 0 to 2.
    """
    shape, total = (size, size) if isinstance(size, int) else size, torch.zeros((), device=features_a[0].device)
    for a, b in zip(features_a[1:], features_b[1:], strict=True):
        similarity = F.cosine_similarity(patch_mean(a.float()), patch_mean(b.float()), dim=1)  # (B, H_j, W_j)
        distance = 1 - similarity.unsqueeze(1)  # (B, 1, H_j, W_j)
        total = total.to(distance) + F.interpolate(distance, size=shape, mode="bilinear", align_corners=True)
    return total


def combine(d_feature: Tensor, d_pixel: Tensor, v: float, ratio: float | Tensor | None = None) -> Tensor:
    """Return A = D_f + v·ratio·D_p. `ratio=None` takes max D_f / max D_p over the whole batch, as published."""
    return d_feature + v * (batch_ratio(d_feature, d_pixel) if ratio is None else ratio) * d_pixel


def batch_ratio(d_feature: Tensor, d_pixel: Tensor) -> Tensor:
    """Return max D_f / max D_p over all maps of the batch."""
    return d_feature.max() / d_pixel.max().clamp_min(torch.finfo(d_pixel.dtype).tiny)


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Blur the maps by a Gaussian of `sigma` pixels with a reflected border; 0 leaves them as they are."""
    if sigma == 0:
        return maps
    reach = max(1, round(KERNEL_REACH * sigma))
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / sigma).square())
    kernel = (weights / weights.sum()).to(maps)
    padded = F.pad(maps, [reach] * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))


def image_score(maps: Tensor, pooling: str = MAXIMUM, share: float = 0.0) -> Tensor:
    """Return the image score () of a map of any shape: its maximum, as published, or another `pooling`.

    "top_mean" is the mean of the highest pixels: `share` of all, at least one.
    """
    count = 1 if pooling == MAXIMUM else max(1, round(share * maps.numel()))
    return maps.flatten().topk(count).values.mean()


def resize_maps(maps: Tensor, shape: Sequence[int]) -> Tensor:
    """Resize (B, C, H, W) to `shape` (height, width), bilinearly, with antialiasing if it gets smaller."""
    if maps.shape[-2:] == tuple(shape):
        return maps
    return F.interpolate(maps, size=list(shape), mode="bilinear", align_corners=False, antialias=True)


def find_regions(scores: NDArray, above: NDArray, threshold: float) -> tuple[NDArray[np.bool_], list[Region]]:
    """Return the mask and the list of the 8-connected regions of `above` whose highest score exceeds the threshold.

    All arrays are (H, W). The region with the highest score comes first.
    """
    numbered, _ = label(above, EIGHT_CONNECTED)
    mask = above & np.isin(numbered, np.unique(numbered[scores > threshold]))
    regions = []
    for number, place in enumerate(find_objects(np.where(mask, numbered, 0)), start=1):
        if place is not None:
            (down, across), inside = place, numbered[place] == number
            box = (across.start, down.start, across.stop, down.stop)
            regions.append(Region(box, int(inside.sum()), float(scores[place][inside].max())))
    return mask, sorted(regions, key=lambda region: -region.peak)


def patch_mean(features: Tensor) -> Tensor:
    """Return the mean over 3×3 positions, zero padding included; same shape."""
    return F.avg_pool2d(features, PATCH, stride=1, padding=PATCH // 2)
