import numpy as np
import pytest

import metrics
from reports.metric_summary import POINTS, MetricSummary, pro_curve, roc_curve, training_curve


def area(points):
    x, y = np.array(points).T
    return float(np.trapezoid(y, x)) if hasattr(np, "trapezoid") else float(np.trapz(y, x))


@pytest.mark.parametrize("digits", [0, 1, 6])
def test_areas_under_the_curves_are_the_metrics(digits):
    """Rounding to few digits makes ties. A thinned curve is off by less than its steps."""
    rng = np.random.default_rng(digits)
    masks = np.zeros((6, 40, 40), bool)
    masks[0, 3:9, 5:20], masks[1, 20:22, 20:22], masks[1, 30:38, 2:9] = True, True, True
    maps = (rng.normal(size=masks.shape) + 1.5 * masks).round(digits)
    ranking = metrics.rank_anomalies(maps, masks)
    for points, metric, width in (
        (roc_curve(ranking), ranking.auroc(), 1),
        (pro_curve(ranking, 0.3), ranking.pro(0.3), 0.3),
        (pro_curve(ranking, 0.05), ranking.pro(0.05), 0.05),
    ):
        steps = np.diff(points, axis=0)
        assert len(points) <= POINTS + 2 and (steps >= 0).all() and points[-1][0] == pytest.approx(width)
        assert area(points) / width == pytest.approx(metric, abs=0.01 if len(points) > 100 else 1e-4)


def test_a_curve_of_few_points_is_exact():
    ranking = metrics.rank_anomalies([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
    assert roc_curve(ranking) == [[0, 0], [0, 0], [0, 0.5], [0.5, 0.5], [0.5, 1], [1, 1]]


def test_a_training_curve_is_thinned():
    assert training_curve([]) == []
    assert len(training_curve([{"epoch": n, "loss": 1 / n} for n in range(1, 1000)])) == POINTS


def test_a_summary_comes_back_from_metrics_json():
    point = metrics.operating_point([0.1, 0.9], [False, True], 0.5)
    summary = MetricSummary({"pro": 0.5}, {"pro": (0.4, 0.6)}, {}, point, {"crack": point})
    assert MetricSummary.from_stored({**summary.as_stored(), "size": 256}) == summary


@pytest.mark.parametrize(
    "damage",
    [{"pro": "x"}, {"pro": None}, {"intervals": {"pro": [1]}}, {"intervals": 1}, {"operating_point": {"x": 1}}],
)
def test_damaged_metrics_are_an_error_message(damage):
    with pytest.raises(ValueError, match="stored metrics are damaged.*--force"):
        MetricSummary.from_stored(damage)
