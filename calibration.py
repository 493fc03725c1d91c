"""What normal pictures tell of a detector: the balance between D_f and D_p that stands in for the published batch maxima.

Published maps weigh D_p by max D_f / max D_p over the test batch, so that a picture's score depends on its neighbours.
Here the weight is a property of the trained networks, measured once on normal pictures and kept beside the weights.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

FINGERPRINT_DIGITS = 16


@dataclass(frozen=True)
class Calibration:
    """`balance` is D_f per D_p on `pictures` normal pictures; `fingerprint` is of the networks and settings it holds for."""

    balance: float
    pictures: int
    fingerprint: str


def normal_balance(top_feature: Tensor, top_pixel: Tensor) -> float:
    """Ratio of the mean highest smoothed D_f to the mean highest smoothed D_p; each (N,), one value a normal picture.

    With it, v = 1 lets both distances lift a normal picture's score alike. Raises ValueError where D_p is zero on all pictures.
    """
    mean_feature, mean_pixel = top_feature.double().mean().item(), top_pixel.double().mean().item()
    if not (math.isfinite(mean_feature) and math.isfinite(mean_pixel)):
        raise ValueError("the distances on normal pictures are not finite; lower model.w, or train again")
    if mean_pixel == 0:
        raise ValueError("the reconstructions equal the normal pictures in every pixel; lower model.w, or take a higher test_trajectory_steps")
    return mean_feature / mean_pixel


def fingerprint(networks: Iterable[nn.Module], settings: Mapping[str, object]) -> str:
    """Changes with any weight of the networks and any of the settings."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for network in networks:
        for name, value in network.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if value.ndim else str(value.item()).encode())
    return digest.hexdigest()[:FINGERPRINT_DIGITS]
