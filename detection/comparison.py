"""The trained networks at work: pictures reconstructed, and compared with their reconstructions (sections 4.1 and 4.2 of the paper)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from anomaly_map import feature_distance, pixel_distance, resize_maps
from dataset import View
from ddad import NoiseSchedule, noise_predictor, reconstruct
from detection import reference
from runtime.device import autocast, output_bytes
from storage.fingerprint import weights_hash

HELD = 0.2  # share of all that a network's layers put out which is in memory at a time, without gradients; measured: 0.06 to 0.13
MOST_AT_ONCE = {"cuda": 64}  # pictures of a batch by device, 8 elsewhere: more are no faster


class Comparison(NamedTuple):
    """Pictures beside their reconstructions: the mean reconstruction (B, C, H, W), the distances D_p and D_f (B, 1, H, W), and the
    descriptors (B, D, h, w) that are compared with those of normal pictures, by their kind (normality.py)."""

    reconstruction: Tensor
    distances: dict[str, Tensor]
    described: dict[str, Tensor]


@dataclass(frozen=True)
class Networks:
    """The trained networks and how a reconstruction is made with them; `size` is that at which the UNet sees pictures (None: their own)."""

    unet: nn.Module
    extractor: nn.Module
    schedule: NoiseSchedule
    w: float
    start: int
    skip: int
    eta: float
    draws: int = 1
    precision: str = "fp32"
    size: int | None = None
    predicts: str | None = None

    def hash(self) -> str:
        """Changes with any weight of the networks."""
        return weights_hash([self.unet, self.extractor])

    @torch.no_grad()
    def reconstructions(self, pictures: Tensor, draw: Callable[[], Tensor]) -> Tensor:
        """(draws, B, C, S, S): started from and pulled towards the pictures (B, C, S, S), with different noise."""
        made: dict[str, Any] = {
            "schedule": self.schedule,
            "w": self.w,
            "start": self.start,
            "skip": self.skip,
            "eta": self.eta,
        }
        unet = noise_predictor(autocast(self.unet, self.precision, pictures.device), self.predicts, self.schedule)
        return torch.stack([reconstruct(unet, pictures, pictures, draw=draw, **made) for _ in range(self.draws)])

    @torch.no_grad()
    def compared(
        self, pictures: Tensor, seen: Tensor, reconstructions: Tensor, wanted: Sequence[str] = ()
    ) -> Comparison:
        """Pictures (B, C, H, W) in full, and as the UNet has `seen` them (B, C, h, w), beside their reconstructions (draws, B, C, h, w).

        D_f and D_p are between the latter two, the mean over the draws; other parts that are `wanted` look at the pictures in full.
        """
        shape, kinds = pictures.shape[-2:], reference.kinds_of(wanted)
        features, rebuilt = self.features(seen), [self.features(x_0) for x_0 in reconstructions]
        distances = {
            "feature": mean_of([feature_distance(features, one, (shape[0], shape[1])) for one in rebuilt]),
            "pixel": resize_maps(mean_of([pixel_distance(x_0, seen) for x_0 in reconstructions]), shape),
        }
        described = (
            reference.picture_descriptors(features if pictures is seen else self.features(pictures)) if kinds else {}
        )
        return Comparison(
            resize_maps(reconstructions.mean(dim=0), shape), distances, {kind: described[kind] for kind in kinds}
        )

    @torch.no_grad()
    def features(self, pictures: Tensor) -> list[Tensor]:
        return autocast(self.extractor, self.precision, pictures.device)(pictures)


def mean_of(tensors: list[Tensor]) -> Tensor:
    return torch.stack(tensors).mean(dim=0)


def largest_batch(networks: Networks, view: View, free: float, most: int) -> int:
    """How many pictures half of `free` bytes hold on their way through the networks: a power of two, as scores of other batches may differ in
    their last digits, and `most` at most."""
    seen, picture = (torch.empty(1, view.channels, size, size) for size in (networks.size or view.size, view.size))
    layers = max(output_bytes(networks.unet, seen, torch.zeros(1)), output_bytes(networks.extractor, picture))
    return 2 ** int(math.log2(min(max(1, free / 2 / (HELD * layers)), most)))


def prepare_network(network: nn.Module, device: torch.device) -> nn.Module:
    """The network as it runs fastest."""
    return network.to(device).to(memory_format=torch.channels_last).eval()
