"""How far this device's results are from the golden numbers of the published system (tests/data).

The tests compare on the CPU. Here the same numbers are computed on any device, in fp32 without TF32.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anomaly_map import combine, feature_distance, pixel_distance, smooth
from benchmarks.shared import ROOT
from ddad import NoiseSchedule, noise_loss, reconstruct
from feature_extractor import FeatureExtractor
from tests.golden_weights import (
    GOLDEN_SHARE,
    PUBLISHED,
    cosine_share,
    normal,
    published_unet,
    state_dict,
    stream,
    uniform,
)
from unet import UNet

DATA = ROOT / "tests" / "data"
LARGE = "ddad_256"
EXTRACTOR = "resnet50"

Golden = dict[str, Any]  # arrays by name
Share = tuple[str, float, float]  # name, largest difference as a share of the largest value, its bound


def golden_shares(network: str, device: torch.device) -> Iterator[Share]:
    """Yield how far the outputs of one of the PUBLISHED networks, its loss and its reconstructions are off."""
    unet = published_unet(network)
    unet.load_state_dict(state_dict(json.loads((DATA / "unet_state_dict.json").read_text())[network]))
    unet.to(device).eval()
    expected, size = load_golden(f"unet_{network}"), PUBLISHED[network][0]
    with torch.no_grad():
        if network == LARGE:
            corner = unet(normal(12, 1, 3, size, size).to(device), torch.tensor([7], device=device))[..., :8, :8]
            yield f"{network}, output", difference_share(corner, expected["y_corner"]), GOLDEN_SHARE
            return
        y = unet(normal(12, 2, 3, size, size).to(device), torch.tensor([7, 430], device=device))
    yield f"{network}, output", difference_share(y, expected["y"]), GOLDEN_SHARE
    yield from diffusion_shares(unet, network, device)


def diffusion_shares(unet: UNet, network: str, device: torch.device) -> Iterator[Share]:
    expected, size, schedule = load_golden(f"diffusion_{network}"), PUBLISHED[network][0], NoiseSchedule()
    x_0, noise = uniform(13, 2, 3, size, size).to(device), normal(14, 2, 3, size, size).to(device)
    loss = noise_loss(unet, x_0, torch.tensor([3, 612], device=device), noise, schedule)
    yield f"{network}, loss", difference_share(loss, expected["loss"]), GOLDEN_SHARE
    loss.backward()
    norms = json.loads(str(expected["grad_norms"]))
    found = torch.stack([parameter.grad.norm() for parameter in unet.parameters() if parameter.grad is not None])
    golden_norms = np.array([norms[name] for name, _ in unet.named_parameters()])
    yield f"{network}, gradients", difference_share(found, golden_norms), GOLDEN_SHARE
    shares = []
    for name in (name for name in expected if name.startswith("rec_")):
        w, eta, skip, start = map(float, re.findall(r"\d+\.?\d*", name))
        shape = expected[name].shape
        y_0 = uniform(15, *shape).to(device)
        x = uniform(16, *shape).to(device) if w == 4 else y_0
        draw = sent(stream(17, shape), device)
        strides = {"start": int(start), "skip": int(skip)}
        rebuilt = reconstruct(unet, x, y_0, schedule=schedule, w=w, eta=eta, draw=draw, **strides)
        shares.append(difference_share(rebuilt, expected[name]))
    yield f"{network}, reconstructions", max(shares), GOLDEN_SHARE


def map_shares(device: torch.device, folder: Path) -> Iterator[Share]:
    """Yield how far features, distances and maps are off; `folder` gets a file of weights."""
    expected, weights = load_golden(f"anomaly_map_{EXTRACTOR}_64"), folder / EXTRACTOR
    torch.save(state_dict(json.loads((DATA / "resnet_state_dict.json").read_text())[EXTRACTOR]), weights)
    extractor = FeatureExtractor(EXTRACTOR, weights).to(device).eval()
    rebuilt, target = (torch.from_numpy(expected[name]).to(device) for name in ("recon", "target"))
    bound = cosine_share(expected["feature_distance"])
    with torch.no_grad():
        maps = extractor.features((target + 1) / 2)
        shares = [difference_share(found, expected[f"feature{layer}"]) for layer, found in enumerate(maps, start=1)]
        yield f"{EXTRACTOR}, features", max(shares), GOLDEN_SHARE
        d_feature = feature_distance(extractor(target), extractor(rebuilt), 64)
    yield f"{EXTRACTOR}, feature distance", difference_share(d_feature, expected["feature_distance"]), bound
    anomaly = smooth(combine(d_feature, pixel_distance(rebuilt, target), 1), 4)
    yield f"{EXTRACTOR}, anomaly map", difference_share(anomaly, expected["map_v1"]), bound


def load_golden(name: str) -> Golden:
    return dict(np.load(DATA / f"{name}.npz"))


def sent(draw: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    return lambda: draw().to(device)


def difference_share(actual: Tensor, expected: np.ndarray) -> float:
    """Return the largest difference as a share of the largest expected value."""
    golden = torch.from_numpy(np.asarray(expected)).double()
    found = actual.detach().cpu().double().reshape(golden.shape)
    return float((found - golden).abs().max() / golden.abs().max())
