import numpy as np
import pytest
from calibrations import calibration

from detection.drift import LEVEL, compare_test_pictures, drift_tests, drift_warning, labelled_warning, order_test

RUNS = 200


def share_of_warnings(normals, tested, rate, change=lambda scores, rng: scores):
    rng, warnings = np.random.default_rng(0), 0
    for _ in range(RUNS):
        stored = calibration(np.exp(rng.normal(size=normals)))
        scores = change(np.exp(rng.normal(size=tested)), rng)
        warnings += bool(drift_warning(drift_tests(stored, stored.threshold(rate), scores.tolist())))
    return warnings / RUNS


@pytest.mark.parametrize(("normals", "tested", "rate"), [(30, 50, 0.01), (99, 200, 0.05), (8, 9, 0.1)])
def test_pictures_of_the_same_source_rarely_cause_a_warning(normals, tested, rate):
    assert share_of_warnings(normals, tested, rate) <= 2 * LEVEL  # 200 runs are few


def test_a_few_defective_pictures_cause_no_warning():
    def with_defects(scores, rng):
        return np.where(rng.random(len(scores)) < 0.1, scores + 100, scores)

    assert share_of_warnings(99, 300, 0.01, with_defects) <= 2 * LEVEL


@pytest.mark.parametrize(("shift", "least", "most"), [(1.0, 0.95, 1.0), (0.5, 0.4, 0.8)])
def test_shifts_are_found(shift, least, most):
    rng, warnings = np.random.default_rng(0), 0
    for _ in range(100):
        stored, scores = calibration(rng.normal(size=100)), rng.normal(shift, 1, 100)
        warnings += bool(drift_warning(drift_tests(stored, stored.threshold(0.01), scores.tolist())))
    assert least <= warnings / 100 <= most


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda scores: scores + 1, "score higher than"),
        (lambda scores: scores - 1, "score lower than"),
        (lambda scores: scores + 100, "60 of 60 pictures are called anomalous"),
        (lambda scores: np.sort(scores), "rise in the order of the names"),
        (lambda scores: np.sort(scores)[::-1], "fall in the order of the names"),
    ],
)
def test_what_changes_is_said(change, words):
    rng = np.random.default_rng(1)
    stored = calibration(rng.normal(size=60))
    line = drift_warning(drift_tests(stored, stored.threshold(0.01), change(rng.normal(size=60)).tolist()))
    assert words in line and "either many of them are defective, or the pictures have changed" in line


def test_slow_changes_among_neighbours_are_no_drift():
    """Frames of a camera resemble their neighbours; a test of single pictures would warn about half of such runs."""
    rng, warnings = np.random.default_rng(0), 0
    for _ in range(100):
        steps = rng.normal(size=(300, 10)).mean(axis=1)
        scores = np.convolve(steps, np.ones(8) / 8, "valid")
        warnings += order_test(scores.tolist()).p_value < LEVEL
    assert warnings <= 4


def test_normal_test_pictures_are_compared_with_the_calibration():
    rng = np.random.default_rng(0)
    stored, like = calibration(rng.normal(size=50)), rng.normal(size=50)
    assert labelled_warning(compare_test_pictures(stored, like.tolist())) == ""
    line = labelled_warning(compare_test_pictures(stored, (like + 1).tolist()))
    assert line.startswith("50 normal test pictures score higher than 50 normal ones that set the threshold (p = ")
    assert "--recalibrate" in line


@pytest.mark.parametrize("scores", [[], [1.0], [1.0, 1.0], [2.0], [float(n) for n in range(3)]])
def test_few_and_equal_scores_cause_no_warning(scores):
    for stored in (calibration([1]), calibration([1, 1, 1]), calibration([1, 2])):
        tests = [*drift_tests(stored, stored.threshold(0.01), scores), compare_test_pictures(stored, scores)]
        assert drift_warning(tests) == "" and all(0 <= test.p_value <= 1 for test in tests)


def test_a_large_folder_takes_no_time():
    """Counting all orders of 8 among 100,000 pictures would take minutes."""
    scores = np.random.default_rng(0).random(100_000).tolist()
    assert compare_test_pictures(calibration(range(1, 9)), scores).p_value < LEVEL
