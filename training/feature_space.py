"""The space in which the diffusion model learns features in place of pixels (score.space: features).

It goes beyond the paper, whose equations stay: x_0 and y_0 are then z = directions · (d − mean), a fixed linear map of
the patch descriptors d of a picture, averaged to the network's grid. The directions are the principal ones of the
descriptors of normal pictures. On these each channel of z has mean 0 and variance 1, less where it hardly varies.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_map import patch_mean
from dataset import to_unit_range

LEARNT_FROM = 64  # pictures, at most
LEAST_VARIANCE = 1e-3  # of a channel, as a share of the largest; smaller variances are noise
KEPT = 1_000_000  # positions in memory, at most, where they are learnt one by one
AT_ONCE = 8  # pictures that pass the extractor together
SHOWN_DEVIATIONS = 3  # standard deviations from the mean to black and white in pictures of z


class FeatureSpace(nn.Module):
    """The linear map from patch descriptors (`width` channels) to z (`channels`)."""

    mean: Tensor
    directions: Tensor

    def __init__(self, width: int, channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("directions", torch.zeros(channels, width))

    @property
    def channels(self) -> int:
        return len(self.directions)

    @classmethod
    def restore(cls, state: Mapping[str, Tensor]) -> "FeatureSpace":
        """Return the space of a state dict. Raise RuntimeError where its shapes do not fit."""
        channels, width = state["directions"].shape
        space = cls(width, channels)
        space.load_state_dict(state)
        return space

    def encode(self, features: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
        """Return z (B, K, *shape) of feature maps, layer1 first; a picture's is the same in any batch."""
        small = average_to(patch_descriptors(features), shape)
        centred = small.flatten(2) - self.mean[:, None]
        return torch.stack([self.directions @ picture for picture in centred]).unflatten(2, list(shape))

    def learn(self, descriptors: Tensor) -> None:
        """Learn mean and directions from descriptors (N, C) of normal pictures."""
        mean = descriptors.mean(dim=0)
        centred = descriptors - mean
        variances, vectors = torch.linalg.eigh((centred.T @ centred).double() / len(descriptors))
        variances, vectors = variances.flip(0)[: self.channels], vectors.flip(1)[:, : self.channels]
        least = LEAST_VARIANCE * variances[0].clamp_min(torch.finfo(torch.float32).tiny)
        signs = torch.where(vectors.sum(dim=0) < 0, -1.0, 1.0)  # the same on any machine
        self.mean.copy_(mean)
        self.directions[: len(variances)] = (vectors * signs / variances.clamp_min(least).sqrt()).T.float()


def patch_descriptors(features: Sequence[Tensor]) -> Tensor:
    """Return layers 2 and up, averaged over 3×3 positions and resized to the second's grid: (B, C, H, W)."""
    means = [patch_mean(layer.float()) for layer in features[1:]]
    shape = means[0].shape[-2:]
    return torch.cat([F.interpolate(layer, size=shape, mode="bilinear", align_corners=False) for layer in means], dim=1)


def average_to(maps: Tensor, shape: Sequence[int]) -> Tensor:
    """Return maps (B, C, H, W) averaged to `shape`."""
    return F.adaptive_avg_pool2d(maps, (shape[0], shape[1]))


def place_grid(shape: Sequence[int]) -> Tensor:
    """Return the places (1, 2, h, w) of the positions of a grid: shares of its height and of its width."""
    sides = [(torch.arange(side) + 0.5) / side for side in shape]
    return torch.stack(torch.meshgrid(*sides, indexing="ij"))[None]


def sample_positions(z: Tensor, count: int, seed: int) -> Tensor:
    """Return `count` random positions of z (K, h, w), at most all, and their places: (K + 2, count, 1)."""
    positions = torch.cat([z, place_grid(z.shape[1:])[0].to(z)]).flatten(1)
    chosen = torch.randperm(positions.shape[1], generator=torch.Generator().manual_seed(seed))[:count]
    return positions[:, chosen, None]


def as_picture(z: Tensor) -> Tensor:
    """Return the first three channels of z (B, K, h, w) as colours (B, 3, h, w) in [−1, 1]."""
    return (z[:, :3] / SHOWN_DEVIATIONS).clamp(-1, 1)


@dataclass(frozen=True)
class FeatureReader:
    """Computes descriptors of pictures on the grid on which the network sees them."""

    extractor: nn.Module  # pictures (B, C, H, W) in [−1, 1] → feature maps, layer1 first
    grid: Callable[[Sequence[int]], tuple[int, int]]  # (height, width) of a picture → that of the grid
    device: torch.device
    channels: int
    single: bool = False  # whether positions are learnt one by one, so that a sample of them is enough

    def learn(self, pictures: Sequence[Tensor]) -> dict[str, Any]:
        """Return the `space` that pictures teach, as a state dict, and their `features`; see below."""
        space = self.learn_space(pictures)
        return {"space": space.state_dict(), "features": self.encode(pictures, space)}

    @torch.no_grad()
    def learn_space(self, pictures: Sequence[Tensor]) -> FeatureSpace:
        """Return the space of normal pictures, (C, H, W) uint8 each, from LEARNT_FROM of them, evenly spaced."""
        chosen = pictures[:: max(1, len(pictures) // LEARNT_FROM)][:LEARNT_FROM]
        small = [average_to(patch_descriptors(features), shape).cpu() for features, shape in self.batches(chosen)]
        descriptors = torch.cat([maps.flatten(2).transpose(1, 2).flatten(0, 1) for maps in small])
        space = FeatureSpace(descriptors.shape[1], self.channels)
        space.learn(descriptors)
        return space.to(self.device)

    @torch.no_grad()
    def encode(self, pictures: Sequence[Tensor], space: FeatureSpace) -> list[Tensor]:
        """Return z (K, h, w), in half precision on the CPU, of pictures, (C, H, W) uint8 each.

        Of `single` positions KEPT are kept at most, as many of each picture, drawn at random: (K + 2, P, 1), below
        z the place of each position.
        """
        encoded = (z for features, shape in self.batches(pictures) for z in space.encode(features, shape).half().cpu())
        if not self.single:
            return list(encoded)
        most = max(1, KEPT // len(pictures))
        return [sample_positions(z, most, seed) for seed, z in enumerate(encoded)]

    def batches(self, pictures: Sequence[Tensor]) -> Iterator[tuple[list[Tensor], tuple[int, int]]]:
        """Yield the feature maps of some pictures of one shape after the other, and their grid."""
        for extent, group in itertools.groupby(pictures, key=lambda picture: picture.shape[1:]):
            of_shape = list(group)
            for first in range(0, len(of_shape), AT_ONCE):
                batch = torch.stack(of_shape[first : first + AT_ONCE])
                yield self.extractor(to_unit_range(batch.to(self.device))), self.grid(extent)
