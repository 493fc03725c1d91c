import dataclasses
import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import label
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score

import metrics

properties = settings(deadline=None, derandomize=True, max_examples=60)


def slow_pro(maps, masks, limit):
    """Return PRO from a loop over all thresholds, with straight lines between the points of the curve."""
    regions = [
        (index, numbered == number)
        for index, mask in enumerate(masks)
        for numbered in [label(mask, connectivity=2)]
        for number in np.unique(numbered)[1:]
    ]
    curve = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        flagged = maps >= threshold
        curve.append(
            (
                (flagged & ~masks).sum() / (~masks).sum(),
                np.mean([flagged[index][region].mean() for index, region in regions]),
            )
        )
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
    return np.round(rng.random(masks.shape) + 0.5 * masks, 8) if levels == 0 else rng.integers(
        0, levels, masks.shape
    ), masks


def test_metrics_have_the_golden_values(golden):
    expected = golden("metrics")
    assert metrics.image_auroc(expected["scores"], expected["labels"]) == pytest.approx(
        float(expected["image_auroc"]), rel=1e-4
    )
    assert metrics.pixel_auroc(expected["maps"], expected["masks"]) == pytest.approx(
        float(expected["pixel_auroc"]), rel=1e-4
    )
    assert metrics.pro(expected["maps"], expected["masks"]) == pytest.approx(float(expected["pro_exact"]), rel=1e-4)
    assert (
        metrics.youden_threshold([0.9, 0.5], [0, 1]) == 0.5 and metrics.youden_threshold([0.3, 0.3], [0, 1]) == 0.3
    )  # where none is better than chance
    assert metrics.youden_threshold(expected["scores"], expected["labels"]) == pytest.approx(
        float(expected["youden_threshold"]), rel=1e-4
    )


def published_pro(maps, masks, thresholds=200, limit=0.3):
    """Return PRO as released: 200 thresholds, trapezoids, rates below the limit stretched to 1."""
    regions = [
        (index, numbered == number)
        for index, mask in enumerate(masks)
        for numbered in [label(mask)]
        for number in np.unique(numbered)[1:]
    ]
    curve = []
    for threshold in np.arange(maps.min(), maps.max(), (maps.max() - maps.min()) / thresholds):
        flagged = maps > threshold
        curve.append(
            (
                (flagged & ~masks).sum() / (~masks).sum(),
                np.mean([flagged[index][region].mean() for index, region in regions]),
            )
        )
    rate, overlap = np.array([point for point in curve if point[0] < limit]).T
    return auc(rate / rate.max(), overlap)


def test_the_exact_pro_differs_from_the_published_one(golden):
    """The released loop gives its golden value. The exact value differs."""
    expected = golden("metrics")
    maps, masks = expected["maps"], expected["masks"] > 0
    assert published_pro(maps, masks) == pytest.approx(float(expected["pro_200_thresholds"]), rel=1e-4)
    assert metrics.pro(maps, masks) == pytest.approx(float(expected["pro_exact"]), rel=1e-4)
    assert abs(float(expected["pro_exact"]) - float(expected["pro_200_thresholds"])) > 1e-3


@properties
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([0, 2, 3, 7, 40]), limit=st.sampled_from([0.05, 0.3, 1.0]))
def test_pro_equals_the_area_under_the_curve_of_all_thresholds(seed, levels, limit):
    maps, masks = random_case(seed, levels)
    assert metrics.pro(maps, masks, limit) == pytest.approx(slow_pro(maps, masks, limit), abs=1e-12)


@properties
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([0, 2, 3, 40]))
def test_auroc_equals_scikit_learns(seed, levels):
    maps, masks = random_case(seed, levels)
    expected = roc_auc_score(masks.ravel(), maps.ravel())
    assert metrics.pixel_auroc(maps, masks) == pytest.approx(expected, abs=1e-12)
    assert metrics.image_auroc(maps.ravel(), masks.ravel()) == pytest.approx(expected, abs=1e-12)
    assert metrics.pixel_auroc(np.exp(3.0 * maps), masks) == pytest.approx(expected, abs=1e-12)


