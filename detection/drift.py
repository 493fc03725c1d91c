"""Drift: test whether new pictures could be exchanged with the normal ones that set the threshold (Vovk et al. 2005).

A promise about false alarms holds for pictures like those of the calibration. Each test here asks for one sign that
they are not: most are called anomalous, those called normal score unlike the calibration's, or scores follow the order
of the names. Pictures called anomalous are kept out of the last two, so that a few defects are no drift.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import kendalltau, mannwhitneyu, rankdata

from detection.operating_points import REMEDY, excess_p_value
from detection.threshold import Calibration

LEVEL = 0.01  # probability of a warning about pictures that have not changed, all tests together
BLOCKS = 10  # neighbours in time resemble each other; means of long blocks hardly do
EXACT = 10_000  # pairs up to which the rank test counts all orders; more take minutes
CAUSES = (
    "either many of them are defective, or the pictures have changed (camera, light): look at them, and --recalibrate "
    "with new normal ones"
)


class DriftTest(NamedTuple):
    """A test for exchangeability: its p-value, and the line that says what it saw."""

    test: str
    p_value: float
    finding: str


def compare_scores(normal: Sequence[float], seen: Sequence[float], of_seen: str, of_normal: str) -> DriftTest:
    """Return the two-sided rank test of `seen` scores against `normal` ones (Mann and Whitney 1947); p = 1 for none."""
    pairs = len(seen) * len(normal)
    if pairs == 0:
        return DriftTest("level", 1.0, "")
    statistic, p_value = mannwhitneyu(seen, normal, method="auto" if pairs <= EXACT else "asymptotic")
    direction = "higher" if statistic > pairs / 2 else "lower"
    finding = f"{len(seen)} {of_seen} score {direction} than {len(normal)} {of_normal} (p = {p_value:.1g})"
    return DriftTest("level", float(p_value), finding)


def compare_test_pictures(calibration: Calibration, scores: Sequence[float]) -> DriftTest:
    """Return the rank test of normal test pictures' scores against the calibration's."""
    return compare_scores(calibration.scores, scores, "normal test pictures", "normal ones that set the threshold")


def labelled_warning(drift: DriftTest) -> str:
    """Return a line where the normal test pictures are not like those of the calibration; else an empty one."""
    return f"{drift.finding}: the promise may not hold for them; {REMEDY}" if drift.p_value < LEVEL else ""


def drift_tests(calibration: Calibration, threshold: float, scores: Sequence[float]) -> list[DriftTest]:
    """Return the tests of pictures without labels, whose scores are in the order of their names."""
    passed = [score for score in scores if score <= threshold]
    below = [score for score in calibration.scores if score < threshold]  # the threshold may be one of the scores
    level = compare_scores(below, passed, "pictures called normal", "normal ones below the threshold")
    return [share_test(calibration, threshold, len(scores) - len(passed), len(scores)), level, order_test(passed)]


def share_test(calibration: Calibration, threshold: float, anomalous: int, pictures: int) -> DriftTest:
    """Test whether most pictures are called anomalous and normal ones would not be; p = 1 where most are not."""
    p_value = excess_p_value(calibration, threshold, anomalous, pictures) if 2 * anomalous > pictures else 1.0
    return DriftTest("share", p_value, f"{anomalous} of {pictures} pictures are called anomalous (p = {p_value:.1g})")


def order_test(scores: Sequence[float]) -> DriftTest:
    """Test whether scores rise or fall: Kendall's rank correlation of at most `BLOCKS` means with their order."""
    if len(scores) < 2:
        return DriftTest("order", 1.0, "")
    means = [block.mean() for block in np.array_split(rankdata(scores), min(BLOCKS, len(scores)))]
    correlation, p_value = kendalltau(range(len(means)), means)
    p_value = float(np.nan_to_num(p_value, nan=1.0))  # of equal scores
    finding = f"scores {'rise' if correlation > 0 else 'fall'} in the order of the names (p = {p_value:.1g})"
    return DriftTest("order", p_value, finding)


def drift_warning(tests: Sequence[DriftTest]) -> str:
    """Return a line about the tests that fail, at `LEVEL` for all together; an empty one where none does."""
    findings = [test.finding for test in tests if test.p_value < LEVEL / len(tests)]
    return f"{', and '.join(findings)}: {CAUSES}" if findings else ""
