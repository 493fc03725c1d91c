"""Fingerprint networks and settings, and compare them with those of an earlier run."""

import hashlib
import json
from collections.abc import Iterable, Mapping

from torch import nn

HASH_DIGITS = 16


def describe_differences(then: Mapping[str, object], now: Mapping[str, object]) -> str:
    """Return the changed values as `name was …, is …`; an empty text where none changed."""
    changed = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    return ", ".join(f"{name} was {then.get(name)}, is {now.get(name)}" for name in changed)


def weights_hash(networks: Iterable[nn.Module]) -> str:
    """Return a hash of all weights of the networks."""
    digest = hashlib.sha256()
    for name, value in (entry for network in networks for entry in network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:HASH_DIGITS]


def as_stored(values: Mapping[str, object]) -> dict[str, object]:
    """Return the values as a JSON file gives them back, so that stored and present ones compare equal."""
    return json.loads(json.dumps(values, default=str))
