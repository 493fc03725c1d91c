"""Metrics of one category with intervals, operating points and curves: compute, store, print."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metrics import Counted, OperatingPoint, Ranking, Stacks, bootstrap_intervals, operating_point, rank_anomalies
from runtime.errors import UserError

POINTS = 200  # of a thinned curve, so that neighbours differ by at most 1 % of its width and height together
DIGITS = 5  # decimals of a rate in a thinned curve
PRO_LIMITS = (0.3, 0.05)  # false-positive rates up to which PRO is averaged
MISSING = "–"
OUTSIDE = ("defects_outside", "defects_partly_outside", "pictures_outside", "pictures_partly_outside")

Points = list[list[float]]  # (x, y) by rising x
Interval = tuple[float, float]


class Metric(NamedTuple):
    """One metric of metrics.json."""

    key: str
    name: str
    level: str  # "pictures" (scores and labels) or "pixels" (maps and masks)
    setting: str  # the key of the section `metrics` that asks for it
    measure: Callable[[Ranking], float]
    interval: str  # its name in the result of `metrics.bootstrap_intervals`


METRICS = (
    Metric("image_auroc", "image AUROC", "pictures", "auroc", Ranking.auroc, "auroc"),
    Metric("image_ap", "image AP", "pictures", "auroc", Ranking.average_precision, "average_precision"),
    Metric("image_f1_max", "image F1-max", "pictures", "auroc", Ranking.f1_max, "f1_max"),
    Metric("pixel_auroc", "pixel AUROC", "pixels", "auroc", Ranking.auroc, "auroc"),
    Metric("pixel_ap", "pixel AP", "pixels", "auroc", Ranking.average_precision, "average_precision"),
    Metric("pixel_f1_max", "pixel F1-max", "pixels", "auroc", Ranking.f1_max, "f1_max"),
    Metric("pro", "PRO (FPR to 0.3)", "pixels", "pro", partial(Ranking.pro, limit=0.3), "pro_0.3"),
    Metric("pro_0.05", "PRO (FPR to 0.05)", "pixels", "pro", partial(Ranking.pro, limit=0.05), "pro_0.05"),
)


@dataclass(frozen=True)
class MetricSummary:
    """The metrics of one category, as fractions by key, with their 95 % intervals and thinned curves."""

    values: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, Interval] = field(default_factory=dict)
    curves: dict[str, Points] = field(default_factory=dict)
    operating_point: OperatingPoint | None = None  # what the threshold does to all pictures; None without one
    kinds: dict[str, OperatingPoint] = field(default_factory=dict)  # each kind of defect, with the normal pictures

    @classmethod
    def from_stored(cls, content: Mapping[str, Any]) -> "MetricSummary":
        """Read the content of a metrics.json, which holds no curves; raise UserError where it is damaged."""
        try:
            point = content.get("operating_point")
            return cls(
                {metric.key: float(content[metric.key]) for metric in METRICS if metric.key in content},
                {name: (float(low), float(high)) for name, (low, high) in content.get("intervals", {}).items()},
                operating_point=OperatingPoint(**point) if point else None,
                kinds={kind: OperatingPoint(**counts) for kind, counts in content.get("kinds", {}).items()},
            )
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise UserError(f"the stored metrics are damaged ({error}); repeat detection with --force") from error

    def as_stored(self) -> dict[str, object]:
        """Return the content for metrics.json."""
        content: dict[str, object] = {**self.values, "intervals": self.intervals}
        if self.operating_point:
            points = {kind: asdict(point) for kind, point in self.kinds.items()}
            content |= {"operating_point": asdict(self.operating_point), "kinds": points}
        return content


def summarise_metrics(
    scores: NDArray[np.float64],  # (N,)
    kinds: NDArray[np.str_],  # (N,)
    normal: str,  # the kind of normal pictures
    maps: Stacks,  # (N_k, H_k, W_k) of each shape
    masks: Stacks | None,
    counted: Counted = None,  # the pixels that are measured, of maps that all have its shape
    *,
    selected: Sequence[Metric],
    resamples: int,
    seed: int,
    threshold: float | None,
) -> MetricSummary:
    """Return those of the selected metrics that the data allow; without intervals where `resamples` is 0."""
    labels, result = kinds != normal, MetricSummary()
    for level, measured, truth, area in (("pictures", [scores], [labels], None), ("pixels", maps, masks, counted)):
        chosen = [metric for metric in selected if metric.level == level]
        if not chosen or truth is None or not has_both(truth, area):
            continue
        ranking = rank_anomalies(measured, truth, area)
        result.values.update({metric.key: metric.measure(ranking) for metric in chosen})
        result.curves.update(build_curves(level, ranking))
        if resamples:
            bounds = bootstrap_intervals(measured, truth, area, pro_limits=PRO_LIMITS, resamples=resamples, seed=seed)
            result.intervals.update({metric.key: bounds[metric.interval] for metric in chosen})
    if threshold is None:
        return result
    parts = {str(kind): ~labels | (kinds == kind) for kind in np.unique(kinds[labels])}
    points = {kind: operating_point(scores[part], labels[part], threshold) for kind, part in parts.items()}
    return replace(result, operating_point=operating_point(scores, labels, threshold), kinds=points)


def has_both(truth: Stacks, counted: Counted) -> bool:
    """Return whether anomalous and normal entries count."""
    chosen = truth if counted is None else [stack[:, counted] for stack in truth]
    return any(stack.any() for stack in chosen) and not all(stack.all() for stack in chosen)


def metric_lines(summary: MetricSummary, selected: Sequence[Metric], masked: bool) -> Iterator[str]:
    """Yield a printed line per metric; `masked` says whether the data set has masks."""
    for metric in selected:
        if metric.key in summary.values:
            interval = interval_text(summary.intervals.get(metric.key))
            yield f"  {metric.name:18}{percent(summary.values[metric.key]):>5} %{interval}"
        elif metric.level == "pixels" and not masked:
            yield f"  {metric.name:18}    {MISSING} (no masks: data.mask is False)"
        else:
            yield f"  {metric.name:18}    {MISSING} (needs normal and defective {metric.level} in test)"


def interval_text(interval: Interval | None) -> str:
    if interval is None:
        return ""
    low, high = interval
    return f"   [{100 * low:.1f}, {100 * high:.1f}]" if low < high else "   (no interval: all resamples are equal)"


def threshold_lines(summary: MetricSummary) -> Iterator[str]:
    """Yield printed lines on what the threshold does; none without a threshold."""
    if (point := summary.operating_point) is None:
        return
    alarms = share_text(point.false_positives, point.true_negatives)
    recall = share_text(point.true_positives, point.false_negatives)
    precision = share_text(point.true_positives, point.false_positives)
    yield f"  at the threshold {point.threshold:.4g}: false alarms {alarms}, recall {recall}, precision {precision}"
    if summary.kinds:
        shares = {kind: share_text(each.true_positives, each.false_negatives) for kind, each in summary.kinds.items()}
        yield f"  found by kind: {', '.join(f'{kind} {share}' for kind, share in shares.items())}"


def segmentation_lines(stored: Mapping[str, Any]) -> Iterator[str]:
    """Yield a printed line on the pixels inside the outlined defects; none where a metrics.json counts none."""
    shares = stored.get("segmentation")
    if isinstance(shares, Mapping) and shares:
        f1, precision, recall = (percent(shares.get(name)) for name in ("seg_f1", "seg_precision", "seg_recall"))
        yield f"  SegF1 of the outlined defects: {f1} % (precision {precision} %, recall {recall} %)"


def outside_text(stored: Mapping[str, Any]) -> str:
    """Return how many defects, and masks of pictures, a metrics.json counts outside of the scored area."""
    defects, partly, pictures, pictures_partly = (stored.get(name, MISSING) for name in OUTSIDE)
    masks = f"the masks of {pictures} pictures wholly, of {pictures_partly} partly"
    return f"outside the scored area lie {defects} defects wholly, {partly} partly; {masks}"


def share_text(part: int, rest: int) -> str:
    return f"{part} of {part + rest} ({part / (part + rest):.1%})" if part + rest else f"{MISSING} (none)"


def percent(fraction: object) -> str:
    return f"{100 * fraction:.1f}" if isinstance(fraction, (int, float)) else MISSING


def short_name(key: str) -> str:
    """Return the name of a metric without the limit in parentheses."""
    return next(metric.name for metric in METRICS if metric.key == key).partition(" (")[0]


def mean_if_complete(values: Sequence[float | None]) -> float | None:
    """Return the mean; None where a value is missing, as means over different categories do not compare."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def build_curves(level: str, ranking: Ranking) -> dict[str, Points]:
    """Return the thinned curves of a level by name: the ROC curve, for pixels also the PRO curve."""
    if level == "pictures":
        return {"image_roc": roc_curve(ranking)}
    return {"pixel_roc": roc_curve(ranking), "pro": pro_curve(ranking, PRO_LIMITS[0])}


