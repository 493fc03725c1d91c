"""Split off calibration.py."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

FINGERPRINT_DIGITS = 16


def describe_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Which values changed, and from what to what; empty where none did."""
    differing = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    return ", ".join(f"{name} was {then.get(name)}, is {now.get(name)}" for name in differing)


def weights_hash(networks: Iterable[nn.Module]) -> str:
    """Changes with any weight of the networks."""
    digest = hashlib.sha256()
    for network in networks:
        for name, value in network.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:FINGERPRINT_DIGITS]


def as_stored(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as a JSON file gives them back, so that kept and present ones compare."""
    return json.loads(json.dumps(values, default=str))
