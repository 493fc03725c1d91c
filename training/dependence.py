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
from numpy.typing import NDArray

from config.keys import AUTO
from runtime.errors import UserError

Vectors = NDArray[np.float64]  # (n, C), one descriptor of each picture, in file order, centred

SHUFFLES = 200  # random orders that the pictures' own order is compared with
LEAST_CORRELATION = 0.3  # below it, relatives hardly move a threshold
LARGEST_SHARE = 0.5  # of the pictures that may be left out with one
CLEARLY = 0.8  # with fewer independent pictures than this share, the order is no mere effect of groups by name
FEWEST_PICTURES = 8  # fewer tell nothing about their order
TOKENS = re.compile(r"\d+|[^\d_\-.\s/]+")


@dataclass(frozen=True)
class Dependence:
    """How normal pictures depend on each other: on `reach` neighbours in file order, or on those of their group."""

    reach: int = 0
    groups: tuple[str, ...] = ()  # the group of each picture; empty: no groups
    per_independent: float = 1.0  # pictures that are worth as much as an independent one
    found: str = ""  # in words; empty where the pictures are independent

    def independent(self, pictures: int) -> float:
        """Return the effective number of independent ones among so many pictures."""
        return max(1.0, pictures / self.per_independent)

    def related(self, index: int, pictures: int) -> NDArray[np.bool_]:
        """Return which of the pictures are related to the one with this index, itself included."""
        if self.groups:
            return np.array(self.groups) == self.groups[index]
        return np.abs(np.arange(pictures) - index) <= self.reach


def measure_dependence(
    descriptors: NDArray[np.float32], names: Sequence[str], pattern: str | None, seed: int
) -> Dependence:
    """Return the dependence of pictures with these descriptors (n, C) and names, both in file order.

    `pattern` is calibration.groups. Raise UserError where it is neither auto, null nor fits the names.
    """
    if groups := dividing_groups(names, pattern):
        return measure_named_groups(descriptors, groups)
    vectors = centred(descriptors)
    if pattern is None or len(names) < FEWEST_PICTURES or not vectors.any():
        return Dependence()
    rng = np.random.default_rng(seed)
    in_order, by_name = measure_order(vectors, rng), measure_groups(vectors, names, rng)
    return in_order if in_order.per_independent * CLEARLY > by_name.per_independent else by_name


def measure_named_groups(descriptors: NDArray[np.floating], groups: tuple[str, ...]) -> Dependence:
    """Return the dependence of pictures with these descriptors (n, C) in groups that the user has named."""
    count = len(set(groups))
    # one group can't be compared with others; the worst is assumed
    own = intraclass_correlation(centred(descriptors), groups) if count > 1 else 1.0
    words = f"calibration.groups names {count} groups (correlation {own:.2f})"
    return Dependence(0, groups, pictures_per_independent(groups, own), words)


def dividing_groups(names: Sequence[str], pattern: str | None) -> tuple[str, ...]:
    """Return the `named_groups` of all pictures. Raise UserError where all are in one group."""
    groups = named_groups(names, pattern)
    if len(set(groups)) == 1:
        problem = f"calibration.groups is {pattern!r}, which puts all pictures into one group, {groups[0]!r}"
        raise UserError(f"{problem}; write one that tells items apart, or auto")
    return groups


def named_groups(names: Sequence[str], pattern: str | None) -> tuple[str, ...]:
    """Return the group of each picture: what a regular expression finds in its name; empty for `auto` and null."""
    if pattern in (None, AUTO):
        return ()
    try:
        found = [re.search(pattern, PurePosixPath(name).stem) for name in names]
    except re.error as error:
        remedy = "write one such as item\\d+, or auto"
        raise UserError(
            f"calibration.groups is {pattern!r}, which is no regular expression ({error}); {remedy}"
        ) from None
    if not any(found):
        example = PurePosixPath(names[0]).stem
        raise UserError(
            f"calibration.groups is {pattern!r}, which no file name contains (such as {example}); change it"
        )
    return tuple(match.group() if match else name for match, name in zip(found, names, strict=True))


def measure_order(vectors: Vectors, rng: np.random.Generator) -> Dependence:
    """Return the dependence of neighbours in file order, by their autocorrelation."""
    own = autocorrelation(vectors, 1)
    if own <= LEAST_CORRELATION or own <= max(autocorrelation(rng.permutation(vectors), 1) for _ in range(SHUFFLES)):
        return Dependence()
    most, total, reach = int(LARGEST_SHARE * len(vectors) / 2), own, 1
    while reach < most and (value := autocorrelation(vectors, reach + 1)) > LEAST_CORRELATION:
        total, reach = total + value, reach + 1
    limit = f"above {LEAST_CORRELATION} up to {reach} apart"
    words = f"neighbours in file order resemble each other (correlation {own:.2f}, {limit})"
    return Dependence(reach, per_independent=1 + 2 * total, found=words)


def measure_groups(vectors: Vectors, names: Sequence[str], rng: np.random.Generator) -> Dependence:
    """Return the dependence within the groups of names (item, strip, day) that tells most of the pictures."""
    best = Dependence()
    for groups in name_groups(names):
        own = intraclass_correlation(vectors, groups)
        per_independent = pictures_per_independent(groups, own)
        if own <= LEAST_CORRELATION or per_independent <= best.per_independent:
            continue
        if own > max(intraclass_correlation(rng.permutation(vectors), groups) for _ in range(SHUFFLES)):
            words = f"pictures of a group by name (such as {groups[0]}*) resemble each other (correlation {own:.2f})"
            best = Dependence(0, groups, per_independent, words)
    return best


def pictures_per_independent(groups: Sequence[str], correlation: float) -> float:
    """Return how many pictures of groups are worth one independent picture (the design effect; Kish 1965)."""
    mean_size = sum(size**2 for size in Counter(groups).values()) / len(groups)
    return 1 + (mean_size - 1) * max(0.0, correlation)


def centred(descriptors: NDArray[np.floating]) -> Vectors:
    return descriptors.astype(np.float64) - descriptors.mean(axis=0, dtype=np.float64)


def autocorrelation(vectors: Vectors, lag: int) -> float:
    """Return the mean product of centred vectors `lag` apart, as a share of their mean square."""
    return float((vectors[lag:] * vectors[:-lag]).sum() / (len(vectors) - lag) / (vectors**2).sum() * len(vectors))


def intraclass_correlation(vectors: Vectors, groups: Sequence[str]) -> float:
    """Return the correlation of different pictures of one group (Fisher 1925), 0 where it can't be told."""
    _, places, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    sums = np.zeros((len(sizes), vectors.shape[1]))
    np.add.at(sums, places, vectors)
    pairs = (sizes * (sizes - 1)).sum()
    within = (sums**2).sum() - (vectors**2).sum()  # products of all ordered pairs of different pictures of a group
    variance = (vectors**2).sum() / len(vectors)
    return float(within / pairs / variance) if pairs and variance else 0.0


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
