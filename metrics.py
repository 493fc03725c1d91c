"""Metrics of scores and maps: AUROC, average precision, F1-max, PRO, their intervals, and rates at a threshold.

Scores are (N,), maps and masks are (N, H, W), or lists of such stacks where pictures have several shapes: all pixels
are ranked together. A higher value is more anomalous.
Labels and masks are true, or above 0, where an entry (a picture or a pixel) is anomalous.
Entries where `counted` (H, W), if given, is false are left out, in all pictures.
All metrics follow from one `Ranking` of the anomalous entries. It reads the pictures in chunks, so arrays may be
memory maps larger than the memory. It keeps the A anomalous entries and a chunk of max(`CHUNK`, 2·A) pixels.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import label as connected_regions

CHUNK = 2**24  # pixels read at a time; a single picture may be larger
BINS = 2**19  # of the histogram that saves sorting most of the normal entries
EDGES = 1024  # largest number of values at which `PictureCounts` counts
RESAMPLES_AT_ONCE = 64  # curves in memory
Counted = NDArray[np.bool_] | None  # (H, W), where entries are ranked; None: everywhere

EIGHT_CONNECTED = np.array([[[plane] * 3] * 3 for plane in (0, 1, 0)])  # no region spans pictures

Stacks = Sequence[NDArray]  # (N_k, H_k, W_k) each, one stack per shape


def image_auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Return the area under the ROC curve of image scores (N,): see `Ranking.auroc`."""
    return rank_anomalies(scores, labels).auroc()


def pixel_auroc(maps: ArrayLike | Stacks, masks: ArrayLike | Stacks) -> float:
    """Return the area under the ROC curve over all pixels of all maps: see `Ranking.auroc`."""
    return _rank_maps(maps, masks).auroc()


def pro(maps: ArrayLike | Stacks, masks: ArrayLike | Stacks, limit: float = 0.3, counted: Counted = None) -> float:
    """Return the per-region overlap up to a false-positive rate of `limit`: see `Ranking.pro`."""
    return _rank_maps(maps, masks, counted).pro(limit)


def youden_threshold(scores: ArrayLike, labels: ArrayLike) -> float:
    """Return the score where true-positive rate minus false-positive rate is largest (Youden 1950), as published."""
    rank_anomalies(scores, labels)  # raises ValueError for what cannot be ranked
    from sklearn.metrics import roc_curve  # slow to load, and a detector does without

    false_positive_rate, true_positive_rate, thresholds = roc_curve(np.asarray(labels) > 0, np.asarray(scores))
    gain = (true_positive_rate - false_positive_rate)[1:]  # without the threshold of infinity
    return float(thresholds[1:][np.argmax(gain)])


@dataclass(frozen=True, eq=False)
class Ranking:
    """The ranks of the A anomalous entries among the normal ones, in ascending order of their values.

    An image score counts as a map of one pixel, so each defective picture is a region of its own.
    """

    values: NDArray  # (A,)
    below: NDArray[np.int64]  # (A,) normal entries below each
    up_to: NDArray[np.int64]  # (A,) normal entries below each or equal to it
    true_positives: NDArray[np.int64]  # (A,) anomalous entries at or above each
    regions: NDArray[np.int32]  # (A,) number of its 8-connected region, from 0 over all pictures
    region_pictures: NDArray[np.int64]  # (regions,) number of each region's picture
    normals: int  # number of normal entries

    def auroc(self) -> float:
        """Return the probability that an anomalous entry is above a normal one; a tie counts as one half."""
        return float((self.below.sum() + self.up_to.sum()) / (2 * self.normals * len(self.values)))

    def average_precision(self) -> float:
        """Return the mean over the anomalous entries of the precision at their value."""
        return float((self.true_positives / (self.true_positives + self.normals - self.below)).mean())

    def f1_max(self) -> float:
        """Return the largest F1 over all thresholds; it is enough to try the anomalous values."""
        flagged = self.true_positives + self.normals - self.below
        return float((2 * self.true_positives / (flagged + len(self.values))).max())

    def pro(self, limit: float = 0.3) -> float:
        """Return the per-region overlap (Bergmann et al. 2020): 1 is perfect, a constant map has limit/2.

        The overlap at a threshold is the share of a region at or above it, averaged over the 8-connected regions.
        PRO is the mean overlap for false-positive rates from 0 to `limit`. The value is exact: each anomalous pixel
        adds the area under its own curve, which rises from 0 to 1 between the rates lo and hi (lo < hi for ties).
        Raise ValueError unless 0 < limit ≤ 1.
        """
        _check_limit(limit)
        reached = slice(np.searchsorted(self.up_to, int((1 - limit) * self.normals)), None)
        lo, hi = 1 - self.up_to[reached] / self.normals, 1 - self.below[reached] / self.normals
        partial = np.square(limit - lo) / (2 * np.maximum(hi - lo, np.finfo(float).tiny))
        area = np.where(hi <= limit, limit - (lo + hi) / 2, np.where(lo < limit, partial, 0.0)) / limit
        sizes = np.bincount(self.regions)
        return float((np.bincount(self.regions[reached], weights=area, minlength=len(sizes)) / sizes).mean())


