"""Normal-aware maps, beyond the paper: how unlike those of normal pictures a picture's features are.

D_f and D_p ask how far a picture is from its reconstruction. What a briefly trained network never gets right on normal pictures, fine texture
above all, counts there as much as a defect. A `Reference` learns from normal pictures what is usual, and measures what is not.

| part              | what it looks at                                                                 | by                                    |
|-------------------|----------------------------------------------------------------------------------|---------------------------------------|
| `pixel`           | picture and reconstruction, both as the UNet sees them: D_p                       | mean absolute difference              |
| `feature`         | the features of both: D_f                                                         | cosine distance                       |
| `memory`          | features of the picture in full, without any reconstruction                       | local outlier factor                  |
| `wide_memory`     | as `memory`, means over 4×4 positions                                             | local outlier factor                  |
| `whole_memory`    | as `memory`, means over the whole picture                                         | local outlier factor                  |
| `patch_memory`    | as `memory`, as they are: a plain memory of patches (PatchCore), to compare with  | distance to the nearest normal one    |

The local outlier factor (Breunig et al. 2000, simplified) is the mean distance to the nearest normal ones over the mean distance at which these
have theirs: what lies as far from others as they do is usual, be it in a dense or in a sparse place.

A map is the length of the vector of the parts that are asked for (`together`), each in units in which the highest of a normal picture is about 1
(`Scale`): one part is enough to tell a defect, and those that agree count for more, but what is weak does not add up as it would in a sum. Parts that
blur what they find (BLURRED) count less in it (`weight`), so that the others draw the outline where both see something. What knows of no place
(PLACELESS) lifts the map of the others as it is, so that its highest counts both (`lifted`).
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_map import patch_mean
from runtime.errors import UserError

DISTANCES = ("feature", "pixel")
PICTURE, WIDE, WHOLE = "picture", "wide", "whole"  # kinds of descriptors
DESCRIBED_BY = {"memory": PICTURE, "wide_memory": WIDE, "whole_memory": WHOLE, "patch_memory": PICTURE}
BLURRED = {"pixel", "wide_memory", "whole_memory"}
PLACELESS = {"whole_memory"}
BLURRED_WEIGHT = 0.5
WIDTH = 4  # positions of a wide descriptor
HALF_WHITE, AS_THEY_ARE = 0.5, 0.0  # how far the spreads of normal descriptors are evened out
SHRINKAGE = 0.01  # of the covariance towards a sphere, in mean variances
BANK = 20_000  # normal descriptors of a kind that are kept, at most
OF_A_PICTURE = 64  # on average, at most: of more, many lie closer to others of their picture than those of new ones can
DRAWN = 15  # for each that is kept
PROJECTED = 32  # dimensions, in which they are chosen
FOLLOWED = 0.9  # of the largest square, from which on samples are followed
ROWS_AT_ONCE = 1024  # whose distances are in memory
GROUP = 16  # of which the lowest is sought first
NEIGHBOURS = 4  # of a local outlier factor
LEAST_SPACING = 0.1  # of the median, at which rows count as away from their own neighbours
DEVIATIONS = 1  # above the mean of normal maxima is the top
LEAST_UNIT = 1e-12
LEAST_TOP = 0.05  # of a map that is lifted

Features = Sequence[Tensor]


def descriptors(features: Features) -> Tensor:
    """All layers but the first, means over 3×3 positions, side by side on the first one's grid: → (B, C, H, W)."""
    means = [patch_mean(layer.float()) for layer in features[1:]]
    return torch.cat(
        [F.interpolate(layer, size=means[0].shape[-2:], mode="bilinear", align_corners=False) for layer in means], dim=1
    )


