"""Which normal pictures resemble each other because of when or where they were taken: in file order, or by name.

A threshold from pictures that have near copies among the others is too low for new pictures. Calibration therefore
leaves a picture's relatives out with it. How many independent pictures there are limits the rate that can be promised.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Vectors = NDArray[np.float64]  # (n, C), one descriptor of each picture, in file order, centred

SHUFFLES = 200  # random orders that the pictures' own order is compared with
LEAST_CORRELATION = 0.3  # below it, relatives hardly move a threshold
LARGEST_SHARE = 0.5  # of the pictures that may be left out with one
CLEARLY = 0.8  # of the independent pictures: so few in file order are no mere effect of groups by name
FEWEST_PICTURES = 8  # fewer tell nothing about their order
TOKENS = re.compile(r"\d+|[^\d_\-.\s/]+")


@dataclass(frozen=True)
class Dependence:
    """How the normal pictures depend on each other; `reach` neighbours in file order, or those of the same group."""

    pictures: int
    reach: int = 0
    groups: tuple[str, ...] = ()  # the group of each picture; empty: no groups
    independent: float = 0.0  # effective number of independent pictures
    found: str = ""  # in words; empty where the pictures are independent

    def relatives(self, index: int) -> Tensor:
        """Return the indices of the pictures that are left out with this one, itself included."""
        related = np.abs(np.arange(self.pictures) - index) <= self.reach
        if self.groups:
            related |= np.array(self.groups) == self.groups[index]
        return torch.from_numpy(related.nonzero()[0])


def measure_dependence(descriptors: NDArray[np.float32], names: Sequence[str], seed: int) -> Dependence:
    """Return the dependence of pictures with these descriptors (n, C) and names, both in file order."""
    count = len(names)
    vectors = descriptors.astype(np.float64) - descriptors.mean(axis=0, dtype=np.float64)
    if count < FEWEST_PICTURES or not vectors.any():
        return Dependence(count, independent=count)
    rng = np.random.default_rng(seed)
    in_order, by_name = measure_order(vectors, rng), measure_groups(vectors, names, rng)
    return in_order if in_order.independent < CLEARLY * by_name.independent else by_name


def measure_order(vectors: Vectors, rng: np.random.Generator) -> Dependence:
    """Return the dependence of neighbours in file order, by their autocorrelation."""
    count = len(vectors)
    own = autocorrelation(vectors, 1)
    chance = max(autocorrelation(rng.permutation(vectors), 1) for _ in range(SHUFFLES))
    if own <= max(chance, LEAST_CORRELATION):
        return Dependence(count, independent=count)
    most, total, reach = int(LARGEST_SHARE * count / 2), own, 1
    while reach < most and (value := autocorrelation(vectors, reach + 1)) > LEAST_CORRELATION:
        total, reach = total + value, reach + 1
    independent = max(1.0, count / (1 + 2 * total))
    words = f"neighbours in file order resemble each other (correlation {own:.2f}, above {LEAST_CORRELATION} up to "
    return Dependence(count, reach, independent=independent, found=f"{words}{reach} apart)")


def measure_groups(vectors: Vectors, names: Sequence[str], rng: np.random.Generator) -> Dependence:
    """Return the dependence within the groups of names (item, strip, day) that tells most of the pictures."""
    best = Dependence(len(names), independent=len(names))
    for groups in name_groups(names):
        own = intraclass_correlation(vectors, groups)
        if own <= LEAST_CORRELATION:
            continue
        if own > max(intraclass_correlation(rng.permutation(vectors), groups) for _ in range(SHUFFLES)):
            sizes = Counter(groups)
            mean_size = sum(size**2 for size in sizes.values()) / len(groups)
            independent = max(1.0, len(groups) / (1 + (mean_size - 1) * own))
            example = max(sizes, key=sizes.__getitem__)
            words = f"pictures of a group by name (such as {example}*) resemble each other (correlation {own:.2f})"
            best = min(best, Dependence(len(groups), 0, groups, independent, words), key=lambda one: one.independent)
    return best


def autocorrelation(vectors: Vectors, lag: int) -> float:
    """Return the mean product of centred vectors `lag` apart, as a share of their mean square."""
    return float((vectors[lag:] * vectors[:-lag]).sum() / (len(vectors) - lag) / (vectors**2).sum() * len(vectors))


def intraclass_correlation(vectors: Vectors, groups: Sequence[str]) -> float:
    """Return the correlation of different pictures of one group (Fisher 1925), 0 where every group has one picture."""
    _, places, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    sums = np.zeros((len(sizes), vectors.shape[1]))
    np.add.at(sums, places, vectors)
    pairs = (sizes * (sizes - 1)).sum()
    within = (sums**2).sum() - (vectors**2).sum()  # products of all ordered pairs of different pictures of a group
    return float(within / pairs / ((vectors**2).sum() / len(vectors))) if pairs else 0.0


def name_groups(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield groupings of pictures by the beginning of their names, of 2 or more groups and 2 or more pictures each."""
    beginnings = [beginnings_of(name) for name in names]
    for length in range(1, max(map(len, beginnings))):
        groups = tuple(parts[min(length, len(parts)) - 1] for parts in beginnings)
        if 1 < len(set(groups)) <= len(names) / 2:
            yield groups


def beginnings_of(name: str) -> list[str]:
    """Return the beginnings of a picture's name that end after one of its words or numbers; the last one is whole."""
    stem = str(PurePosixPath(name).with_suffix(""))
    return [stem[: token.end()] for token in TOKENS.finditer(stem)] or [stem]