def rank_anomalies(values: ArrayLike | Stacks, truth: ArrayLike | Stacks, counted: Counted = None) -> Ranking:
    """Rank scores (N,), maps (N, H, W) or stacks of maps against labels or masks of their shapes, where `counted`.

    Raise ValueError if shapes differ, values are not finite, or there are no normal or no anomalous entries.
    """
    stacks = _as_stacks(values, truth)
    anomalous, regions, region_pictures, regions_before, normals, infinite = [], [], [], 0, 0, 0
    for first, chunk, mask, normal in _chunks(stacks, counted, CHUNK):
        normals += np.count_nonzero(normal)
        infinite += chunk.size - np.count_nonzero(np.isfinite(chunk))
        numbered, count = connected_regions(mask, EIGHT_CONNECTED)
        anomalous.append(chunk[mask])
        regions.append(numbered[mask] + np.int32(regions_before - 1))
        pictures = np.empty(count, np.int64)
        repeats = np.count_nonzero(mask, axis=(1, 2))
        pictures[regions[-1] - regions_before] = np.repeat(np.arange(first, first + len(mask)), repeats)
        region_pictures.append(pictures)
        regions_before += count
    flat = np.concatenate(anomalous)
    if infinite:
        raise ValueError(f"{infinite} of {sum(maps.size for maps, _ in stacks)} scores are not finite")
    if not (len(flat) and normals):
        missing, kind = "normal" if len(flat) else "defective", "pictures" if stacks[0][0][0].size == 1 else "pixels"
        raise ValueError(f"no {missing} {kind}; this metric needs both normal and defective ones")
    order = np.argsort(flat)
    flat = flat[order]
    below, up_to = np.zeros((2, len(flat)), np.int64)
    large = max(CHUNK, 2 * len(flat))  # large chunks: few passes over `flat`
    for _, chunk, _, normal in _chunks(stacks, counted, large):
        lower, tied = _count_lower_and_tied(chunk[normal], flat)
        below += lower
        up_to += lower + tied
    true_positives = len(flat) - np.searchsorted(flat, flat, side="left")
    numbers, pictures = np.concatenate(regions)[order], np.concatenate(region_pictures)
    return Ranking(flat, below, up_to, true_positives, numbers, pictures, normals)


