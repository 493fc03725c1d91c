"""How well scores and maps find defects: AUROC, AP, F1-max, PRO, intervals over pictures, and what a threshold does.

Scores are (N,), maps and masks (N, H, W); higher means more anomalous; masks and labels are true or above 0 where defective.
All figures are read off one `Ranking` of the anomalous entries. It goes over the pictures in chunks, so arrays may be memory maps
larger than the memory: what is held is the anomalous entries and a chunk of about `CHUNK` pixels, or twice the anomalous ones.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import label as connected_regions
from sklearn.metrics import roc_curve

CHUNK = 2**24  # pixels gone over at a time; a single picture may be larger
BINS = 2**19  # into which values are dealt before those are sorted that need it
EDGES = 1024  # values at most that `PictureCounts` counts at
RESAMPLES_AT_ONCE = 64  # curves held at a time
EIGHT_CONNECTED = np.array(
    [[[plane] * 3] * 3 for plane in (0, 1, 0)]
)  # corners join pixels of a picture, nothing those of two


def image_auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve of the image scores: the chance that a defective picture scores above a normal one, ties half."""
    return rank(scores, labels).auroc()


def pixel_auroc(maps: ArrayLike, masks: ArrayLike) -> float:
    """Area under the ROC curve over all pixels of all maps."""
    return _rank_maps(maps, masks).auroc()


def pro(maps: ArrayLike, masks: ArrayLike, limit: float = 0.3) -> float:
    """Per-region overlap up to a false-positive rate of `limit` (see `Ranking.pro`)."""
    return _rank_maps(maps, masks).pro(limit)


def average_precision(values: ArrayLike, labels: ArrayLike) -> float:
    """Area under the precision-recall curve as a step function (scikit-learn's AP), of scores or of whole maps against masks."""
    return rank(values, labels).average_precision()


def f1_max(values: ArrayLike, labels: ArrayLike) -> float:
    """Largest F1 over all thresholds, of scores or of whole maps against masks; it lies at the value of an anomalous entry."""
    return rank(values, labels).f1_max()


def youden_threshold(scores: ArrayLike, labels: ArrayLike) -> float:
    """The score at which true- minus false-positive rate is largest (Youden 1950): the published threshold, which needs defects."""
    rank(scores, labels)  # refuses what has no such threshold
    false_positive_rate, true_positive_rate, thresholds = roc_curve(np.asarray(labels) > 0, np.asarray(scores))
    return float(thresholds[1 + np.argmax((true_positive_rate - false_positive_rate)[1:])])  # the first is infinity


@dataclass(frozen=True, eq=False)
class Ranking:
    """Where the A anomalous entries stand among the normal ones, in ascending order of their values; made by `rank`.

    A score counts as a map of one pixel, so each defective picture is a region of its own.
    """

    values: NDArray  # (A,)
    below: NDArray[np.int64]  # (A,) normal entries below each
    up_to: NDArray[np.int64]  # (A,) normal entries below each or tied with it
    found: NDArray[np.int64]  # (A,) anomalous entries at least as high
    regions: NDArray[np.int32]  # (A,) number of the 8-connected region, counted over all pictures from 0
    region_pictures: NDArray[np.int64]  # (regions,) its picture
    normals: int

    def auroc(self) -> float:
        """Chance that an anomalous entry stands above a normal one, ties half; 0.5 for constant values."""
        return float((self.below.sum() + self.up_to.sum()) / (2 * self.normals * len(self.values)))

    def average_precision(self) -> float:
        """Mean over the anomalous entries of the precision at their value."""
        return float((self.found / (self.found + self.normals - self.below)).mean())

    def f1_max(self) -> float:
        """Largest F1 over the values of the anomalous entries as thresholds."""
        return float((2 * self.found / (self.found + self.normals - self.below + len(self.values))).max())

    def pro(self, limit: float = 0.3) -> float:
        """Per-region overlap: mean over the 8-connected defects of the share of the defect found, averaged over
        false-positive rates from 0 to `limit` of all normal pixels (Bergmann et al. 2020); 1 is perfect, limit/2 is a constant map.

        Exact: each anomalous pixel is reached at a false-positive rate between lo and hi (apart where it ties with normal pixels),
        and adds the area that its share covers up to `limit`. Raises ValueError for a limit outside (0, 1].
        """
        _check_limit(limit)
        reached = slice(np.searchsorted(self.up_to, int((1 - limit) * self.normals)), None)
        lo, hi = 1 - self.up_to[reached] / self.normals, 1 - self.below[reached] / self.normals
        partial = np.square(limit - lo) / (2 * np.maximum(hi - lo, np.finfo(float).tiny))
        area = np.where(hi <= limit, limit - (lo + hi) / 2, np.where(lo < limit, partial, 0.0)) / limit
        sizes = np.bincount(self.regions)
        return float((np.bincount(self.regions[reached], weights=area, minlength=len(sizes)) / sizes).mean())


