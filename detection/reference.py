"""Memory banks, beyond the paper: distances of features from those of normal pictures (docs/laptop.md).

Most distances of a `Reference` are local outlier factors (Breunig et al. 2000, simplified): the mean distance to the
nearest bank rows, divided by the mean distance of those rows to their own neighbours. The weights of both means reach
zero at the distance of the next row: where two rows are equally far, a factor does not jump, and programs that round
differently agree. `Scale` normalises each part: the maxima of most normal pictures stay below its measured weight.
`fuse_parts` joins the parts to one map. Above 1 the square of BLURRED parts does not count, but the value itself, so
that sharp parts define the outline. PLACELESS parts have no position: they multiply the map of the others.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from config.keys import DIFFUSION
from images.region import JudgedRegion
from metrics import image_auroc
from runtime.device import computes_in_bf16
from training.feature_space import patch_descriptors

CPU = torch.device("cpu")
DISTANCES = ("feature", "pixel")
PICTURE, WIDE, WHOLE = "picture", "wide", "whole"  # one descriptor per position, 4×4 positions, picture
RESIDUAL = "residual"  # the reconstruction of features less the features
# `patch_memory` measures plain distances (PatchCore), the others local outlier factors
DESCRIBED_BY = {"memory": PICTURE, "wide_memory": WIDE, "whole_memory": WHOLE, "patch_memory": PICTURE}
COMPARED = {**DESCRIBED_BY, DIFFUSION: RESIDUAL}  # what the reference of a part compares
BLURRED = {"pixel": 0.5, DIFFUSION: 1.0, "wide_memory": 1.0, "whole_memory": 0.5}  # with their weights
PLACELESS = {"whole_memory"}
LARGEST_BOOST = 4  # by which PLACELESS parts add to the square of a map's maximum
WIDTH = 4  # positions of a wide descriptor
HALF_WHITE, UNCHANGED = 0.5, 0.0  # `evenness`: 0 keeps the spreads of descriptors, 1 makes them equal
SHRINKAGE = 0.01  # added to all variances before whitening, as a share of their mean
BANK = 20_000  # descriptors in a memory bank, at most
KEPT_PER_SQUARE = 64  # descriptors, at most; with more, many have their nearest neighbours in their own picture
SAMPLED_PER_KEPT = 15
PROJECTED = 32  # dimensions in which descriptors are chosen
FOLLOWED = 0.9  # of the largest squared distance: only samples beyond it are updated at each step
ROWS_AT_ONCE = 1024  # rows whose distances are in memory at a time
GROUP = 16  # columns whose minimum is found first
SHORTLIST = 2  # times as many rows as are wanted are found in bf16; their exact distances decide
LEAST_SHORTENED = 1024  # rows of a bank below which that gains nothing
POINTS_AT_ONCE = 512  # whose distances in bf16, and whose nearest rows, are in memory at a time
NEIGHBOURS = 4  # of a local outlier factor
LEAST_WEIGHT = 1e-6  # of a row as far as the last one
CANDIDATES = 4 * NEIGHBOURS  # rows among which a row's neighbours are found when pictures are left out
LEAST_SPACING = 0.1  # as a share of the median spacing, for rows that repeat others
DEVIATIONS = 1  # standard deviations from the mean of normal maxima to the top of a scale
LEAST_UNIT = 1e-12
LEAST_TOP = 0.05  # smallest maximum of a map by which `boost` divides


def wide_descriptors(descriptors: Tensor) -> Tensor:
    """Return means over WIDTH×WIDTH positions, half a width apart: (B, C, H, W) → (B, C, H/2, W/2)."""
    width = min(WIDTH, *descriptors.shape[-2:])
    return F.avg_pool2d(descriptors, width, stride=max(1, width // 2), padding=width // 4, count_include_pad=False)


def describe_pictures(
    features: Sequence[Tensor], parts: Collection[str], region: JudgedRegion | None = None
) -> dict[str, Tensor]:
    """Return the descriptors that the memory `parts` compare, by kind, from feature maps, layer1 first.

    With a region, the descriptor of a picture is the mean inside the region.
    """
    patches = patch_descriptors(features)
    whole = region.select(patches).mean(dim=2)[..., None, None] if region else patches.mean(dim=(2, 3), keepdim=True)
    described = {PICTURE: patches, WIDE: wide_descriptors(patches), WHOLE: whole}
    return {kind: described[kind] for kind in described if kind in descriptor_kinds(parts)}


def descriptor_kinds(parts: Collection[str]) -> set[str]:
    """Return the kinds of descriptors that these parts compare."""
    return {DESCRIBED_BY[part] for part in parts if part in DESCRIBED_BY}


class Scale(NamedTuple):
    """A part's values on normal pictures, smoothed: their mean, a top that most maxima stay below, and its weight."""

    mean: float
    top: float
    weight: float = 1.0

    def units(self, part: Tensor) -> Tensor:
        """Return the part in units: 0 at the mean, its weight at the top."""
        return self.weight * (part - self.mean) / max(self.top - self.mean, LEAST_UNIT)


