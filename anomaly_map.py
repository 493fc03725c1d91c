"""Distances between a picture and its reconstruction, the anomaly map made of them (section 4.2 of the paper), and the defects in it.

Maps are (B, 1, H, W) unless said otherwise.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from skimage.measure import label, regionprops
from torch import Tensor

PATCH = 3  # side, in positions, of the neighbourhood whose features are averaged
EIGHT_CONNECTED = 2  # skimage's connectivity
MAXIMUM = "maximum"  # pooling of a map into an image score, as published
KERNEL_REACH = 4  # half-width of the Gaussian kernel, in sigmas: 33×33 for sigma 4


class Region(NamedTuple):
    """A defect: its box (left, top, right, bottom; the latter two outside), its area in pixels and its highest pixel score."""

    box: tuple[int, int, int, int]
    area: int
    peak: float


def pixel_distance(reconstruction: Tensor, target: Tensor) -> Tensor:
    """D_p: mean over the channels of |reconstruction − target|; (B, C, H, W) → (B, 1, H, W)."""
    return (reconstruction - target).abs().mean(dim=1, keepdim=True)


def feature_distance(features_a: Sequence[Tensor], features_b: Sequence[Tensor], size: int | tuple[int, int]) -> Tensor:
    """D_f: cosine distance of the patch features, summed over all layers but the first; → (B, 1, size, size), or (B, 1, *size).

    `features_a` and `features_b` are lists of feature maps (B, C_j, H_j, W_j), layer1 first; each layer adds 0 to 2.
    """
    shape, total = (size, size) if isinstance(size, int) else size, torch.zeros(())
    for a, b in zip(features_a[1:], features_b[1:], strict=True):
        distance = 1 - F.cosine_similarity(patch_mean(a.float()), patch_mean(b.float()), dim=1).unsqueeze(
            1
        )  # (B, 1, H_j, W_j)
        total = total.to(distance) + F.interpolate(distance, size=shape, mode="bilinear", align_corners=True)
    return total


def combine(d_feature: Tensor, d_pixel: Tensor, v: float, ratio: float | Tensor | None = None) -> Tensor:
    """A = D_f + v·ratio·D_p. `ratio=None` takes max D_f / max D_p over the whole batch, as published."""
    if ratio is None:
        return d_feature + v * batch_ratio(d_feature, d_pixel) * d_pixel
    return d_feature + v * ratio * d_pixel


def batch_ratio(d_feature: Tensor, d_pixel: Tensor) -> Tensor:
    """max D_f / max D_p over all maps given."""
    return d_feature.max() / d_pixel.max().clamp_min(torch.finfo(d_pixel.dtype).tiny)


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of `sigma` pixels, the border reflected; 0 leaves the maps as they are."""
    if sigma == 0:
        return maps
    reach = max(1, round(KERNEL_REACH * sigma))
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / sigma).square())
    kernel = (weights / weights.sum()).to(maps)
    padded = F.pad(maps, [reach] * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))


def image_score(maps: Tensor, pooling: str = MAXIMUM, share: float = 0.0) -> float:
    """Return the image score of a map of any shape.

    It is the maximum, as published, or else (`top_mean`) the mean of the highest `share` of pixels, at least one.
    """
    return maps.flatten().topk(max(1, round(share * maps.numel()) if pooling != MAXIMUM else 1)).values.mean().item()


def resize_maps(maps: Tensor, shape: Sequence[int]) -> Tensor:
    """(B, C, H, W) at another size, bilinearly, antialiased where it shrinks."""
    if maps.shape[-2:] == tuple(shape):
        return maps
    return F.interpolate(maps, size=list(shape), mode="bilinear", align_corners=False, antialias=True)


def find_regions(
    scores: NDArray[np.float32], above: NDArray[np.bool_], threshold: float
) -> tuple[NDArray[np.bool_], list[Region]]:
    """The 8-connected regions of `above` in which the scores exceed the threshold somewhere, highest first, and where they lie; all (H, W)."""
    numbered = label(above, connectivity=EIGHT_CONNECTED)
    mask = above & np.isin(numbered, np.unique(numbered[scores > threshold]))
    found = []
    for part in regionprops(np.where(mask, numbered, 0), intensity_image=scores):
        top, left, bottom, right = part.bbox
        found.append(Region((left, top, right, bottom), int(part.area), float(part.intensity_max)))
    return mask, sorted(found, key=lambda region: -region.peak)


def patch_mean(features: Tensor) -> Tensor:
    """Mean over 3×3 positions, the zero padding counted."""
    return F.avg_pool2d(features, PATCH, stride=1, padding=PATCH // 2)