def rank(values: ArrayLike, truth: ArrayLike) -> Ranking:
    """Rank scores (N,) or maps (N, H, W) against labels or masks of the same shape.

    Raises ValueError for other shapes, no entries, values that are not finite, and without normal or without anomalous entries.
    """
    maps, masks = _as_maps(values, truth)
    anomalous, regions, region_pictures, regions_before, infinite = [], [], [], 0, 0
    for first, chunk, mask in _chunks(maps, masks, CHUNK):
        infinite += chunk.size - np.count_nonzero(np.isfinite(chunk))
        numbered, count = connected_regions(mask, EIGHT_CONNECTED)
        anomalous.append(chunk[mask])
        regions.append(numbered[mask] + np.int32(regions_before - 1))
        pictures = np.empty(count, np.int64)
        pictures[regions[-1] - regions_before] = np.repeat(
            np.arange(first, first + len(mask)), np.count_nonzero(mask, axis=(1, 2))
        )
        region_pictures.append(pictures)
        regions_before += count
    flat = np.concatenate(anomalous)
    _check_entries(np.ndim(values), maps.size, len(flat), infinite)
    order = np.argsort(flat)
    flat = flat[order]
    below, up_to = np.zeros((2, len(flat)), np.int64)
    for _, chunk, mask in _chunks(
        maps, masks, max(CHUNK, 2 * len(flat))
    ):  # as large as what is held: few passes over it
        lower, tied = _lower_and_tied(chunk[~mask], flat)
        below += lower
        up_to += lower + tied
    found = len(flat) - np.searchsorted(flat, flat, side="left")
    return Ranking(
        flat,
        below,
        up_to,
        found,
        np.concatenate(regions)[order],
        np.concatenate(region_pictures),
        maps.size - len(flat),
    )


@dataclass(frozen=True, eq=False)
class PictureCounts:
    """Each picture's share in the curves of the whole set: what lies at or above T falling thresholds, from none to everything.

    The thresholds come in pairs, above a value and at or above it, so that odd steps hold ties and even ones what lies between.
    """

    false_positives: NDArray[np.float64]  # (N, T)
    true_positives: NDArray[np.float64]  # (N, T)
    overlap: NDArray[np.float64]  # (N, T) share found of a region, summed over the picture's regions

    def figures(self, multiplicities: NDArray, pro_limits: Collection[float] = ()) -> dict[str, NDArray[np.float64]]:
        """The figures of sets in which each picture stands as often as `multiplicities` (R, N) says; name → (R,), as in `intervals`."""
        multiplicities = np.asarray(multiplicities, np.float64)
        parts = []
        for first in range(0, len(multiplicities), RESAMPLES_AT_ONCE):
            rows = multiplicities[first : first + RESAMPLES_AT_ONCE]
            parts.append(
                _figures(rows @ self.false_positives, rows @ self.true_positives, rows @ self.overlap, pro_limits)
            )
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def count_by_picture(values: ArrayLike, truth: ArrayLike) -> PictureCounts:
    """Count scores (N,) or maps (N, H, W) at thresholds taken from the anomalous values, for curves of resampled pictures.

    Up to `EDGES` distinct anomalous values all are taken and the figures are exact; of more, those that divide true- and false-positive
    rates finely (the latter by their logarithm), which leaves errors of about 1e-4. Raises ValueError as `rank`.
    """
    ranking = rank(values, truth)
    maps, masks = _as_maps(values, truth)
    edges = _edges(ranking)
    false_positives = np.zeros((len(maps), 2 * len(edges) + 2))
    for first, chunk, mask in _chunks(maps, masks, CHUNK):
        for picture, (one, defect) in enumerate(zip(chunk, mask, strict=True), first):
            normal = np.sort(one[~defect])
            below = np.stack(
                [np.searchsorted(normal, edges, side="left"), np.searchsorted(normal, edges, side="right")], axis=1
            )
            false_positives[picture, 1:] = len(normal) - np.concatenate([below.ravel()[::-1], [0]])
    slots = np.searchsorted(edges, ranking.values, side="left") + np.searchsorted(edges, ranking.values, side="right")
    cells = (
        (ranking.region_pictures[ranking.regions] + 1) * false_positives.shape[1] - 1 - slots
    )  # rows by picture, thresholds falling
    shares = (1 / np.bincount(ranking.regions))[ranking.regions]
    counts, overlap = (
        np.bincount(cells, weights, false_positives.size).reshape(false_positives.shape) for weights in (None, shares)
    )
    return PictureCounts(false_positives, counts.cumsum(axis=1, dtype=np.float64), overlap.cumsum(axis=1))


