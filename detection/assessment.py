"""What the thresholds do to pictures, as metrics.json and summary.json store it: warnings, promise, counts, drift."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from detection.detector import Detector
from detection.drift import compare_test_pictures, drift_tests, drift_warning, labelled_warning
from detection.operating_points import contradiction, measure_rows

VERDICTS = ANOMALOUS, NORMAL, UNREADABLE = "anomalous", "normal", "unreadable"


def assess_test_pictures(
    detector: Detector, scores: NDArray[np.float64], labels: NDArray[np.bool_]
) -> dict[str, object]:
    """Return the parts of metrics.json that need a calibration; a warning where normal pictures break the promise."""
    calibration = detector.required_calibration
    rows = measure_rows(detector.operating_points, scores, labels)
    drift = compare_test_pictures(calibration, scores[~labels].tolist())
    in_use = next(row for row in rows if row.in_use)
    warning = contradiction(calibration, in_use) or labelled_warning(drift)
    return {
        "warnings": [warning] if warning else [],
        "calibration": describe_calibration(detector),
        "operating_points": [row.as_stored() for row in rows],
        "drift": {drift.test: drift.p_value},
    }


def assess_input(detector: Detector, outcomes: Sequence[tuple[str, float | None]]) -> dict[str, object]:
    """Return the summary of predictions, from verdicts and scores in the order of the pictures' names."""
    verdicts, scores = (
        Counter(verdict for verdict, _ in outcomes),
        [score for _, score in outcomes if score is not None],
    )
    tests = drift_tests(detector.required_calibration, detector.threshold, scores)
    warning = drift_warning(tests)
    return {
        "warnings": [warning] if warning else [],
        "pictures": len(outcomes),
        **{verdict: verdicts[verdict] for verdict in VERDICTS},
        "threshold": detector.threshold,
        "calibration": describe_calibration(detector),
        "drift": {test.test: test.p_value for test in tests},
    }


def describe_calibration(detector: Detector) -> dict[str, object]:
    """Return the pictures that the threshold comes from, and its promise; `source` is None for train/good."""
    calibration, rate = detector.required_calibration, detector.false_positive_rate
    return {
        "pictures": len(calibration.scores),
        "held_out": calibration.held_out,
        "source": vars(calibration.source) if calibration.source else None,
        "balance": calibration.balance,
        "wanted_rate": rate,
        **calibration.promise(rate)._asdict(),
    }


def warning_lines(facts: Mapping[str, object]) -> list[str]:
    """Return the printed warnings of the facts above, or of a file that stores them."""
    warnings = facts.get("warnings")
    return [f"warning: {line}" for line in warnings] if isinstance(warnings, list) else []