@dataclass(frozen=True, eq=False)
class PictureCounts:
    """Counts of each picture's entries at or above T falling thresholds: none at the first, all at the last.

    Each chosen value has two thresholds, just above and at it: odd steps count its ties, even steps the values between.
    """

    false_positives: NDArray[np.float64]  # (N, T)
    true_positives: NDArray[np.float64]  # (N, T)
    overlap: NDArray[np.float64]  # (N, T) share of a region, summed over the picture's regions

    def resample_metrics(self, multiplicities: ArrayLike, pro_limits: Collection[float] = ()) -> dict[str, NDArray]:
        """Return the metrics (R,) of R sets in which each picture occurs `multiplicities` (R, N) times."""
        times, parts = np.asarray(multiplicities, np.float64), []
        for first in range(0, len(times), RESAMPLES_AT_ONCE):
            rows = times[first : first + RESAMPLES_AT_ONCE]
            drawn = rows @ self.false_positives, rows @ self.true_positives, rows @ self.overlap
            parts.append(_curve_metrics(drawn, pro_limits))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def count_by_picture(values: ArrayLike | Stacks, truth: ArrayLike | Stacks, counted: Counted = None) -> PictureCounts:
    """Count the scores (N,) or maps (N, H, W) of each picture at the thresholds of `_choose_edges`.

    Metrics of resamples are exact for up to `EDGES` distinct anomalous values; with more, errors are about 1e-4.
    """
    ranking = rank_anomalies(values, truth, counted)
    stacks = _as_stacks(values, truth)
    edges = _choose_edges(ranking)
    false_positives = np.zeros((sum(len(maps) for maps, _ in stacks), 2 * len(edges) + 2))
    for first, chunk, _, normal in _chunks(stacks, counted, CHUNK):
        for picture, (pixels, place) in enumerate(zip(chunk, normal, strict=True), first):
            ascending = np.sort(pixels[place])
            below = np.stack([np.searchsorted(ascending, edges, side) for side in ("left", "right")], axis=1)
            false_positives[picture, 1:] = len(ascending) - np.concatenate([below.ravel()[::-1], [0]])
    slots = np.searchsorted(edges, ranking.values, "left") + np.searchsorted(edges, ranking.values, "right")
    rows = ranking.region_pictures[ranking.regions]
    cells = (rows + 1) * false_positives.shape[1] - 1 - slots  # flat index of (picture, falling threshold)
    shares = (1 / np.bincount(ranking.regions))[ranking.regions]
    shape, size = false_positives.shape, false_positives.size
    counts, overlap = (np.bincount(cells, weights, size).reshape(shape) for weights in (None, shares))
    return PictureCounts(false_positives, counts.cumsum(axis=1, dtype=np.float64), overlap.cumsum(axis=1))