def roc_curve(ranking: Ranking) -> Points:
    """Return the true-positive rate over the false-positive rate."""
    return thin_points(curve_corners(ranking, np.full(len(ranking.values), 1 / len(ranking.values))))


def pro_curve(ranking: Ranking, limit: float) -> Points:
    """Return the mean overlap of a region over the false-positive rate to `limit` (Bergmann et al. 2020)."""
    sizes = np.bincount(ranking.regions)
    points = curve_corners(ranking, (1 / (sizes * len(sizes)))[ranking.regions])
    return thin_points(np.vstack([points[points[:, 0] < limit], [limit, np.interp(limit, *points.T)]]))


def curve_corners(ranking: Ranking, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the corners (P, 2) of the curve of a falling threshold; `weights` of anomalies add up to 1."""
    last = np.flatnonzero(np.append(np.diff(ranking.values) > 0, True))[::-1]  # index of each distinct value, falling
    first = np.append(last[1:] + 1, 0)
    height = np.append(weights[::-1].cumsum()[::-1], 0)
    points = np.empty((2 * len(last) + 2, 2))  # just above and at each value, so that a tie of both labels is a slope
    points[0], points[-1] = 0, 1
    points[1:-1:2] = np.stack([1 - ranking.up_to[last] / ranking.normals, height[last + 1]], axis=1)
    points[2:-1:2] = np.stack([1 - ranking.below[first] / ranking.normals, height[first]], axis=1)
    return points


def thin_points(points: NDArray[np.float64]) -> Points:
    """Return about `POINTS` of the points (P, 2) at equal steps along a rising curve, both ends included."""
    if len(points) > POINTS:
        span = np.maximum(np.ptp(points, axis=0), np.finfo(float).tiny)
        distance = np.append(0, (np.abs(np.diff(points, axis=0)) / span).sum(axis=1).cumsum())
        chosen = np.searchsorted(distance, np.linspace(0, distance[-1], POINTS)).clip(0, len(points) - 1)
        points = points[np.unique(np.concatenate([[0], chosen, [len(points) - 1]]))]
    return points.round(DIGITS).tolist()


def training_curve(lines: Iterable[Mapping[str, float]]) -> Points:
    """Return the loss over the epoch, of those lines of training.jsonl that hold both."""
    points = [[line["epoch"], line["loss"]] for line in lines if "epoch" in line and "loss" in line]
    chosen = np.unique(np.linspace(0, len(points) - 1, min(POINTS, len(points))).astype(int))
    return [points[index] for index in chosen]