def wide_descriptors(descriptors: Tensor) -> Tensor:
    """Means over WIDTH×WIDTH positions, half a width apart; the border is not padded: (B, C, H, W) → (B, C, H/2, W/2)."""
    width = min(WIDTH, *descriptors.shape[-2:])
    return F.avg_pool2d(descriptors, width, stride=max(1, width // 2), padding=width // 4, count_include_pad=False)


def picture_descriptors(features: Features) -> dict[str, Tensor]:
    """Return the descriptors of pictures by kind."""
    whole = descriptors(features)
    return {PICTURE: whole, WIDE: wide_descriptors(whole), WHOLE: whole.mean(dim=(2, 3), keepdim=True)}


def kinds_of(parts: Collection[str]) -> set[str]:
    """What the parts look at."""
    return {DESCRIBED_BY[part] for part in parts if part in DESCRIBED_BY}


class Scale(NamedTuple):
    """What a part comes to on normal pictures, smooth as maps are: the mean over their pixels, and a top that most of their maxima stay below."""

    mean: float
    top: float

    def units(self, part: Tensor) -> Tensor:
        """0 at the mean, 1 at the top."""
        return (part - self.mean) / max(self.top - self.mean, LEAST_UNIT)


def fuse_parts(units: Mapping[str, Tensor], scored: Callable[[Tensor], Tensor] = lambda maps: maps) -> Tensor:
    """Parts in their units, of one shape: the root of the sum of their weights, or the highest where none is above 0; `scored` is the place
    where the highest is looked for that PLACELESS parts lift."""
    placed, placeless = (
        {part: values for part, values in units.items() if (part in PLACELESS) == lifts} for lifts in (False, True)
    )
    highest = torch.stack(list((placed or placeless).values())).amax(dim=0)
    if not placed:
        return highest
    maps = torch.where(highest > 0, sum_of_weights(placed).sqrt(), highest)
    return boost(maps, scored(maps).amax(), sum_of_weights(placeless)) if placeless else maps


def boost(maps: Tensor, top: Tensor, more: Tensor) -> Tensor:
    """What is above 0 multiplied, so that the square of what is `top` grows by so much `more`."""
    return torch.where(maps > 0, maps * (1 + more / top.clamp_min(LEAST_TOP).square()).sqrt(), maps)


def sum_of_weights(units: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([part_weight(part, values.clamp_min(0)) for part, values in units.items()]).sum(dim=0)


def part_weight(part: str, units: Tensor) -> Tensor:
    """The square of units above 0; of BLURRED parts half of it, and beyond their top half the units alone."""
    squares = units.square()
    return BLURRED_WEIGHT * torch.minimum(units, squares) if part in BLURRED else squares


def measure_scale(maps: Sequence[Tensor]) -> Scale:
    """Of the maps of normal pictures; the top is DEVIATIONS above the mean of their maxima."""
    means, maxima = (torch.stack([measure(values.double()) for values in maps]) for measure in (torch.mean, torch.amax))
    return Scale(means.mean().item(), (maxima.mean() + DEVIATIONS * maxima.std(correction=0)).item())


@dataclass(frozen=True, eq=False)
class Reference:
    """What is usual of a descriptor on normal pictures: distances are to the nearest row of `bank` (M, D), in the space `descriptor @ transform`
    (C, D). With `spacing` (M), how far each row lies from its own neighbours, they are local outlier factors."""

    transform: Tensor
    bank: Tensor
    spacing: Tensor | None = None

    def __post_init__(self) -> None:
        shapes = [
            tuple(part.shape) if isinstance(part, Tensor) and part.is_floating_point() else ()
            for part in (self.transform, self.bank)
        ]
        if [len(shape) for shape in shapes] != [2, 2] or shapes[0][1] != shapes[1][1] or not len(self.bank):
            raise UserError(f"a reference is two matrices with as many columns, not {shapes[0]} and {shapes[1]}")
        if self.spacing is not None and not (
            isinstance(self.spacing, Tensor) and self.spacing.shape == (len(self.bank),)
        ):
            raise UserError(f"a reference's spacing is a number for each of the {len(self.bank)} rows of its bank")

    def distance(self, descriptors: Tensor) -> Tensor:
        """(B, C, H, W) → (B, 1, H, W); each picture's for itself, so that its distances are the same in any batch."""
        transform, bank = self.transform.to(descriptors), self.bank.to(descriptors)
        far = [self.from_bank(rows(one) @ transform, bank) for one in descriptors]
        return torch.stack(far).view(len(descriptors), 1, *descriptors.shape[-2:])

    def from_bank(self, points: Tensor, bank: Tensor) -> Tensor:
        """Of points (N, D) → (N)."""
        squares, places = nearest_rows(points, bank, 1 if self.spacing is None else NEIGHBOURS)
        distances = squares.sqrt().mean(dim=1)
        return distances if self.spacing is None else distances / self.spacing.to(distances)[places].mean(dim=1)


def bank_size(pictures: int) -> int:
    """Return how many descriptors of a kind are kept of so many normal pictures, at most."""
    return min(BANK, OF_A_PICTURE * pictures)


def samples_per_picture(pictures: int) -> int:
    """Return how many descriptors of a kind are drawn of each of so many normal pictures, to choose from."""
    return max(1, DRAWN * bank_size(pictures) // pictures)


def placeholder(width: int, pictures: int) -> Reference:
    """Return a reference for descriptors of `width` channels that takes as long as one learnt from so many pictures."""
    count = bank_size(pictures)
    return Reference(torch.eye(width), torch.zeros(count, width), torch.ones(count))


def rows(descriptors: Tensor) -> Tensor:
    """(C, H, W) → (H·W, C)."""
    return descriptors.flatten(1).T


def sample(descriptors: Tensor, count: int, seed: int) -> Tensor:
    """`count` of the places of descriptors (C, H, W), or all there are: → (count, C) on the CPU."""
    everywhere = rows(descriptors).cpu()
    return everywhere[torch.randperm(len(everywhere), generator=torch.Generator().manual_seed(seed))[:count]]


def build_memory(samples: Tensor, count: int, evened: float, seed: int) -> Reference:
    """Distances from the nearest of samples (N, C), of which `count` are kept, each direction in units of its spread to the power `evened`."""
    transform = whitening(samples, evened)
    points = samples @ transform
    return Reference(transform, points[farthest_points(points, count, seed)])


def local_outlier_factor(memory: Reference) -> Reference:
    """Local outlier factors in place of its distances. Rows that repeat others count as LEAST_SPACING of the median away from them."""
    bank = memory.bank
    squares, _ = nearest_rows(bank, bank, 1 + NEIGHBOURS)
    spacing = squares[:, 1:].sqrt().mean(dim=1).nan_to_num(1)  # the closest is itself; a row alone has no others
    return replace(memory, spacing=spacing.clamp_min(max(LEAST_SPACING * spacing.median().item(), LEAST_UNIT)))


def whitening(samples: Tensor, evened: float) -> Tensor:
    """(C, C), symmetric: the covariance of samples (N, C) to the power −evened/2; 1 makes it a sphere, 0 leaves all as it is."""
    centred = samples - samples.mean(dim=0)
    covariance = (centred.T @ centred).double() / len(samples)
    sphere = torch.eye(len(covariance)).to(covariance) * max(
        SHRINKAGE * covariance.diagonal().mean().item(), LEAST_UNIT
    )
    values, vectors = torch.linalg.eigh(covariance + sphere)
    return (vectors * values.pow(-evened / 2) @ vectors.T).to(samples)


def farthest_points(samples: Tensor, count: int, seed: int) -> Tensor:
    """Indices of `count` samples (N, C) that leave none far from all of them: each next one is the farthest (Gonzalez 1985; PatchCore's
    coreset), after a random projection.

    Distances only shrink, so that a sample within `least` is not the next one while others are beyond: these alone are followed from point to
    point, and the others catch up once none is left.
    """
    projection = (
        torch.randn(samples.shape[1], PROJECTED, generator=torch.Generator().manual_seed(seed)) / PROJECTED**0.5
    )
    points = samples @ projection.to(samples)
    squares, chosen, place = squares_from(points, points[:1]), torch.zeros(min(count, len(points)), dtype=torch.long), 1
    while place < len(chosen):
        first, least = place, FOLLOWED * squares.max()
        beyond = (squares >= least).nonzero().squeeze(1)
        some, rest = points[beyond], squares[beyond]
        while place < len(chosen) and rest.max() >= least:
            farthest = rest.argmax()
            chosen[place] = beyond[farthest]
            rest = torch.minimum(rest, (some - some[farthest]).square().sum(dim=1))
            place += 1
        squares = torch.minimum(squares, squares_from(points, points[chosen[first:place]]))
    return chosen


def squares_from(points: Tensor, others: Tensor) -> Tensor:
    """The square of each point's (N, C) distance from the nearest of others (M, C): → (N)."""
    return nearest_rows(points, others, 1)[0].squeeze(1).nan_to_num(0)


def nearest_rows(points: Tensor, others: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` nearest of others (M, C) to each of points (N, C), or all of them: the squares of their distances, in order, and their places;
    both (N, count)."""
    missing = -len(others) % GROUP
    lengths, padded = F.pad(others.square().sum(dim=1), (0, missing), value=math.inf), F.pad(others, (0, 0, 0, missing))
    found = [
        smallest(torch.addmm(lengths, some, padded.T, alpha=-2), min(count, len(others)))
        for some in points.split(ROWS_AT_ONCE)
    ]
    relative, places = (torch.cat(parts) for parts in zip(*found, strict=True))
    squares = (relative + points.square().sum(dim=1, keepdim=True)).clamp_min(0)
    return squares, places.clamp_max(len(others) - 1)  # beyond which a point that is not finite may find its own


def smallest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` lowest of each row (N, M), in order, and their columns; M is a multiple of GROUP.

    They are in those groups of columns whose own lowest are the lowest: few are left to sort.
    """
    groups = values.unflatten(1, (GROUP, -1))  # (N, GROUP, M / GROUP): columns M / GROUP apart are one
    best = groups.amin(dim=1).topk(min(count, groups.shape[2]), largest=False).indices
    columns = (best[:, None] + groups.shape[2] * torch.arange(GROUP, device=values.device)[:, None]).flatten(1)
    found, places = values.gather(1, columns).topk(count, largest=False)
    return found, columns.gather(1, places)


def build_references(
    described: Mapping[str, Sequence[Tensor]], parts: Sequence[str], seed: int
) -> dict[str, Reference]:
    """The references of those `parts` that have one, from descriptors (N, C) of each of some normal pictures by their kind; each the same beside
    any other parts."""

    def reference(part: str, kind: str) -> Reference:
        samples, count = torch.cat(list(described[kind])), bank_size(len(described[kind]))
        if part == "patch_memory":
            return build_memory(samples, count, AS_THEY_ARE, seed)
        return local_outlier_factor(build_memory(samples, count, HALF_WHITE, seed))

    return {part: reference(part, kind) for part, kind in DESCRIBED_BY.items() if part in parts}