@properties
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([0, 2, 3, 40]))
def test_average_precision_and_f1_max_equal_scikit_learns(seed, levels):
    maps, masks = random_case(seed, levels)
    ranking = metrics.rank_anomalies(maps, masks)
    expected = average_precision_score(masks.ravel(), maps.ravel())
    assert ranking.average_precision() == pytest.approx(expected, abs=1e-12)
    precision, recall, _ = precision_recall_curve(masks.ravel(), maps.ravel())
    expected = (2 * precision * recall / np.maximum(precision + recall, 1e-300)).max()
    assert (
        ranking.f1_max()
        == metrics.rank_anomalies(maps.ravel(), masks.ravel()).f1_max()
        == pytest.approx(expected, abs=1e-12)
    )


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


def test_regions_that_touch_at_a_corner_are_one_region():
    masks = np.zeros((1, 8, 8), bool)
    masks[0, 2, 2] = masks[0, 3, 3] = masks[0, 6, 6] = True
    maps = np.zeros(masks.shape)
    maps[0, 6, 6] = 1
    rest = metrics.pro(np.zeros(masks.shape), masks)
    assert metrics.pro(maps, masks) == pytest.approx((1 + rest) / 2)


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1]])
def test_auroc_and_pro_refuse_a_single_class(labels):
    with pytest.raises(ValueError, match="needs both normal and defective"):
        metrics.image_auroc([0.1, 0.2, 0.3], labels)
    with pytest.raises(ValueError, match="needs both normal and defective"):
        metrics.pro(np.zeros((3, 4, 4)), np.array(labels)[:, None, None] * np.ones((3, 4, 4)))


def test_scores_that_are_not_numbers_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        metrics.image_auroc([0.1, np.nan], [0, 1])


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1]])
def test_all_metrics_refuse_a_single_class(labels):
    for function in (metrics.rank_anomalies, metrics.bootstrap_intervals, metrics.youden_threshold):
        with pytest.raises(ValueError, match=r"no (normal|defective) pictures; this metric needs both"):
            function([0.1, 0.2, 0.3], labels)


@pytest.mark.parametrize("shape", [(0,), (0, 8, 8), (3, 0, 8)])
def test_no_pictures_are_refused(shape):
    for function in (metrics.rank_anomalies, metrics.bootstrap_intervals, metrics.image_auroc):
        with pytest.raises(ValueError, match="no scores"):
            function(np.zeros(shape), np.zeros(shape))


def test_shapes_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="do not match"):
        metrics.rank_anomalies(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match=r"\(N, H, W\)"):
        metrics.pro(np.zeros(3), np.ones(3))
    with pytest.raises(ValueError, match="limit is 1.5"):
        metrics.pro(*random_case(0, 0), limit=1.5)
    with pytest.raises(ValueError, match="limit is 0"):
        metrics.bootstrap_intervals(*random_case(0, 0), pro_limits=[0])


@properties
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([0, 2, 3, 7, 40]))
def test_a_ranking_has_the_counts_of_a_slow_loop(seed, levels):
    maps, masks = random_case(seed, levels)
    ranking = metrics.rank_anomalies(maps, masks)
    anomalous, normal = np.sort(maps[masks]), maps[~masks]
    np.testing.assert_array_equal(ranking.values, anomalous)
    np.testing.assert_array_equal(ranking.below, [(normal < value).sum() for value in anomalous])
    np.testing.assert_array_equal(ranking.up_to, [(normal <= value).sum() for value in anomalous])
    np.testing.assert_array_equal(ranking.true_positives, [(anomalous >= value).sum() for value in anomalous])
    assert ranking.normals == len(normal)
    expected = [
        (index, *np.sort(anomaly_map[numbered == number]))
        for index, (anomaly_map, mask) in enumerate(zip(maps, masks, strict=True))
        for numbered in [label(mask, connectivity=2)]
        for number in np.unique(numbered)[1:]
    ]
    regions = [
        (picture, *ranking.values[ranking.regions == number]) for number, picture in enumerate(ranking.region_pictures)
    ]
    assert sorted(regions) == sorted(expected)


