import numpy as np
import pytest
from calibrations import calibration

from detection.operating_points import CONTRADICTED, RATES, contradiction, excess_p_value, measure_rows, operating_rows


def in_use(rows):
    (row,) = (row for row in rows if row.in_use)
    return row


def test_rows_hold_the_thresholds_and_promises_of_their_rates():
    stored = calibration(range(1, 100))
    rows = operating_rows(stored, 0.03)
    assert [row.wanted_rate for row in rows] == sorted([*RATES, 0.03])
    assert [row.in_use for row in rows] == [row.wanted_rate == 0.03 for row in rows]
    for row in rows:
        promise = stored.promise(row.wanted_rate)
        assert (row.threshold, row.expected_rate) == (stored.threshold(row.wanted_rate), promise.rate)
        assert row.at_most == promise.at_most and row.recall is None


def test_measured_rows_count_what_their_thresholds_do():
    scores, labels = np.array([1.0, 60, 97, 98, 99, 200]), np.array([False, False, False, True, True, True])
    rows = measure_rows(operating_rows(calibration(range(1, 100)), 0.01), scores, labels)
    for row in rows:
        called = scores > row.threshold
        assert row.false_alarms[:2] == ((called & ~labels).sum(), 3) and row.recall[:2] == ((called & labels).sum(), 3)
        assert row.precision[:2] == ((called & labels).sum(), called.sum())
    assert measure_rows(rows, scores[:3], labels[:3])[0].recall is None


@pytest.mark.parametrize(("normals", "rate", "tested"), [(19, 0.05, 40), (99, 0.02, 200), (10, 0.3, 30)])
def test_the_promise_is_rarely_contradicted_by_pictures_of_the_same_source(normals, rate, tested):
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(1000):
        stored, scores = calibration(rng.random(normals)), rng.random(tested)
        threshold = stored.threshold(rate)
        wrong += excess_p_value(stored, threshold, int((scores > threshold).sum()), tested) < CONTRADICTED
    assert wrong / 1000 <= CONTRADICTED


def test_the_probability_of_false_alarms_is_that_of_the_ranks():
    """With one calibration score, the threshold is it; the new one is as likely above as below."""
    one = calibration([1])
    assert excess_p_value(one, 1.0, 1, 1) == pytest.approx(1 / 2)
    assert excess_p_value(one, 1.0, 3, 3) == pytest.approx(1 / 4)  # the calibration's is the lowest of four
    assert excess_p_value(one, 1.0, 0, 3) == pytest.approx(1)
    below_all = excess_p_value(calibration([1, 2, 3]), 0.0, 3, 3)
    assert 0 < below_all <= 1


def test_a_contradiction_says_what_was_promised_and_what_helps():
    stored, labels = calibration(np.arange(18)), np.zeros(18, bool)
    row = in_use(measure_rows(operating_rows(stored, 0.01), np.arange(18) + 300, labels))
    line = contradiction(stored, row)
    assert line.startswith("18 of 18 normal test pictures are called anomalous, where 5.3 % were promised (p = 1e-10)")
    assert "--recalibrate" in line and "\n" not in line
    assert not contradiction(stored, row._replace(false_alarms=None))
