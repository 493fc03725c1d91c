import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from detection.threshold import ANCHOR, PIXEL_RATES, Calibration, mean_maxima, pixel_quantiles
from storage.fingerprint import weights_hash

properties = settings(deadline=None, derandomize=True, max_examples=60)

NO_PIXELS = (0.0,) * len(PIXEL_RATES)


def calibration(scores, pixels=None, held_out=True, made_with=None):
    pixels = pixel_quantiles([np.linspace(0, min(scores), 1000, dtype=np.float32)]) if pixels is None else pixels
    return Calibration(2.0, 0.5, tuple(sorted(map(float, scores))), pixels, held_out, made_with or {}, {})


def test_the_balance_is_the_ratio_of_the_mean_maxima():
    assert mean_maxima(torch.tensor([[1.0, 0.1], [3.0, 0.3]])) == pytest.approx((2.0, 0.2))
    assert calibration([1]).balance == 4


def test_reconstructions_without_any_error_are_refused():
    with pytest.raises(ValueError, match=r"lower model\.w"):
        mean_maxima(torch.tensor([[1.0, 0.0]]))
    with pytest.raises(ValueError, match="not finite"):
        mean_maxima(torch.tensor([[math.nan, 1.0]]))


@properties
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=30),
    st.integers(-1, 10),
    st.sampled_from([0.01, 0.05, 0.1, 0.3, 0.5]),
)
def test_a_picture_is_anomalous_where_its_p_value_is_small_enough(scores, score, rate):
    stored = calibration(scores, pixels=NO_PIXELS)
    p_value, rank = stored.p_value(score), rate * (len(scores) + 1)
    as_high = 1 + sum(normal >= score for normal in scores)
    if as_high > stored.anchor or not stored.spread:
        assert p_value == as_high / (len(scores) + 1)
    limit = math.floor(rank + 1e-9) / (len(scores) + 1) if rank >= stored.anchor else rate
    if stored.spread and abs(p_value - limit) > 1e-9:
        assert (score > stored.threshold(rate)) == (p_value < limit)


@properties
@given(st.lists(st.floats(0, 9), min_size=1, max_size=60), st.floats(0, 20))
def test_p_values_fall_and_thresholds_rise_without_a_jump_at_the_anchor(scores, score):
    stored = calibration(scores, pixels=NO_PIXELS)
    assert 0 <= stored.p_value(score + 0.1) <= stored.p_value(score) <= 1
    thresholds = [stored.threshold(rate) for rate in (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.001)]
    assert thresholds == sorted(thresholds)
    at_anchor = stored.anchor / (len(scores) + 1)
    assert stored.threshold(at_anchor * (1 - 1e-9)) == pytest.approx(stored.threshold(at_anchor), abs=1e-6)


DISTRIBUTIONS = {
    "even": lambda rng, count: rng.random(count),
    "normal": lambda rng, count: rng.standard_normal(count),
    "exponential": lambda rng, count: rng.exponential(size=count),
}


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(("normals", "rate"), [(99, 0.01), (299, 0.01), (100, 0.05), (42, 0.2), (42, 0.01), (21, 0.01)])
def test_the_promise_holds_over_many_draws_of_normal_pictures(normals, rate, distribution):
    rng, draw = np.random.default_rng(0), DISTRIBUTIONS[distribution]
    fresh = np.sort(draw(rng, 100_000))
    stored = [calibration(draw(rng, normals), pixels=NO_PIXELS) for _ in range(1000)]
    rates = np.array([1 - np.searchsorted(fresh, one.threshold(rate), "right") / len(fresh) for one in stored])
    assert rates.mean() <= 1.15 * stored[0].promise(rate).rate
    kept = [rates[i] <= one.promise(rate).at_most for i, one in enumerate(stored)]
    assert np.mean(kept) >= 0.93
    if rate * (normals + 1) >= ANCHOR:  # a rank among the scores: exact for any distribution
        promise = stored[0].promise(rate)
        assert rates.mean() == pytest.approx(promise.rate, rel=0.1)
        assert (rates <= rate).mean() == pytest.approx(promise.confidence, abs=0.06)