@properties
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([0, 3, 40]))
def test_stacks_of_several_shapes_are_ranked_together(seed, levels):
    maps, masks = random_case(seed, levels)
    other_maps, other_masks = (array.reshape(len(array), 1, -1) for array in random_case(seed + 1, levels))
    stacks, truth = [maps, other_maps], [masks, other_masks]
    ranking = metrics.rank_anomalies(stacks, truth)
    values, labels = (np.concatenate([part.ravel() for part in parts]) for parts in (stacks, truth))
    assert ranking.auroc() == pytest.approx(roc_auc_score(labels, values))
    np.testing.assert_array_equal(np.sort(ranking.values), np.sort(values[labels]))
    pictures = [(mask, number) for number, mask in enumerate([*masks, *other_masks])]
    counts = [label(mask, connectivity=2).max() for mask, _ in pictures]
    np.testing.assert_array_equal(ranking.region_pictures, np.repeat(np.arange(len(counts)), counts))
    split = [maps[:1], maps[1:]], [masks[:1], masks[1:]]  # of one shape: as one stack
    assert metrics.pro(*split) == metrics.pro(maps, masks)
    assert metrics.bootstrap_intervals(*split, resamples=9) == metrics.bootstrap_intervals(maps, masks, resamples=9)


def test_stacks_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="1 stacks of maps do not match 2 of masks"):
        metrics.pixel_auroc([np.zeros((1, 2, 2))], [np.zeros((1, 2, 2))] * 2)


@pytest.mark.parametrize("chunk", [1, 99, 250])
@pytest.mark.parametrize("levels", [0, 3])
def test_chunks_and_memory_maps_do_not_change_results(monkeypatch, tmp_path, chunk, levels):
    maps, masks = random_case(1, levels)
    masks[1] = False
    masks[2, 5:] = False  # few anomalous pixels, or the chunks are as large as these
    maps = np.concatenate([maps, maps[:, ::-1] + 1]).astype(np.float32)
    masks = np.concatenate([masks, np.zeros_like(masks)])
    all_at_once, all_at_once_intervals = (
        metrics.rank_anomalies(maps, masks),
        metrics.bootstrap_intervals(maps, masks, pro_limits=[0.3], resamples=20),
    )
    for name, array, dtype in (("maps", maps, np.float32), ("masks", 255 * masks, np.uint8)):
        np.memmap(tmp_path / name, dtype, "w+", shape=array.shape)[:] = array
    stored = (
        np.memmap(tmp_path / "maps", np.float32, "r", shape=maps.shape),
        np.memmap(tmp_path / "masks", np.uint8, "r", shape=masks.shape),
    )
    monkeypatch.setattr(metrics, "CHUNK", chunk)
    monkeypatch.setattr(metrics, "RESAMPLES_AT_ONCE", 7)
    for arrays in ((maps, masks), stored):
        ranking = metrics.rank_anomalies(*arrays)
        for field in dataclasses.fields(metrics.Ranking):
            np.testing.assert_array_equal(getattr(ranking, field.name), getattr(all_at_once, field.name))
        for name, interval in metrics.bootstrap_intervals(*arrays, pro_limits=[0.3], resamples=20).items():
            assert interval == pytest.approx(all_at_once_intervals[name], abs=1e-12)
    maps[-1, -1, -1] = np.inf
    with pytest.raises(ValueError, match=f"1 of {maps.size} scores are not finite"):
        metrics.rank_anomalies(maps, masks)


LIMITS = (0.05, 0.3, 1.0)


def exact_metrics(values, truth, limits=LIMITS):
    ranking = metrics.rank_anomalies(values, truth)
    results = {"auroc": ranking.auroc(), "average_precision": ranking.average_precision(), "f1_max": ranking.f1_max()}
    return results | {f"pro_{limit:g}": ranking.pro(limit) for limit in limits}


