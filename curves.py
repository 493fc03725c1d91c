"""The curves behind the areas, thinned so that they can be drawn: ROC, overlap of regions (PRO), and the loss over training."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metrics import Ranking

POINTS = 200  # of a curve; no more than a hundredth of its height or width lies between two of them
DIGITS = 5  # behind the decimal point of a rate

Points = list[list[float]]  # (x, y) by rising x


def of(what: str, ranking: Ranking, limit: float) -> dict[str, Points]:
    """By name the curves of `pictures` or of `pixels`: true- over false-positive rate, and overlap over false-positive rate up to `limit`."""
    if what == "pictures":
        return {"image_roc": roc(ranking)}
    return {"pixel_roc": roc(ranking), "pro": overlap(ranking, limit)}


def roc(ranking: Ranking) -> Points:
    """Share of the anomalous entries found over the share of normal ones flagged."""
    return thinned(corners(ranking, np.full(len(ranking.values), 1 / len(ranking.values))))


def overlap(ranking: Ranking, limit: float) -> Points:
    """Mean share found of a region over the share of normal pixels flagged, up to `limit` (Bergmann et al. 2020)."""
    sizes = np.bincount(ranking.regions)
    points = corners(ranking, (1 / (sizes * len(sizes)))[ranking.regions])
    end = [limit, np.interp(limit, *points.T)]
    return thinned(np.vstack([points[points[:, 0] < limit], end]))


def corners(ranking: Ranking, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(P, 2) each corner of the curve as the threshold falls past the anomalous values, whose `weights` (A,) add up to 1.

    Two a value: just above it and at it, so that what ties with normal entries is a slope.
    """
    last = np.flatnonzero(np.append(np.diff(ranking.values) > 0, True))[::-1]  # of each value, falling
    first = np.append(last[1:] + 1, 0)
    height = np.append(weights[::-1].cumsum()[::-1], 0)
    points = np.empty((2 * len(last) + 2, 2))
    points[0], points[-1] = 0, 1
    points[1:-1:2] = np.stack([1 - ranking.up_to[last] / ranking.normals, height[last + 1]], axis=1)
    points[2:-1:2] = np.stack([1 - ranking.below[first] / ranking.normals, height[first]], axis=1)
    return points


def thinned(points: NDArray[np.float64]) -> Points:
    """Some `POINTS` of (P, 2), both ends among them, at equal steps along a rising curve; all where there are no more."""
    if len(points) > POINTS:
        span = np.maximum(np.ptp(points, axis=0), np.finfo(float).tiny)
        way = np.append(0, (np.abs(np.diff(points, axis=0)) / span).sum(axis=1).cumsum())
        chosen = np.searchsorted(way, np.linspace(0, way[-1], POINTS)).clip(0, len(points) - 1)
        points = points[np.unique(np.concatenate([[0], chosen, [len(points) - 1]]))]
    return points.round(DIGITS).tolist()


def training(lines: Iterable[Mapping[str, Any]]) -> Points:
    """Loss over the epoch, of those lines of training.jsonl that say it."""
    points = [[line["epoch"], line["loss"]] for line in lines if "epoch" in line and "loss" in line]
    chosen = np.unique(np.linspace(0, len(points) - 1, min(POINTS, len(points))).astype(int))
    return [points[index] for index in chosen]
