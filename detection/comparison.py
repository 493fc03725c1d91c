"""Compare pictures with their reconstructions by the trained networks (sections 4.1 and 4.2 of the paper)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from anomaly_map import feature_distance, pixel_distance, resize_maps
from dataset import View
from ddad import NoiseSchedule, noise_predictor, reconstruct
from detection import reference
from images.region import JudgedRegion
from runtime.device import autocast, output_bytes
from storage.fingerprint import weights_hash
from training.feature_space import FeatureSpace, as_picture
from training.patch_network import PatchNetwork, Perceptron

ACTIVE_SHARE = 0.2  # part of all layer outputs that inference holds in memory at once; measured: 0.06 to 0.13
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)  # few, as the last digits of scores depend on the batch size


class Comparison(NamedTuple):
    """The mean reconstruction (B, C, H, W), D_f and D_p (B, 1, H, W), and descriptors (B, D, h, w) by kind.

    Where the UNet works on features, D_f is 0, D_p compares z, and the reconstruction shows its first channels.
    """

    reconstruction: Tensor
    distances: dict[str, Tensor]
    descriptors: dict[str, Tensor]

    def of_picture(self, i: int) -> "Comparison":
        """Return the comparison of picture i of the batch alone."""
        distances, descriptors = ({name: maps[i : i + 1] for name, maps in kind.items()} for kind in self[1:])
        return Comparison(self.reconstruction[i : i + 1], distances, descriptors)


@dataclass(frozen=True)
class Networks:
    """The trained networks and reconstruction settings; the UNet's input has `size`² pixels (None: the picture's)."""

    unet: nn.Module
    extractor: nn.Module
    schedule: NoiseSchedule
    w: float
    start: int
    skip: int | None  # None: one call predicts x_0 at once
    eta: float
    draws: int = 1
    precision: str = "fp32"
    size: int | None = None
    predicts: str | None = None
    space: FeatureSpace | None = None  # in which the UNet works; None: pixels

    def hash(self) -> str:
        """Return a hash that changes with any weight of the networks."""
        return weights_hash([self.unet, self.extractor, *([self.space] if self.space else [])])

    @property
    def works_by_position(self) -> bool:
        """Return whether the network sees positions one by one, so that a picture needs no tiles."""
        return isinstance(self.unet, PatchNetwork | Perceptron)

    def unet_shape(self, tile: tuple[int, int], view: View) -> tuple[int, int]:
        """Return the (height, width) at which the UNet sees a tile of a picture."""
        return view.scaled_shape(tile, self.size or view.size, getattr(self.unet, "factor", 1))

    def seen_shape(self, pictures: Tensor, view: View) -> tuple[int, int]:
        """Return the (height, width) at which the UNet sees whole pictures (B, C, H, W), in one tile or several."""
        return view.seen_shape(pictures.shape[-2:], self.size or view.size, getattr(self.unet, "factor", 1))

    @torch.no_grad()
    def reconstruct(self, pictures: Tensor, draw: Callable[[], Tensor]) -> Tensor:
        """Return reconstructions (draws, B, C, S, S) of pictures (B, C, S, S), each draw with new noise."""
        unet = noise_predictor(autocast(self.unet, self.precision, pictures.device), self.predicts, self.schedule)
        sampler = partial(reconstruct, unet, pictures, pictures, schedule=self.schedule, w=self.w, eta=self.eta)
        return torch.stack([sampler(start=self.start, skip=self.skip, draw=draw) for _ in range(self.draws)])

    @torch.no_grad()
    def compare(
        self,
        pictures: Tensor,
        seen: Tensor,
        reconstructions: Tensor,
        parts: Sequence[str] = (),
        region: JudgedRegion | None = None,
    ) -> Comparison:
        """Compare pictures (B, C, H, W), `seen` by the UNet as (B, C, h, w), with reconstructions (draws, B, C, h, w).

        D_f and D_p compare `seen` with the reconstructions, averaged over draws. Descriptors are of the full pictures,
        but that of the picture as a whole is of the region.
        """
        shape = (pictures.shape[-2], pictures.shape[-1])
        features, rebuilt = self.features(seen), [self.features(x_0) for x_0 in reconstructions]
        d_feature = torch.stack([feature_distance(features, other, shape) for other in rebuilt]).mean(dim=0)
        d_pixel = torch.stack([pixel_distance(x_0, seen) for x_0 in reconstructions]).mean(dim=0)
        distances = {"feature": d_feature, "pixel": resize_maps(d_pixel, shape)}
        descriptors: dict[str, Tensor] = {}
        if reference.descriptor_kinds(parts):
            described = features if pictures is seen else self.features(pictures)
            descriptors = reference.describe_pictures(described, parts, region)
        return Comparison(resize_maps(reconstructions.mean(dim=0), shape), distances, descriptors)

    @torch.no_grad()
    def compare_features(
        self,
        pictures: Tensor,
        rebuild: Callable[[Tensor], Tensor],
        shape: Sequence[int],
        parts: Sequence[str] = (),
        region: JudgedRegion | None = None,
    ) -> Comparison:
        """Compare z (B, K, *shape) of pictures (B, C, H, W) with `rebuild(z)`, reconstructions (draws, B, K, *shape).

        Descriptors are of the same features, and the residual, reconstruction − z.
        """
        assert self.space is not None
        features, full = self.features(pictures), pictures.shape[-2:]
        seen = self.space.encode(features, shape)
        reconstructions = rebuild(seen)
        d_pixel = torch.stack([pixel_distance(x_0, seen) for x_0 in reconstructions]).mean(dim=0)
        distances = {"feature": torch.zeros_like(pictures[:, :1]), "pixel": resize_maps(d_pixel, full)}
        described = reference.descriptor_kinds(parts)
        descriptors = reference.describe_pictures(features, parts, region) if described else {}
        mean = reconstructions.mean(dim=0)
        descriptors[reference.RESIDUAL] = mean - seen
        return Comparison(resize_maps(as_picture(mean), full), distances, descriptors)

    @torch.no_grad()
    def features(self, pictures: Tensor) -> list[Tensor]:
        """Return the feature maps of pictures (B, C, H, W), layer1 first."""
        return autocast(self.extractor, self.precision, pictures.device)(pictures)


def largest_batch(networks: Networks, view: View, free: float, most: int) -> int:
    """Return the largest of BATCH_SIZES, up to `most`, that fits into half of the `free` bytes; at least 1."""
    seen, picture = (torch.empty(1, view.channels, size, size) for size in (networks.size or view.size, view.size))
    if networks.space:
        seen = torch.empty(1, networks.space.channels, *seen.shape[2:])
    layers = max(output_bytes(networks.unet, seen, torch.zeros(1)), output_bytes(networks.extractor, picture))
    fitting = min(max(1, free / 2 / (ACTIVE_SHARE * layers)), most)
    return max(size for size in BATCH_SIZES if size <= fitting)