def resampled_metrics(values, truth, multiplicities, limits=LIMITS):
    results = metrics.count_by_picture(values, truth).resample_metrics([multiplicities], limits)
    return {name: float(drawn[0]) for name, drawn in results.items()}


@properties
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([0, 2, 3, 7, 40]))
def test_resampled_maps_equal_repeated_maps(seed, levels):
    maps, masks = random_case(seed, levels)
    assert resampled_metrics(maps, masks, [1, 1, 1]) == pytest.approx(exact_metrics(maps, masks), abs=1e-12)
    times = np.random.default_rng(seed).integers(0, 4, len(maps))
    times[0] += 1
    expected = exact_metrics(np.repeat(maps, times, axis=0), np.repeat(masks, times, axis=0))
    assert resampled_metrics(maps, masks, times) == pytest.approx(expected, abs=1e-12)


@properties
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([0, 2, 5, 40]))
def test_resampled_scores_equal_repeated_scores(seed, levels):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(30) % 3 > 0)
    scores = rng.random(30) + 0.3 * labels if levels == 0 else rng.integers(0, levels, 30)
    assert resampled_metrics(scores, labels, np.ones(30), ()) == pytest.approx(
        exact_metrics(scores, labels, ()), abs=1e-12
    )
    times = rng.integers(0, 3, 30)
    times[[np.argmin(labels), np.argmax(labels)]] = 1
    expected = exact_metrics(np.repeat(scores, times), np.repeat(labels, times), ())
    assert resampled_metrics(scores, labels, times, ()) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("strength", [0.0, 1.5, 4.0])
def test_counting_at_some_of_the_values_changes_metrics_little(strength):
    rng = np.random.default_rng(0)
    masks = np.zeros((12, 64, 64), bool)
    for index, size in enumerate([1, 2, 3, 12, 20, 25, 30, 40]):
        masks[index, 5 : 5 + size, 9 : 9 + size] = True
    masks[:4, 50:60, 2:40] = True
    maps = rng.standard_normal(masks.shape) + strength * rng.random((12, 1, 1)) * masks
    assert len(np.unique(maps[masks])) > 3 * metrics.EDGES
    times = rng.integers(1, 4, len(maps))
    expected = exact_metrics(np.repeat(maps, times, axis=0), np.repeat(masks, times, axis=0))
    assert resampled_metrics(maps, masks, times) == pytest.approx(expected, abs=1e-3)


def normal_scores(seed, pictures, distance=1.2):
    labels = np.arange(pictures) % 2
    return np.random.default_rng(seed).standard_normal(pictures) + distance * labels, labels


def test_intervals_contain_the_metric_follow_from_the_seed_and_shrink_with_more_pictures():
    few, many = normal_scores(0, 40), normal_scores(0, 1000)
    drawn = metrics.bootstrap_intervals(*few, resamples=300)
    assert (
        drawn
        == metrics.bootstrap_intervals(*few, resamples=300, seed=0)
        != metrics.bootstrap_intervals(*few, resamples=300, seed=1)
    )
    narrow, half = (
        metrics.bootstrap_intervals(*many, resamples=300),
        metrics.bootstrap_intervals(*few, resamples=300, confidence=0.5),
    )
    for name, value in exact_metrics(*few, ()).items():
        low, high = drawn[name]
        assert 0 <= low < value < high <= 1
        assert narrow[name][1] - narrow[name][0] < (high - low) / 2
        assert low < half[name][0] < half[name][1] < high


def test_an_interval_has_the_quantiles_of_resampled_sets():
    """Normal and defective pictures are resampled separately."""
    scores, labels = normal_scores(3, 20)
    rng, times = np.random.default_rng(5), np.zeros((50, 20), int)
    times[:, labels == 0] = rng.multinomial(10, np.full(10, 0.1), size=50)
    times[:, labels == 1] = rng.multinomial(10, np.full(10, 0.1), size=50)
    aurocs = [metrics.image_auroc(np.repeat(scores, row), np.repeat(labels, row)) for row in times]
    drawn = metrics.bootstrap_intervals(scores, labels, resamples=50, confidence=0.8, seed=5)
    assert drawn["auroc"] == pytest.approx(np.quantile(aurocs, [0.1, 0.9]), abs=1e-12)


