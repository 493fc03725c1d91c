"""Weights that are the same on any machine (each follows from its name, its shape and a seed), and golden bounds."""

import functools
import zlib
from collections.abc import Callable

import numpy as np
import torch

from unet import ResidualBlock, SelfAttention, UNet

SEED = 11
GOLDEN_SHARE = 1e-4  # of the largest value; fp32 sums in another order differ by less
PUBLISHED = {"ddad_s_32": (32, 32, 2), "ddad_s_64": (64, 32, 2), "ddad_256": (256, 64, 4)}  # size, channels, heads


def published_unet(network: str) -> UNet:
    """Return a UNet of the shape of one of the PUBLISHED networks, with random weights."""
    image_size, base_channels, heads = PUBLISHED[network]
    return UNet(image_size, base_channels, heads=heads)


@functools.cache  # millions of numbers, which many tests read and none may change
def fill(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return weights ~ N(0, 1/fan_in), scales ~ 1 + N(0, 0.1) or shifts ~ N(0, 0.1), as in the golden numbers."""
    rng = np.random.default_rng([SEED, zlib.crc32(name.encode())])
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    values: np.ndarray
    noise = rng.standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        values = 1 + 0.1 * np.abs(noise)
    elif len(shape) >= 2:
        values = noise / np.sqrt(np.prod(shape[1:]))
    elif name.endswith("weight"):
        values = 1 + 0.1 * noise
    else:
        values = 0.1 * noise
    return torch.from_numpy(values.astype(np.float32))


def state_dict(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    return {name: fill(name, tuple(shape)) for name, shape in shapes.items()}


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def uniform(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32))


def stream(seed: int, shape: tuple[int, ...]) -> Callable[[], torch.Tensor]:
    """Return a draw() for `reconstruct` that takes its noise from one generator."""
    rng = np.random.default_rng(seed)
    return lambda: torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


def assert_golden(actual: torch.Tensor, expected: np.ndarray, share: float = GOLDEN_SHARE) -> None:
    """Assert that no value differs by more than `share` of the largest expected one."""
    golden = torch.from_numpy(np.asarray(expected)).to(actual)
    torch.testing.assert_close(actual, golden, rtol=0, atol=share * float(golden.abs().max()))


def rounding_share(unet: UNet, precision: torch.dtype) -> float:
    """Return the share of the largest value by which rounding to `precision` may move an output of `unet`.

    Each of the n residual additions in a row rounds its sum by at most half an eps of the format.
    Such roundings are independent: together they have a standard deviation of at most eps·√(n/12).
    The bound eps·√n is 3.5 of these. It follows from the format and the depth, not from a processor.
    """
    additions = sum(isinstance(module, ResidualBlock | SelfAttention) for module in unet.modules())
    return torch.finfo(precision).eps * additions**0.5


def cosine_share(distances: np.ndarray, channels: int = 1024) -> float:
    """Return the share of the largest of `distances` = 1 − cosine by which fp32 may move them.

    A cosine near 1 sums `channels` rounded products: its error is about eps·√channels, however small the distance is.
    """
    return torch.finfo(torch.float32).eps * channels**0.5 / float(np.abs(distances).max())
