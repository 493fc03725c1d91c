import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from detection.threshold import PIXEL_RATES, Calibration, mean_maxima, pixel_quantiles
from storage.fingerprint import weights_hash

properties = settings(deadline=None, derandomize=True, max_examples=60)


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
    stored = calibration(scores, pixels=(0.0,) * len(PIXEL_RATES))
    assert stored.p_value(score) == (1 + sum(normal >= score for normal in scores)) / (len(scores) + 1)
    attained = stored.promise(rate).rate
    assert (score > stored.threshold(rate)) == (stored.p_value(score) <= attained + 1e-12)
    assert attained <= rate + 1e-12 or attained == 1 / (len(scores) + 1)


@pytest.mark.parametrize(("normals", "rate"), [(99, 0.01), (100, 0.05), (42, 0.1), (21, 0.01)])
def test_the_promise_holds_over_many_draws_of_normal_pictures(normals, rate):
    """With uniform scores, the false-positive rate of a threshold is 1 − threshold."""
    rng = np.random.default_rng(0)
    rates = np.array(
        [1 - calibration(rng.random(normals), pixels=(0.0,) * len(PIXEL_RATES)).threshold(rate) for _ in range(3000)]
    )
    promise = calibration(range(normals), pixels=(0.0,) * len(PIXEL_RATES)).promise(rate)
    assert rates.mean() == pytest.approx(promise.rate, rel=0.1)
    assert (rates <= rate).mean() == pytest.approx(promise.confidence, abs=0.03)
    assert (rates <= promise.at_most).mean() == pytest.approx(0.95, abs=0.015)


def test_too_few_normal_pictures_are_reported():
    few = calibration(np.arange(1, 22))
    assert few.promise(0.01).rate == pytest.approx(1 / 22) and few.threshold(0.01) == 21
    assert "too few for a rate of 1 %" in few.describe(0.01) and "4.5 % false alarms expected" in few.describe(0.01)
    assert "too few" not in few.describe(0.05)
    assert "training has seen these pictures" in calibration(range(1, 22), held_out=False).describe(0.05)


@pytest.mark.parametrize("rate", [0.5, 0.1, 0.01, 0.001])
def test_the_pixel_threshold_is_exceeded_by_its_share_of_normal_pixels(rate):
    maps = [np.random.default_rng(seed).random((40, 50)).astype(np.float32) for seed in range(10)]
    stored = calibration([2, 3], pixels=pixel_quantiles(maps))
    assert np.mean([values > stored.pixel_threshold(rate) for values in maps]) == pytest.approx(rate, rel=0.05)


def test_the_pixel_threshold_is_at_most_the_image_threshold():
    stored = calibration([0.1, 0.2], pixels=(5.0,) * len(PIXEL_RATES))
    assert stored.pixel_threshold(0.01) == stored.threshold(0.01) == 0.2


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