def test_intervals_cover_the_true_value_as_often_as_the_confidence():
    distance, sets = 1.2, 200
    true_auroc = NormalDist().cdf(distance / math.sqrt(2))
    covered = 0
    for seed in range(sets):
        low, high = metrics.bootstrap_intervals(*normal_scores(seed, 80, distance), resamples=200, confidence=0.9)[
            "auroc"
        ]
        covered += low <= true_auroc <= high
    assert 0.83 <= covered / sets <= 0.96  # 0.9 within three standard errors


def test_a_class_of_one_picture_does_not_vary():
    scores, labels = np.array([0.35, 0.4, 0.3, 0.6, 0.2]), np.array([1, 0, 0, 0, 0])
    low, high = metrics.bootstrap_intervals(scores, labels)["auroc"]
    assert low < metrics.image_auroc(scores, labels) == 0.5 < high
    assert metrics.bootstrap_intervals(scores[:2], labels[:2])["auroc"] == (0, 0)
    both = metrics.bootstrap_intervals(*(array[:2] for array in random_case(0, 0)), pro_limits=[0.3])
    assert all(0 <= low <= high <= 1 for low, high in both.values())


def test_defective_pictures_with_empty_masks_count_as_normal_in_maps():
    maps, masks = random_case(4, 0)
    masks[1:] = False
    drawn = metrics.bootstrap_intervals(maps, masks, pro_limits=LIMITS, resamples=100)
    assert set(drawn) == set(exact_metrics(maps, masks))
    assert all(
        low <= value <= high
        for (low, high), value in zip(drawn.values(), exact_metrics(maps, masks).values(), strict=True)
    )
    with pytest.raises(ValueError, match="no defective pixels"):
        metrics.bootstrap_intervals(maps, np.zeros_like(masks))


def test_constant_maps_have_intervals_at_chance_level():
    _, masks = random_case(0, 0)
    drawn = metrics.bootstrap_intervals(np.zeros(masks.shape), masks, pro_limits=[0.3], resamples=50)
    assert drawn["auroc"] == pytest.approx((0.5, 0.5))
    assert drawn["pro_0.3"] == pytest.approx((0.15, 0.15))


def test_resamples_without_a_normal_pixel_are_dropped():
    masks = np.ones((2, 4, 4), bool)
    masks[1, 0] = False
    maps = np.random.default_rng(0).random(masks.shape)
    assert np.isfinite(list(metrics.bootstrap_intervals(maps, masks, pro_limits=[0.3]).values())).all()
    with pytest.raises(ValueError, match="none of 1 resamples holds a normal entry"):
        for seed in range(20):
            metrics.bootstrap_intervals(maps, masks, resamples=1, seed=seed)


@pytest.mark.parametrize("wrong", [{"resamples": 0}, {"confidence": 1.0}, {"confidence": 0.0}])
def test_intervals_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} "):
        metrics.bootstrap_intervals([0.1, 0.2], [0, 1], **wrong)


def test_an_operating_point_has_the_counts_and_rates_of_its_threshold():
    point = metrics.operating_point(
        [0.1, 0.5, 0.6, 0.4, 0.5, 0.7, 0.8], [0, 0, 0, 1, 1, 1, 1], 0.5
    )  # 0.5 itself is not above
    assert point == metrics.OperatingPoint(
        threshold=0.5,
        true_positives=2,
        false_positives=1,
        true_negatives=2,
        false_negatives=2,
        recall=0.5,
        false_positive_rate=pytest.approx(1 / 3),
        precision=pytest.approx(2 / 3),
    )
    nothing = metrics.operating_point([0.1, 0.2], [0, 1], 1)
    assert (nothing.recall, nothing.false_positive_rate, nothing.precision) == (0, 0, None)
    normals, defects = (
        metrics.operating_point([0.1, 0.2], [0, 0], 0.15),
        metrics.operating_point([0.1, 0.2], [1, 1], 0.15),
    )
    assert (normals.recall, normals.false_positive_rate, normals.precision) == (None, 0.5, 0)
    assert (defects.recall, defects.false_positive_rate, defects.precision) == (0.5, None, 1)
    for scores, threshold in (([0.1, np.nan], 0.5), ([0.1, 0.2], np.nan)):
        with pytest.raises(ValueError, match="not finite"):
            metrics.operating_point(scores, [0, 1], threshold)


