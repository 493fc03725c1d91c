"""The curves behind the areas, thinned so that they can be drawn: ROC, overlap of regions (PRO), and the loss over training."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import metrics
from metrics import OperatingPoint, Ranking, operating_point
from runtime.errors import UserError

POINTS = 200  # of a curve; no more than a hundredth of its height or width lies between two of them
DIGITS = 5  # behind the decimal point of a rate

Points = list[list[float]]  # (x, y) by rising x


def curve_points(what: str, ranking: Ranking, limit: float) -> dict[str, Points]:
    """By name the curves of `pictures` or of `pixels`: true- over false-positive rate, and overlap over false-positive rate up to `limit`."""
    if what == "pictures":
        return {"image_roc": roc_curve(ranking)}
    return {"pixel_roc": roc_curve(ranking), "pro": pro_curve(ranking, limit)}


def roc_curve(ranking: Ranking) -> Points:
    """Share of the anomalous entries found over the share of normal ones flagged."""
    return thin_points(curve_corners(ranking, np.full(len(ranking.values), 1 / len(ranking.values))))


def pro_curve(ranking: Ranking, limit: float) -> Points:
    """Mean share found of a region over the share of normal pixels flagged, up to `limit` (Bergmann et al. 2020)."""
    sizes = np.bincount(ranking.regions)
    points = curve_corners(ranking, (1 / (sizes * len(sizes)))[ranking.regions])
    end = [limit, np.interp(limit, *points.T)]
    return thin_points(np.vstack([points[points[:, 0] < limit], end]))


def curve_corners(ranking: Ranking, weights: NDArray[np.float64]) -> NDArray[np.float64]:
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


def thin_points(points: NDArray[np.float64]) -> Points:
    """Some `POINTS` of (P, 2), both ends among them, at equal steps along a rising curve; all where there are no more."""
    if len(points) > POINTS:
        span = np.maximum(np.ptp(points, axis=0), np.finfo(float).tiny)
        way = np.append(0, (np.abs(np.diff(points, axis=0)) / span).sum(axis=1).cumsum())
        chosen = np.searchsorted(way, np.linspace(0, way[-1], POINTS)).clip(0, len(points) - 1)
        points = points[np.unique(np.concatenate([[0], chosen, [len(points) - 1]]))]
    return points.round(DIGITS).tolist()


def training_curve(lines: Iterable[Mapping[str, Any]]) -> Points:
    """Loss over the epoch, of those lines of training.jsonl that say it."""
    points = [[line["epoch"], line["loss"]] for line in lines if "epoch" in line and "loss" in line]
    chosen = np.unique(np.linspace(0, len(points) - 1, min(POINTS, len(points))).astype(int))
    return [points[index] for index in chosen]


Interval = tuple[float, float]


class Metric(NamedTuple):
    """A figure of metrics.json: of scores and labels (pictures) or of maps and masks (pixels), asked for by a key of `metrics`.

    `drawn` is its name among the intervals.
    """

    key: str
    name: str
    of: str
    asked_by: str
    measure: Callable[[Ranking], float]
    drawn: str


PRO_LIMITS = (0.3, 0.05)
METRICS = (
    *(
        Metric(f"{prefix}_{short}", f"{prefix} {name}", of, "auroc", measure, drawn)
        for prefix, of in (("image", "pictures"), ("pixel", "pixels"))
        for short, name, measure, drawn in (
            ("auroc", "AUROC", Ranking.auroc, "auroc"),
            ("ap", "AP", Ranking.average_precision, "average_precision"),
            ("f1_max", "F1-max", Ranking.f1_max, "f1_max"),
        )
    ),
    *(
        Metric(key, f"PRO (FPR to {limit})", "pixels", "pro", partial(Ranking.pro, limit=limit), f"pro_{limit}")
        for key, limit in zip(("pro", "pro_0.05"), PRO_LIMITS, strict=True)
    ),
)


@dataclass(frozen=True)
class MetricSummary:
    """Metrics as fractions by key, their 95 % intervals, the curves behind them, and what the threshold does (where there is one): to all
    pictures, and to each kind of defect beside the normal ones."""

    values: dict[str, float]
    intervals: dict[str, Interval]
    lines: dict[str, Points]
    operating_point: OperatingPoint | None
    kinds: dict[str, OperatingPoint]

    @classmethod
    def stored(cls, content: dict[str, Any]) -> "MetricSummary":
        """Those of a metrics.json, which holds no curves. Raises ValueError where it is damaged."""
        try:
            return cls._of(content)
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise UserError(f"the stored figures are damaged ({error}); --force makes them again") from error

    @classmethod
    def _of(cls, content: dict[str, Any]) -> "MetricSummary":
        point = content.get("operating_point")
        return cls(
            {metric.key: content[metric.key] for metric in METRICS if metric.key in content},
            {name: (low, high) for name, (low, high) in content["intervals"].items()},
            {},
            OperatingPoint(**point) if point else None,
            {kind: OperatingPoint(**one) for kind, one in content.get("kinds", {}).items()},
        )

    def as_stored(self) -> dict[str, Any]:
        """What metrics.json holds of them."""
        content: dict[str, Any] = {**self.values, "intervals": self.intervals}
        if self.operating_point:
            content["operating_point"] = asdict(self.operating_point)
            content["kinds"] = {kind: asdict(point) for kind, point in self.kinds.items()}
        return content


def summarise(
    scores: NDArray[np.float64],
    kinds: NDArray[np.str_],
    normal: str,
    maps: NDArray[np.float32],
    masks: NDArray[np.bool_] | None,
    *,
    wanted: Sequence[Metric],
    resamples: int,
    seed: int,
    threshold: float | None,
) -> MetricSummary:
    """Scores and kinds (N,), of which `normal` names the good ones, maps and masks (N, S, S): those `wanted` metrics that the data allow, with
    intervals from `resamples` (0: none), and the operating point of a threshold."""
    labels = kinds != normal
    values: dict[str, float] = {}
    intervals: dict[str, Interval] = {}
    lines: dict[str, Points] = {}
    for of, measured, truth in (("pictures", scores, labels), ("pixels", maps, masks)):
        asked = [metric for metric in wanted if metric.of == of]
        if not asked or truth is None or not truth.any() or truth.all():
            continue
        ranking = metrics.rank_anomalies(measured, truth)
        values |= {metric.key: metric.measure(ranking) for metric in asked}
        lines |= curve_points(of, ranking, PRO_LIMITS[0])
        if resamples:
            drawn = metrics.bootstrap_intervals(measured, truth, pro_limits=PRO_LIMITS, resamples=resamples, seed=seed)
            intervals |= {metric.key: drawn[metric.drawn] for metric in asked}
    if threshold is None:
        return MetricSummary(values, intervals, lines, None, {})
    beside = {str(kind): ~labels | (kinds == kind) for kind in np.unique(kinds[labels])}
    points = {kind: operating_point(scores[part], labels[part], threshold) for kind, part in beside.items()}
    return MetricSummary(values, intervals, lines, operating_point(scores, labels, threshold), points)


def metric_lines(figures: MetricSummary, wanted: Sequence[Metric], masked: bool) -> Iterator[str]:
    """One line a metric, in percent with its interval, with a word on why one is missing; `masked`: whether there are masks."""
    for metric in wanted:
        if metric.key in figures.values:
            yield f"  {metric.name:18}{100 * figures.values[metric.key]:5.1f} %{interval_words(figures.intervals.get(metric.key))}"
        elif metric.of == "pixels" and not masked:
            yield f"  {metric.name:18}    – (no masks: data.mask is False)"
        else:
            yield f"  {metric.name:18}    – (needs normal and defective {metric.of} in test)"


def interval_words(interval: Interval | None) -> str:
    if interval is None:
        return ""
    low, high = interval
    return (
        f"   [{100 * low:.1f}, {100 * high:.1f}]"
        if low < high
        else "   (the same in all resamples, so that they bound nothing)"
    )


def verdict_lines(figures: MetricSummary) -> Iterator[str]:
    """What the threshold does, with the counts behind each share; nothing without one."""
    point = figures.operating_point
    if point is None:
        return
    yield (
        f"  at the threshold {point.threshold:.4g}: false alarms {share_text(point.false_positives, point.true_negatives)}, "
        f"recall {share_text(point.true_positives, point.false_negatives)}, precision {share_text(point.true_positives, point.false_positives)}"
    )
    if figures.kinds:
        yield "  found by kind: " + ", ".join(
            f"{kind} {share_text(point.true_positives, point.false_negatives)}" for kind, point in figures.kinds.items()
        )


def share_text(part: int, rest: int) -> str:
    return f"{part} of {part + rest} ({part / (part + rest):.1%})" if part + rest else "– (none)"
