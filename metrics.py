"""How well scores and maps find defects: AUROC, AP, F1-max, PRO and the published threshold. Exact, by one sort each.

Scores are (N,), maps and masks (N, H, W); higher means more anomalous; masks and labels are true or above 0 where defective.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from skimage.measure import label as connected_regions
from sklearn.metrics import roc_curve

EIGHT_CONNECTED = 2  # skimage's connectivity: pixels that touch at a corner belong together


def image_auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve of the image scores: the chance that a defective picture scores above a normal one, ties half."""
    scores, defective = np.asarray(scores), np.asarray(labels) > 0
    return float(_rank_share(*_split(scores, defective, "pictures")).mean())


def pixel_auroc(maps: ArrayLike, masks: ArrayLike) -> float:
    """Area under the ROC curve over all pixels of all maps."""
    maps, masks = _checked_maps(maps, masks)
    return float(_rank_share(*_split(maps, masks, "pixels")).mean())


def pro(maps: ArrayLike, masks: ArrayLike, limit: float = 0.3) -> float:
    """Per-region overlap: mean over the 8-connected defects of the share of the defect found, averaged over
    false-positive rates from 0 to `limit` of all normal pixels (Bergmann et al. 2020); 1 is perfect, limit/2 is a constant map.

    Exact: each anomalous pixel is reached at a false-positive rate between lo and hi (apart where it ties with normal pixels),
    and adds the area that its share covers up to `limit`.
    """
    maps, masks = _checked_maps(maps, masks)
    if not 0 < limit <= 1:
        raise ValueError(f"limit is {limit}; a false-positive rate above 0, at most 1")
    anomalous, normal = _split(maps, masks, "pixels")
    left, right = _insertion_points(anomalous, normal)
    lo, hi = 1 - right / len(normal), 1 - left / len(normal)
    partial = np.square(limit - lo) / (2 * np.maximum(hi - lo, np.finfo(float).tiny))
    area = np.where(hi <= limit, limit - (lo + hi) / 2, np.where(lo < limit, partial, 0.0)) / limit
    regions = _region_numbers(masks)
    return float((np.bincount(regions, weights=area) / np.bincount(regions)).mean())


def average_precision(values: ArrayLike, labels: ArrayLike) -> float:
    """Area under the precision-recall curve as a step function (scikit-learn's AP), of scores or of whole maps against masks."""
    found, false_alarms = _counts_at_anomalous(values, labels)
    return float((found / (found + false_alarms)).mean())


def f1_max(values: ArrayLike, labels: ArrayLike) -> float:
    """Largest F1 over all thresholds, of scores or of whole maps against masks; it lies at the value of an anomalous entry."""
    found, false_alarms = _counts_at_anomalous(values, labels)
    return float((2 * found / (found + false_alarms + len(found))).max())


def youden_threshold(scores: ArrayLike, labels: ArrayLike) -> float:
    """The score at which true- minus false-positive rate is largest (Youden 1950): the published threshold, which needs defects."""
    false_positive_rate, true_positive_rate, thresholds = roc_curve(np.asarray(labels) > 0, np.asarray(scores))
    return float(thresholds[np.argmax(true_positive_rate - false_positive_rate)])


def _split(values: NDArray, defective: NDArray, what: str) -> tuple[NDArray, NDArray]:
    """(anomalous, normal) values, in their order."""
    if values.shape != defective.shape:
        raise ValueError(f"{values.shape} scores do not match {defective.shape} labels")
    if not np.isfinite(values).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(values))} of {values.size} scores are not finite")
    if defective.all() or not defective.any():
        raise ValueError(f"no {'normal' if defective.any() else 'defective'} {what}; this metric needs both normal and defective ones")
    return values[defective], values[~defective]


def _insertion_points(anomalous: NDArray, normal: NDArray) -> tuple[NDArray, NDArray]:
    """Where each anomalous value stands among the sorted normal ones: before its ties, and after."""
    order = np.argsort(anomalous)  # neighbours search neighbouring memory
    queries, normal = anomalous[order], np.sort(normal)
    left, right = np.empty((2, len(anomalous)), dtype=np.int64)
    left[order] = np.searchsorted(normal, queries, side="left")
    right[order] = np.searchsorted(normal, queries, side="right")
    return left, right


def _counts_at_anomalous(values: ArrayLike, labels: ArrayLike) -> tuple[NDArray, NDArray]:
    """For each anomalous entry: how many anomalous and how many normal entries are at least as high."""
    anomalous, normal = _split(np.asarray(values), np.asarray(labels) > 0, "pixels" if np.ndim(values) > 1 else "pictures")
    left, _ = _insertion_points(anomalous, normal)
    return len(anomalous) - np.searchsorted(np.sort(anomalous), anomalous, side="left"), len(normal) - left


def _rank_share(anomalous: NDArray, normal: NDArray) -> NDArray:
    """Per anomalous value, the share of normal values below it, ties half."""
    left, right = _insertion_points(anomalous, normal)
    return (left + right) / (2 * len(normal))


def _region_numbers(masks: NDArray) -> NDArray:
    """For each anomalous pixel, in the order of `maps[masks]`, the number of its connected region, counted over all masks from 0."""
    numbers, count = [], 0
    for mask in masks:
        regions, found = connected_regions(mask, connectivity=EIGHT_CONNECTED, return_num=True)
        numbers.append(regions[mask] - 1 + count)
        count += found
    return np.concatenate(numbers)


def _checked_maps(maps: ArrayLike, masks: ArrayLike) -> tuple[NDArray, NDArray]:
    maps, masks = np.asarray(maps), np.asarray(masks) > 0
    if maps.ndim != 3 or maps.shape != masks.shape:
        raise ValueError(f"maps {maps.shape} and masks {masks.shape} must both be (N, H, W)")
    return maps, masks