HUGE, TINY = np.float32(3e38), np.float32(1e-45)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("entries", "values"),
    [
        ([0.1, 0.2, 0.2, 0.9], [0.2]),
        ([], [0.2, 0.3]),
        (np.zeros(9), np.zeros(3)),
        (np.arange(250, dtype=np.uint8), np.array([3, 7, 7, 200], np.uint8)),
        (np.array([-HUGE, 0, HUGE]), np.array([-HUGE, 0, HUGE])),
        (np.full(9, TINY), np.array([0, TINY, 3 * TINY])),
        (np.array([2**62 - 1, 2**62, -(2**62)]), np.array([-(2**62), 2**62])),
        (np.exp(np.linspace(-80, 80, 999, dtype=np.float32)), np.exp(np.linspace(-70, 70, 50, dtype=np.float32))),
        (
            np.random.default_rng(0).random(999, np.float32).astype(np.float16),
            np.sort(np.random.default_rng(1).random(99).astype(np.float16)),
        ),
    ],
)
@pytest.mark.parametrize("bins", [2, 4, 256, metrics.BINS])
def test_entries_counted_in_a_histogram_equal_those_of_a_slow_loop(entries, values, bins, monkeypatch):
    monkeypatch.setattr(metrics, "BINS", bins)
    entries, values = np.asarray(entries), np.asarray(values)
    lower, tied = metrics._count_lower_and_tied(entries, values)
    assert lower.tolist() == [(entries < value).sum() for value in values] and tied.tolist() == [
        (entries == value).sum() for value in values
    ]


@pytest.mark.parametrize("chunk", [1, 2**24])
def test_entries_that_are_not_counted_are_left_out(monkeypatch, chunk):
    """The reference cuts them off."""
    monkeypatch.setattr(metrics, "CHUNK", chunk)
    maps, masks = random_case(0, 0)
    counted = np.zeros(maps.shape[1:], bool)
    counted[:, : counted.shape[1] // 2] = True
    rest = maps[:, :, : counted.shape[1] // 2], masks[:, :, : counted.shape[1] // 2]
    found, expected = metrics.rank_anomalies(maps, masks, counted), metrics.rank_anomalies(*rest)
    for name in ("auroc", "average_precision", "f1_max", "pro"):
        assert getattr(found, name)() == getattr(expected, name)()
    assert metrics.pro(maps, masks, 0.05, counted) == expected.pro(0.05)
    options = {"pro_limits": [0.3], "resamples": 20}
    assert metrics.bootstrap_intervals(maps, masks, counted, **options) == metrics.bootstrap_intervals(*rest, **options)
    with pytest.raises(ValueError, match="no defective pixels"):
        metrics.rank_anomalies(maps, masks, np.zeros_like(counted))


def test_defects_outside_of_an_area_are_counted():
    area, mask = np.zeros((2, 8, 8), bool)
    area[1:7, 1:7] = True
    assert metrics.defects_outside(mask, area).tolist() == [0, 0, 0, 0]
    mask[0, 0] = mask[7, 3:5] = True
    assert metrics.defects_outside(mask, area).tolist() == [2, 0, 1, 0]
    mask[1, 1] = mask[4, 4] = True  # touches the corner of the first
    assert metrics.defects_outside(mask, area).tolist() == [1, 1, 0, 1]
    assert metrics.defects_outside(area, area).tolist() == [0, 0, 0, 0]