def intervals(
    values: ArrayLike,
    truth: ArrayLike,
    *,
    pro_limits: Collection[float] = (),
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap over pictures (Efron & Tibshirani 1993, chapter 13) of scores (N,) or maps (N, H, W).

    Returns (low, high) of "auroc", "average_precision", "f1_max" and, for each limit, "pro_<limit>" such as "pro_0.05". Each resample
    draws the defective pictures and the other ones separately, each to their own number; a picture is defective where its label is set
    or its mask has an anomalous pixel, so a defective picture with an empty mask is drawn among the normal ones of the maps. With a
    single picture on one side, the intervals reflect the other side alone. Resamples without a normal entry (if every normal pixel lies
    beside a defect) are left out. Raises ValueError as `rank`, and for numbers outside their range.
    """
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"resamples is {resamples} and confidence {confidence}; at least 1, and between 0 and 1")
    counts = count_by_picture(values, truth)
    multiplicities = _resample(counts.true_positives[:, -1] > 0, resamples, np.random.default_rng(seed))
    multiplicities = multiplicities[multiplicities @ counts.false_positives[:, -1] > 0]
    if not len(multiplicities):
        raise ValueError(f"none of {resamples} resamples holds a normal entry; ask for more")
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    figures = counts.figures(multiplicities, pro_limits)
    return {
        name: (float(low), float(high)) for name, drawn in figures.items() for low, high in [np.quantile(drawn, tails)]
    }


@dataclass(frozen=True)
class OperatingPoint:
    """What the rule score > threshold does; a rate that nothing defines (no normals, no defects, none flagged) is None."""

    threshold: float
    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int
    recall: float | None
    false_positive_rate: float | None
    precision: float | None


def operating_point(scores: ArrayLike, labels: ArrayLike, threshold: float) -> OperatingPoint:
    """Counts and rates of the rule score > threshold on scores (N,); raises ValueError where a number is missing or shapes differ."""
    maps, defective = _as_maps(scores, labels)
    if not np.isfinite(maps).all() or np.isnan(threshold):
        raise ValueError(f"scores that are not finite, or threshold {threshold}, cannot be compared")
    flagged, defective = maps > threshold, np.asarray(defective) > 0
    hits, alarms = int((flagged & defective).sum()), int((flagged & ~defective).sum())
    defects, normals = int(defective.sum()), int((~defective).sum())
    return OperatingPoint(
        threshold=float(threshold),
        true_positives=hits,
        false_positives=alarms,
        true_negatives=normals - alarms,
        false_negatives=defects - hits,
        recall=hits / defects if defects else None,
        false_positive_rate=alarms / normals if normals else None,
        precision=hits / (hits + alarms) if hits + alarms else None,
    )


def _figures(
    false_positives: NDArray, true_positives: NDArray, overlap: NDArray, pro_limits: Collection[float]
) -> dict[str, NDArray]:
    """The figures of R curves (R, T) at falling thresholds, as `PictureCounts` lays them out."""
    normals, anomalous, regions = false_positives[:, -1:], true_positives[:, -1:], overlap[:, -1:]
    flagged = false_positives + true_positives
    precision = true_positives[:, 1:] / np.maximum(flagged[:, 1:], 1)
    between = (true_positives[:, :-1] + true_positives[:, 1:]) / np.maximum(flagged[:, :-1] + flagged[:, 1:], 1)
    precision[:, ::2] = between[:, ::2]  # values apart, of which only the ends are known: precision at their middle
    figures = {
        "auroc": _area_up_to(1, false_positives / normals, true_positives / anomalous),
        "average_precision": (np.diff(true_positives) * precision).sum(axis=1) / anomalous[:, 0],
        "f1_max": (2 * true_positives / (flagged + anomalous)).max(axis=1),
    }
    for limit in pro_limits:
        figures[f"pro_{limit:g}"] = _area_up_to(limit, false_positives / normals, overlap / regions)
    return figures


def _area_up_to(limit: float, rate: NDArray, overlap: NDArray) -> NDArray:
    """Mean height of R curves (R, T) over rates from 0 to limit; the last piece is cut by linear interpolation."""
    _check_limit(limit)
    inside = np.diff(np.minimum(rate, limit))
    share = inside / np.maximum(np.diff(rate), np.finfo(float).tiny)
    return (inside * (overlap[:, :-1] + np.diff(overlap) * share / 2)).sum(axis=1) / limit


def _edges(ranking: Ranking) -> NDArray:
    """The values to count at, ascending; both ends of a stretch of normal entries are taken, as the curve has corners there."""
    distinct = np.unique(ranking.values)
    if len(distinct) <= EDGES:
        return distinct
    last = len(ranking.values) - 1
    alarms = np.geomspace(1, ranking.normals, EDGES // 4)
    reached = np.searchsorted(ranking.below, ranking.normals - alarms)
    ranks = np.concatenate([np.linspace(0, last, EDGES // 2), reached - 1, reached]).clip(0, last)
    return np.unique(ranking.values[ranks.astype(np.int64)])


def _resample(defective: NDArray, resamples: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """(resamples, N) how often each picture is drawn, defective and other ones each to their own number."""
    multiplicities = np.zeros((resamples, len(defective)), np.int64)
    for stratum in (np.flatnonzero(~defective), np.flatnonzero(defective)):
        if len(stratum):
            multiplicities[:, stratum] = generator.multinomial(
                len(stratum), np.full(len(stratum), 1 / len(stratum)), size=resamples
            )
    return multiplicities


def _chunks(maps: NDArray, masks: NDArray, pixels: int) -> Iterator[tuple[int, NDArray, NDArray]]:
    """(number of the first picture, maps, true or false masks) of as many whole pictures as have so many pixels, at least one."""
    pictures = max(1, pixels // maps[0].size)
    for first in range(0, len(maps), pictures):
        yield first, maps[first : first + pictures], masks[first : first + pictures] > 0


def _lower_and_tied(entries: NDArray, values: NDArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many of the entries (M,) lie below each of the values (A,), which ascend, and how many tie with it.

    Of many entries beside few values, both are dealt into bins of equal width: those that share a bin with a value are sorted, the others counted.
    """
    counted, beside = np.zeros(len(values), np.int64), entries
    precise = np.result_type(values, np.float32)
    lowest, highest = values[[0, -1]].astype(precise)
    with np.errstate(over="ignore"):
        width = (highest - lowest) / BINS
        if len(values) < BINS / 2 and np.finfo(precise).tiny < width < np.inf:
            bins, entries_bins = (
                np.clip((some.astype(precise, copy=False) - lowest) / width + 1, 0, BINS + 2).astype(np.int32)
                for some in (values, entries)
            )  # the first and the last are of what lies outside
            shared = np.zeros(BINS + 3, bool)
            shared[bins] = True
            apart = np.bincount(entries_bins, minlength=len(shared))
            apart[shared] = 0
            counted, beside = apart.cumsum()[bins], entries[shared[entries_bins]]
    beside = np.sort(beside)
    first = np.searchsorted(beside, values, side="left")
    return counted + first, np.searchsorted(beside, values, side="right") - first


def _rank_maps(maps: ArrayLike, masks: ArrayLike) -> Ranking:
    if np.ndim(maps) != 3:
        raise ValueError(f"maps {np.shape(maps)} and masks {np.shape(masks)} must both be (N, H, W)")
    return rank(maps, masks)


def _as_maps(values: ArrayLike, truth: ArrayLike) -> tuple[NDArray, NDArray]:
    """Both as (N, H, W), not copied; a score is a map of one pixel."""
    values, truth = np.asarray(values), np.asarray(truth)
    if values.ndim not in (1, 3) or values.shape != truth.shape:
        raise ValueError(
            f"{values.shape} scores do not match {truth.shape} labels; both are (N,), or (N, H, W) for maps and masks"
        )
    if values.size == 0:
        raise ValueError(
            f"no scores: {values.shape} values; a metric needs at least one normal and one defective picture"
        )
    return (values, truth) if values.ndim == 3 else (values[:, None, None], truth[:, None, None])


def _check_entries(dimensions: int, size: int, anomalous: int, infinite: int) -> None:
    if infinite:
        raise ValueError(f"{infinite} of {size} scores are not finite")
    if anomalous in (0, size):
        missing, what = "normal" if anomalous else "defective", "pixels" if dimensions == 3 else "pictures"
        raise ValueError(f"no {missing} {what}; this metric needs both normal and defective ones")


def _check_limit(limit: float) -> None:
    if not 0 < limit <= 1:
        raise ValueError(f"limit is {limit}; a false-positive rate above 0, at most 1")
