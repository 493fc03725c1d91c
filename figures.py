"""The figures of a category: which metrics there are, how large they are, what the threshold does, and how that is said."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import curves
import metrics
from metrics import OperatingPoint, Ranking, operating_point

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
class Figures:
    """Metrics as fractions by key, their 95 % intervals, the curves behind them, and what the threshold does (where there is one): to all
    pictures, and to each kind of defect beside the normal ones."""

    values: dict[str, float]
    intervals: dict[str, Interval]
    lines: dict[str, curves.Points]
    operating_point: OperatingPoint | None
    kinds: dict[str, OperatingPoint]

    @classmethod
    def stored(cls, content: dict[str, Any]) -> "Figures":
        """Those of a metrics.json, which holds no curves. Raises ValueError where it is damaged."""
        try:
            return cls._of(content)
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise ValueError(f"the stored figures are damaged ({error}); --force makes them again") from error

    @classmethod
    def _of(cls, content: dict[str, Any]) -> "Figures":
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


def measure(
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
) -> Figures:
    """Scores and kinds (N,), of which `normal` names the good ones, maps and masks (N, S, S): those `wanted` metrics that the data allow, with
    intervals from `resamples` (0: none), and the operating point of a threshold."""
    labels = kinds != normal
    values: dict[str, float] = {}
    intervals: dict[str, Interval] = {}
    lines: dict[str, curves.Points] = {}
    for of, measured, truth in (("pictures", scores, labels), ("pixels", maps, masks)):
        asked = [metric for metric in wanted if metric.of == of]
        if not asked or truth is None or not truth.any() or truth.all():
            continue
        ranking = metrics.rank(measured, truth)
        values |= {metric.key: metric.measure(ranking) for metric in asked}
        lines |= curves.of(of, ranking, PRO_LIMITS[0])
        if resamples:
            drawn = metrics.intervals(measured, truth, pro_limits=PRO_LIMITS, resamples=resamples, seed=seed)
            intervals |= {metric.key: drawn[metric.drawn] for metric in asked}
    if threshold is None:
        return Figures(values, intervals, lines, None, {})
    beside = {str(kind): ~labels | (kinds == kind) for kind in np.unique(kinds[labels])}
    points = {kind: operating_point(scores[part], labels[part], threshold) for kind, part in beside.items()}
    return Figures(values, intervals, lines, operating_point(scores, labels, threshold), points)


def metric_lines(figures: Figures, wanted: Sequence[Metric], masked: bool) -> Iterator[str]:
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
    return f"   [{100 * low:.1f}, {100 * high:.1f}]" if low < high else "   (the same in all resamples, so that they bound nothing)"


def verdict_lines(figures: Figures) -> Iterator[str]:
    """What the threshold does, with the counts behind each share; nothing without one."""
    point = figures.operating_point
    if point is None:
        return
    yield (
        f"  at the threshold {point.threshold:.4g}: false alarms {share(point.false_positives, point.true_negatives)}, "
        f"recall {share(point.true_positives, point.false_negatives)}, precision {share(point.true_positives, point.false_positives)}"
    )
    if figures.kinds:
        yield "  found by kind: " + ", ".join(f"{kind} {share(point.true_positives, point.false_negatives)}" for kind, point in figures.kinds.items())


def share(part: int, rest: int) -> str:
    return f"{part} of {part + rest} ({part / (part + rest):.1%})" if part + rest else "– (none)"