def bootstrap_intervals(
    values: ArrayLike | Stacks,
    truth: ArrayLike | Stacks,
    counted: Counted = None,
    *,
    pro_limits: Collection[float] = (),
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Return percentile bootstrap intervals over pictures (Efron & Tibshirani 1993, ch. 13) of scores or maps.

    Keys are "auroc", "average_precision", "f1_max" and "pro_<limit>" such as "pro_0.05"; values are (low, high).
    A resample draws with replacement as many defective pictures as there are, and as many normal ones.
    A defective picture with an empty mask counts as normal for maps. The only picture of a class is in every resample.
    Resamples without a normal entry are dropped.
    Raise ValueError as `rank_anomalies`, if all are dropped, and if `resamples` or `confidence` is out of range.
    """
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"resamples is {resamples}, confidence is {confidence}; take 1 or more, and between 0 and 1")
    counts = count_by_picture(values, truth, counted)
    defective, generator = counts.true_positives[:, -1] > 0, np.random.default_rng(seed)
    multiplicities = np.zeros((resamples, len(defective)), np.int64)  # how often each picture is drawn
    for stratum in (np.flatnonzero(~defective), np.flatnonzero(defective)):
        if count := len(stratum):
            multiplicities[:, stratum] = generator.multinomial(count, np.full(count, 1 / count), size=resamples)
    multiplicities = multiplicities[multiplicities @ counts.false_positives[:, -1] > 0]
    if not len(multiplicities):
        raise ValueError(f"none of {resamples} resamples holds a normal entry; take more resamples")
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    drawn = counts.resample_metrics(multiplicities, pro_limits)
    return {name: (float(low), float(high)) for name in drawn for low, high in [np.quantile(drawn[name], tails)]}


@dataclass(frozen=True)
class OperatingPoint:
    """Counts and rates of the rule score > threshold; a rate whose denominator is 0 is None."""

    threshold: float
    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int
    recall: float | None
    false_positive_rate: float | None
    precision: float | None


def operating_point(scores: ArrayLike, labels: ArrayLike, threshold: float) -> OperatingPoint:
    """Return the counts and rates of the rule score > threshold on scores (N,), which must be finite."""
    maps, masks = _as_maps(scores, labels)
    if not np.isfinite(maps).all() or np.isnan(threshold):
        raise ValueError(f"threshold is {threshold}; it or a score is not finite; replace what is not")
    flagged, defective = maps > threshold, masks > 0
    hits, alarms = int((flagged & defective).sum()), int((flagged & ~defective).sum())
    defects, normals = int(defective.sum()), int((~defective).sum())
    counts = hits, alarms, normals - alarms, defects - hits
    fractions = (hits, defects), (alarms, normals), (hits, hits + alarms)
    rates = [part / total if total else None for part, total in fractions]
    return OperatingPoint(float(threshold), *counts, *rates)


def _curve_metrics(counts: tuple[NDArray, NDArray, NDArray], pro_limits: Collection[float]) -> dict[str, NDArray]:
    """Return the metrics (R,) of R curves: counts (R, T) in the order and layout of `PictureCounts`."""
    false_positives, true_positives, overlap = counts
    normals, anomalous, regions = false_positives[:, -1:], true_positives[:, -1:], overlap[:, -1:]
    flagged = false_positives + true_positives
    precision = true_positives[:, 1:] / np.maximum(flagged[:, 1:], 1)
    between = (true_positives[:, :-1] + true_positives[:, 1:]) / np.maximum(flagged[:, :-1] + flagged[:, 1:], 1)
    precision[:, ::2] = between[:, ::2]  # between two edges only the counts at the ends are known: take their middle
    metrics = {
        "auroc": _area_up_to(1, false_positives / normals, true_positives / anomalous),
        "average_precision": (np.diff(true_positives) * precision).sum(axis=1) / anomalous[:, 0],
        "f1_max": (2 * true_positives / (flagged + anomalous)).max(axis=1),
    }
    for limit in pro_limits:
        metrics[f"pro_{limit:g}"] = _area_up_to(limit, false_positives / normals, overlap / regions)
    return metrics


def _area_up_to(limit: float, rate: NDArray, overlap: NDArray) -> NDArray:
    """Return the mean height (R,) of R curves (R, T) over rates from 0 to `limit`, interpolated linearly."""
    _check_limit(limit)
    inside = np.diff(np.minimum(rate, limit))
    share = inside / np.maximum(np.diff(rate), np.finfo(float).tiny)
    return (inside * (overlap[:, :-1] + np.diff(overlap) * share / 2)).sum(axis=1) / limit


def _choose_edges(ranking: Ranking) -> NDArray:
    """Return the anomalous values to count at, ascending: all, or about `EDGES` of them."""
    distinct = np.unique(ranking.values)
    if len(distinct) <= EDGES:
        return distinct
    # half of the edges divide the true-positive rate evenly, the others the logarithm of the false-positive rate:
    # two edges for each rate, since the curve has a corner at both ends of a run of normal entries
    last = len(ranking.values) - 1
    alarms = np.geomspace(1, ranking.normals, EDGES // 4)
    reached = np.searchsorted(ranking.below, ranking.normals - alarms)
    ranks = np.concatenate([np.linspace(0, last, EDGES // 2), reached - 1, reached]).clip(0, last)
    return np.unique(ranking.values[ranks.astype(np.int64)])


def _chunks(
    stacks: Sequence[tuple[NDArray, NDArray]], counted: Counted, pixels: int
) -> Iterator[tuple[int, NDArray, NDArray[np.bool_], NDArray[np.bool_]]]:
    """Yield (number of the first picture, maps, where they are anomalous, where normal) of `pixels` pixels or one map.

    Entries that are not counted are neither anomalous nor normal.
    """
    before = 0  # pictures of the stacks before
    for maps, masks in stacks:
        pictures = max(1, pixels // maps[0].size)
        for first in range(0, len(maps), pictures):
            mask = masks[first : first + pictures] > 0
            normal = ~mask
            if counted is not None:
                mask, normal = mask & counted, normal & counted
            yield before + first, maps[first : first + pictures], mask, normal
        before += len(maps)


def _count_lower_and_tied(entries: NDArray, values: NDArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return how many of the entries (M,) are below, and how many equal, each of the ascending values (A,).

    If the values are few, a histogram of equal bins comes first: only entries that share a bin with a value are sorted.
    """
    counted, unsorted = np.zeros(len(values), np.int64), entries
    precise = np.result_type(values, np.float32)
    lowest, highest = values[[0, -1]].astype(precise)
    with np.errstate(over="ignore"):
        width = (highest - lowest) / BINS
        if len(values) < BINS / 2 and np.finfo(precise).tiny < width < np.inf:
            bins, entries_bins = (  # the first and the last bin hold what is outside
                np.clip((array.astype(precise, copy=False) - lowest) / width + 1, 0, BINS + 2).astype(np.int32)
                for array in (values, entries)
            )
            shared = np.zeros(BINS + 3, bool)
            shared[bins] = True
            histogram = np.bincount(entries_bins, minlength=len(shared))
            histogram[shared] = 0
            counted, unsorted = histogram.cumsum()[bins], entries[shared[entries_bins]]
    rest = np.sort(unsorted)
    lower = np.searchsorted(rest, values, side="left")
    return counted + lower, np.searchsorted(rest, values, side="right") - lower


def _rank_maps(maps: ArrayLike | Stacks, masks: ArrayLike | Stacks, counted: Counted = None) -> Ranking:
    if not _is_stacks(maps) and np.ndim(maps) != 3:
        raise ValueError(f"maps are {np.shape(maps)} and masks {np.shape(masks)}; both must be (N, H, W)")
    return rank_anomalies(maps, masks, counted)


def _as_stacks(values: ArrayLike | Stacks, truth: ArrayLike | Stacks) -> list[tuple[NDArray, NDArray]]:
    """Return pairs (maps, masks), one per shape; scores and a single stack make one pair."""
    if not (_is_stacks(values) and _is_stacks(truth)):
        return [_as_maps(values, truth)]
    if len(values) != len(truth):
        raise ValueError(f"{len(values)} stacks of maps do not match {len(truth)} of masks; give one for each")
    return [_as_maps(maps, masks) for maps, masks in zip(values, truth, strict=True)]


def _is_stacks(values: ArrayLike | Stacks) -> TypeGuard[Stacks]:
    if not isinstance(values, (list, tuple)) or not values:
        return False
    return all(isinstance(stack, np.ndarray) and stack.ndim in (1, 3) for stack in values)


def _as_maps(values: ArrayLike, truth: ArrayLike) -> tuple[NDArray, NDArray]:
    """Return both as views (N, H, W); a score becomes a map of one pixel."""
    values, truth = np.asarray(values), np.asarray(truth)
    if values.ndim not in (1, 3) or values.shape != truth.shape:
        raise ValueError(f"{values.shape} scores do not match {truth.shape} labels; both must be (N,) or (N, H, W)")
    if values.size == 0:
        raise ValueError(f"no scores: their shape is {values.shape}; give one normal and one defective picture or more")
    return (values, truth) if values.ndim == 3 else (values[:, None, None], truth[:, None, None])


def _check_limit(limit: float) -> None:
    if not 0 < limit <= 1:
        raise ValueError(f"limit is {limit}; take a false-positive rate above 0, at most 1")


def defects_outside(mask: NDArray[np.bool_], area: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return how many 8-connected regions of a mask (H, W) lie outside of an area (H, W), wholly and partly.

    The last two of the four counts take the mask for one region.
    """
    numbered, _ = connected_regions(mask, EIGHT_CONNECTED[1])
    counts = []
    for regions in (numbered, mask.astype(int)):
        sizes = np.bincount(regions.ravel())[1:]
        inside = np.bincount(regions[area], minlength=len(sizes) + 1)[1:]
        counts += [np.count_nonzero(inside == 0), np.count_nonzero((inside > 0) & (inside < sizes))]
    return np.array(counts)