def fuse_parts(units: Mapping[str, Tensor], scored: Callable[[Tensor], Tensor] = lambda maps: maps) -> Tensor:
    """Return one map: the root of the sum of contributions; where no part is above 0, the largest unit.

    PLACELESS parts multiply the map by one factor. `scored` returns the values of a map that its image score is of.
    """
    placed = {part: values for part, values in units.items() if part not in PLACELESS}
    placeless = {part: values for part, values in units.items() if part in PLACELESS}
    highest = torch.stack(list((placed or placeless).values())).amax(dim=0)
    if not placed:
        return highest
    maps = torch.where(highest > 0, sum_contributions(placed).sqrt(), highest)
    return boost(maps, scored(maps).max(), sum_contributions(placeless)) if placeless else maps


def boost(maps: Tensor, maximum: Tensor, added: Tensor) -> Tensor:
    """Multiply positive values by one factor, which adds `added` to the square of their `maximum`.

    It adds LARGEST_BOOST at most: a large defect would lift its whole picture above small defects of others.
    """
    grown = added.clamp_max(LARGEST_BOOST) / maximum.clamp_min(LEAST_TOP).square()
    return torch.where(maps > 0, maps * (1 + grown).sqrt(), maps)


def sum_contributions(units: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of the contributions of all parts, from their units."""
    return torch.stack([contribution(part, values.clamp_min(0)) for part, values in units.items()]).sum(dim=0)


def contribution(part: str, units: Tensor) -> Tensor:
    """Return a part's contribution from its units ≥ 0: their squares.

    For BLURRED parts it is the square up to 1 and the unit above, times the part's fixed weight.
    """
    squares = units.square()
    return BLURRED[part] * torch.minimum(units, squares) if part in BLURRED else squares


def measure_scale(maps: Sequence[Tensor]) -> Scale:
    """Return the scale of maps of normal pictures; its top is DEVIATIONS above the mean of their maxima."""
    means, maxima = (torch.stack([measure(values.double()) for values in maps]) for measure in (torch.mean, torch.amax))
    return Scale(means.mean().item(), (maxima.mean() + DEVIATIONS * maxima.std(correction=0)).item())


def measure_weights(
    normal: Mapping[str, Sequence[float]], anomalous: Mapping[str, Sequence[float]]
) -> dict[str, float]:
    """Return each part's weight from its image scores of normal pictures and of N copies with synthetic anomalies.

    It is the discriminability index d' = √2·Φ⁻¹(AUROC), as a share of the best part's; Φ is the standard normal
    distribution function. AUROC counts as at least ½, which gives 0, and at most 1 − 1/(2N). If all have 0, all get 1.
    """
    known = {}
    for part, scores in normal.items():
        both = np.array([*scores, *anomalous[part]])
        auroc = image_auroc(both, np.arange(len(both)) >= len(scores))
        most = 1 - 0.5 / len(anomalous[part])
        known[part] = math.sqrt(2) * NormalDist().inv_cdf(min(max(auroc, 0.5), most))
    best = max(known.values())
    return {part: share / best if best else 1.0 for part, share in known.items()}


@dataclass(frozen=True, eq=False)
class Reference:
    """A memory bank: descriptors of normal pictures. With `spacing`, distances are local outlier factors."""

    transform: Tensor  # (C, D)
    bank: Tensor  # (M, D), descriptors @ transform
    spacing: Tensor | None = None  # (M), the distance of each row from its own neighbours

    def __post_init__(self) -> None:
        transform, bank, spacing = self.transform, self.bank, self.spacing
        matrices = all(isinstance(x, Tensor) and x.is_floating_point() and x.ndim == 2 for x in (transform, bank))
        if not matrices or transform.shape[1] != bank.shape[1] or not len(bank):
            raise ValueError("a reference has two matrices, of numbers and with as many columns")
        if spacing is not None and not (isinstance(spacing, Tensor) and spacing.shape == bank.shape[:1]):
            raise ValueError(f"a reference's spacing is a number for each of the {len(bank)} rows of its bank")

    @cached_property
    def centre(self) -> Tensor:
        """Return the mean row (D); distances from it lose fewer digits in bf16."""
        return self.bank.mean(dim=0)

    @cached_property
    def rounded(self) -> Tensor:
        """Return a matrix (D + 2, ≥ M) in bf16: [x − centre, 1, 1] @ it ranks the bank's rows by their distance from x.

        It holds −2·row, and the row's squared length in two numbers, as one has too few digits.
        """
        missing = -len(self.bank) % GROUP
        rows = F.pad(self.bank - self.centre, (0, 0, 0, missing))
        lengths = rows.square().sum(dim=1, keepdim=True)
        lengths[len(self.bank) :] = math.inf
        rest = (lengths - lengths.bfloat16()).nan_to_num(0)
        return torch.cat([-2 * rows, lengths, rest], dim=1).bfloat16().T

    def nearest(self, points: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return squared distances and indices (N, count) of the rows nearest to points (N, D).

        A product finds the rows; their distances are measured without it, as it loses digits. A CPU with bf16 finds
        SHORTLIST·count rows by rounded distances, in less than half the time of an exhaustive search in fp32.
        """
        bank, on_cpu = self.bank.to(points), points.device.type == "cpu"
        is_long = len(bank) >= LEAST_SHORTENED and not torch.compiler.is_compiling()
        shortens = is_long and on_cpu and computes_in_bf16(CPU)
        found = self.shortlist(points, SHORTLIST * count) if shortens else nearest_rows(points, bank, count)[1]
        pairs = zip(points.split(POINTS_AT_ONCE), found.split(POINTS_AT_ONCE), strict=True)
        squares = torch.cat([(F.embedding(near, bank) - some[:, None]).square().sum(dim=2) for some, near in pairs])
        squares, order = squares.topk(min(count, len(bank)), largest=False)
        return squares, found.gather(1, order)

    def shortlist(self, points: Tensor, count: int) -> Tensor:
        """Return the indices (N, count) of rows near to points (N, D), by distances in bf16."""
        blocks = (F.pad(some - self.centre, (0, 2), value=1).bfloat16() for some in points.split(POINTS_AT_ONCE))
        return torch.cat([smallest(some @ self.rounded, count)[1] for some in blocks]).clamp_max(len(self.bank) - 1)

    def distance(self, descriptors: Tensor) -> Tensor:
        """Return distances (B, 1, H, W) of descriptors (B, C, H, W), the same in any batch."""
        transform = self.transform.to(descriptors)
        pictures, count = [], 1 if self.spacing is None else NEIGHBOURS + 1
        for picture in descriptors:  # one by one, as last digits of a product depend on its size
            squares, places = self.nearest(picture.flatten(1).T @ transform, count)
            distances = squares.sqrt()
            if self.spacing is not None:
                weights, spacing = neighbour_weights(squares), self.spacing.to(distances)[places]
                distances = (weights * distances).sum(dim=1) / (weights * spacing).sum(dim=1)
            pictures.append(distances)
        return torch.stack(pictures).view(len(descriptors), 1, *descriptors.shape[-2:])


@dataclass(frozen=True, eq=False)
class Memory:
    """A reference that knows which picture each of its rows came from, so that pictures can be left out."""

    reference: Reference
    owners: Tensor  # (M), the index of each row's picture
    nearest: Tensor  # (M, CANDIDATES), the other rows nearest to each row, for the spacing
    distances: Tensor  # (M, CANDIDATES), to these

    def without(self, pictures: Tensor) -> Reference:
        """Return the reference without the rows of these pictures (indices); all spacings as if they had never been."""
        left_out = torch.isin(self.owners, pictures)
        transform, bank = self.reference.transform, self.reference.bank[~left_out]
        if self.reference.spacing is None:
            return Reference(transform, bank)
        usable = ~left_out[self.nearest]
        taken = usable & (usable.cumsum(dim=1) <= NEIGHBOURS)
        spacing, short = (self.distances * taken).sum(dim=1) / NEIGHBOURS, taken.sum(dim=1) < NEIGHBOURS
        if (lacking := short & ~left_out).any():
            spacing[lacking] = row_spacing(self.reference.bank[lacking], bank)
        return Reference(transform, bank, limit_spacing(spacing[~left_out]))


@dataclass(frozen=True, eq=False)
class WholeMemory:
    """A memory of one row per picture. So few rows shape their own whitening: without some, all is learnt anew."""

    rows: Sequence[Tensor]  # (1, C) of each picture
    seed: int

    @cached_property
    def reference(self) -> Reference:
        return build_memory(self.rows, len(self.rows), HALF_WHITE, self.seed).reference

    def without(self, pictures: Tensor) -> Reference:
        """Return the reference as if these pictures (indices) had never been."""
        left_out = set(pictures.tolist())
        kept = [row for picture, row in enumerate(self.rows) if picture not in left_out]
        return build_memory(kept, len(kept), HALF_WHITE, self.seed).reference


@dataclass(frozen=True, eq=False)
class ResidualLength:
    """The length of residuals, half whitened. A bank of one row, 0, makes it a reference."""

    reference: Reference

    @classmethod
    def learn(cls, residuals: Tensor) -> "ResidualLength":
        """Return the length learnt from residuals (N, K) of normal pictures."""
        return cls(Reference(whitening(residuals, HALF_WHITE), torch.zeros(1, residuals.shape[1])))

    def without(self, pictures: Tensor) -> Reference:
        """Return the same reference: no picture counts much among the positions of all."""
        return self.reference


Learnt = Memory | WholeMemory | ResidualLength


def neighbour_weights(squares: Tensor) -> Tensor:
    """Return the weights of rows by their squared distances (N, K), the nearest first.

    They are those of Epanechnikov's kernel, as wide as the distance of the last row, which weighs nearly nothing.
    """
    return (1 - squares / squares[:, -1:].clamp_min(LEAST_UNIT)).clamp_min(LEAST_WEIGHT)


def bank_size(area: int) -> int:
    """Return how many descriptors a memory bank keeps, at most; the `area` of normal pictures is in squares."""
    return min(BANK, KEPT_PER_SQUARE * area)


def samples_per_square(area: int) -> int:
    """Return how many descriptors are sampled from each square of the `area` of normal pictures, to choose from."""
    return max(1, SAMPLED_PER_KEPT * bank_size(area) // area)


def placeholder(width: int, area: int) -> Reference:
    """Return a reference of `width` channels that is as slow to use as one learnt from this area, in squares."""
    rows = bank_size(area)
    return Reference(torch.eye(width), torch.zeros(rows, width), torch.ones(rows))


def sample(descriptors: Tensor, count: int, seed: int) -> Tensor:
    """Return `count` random positions, at most all, of descriptors (C, H, W) or (C, P): (count, C) on the CPU."""
    positions = descriptors.flatten(1).T.cpu()
    return positions[torch.randperm(len(positions), generator=torch.Generator().manual_seed(seed))[:count]]


def build_memories(
    samples: Mapping[str, Sequence[Tensor]], parts: Sequence[str], area: int, seed: int
) -> dict[str, Learnt]:
    """Return the memories of the memory `parts`, from samples (N, C) of each normal picture by kind.

    `area` is that of all pictures, in squares.
    """
    memories: dict[str, Learnt] = {}
    for part, kind in DESCRIBED_BY.items():
        if part in parts:
            evenness = UNCHANGED if part == "patch_memory" else HALF_WHITE
            rows = samples[kind]
            memories[part] = WholeMemory(rows, seed) if kind == WHOLE else build_memory(rows, area, evenness, seed)
    return memories


def build_memory(samples: Sequence[Tensor], area: int, evenness: float, seed: int) -> Memory:
    """Return a memory of samples (N, C) of each picture, whitened to the degree `evenness`; 0: without spacing.

    `area` is that of all pictures, in squares.
    """
    owners = torch.repeat_interleave(torch.tensor([len(of_picture) for of_picture in samples]))
    joined = torch.cat(list(samples))
    transform = whitening(joined, evenness)
    points = joined @ transform
    chosen = farthest_points(points, bank_size(area), seed)
    bank = points[chosen]
    squares, nearest = nearest_rows(bank, bank, 1 + CANDIDATES)
    distances = squares.sqrt()[:, 1:]  # the first is the row itself
    spacing = None if evenness == UNCHANGED else limit_spacing(distances[:, :NEIGHBOURS].mean(dim=1))
    return Memory(Reference(transform, bank, spacing), owners[chosen], nearest[:, 1:], distances)


def limit_spacing(spacing: Tensor) -> Tensor:
    """Return the spacing of rows, at least LEAST_SPACING of the median; a row without others (NaN) has spacing 1."""
    spacing = spacing.nan_to_num(1)
    return spacing.clamp_min(max(LEAST_SPACING * spacing.median().item(), LEAST_UNIT))


def row_spacing(rows: Tensor, bank: Tensor) -> Tensor:
    """Return the mean distance (N) of rows (N, D) of the bank to their nearest others in it."""
    return nearest_rows(rows, bank, 1 + NEIGHBOURS)[0][:, 1:].sqrt().mean(dim=1)


def whitening(samples: Tensor, evenness: float) -> Tensor:
    """Return the covariance of samples (N, C) to the power −evenness/2; 1 makes it a sphere, 0 changes nothing."""
    centred = samples - samples.mean(dim=0)
    covariance = (centred.T @ centred).double() / len(samples)
    variance = max(SHRINKAGE * covariance.diagonal().mean().item(), LEAST_UNIT)
    values, vectors = torch.linalg.eigh(covariance + torch.eye(len(covariance)).to(covariance) * variance)
    return (vectors * values.pow(-evenness / 2) @ vectors.T).to(samples)


def farthest_points(samples: Tensor, count: int, seed: int) -> Tensor:
    """Return the indices of `count` samples (N, C), each the farthest from those before it.

    Distances (Gonzalez 1985; PatchCore's coreset) are measured in a random projection. They only shrink: while one is
    at least `least`, the farthest sample is among those `beyond`. Only these are updated; the others follow afterwards.
    """
    generator = torch.Generator().manual_seed(seed)
    projection = torch.randn(samples.shape[1], PROJECTED, generator=generator) / PROJECTED**0.5
    points = samples @ projection.to(samples)
    squares, chosen, place = squares_from(points, points[:1]), torch.zeros(min(count, len(points)), dtype=torch.long), 1
    while place < len(chosen):
        first, least = place, FOLLOWED * squares.max()
        beyond = (squares >= least).nonzero().squeeze(1)
        candidates, distances = points[beyond], squares[beyond]
        while place < len(chosen) and distances.max() >= least:
            farthest = distances.argmax()
            chosen[place] = beyond[farthest]
            distances = torch.minimum(distances, (candidates - candidates[farthest]).square().sum(dim=1))
            place += 1
        squares = torch.minimum(squares, squares_from(points, points[chosen[first:place]]))
    return chosen


def squares_from(points: Tensor, others: Tensor) -> Tensor:
    """Return the squared distance (N) of each point (N, C) from the nearest of `others` (M, C)."""
    return nearest_rows(points, others, 1)[0].squeeze(1).nan_to_num(0)


def nearest_rows(points: Tensor, others: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return squared distances and indices (N, count) of the rows of `others` (M, C) nearest to points (N, C)."""
    missing = -len(others) % GROUP
    lengths, padded = F.pad(others.square().sum(dim=1), (0, missing), value=math.inf), F.pad(others, (0, 0, 0, missing))
    count = min(count, len(others))
    found = [smallest(torch.addmm(lengths, block, padded.T, alpha=-2), count) for block in points.split(ROWS_AT_ONCE)]
    relative, places = (torch.cat(blocks) for blocks in zip(*found, strict=True))
    squares = (relative + points.square().sum(dim=1, keepdim=True)).clamp_min(0)
    return squares, places.clamp_max(len(others) - 1)  # a point that is not finite may find a padded row


def smallest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` lowest of each row (N, M), in order, and their columns; M is a multiple of GROUP."""
    groups = values.unflatten(1, (GROUP, -1))  # (N, GROUP, M / GROUP): a group's columns are M / GROUP apart
    # the lowest values lie in the groups with the lowest minima, so that few are sorted
    best = groups.amin(dim=1).topk(min(count, groups.shape[2]), largest=False).indices
    columns = (best[:, None] + groups.shape[2] * torch.arange(GROUP, device=values.device)[:, None]).flatten(1)
    lowest, places = values.gather(1, columns).topk(count, largest=False)
    return lowest, columns.gather(1, places)
