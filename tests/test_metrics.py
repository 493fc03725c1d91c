import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import label
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score

import metrics

properties = settings(deadline=None, derandomize=True, max_examples=60)


def slow_pro(maps, masks, limit):
    """Every threshold in turn; between two of them rate and overlap are joined by a line."""
    regions = [
        (index, numbered == number)
        for index, mask in enumerate(masks)
        for numbered in [label(mask, connectivity=2)]
        for number in np.unique(numbered)[1:]
    ]
    curve = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        found = maps >= threshold
        curve.append(((found & ~masks).sum() / (~masks).sum(), np.mean([found[index][region].mean() for index, region in regions])))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(curve):
        if x0 >= limit or x1 == x0:
            continue
        end = min(x1, limit)
        area += (end - x0) * (y0 + y0 + (y1 - y0) * (end - x0) / (x1 - x0)) / 2
    return area / limit


def random_case(seed, levels):
    rng = np.random.default_rng(seed)
    masks = rng.random((3, 9, 11)) < 0.2
    masks[0, 0, 0], masks[0, 5, 5] = True, False
    return np.round(rng.random(masks.shape) + 0.5 * masks, 8) if levels == 0 else rng.integers(0, levels, masks.shape), masks


def test_values_are_the_published_ones(golden):
    expected = golden("metrics")
    assert metrics.image_auroc(expected["scores"], expected["labels"]) == pytest.approx(float(expected["image_auroc"]), rel=1e-4)
    assert metrics.pixel_auroc(expected["maps"], expected["masks"]) == pytest.approx(float(expected["pixel_auroc"]), rel=1e-4)
    assert metrics.pro(expected["maps"], expected["masks"]) == pytest.approx(float(expected["pro_exact"]), rel=1e-4)
    assert metrics.youden_threshold(expected["scores"], expected["labels"]) == pytest.approx(float(expected["youden_threshold"]), rel=1e-4)


def published_pro(maps, masks, thresholds=200, limit=0.3):
    """The released way: 200 thresholds, false-positive rates below the limit stretched to 1, trapezoids."""
    regions = [(index, numbered == number) for index, mask in enumerate(masks) for numbered in [label(mask)] for number in np.unique(numbered)[1:]]
    curve = []
    for threshold in np.arange(maps.min(), maps.max(), (maps.max() - maps.min()) / thresholds):
        found = maps > threshold
        curve.append(((found & ~masks).sum() / (~masks).sum(), np.mean([found[index][region].mean() for index, region in regions])))
    rate, overlap = np.array([point for point in curve if point[0] < limit]).T
    return auc(rate / rate.max(), overlap)


def test_the_exact_pro_stands_beside_the_published_one(golden):
    """The loop of the release gives its golden value; the exact value is another."""
    expected = golden("metrics")
    maps, masks = expected["maps"], expected["masks"] > 0
    assert published_pro(maps, masks) == pytest.approx(float(expected["pro_200_thresholds"]), rel=1e-4)
    assert metrics.pro(maps, masks) == pytest.approx(float(expected["pro_exact"]), rel=1e-4)
    assert abs(float(expected["pro_exact"]) - float(expected["pro_200_thresholds"])) > 1e-3


@properties
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([0, 2, 3, 7, 40]), limit=st.sampled_from([0.05, 0.3, 1.0]))
def test_pro_is_the_area_under_the_curve_of_all_thresholds(seed, levels, limit):
    maps, masks = random_case(seed, levels)
    assert metrics.pro(maps, masks, limit) == pytest.approx(slow_pro(maps, masks, limit), abs=1e-12)


@properties
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([0, 2, 3, 40]))
def test_auroc_is_that_of_scikit_learn(seed, levels):
    maps, masks = random_case(seed, levels)
    expected = roc_auc_score(masks.ravel(), maps.ravel())
    assert metrics.pixel_auroc(maps, masks) == pytest.approx(expected, abs=1e-12)
    assert metrics.image_auroc(maps.ravel(), masks.ravel()) == pytest.approx(expected, abs=1e-12)
    assert metrics.pixel_auroc(np.exp(3.0 * maps), masks) == pytest.approx(expected, abs=1e-12)


@properties
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([0, 2, 3, 40]))
def test_average_precision_and_f1_max_are_those_of_scikit_learn(seed, levels):
    maps, masks = random_case(seed, levels)
    assert metrics.average_precision(maps, masks) == pytest.approx(average_precision_score(masks.ravel(), maps.ravel()), abs=1e-12)
    precision, recall, _ = precision_recall_curve(masks.ravel(), maps.ravel())
    expected = (2 * precision * recall / np.maximum(precision + recall, 1e-300)).max()
    assert metrics.f1_max(maps.ravel(), masks.ravel()) == pytest.approx(expected, abs=1e-12)


def test_pro_of_perfect_inverted_and_constant_maps():
    _, masks = random_case(0, 0)
    assert metrics.pro(masks.astype(float), masks) == pytest.approx(1)
    assert metrics.pro(-masks.astype(float), masks) == pytest.approx(0)
    assert metrics.pro(np.zeros(masks.shape), masks) == pytest.approx(0.15)
    assert metrics.pixel_auroc(np.zeros(masks.shape), masks) == pytest.approx(0.5)


def test_pro_counts_a_small_defect_as_much_as_a_large_one():
    masks = np.zeros((1, 20, 20), bool)
    masks[0, :10, :10] = masks[0, 19, 19] = True
    maps = np.zeros(masks.shape)
    maps[0, 19, 19] = 1
    rest = metrics.pro(np.zeros(masks.shape), masks)
    assert metrics.pro(maps, masks) == pytest.approx((1 + rest) / 2)


def test_regions_that_touch_at_a_corner_are_one():
    masks = np.zeros((1, 8, 8), bool)
    masks[0, 2, 2] = masks[0, 3, 3] = masks[0, 6, 6] = True
    maps = np.zeros(masks.shape)
    maps[0, 6, 6] = 1
    rest = metrics.pro(np.zeros(masks.shape), masks)
    assert metrics.pro(maps, masks) == pytest.approx((1 + rest) / 2)


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1]])
def test_metrics_without_one_of_the_classes_say_so(labels):
    with pytest.raises(ValueError, match="needs both normal and defective"):
        metrics.image_auroc([0.1, 0.2, 0.3], labels)
    with pytest.raises(ValueError, match="needs both normal and defective"):
        metrics.pro(np.zeros((3, 4, 4)), np.array(labels)[:, None, None] * np.ones((3, 4, 4)))


def test_scores_that_are_not_numbers_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        metrics.image_auroc([0.1, np.nan], [0, 1])