def test_a_threshold_hangs_less_on_the_highest_picture_than_its_score_does():
    scores = np.random.default_rng(0).exponential(size=99)
    with_odd = np.r_[np.sort(scores)[:-1], scores.max() + 5]
    moved = calibration(with_odd, pixels=NO_PIXELS).threshold(0.01) - calibration(scores, pixels=NO_PIXELS).threshold(
        0.01
    )
    assert 0 < moved < 0.5


def test_an_odd_normal_picture_is_named():
    scores = np.sort(np.random.default_rng(0).normal(10, 1, 60))
    names = tuple(f"train/good/{number:03}.png" for number in range(60))
    assert replace(calibration(scores), pictures=names).odd == []
    scores[-2:] = 18, 19
    assert replace(calibration(scores), pictures=names).odd == [names[-1], names[-2]]
    assert replace(calibration([1, 1, 1]), pictures=names[:3]).odd == calibration(scores).odd == []


def test_copies_of_each_picture_change_nothing_that_is_promised():
    scores = np.random.default_rng(0).exponential(size=60)
    once, copies = calibration(scores), replace(calibration(np.repeat(scores, 4)), independent=60.0)
    for rate in (0.2, 0.05, 0.01):
        assert copies.threshold(rate) == pytest.approx(once.threshold(rate), rel=0.15)
        assert copies.promise(rate) == pytest.approx(once.promise(rate), rel=0.2, abs=0.02)


def test_too_few_normal_pictures_are_reported():
    few = calibration(np.arange(1, 22))
    assert few.promise(0.01).rate == pytest.approx(1 / 22) and few.threshold(0.01) > 21
    assert "too few to promise 1 %" in few.describe(0.01) and "4.5 % false alarms expected" in few.describe(0.01)
    assert "too few" not in few.describe(0.05)
    assert "training has seen these pictures" in calibration(range(1, 22), held_out=False).describe(0.05)


def test_pictures_that_resemble_each_other_promise_less():
    independent = calibration(np.arange(90))
    frames = replace(independent, independent=9.0, dependence="neighbours resemble each other", method="cross")
    assert frames.threshold(0.01) > independent.threshold(0.01)
    assert frames.threshold(0.5) == pytest.approx(independent.threshold(0.5), abs=6)
    assert frames.promise(0.01).rate == 0.1 and frames.promise(0.01).at_most > 5 * independent.promise(0.01).at_most
    assert "90 normal pictures, about 9 independent ones as neighbours resemble each other, too few to promise 1 %" in (
        frames.describe(0.01)
    )


@pytest.mark.parametrize("rate", [0.5, 0.1, 0.01, 0.001])
def test_the_pixel_threshold_is_exceeded_by_its_share_of_normal_pixels(rate):
    maps = [np.random.default_rng(seed).random((40, 50)).astype(np.float32) for seed in range(10)]
    stored = calibration([2, 3], pixels=pixel_quantiles(maps))
    assert np.mean([values > stored.pixel_threshold(rate) for values in maps]) == pytest.approx(rate, rel=0.05)


def test_the_pixel_threshold_is_at_most_the_image_threshold():
    stored = calibration([0.1, 0.2], pixels=(50.0,) * len(PIXEL_RATES))
    assert stored.pixel_threshold(0.01) == stored.threshold(0.01) < 50


@pytest.mark.parametrize(
    "wrong",
    [
        {"pixel": 0.0},
        {"feature": math.nan},
        {"scores": ()},
        {"scores": (2.0, 1.0)},
        {"scores": (math.inf,)},
        {"pixels": (1.0,)},
        {"settings": []},
    ],
)
def test_a_calibration_of_wrong_numbers_is_refused(wrong):
    with pytest.raises(ValueError, match="measure it again"):
        replace(calibration([1, 2]), **wrong)


def test_a_stale_calibration_says_what_differs():
    stored = calibration([1], made_with={"w": 3.0, "weights": "ab"})
    assert stored.staleness({"w": 3.0, "weights": "ab"}) == ""
    assert stored.staleness({"w": 4.0, "weights": "ab"}) == "w was 3.0, is 4.0"


def test_the_hash_changes_with_any_weight():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Conv2d(4, 4, 1))
    before = weights_hash([network])
    assert weights_hash([network.to(memory_format=torch.channels_last)]) == before
    network[1].num_batches_tracked += 1
    assert weights_hash([network]) != before
    network[1].num_batches_tracked -= 1
    with torch.no_grad():
        network[0].weight[0, 0] += 1e-6
    assert weights_hash([network]) != before
