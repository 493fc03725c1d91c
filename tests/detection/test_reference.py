import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from anomaly_map import image_score
from config import keys
from detection import reference
from detection.reference import Reference, build_memory, farthest_points, measure_scale, patch_descriptors, sample

torch.manual_seed(0)


def test_the_settings_know_the_parts():
    assert set(keys.PARTS) == {*reference.DISTANCES, *reference.COMPARED}


def test_whitening_by_one_is_the_inverse_root_of_the_covariance():
    samples = torch.randn(500, 4) @ torch.randn(4, 4) + 3
    covariance = np.cov(samples.numpy().T, bias=True)
    inverse = np.linalg.inv(covariance + reference.SHRINKAGE * np.trace(covariance) / 4 * np.eye(4))
    transform = reference.whitening(samples, 1).numpy()
    np.testing.assert_allclose(transform @ transform, inverse, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("count", [1, 3])
def test_few_samples_give_finite_distances(count):
    samples = torch.randn(count, 5) if count > 1 else torch.ones(1, 5)
    assert torch.isfinite(build_memory([samples], 1, 0.5, 0).reference.distance(torch.randn(1, 5, 2, 2))).all()


def test_distances_are_those_of_an_exhaustive_search():
    samples, points = torch.randn(300, 6), torch.randn(2, 6, 4, 5)
    expected = torch.stack(
        [(samples - row).square().sum(dim=1).min().sqrt() for row in points.permute(0, 2, 3, 1).reshape(-1, 6)]
    )
    torch.testing.assert_close(
        build_memory(samples.split(30), 10, 0, 0).reference.distance(points).flatten(), expected, rtol=1e-4, atol=1e-4
    )


def with_spacing(bank):
    return Reference(torch.eye(bank.shape[1]), bank, reference.limit_spacing(reference.row_spacing(bank, bank)))


def test_rows_found_in_bf16_are_the_nearest_ones(monkeypatch):
    """Rounding finds more rows than are wanted, and exact distances choose among them."""
    monkeypatch.setattr(reference, "computes_in_bf16", lambda _: True)
    generator = torch.Generator().manual_seed(0)
    bank, points = (torch.randn(rows, 24, generator=generator) for rows in (2003, 300))  # 2003 is no multiple of GROUP
    points[0] = torch.inf
    found = reference.Reference(torch.eye(24), bank + 3).nearest(points + 3, 4)
    squares, places = reference.nearest_rows(points + 3, bank + 3, 4)
    assert torch.equal(found[1][1:], places[1:])
    torch.testing.assert_close(found[0][1:], squares[1:], rtol=1e-3, atol=0)
    assert not found[0][0].isfinite().any() and (found[1][0] < len(bank)).all()


@pytest.mark.parametrize(("pictures", "rows"), [(30, 20), (2, 20), (12, 2)])
def test_a_memory_without_pictures_is_as_if_it_had_never_had_their_rows(pictures, rows):
    samples = torch.randn(pictures * rows, 5).split(rows)
    memory, left_out = build_memory(samples, pictures, 0.5, 0), torch.tensor([0, pictures - 1])[: pictures - 1]
    bank = memory.reference.bank[~torch.isin(memory.owners, left_out)]
    found = memory.without(left_out)
    assert torch.equal(found.bank, bank)
    torch.testing.assert_close(
        found.spacing, reference.limit_spacing(reference.row_spacing(bank, bank)), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("pictures", [2, 40])
def test_a_memory_of_whole_pictures_is_whitened_without_those_that_are_left_out(pictures):
    rows = list(torch.randn(pictures, 60).unsqueeze(1))
    memory = reference.build_memories({reference.WHOLE: rows}, ["whole_memory"], len(rows), 0)["whole_memory"]
    found, expected = (
        memory.without(torch.tensor([1])),
        build_memory([rows[0], *rows[2:]], len(rows) - 1, 0.5, 0).reference,
    )
    assert torch.equal(found.transform, expected.transform) and torch.equal(found.bank, expected.bank)
    assert len(memory.reference.bank) == pictures


def test_pictures_that_are_left_out_score_like_new_ones():
    """With as many channels as pictures, a whitening that has seen a picture makes it look normal."""
    rows, new = torch.randn(60, 1, 60), torch.randn(60, 60, 1, 1)
    memory = reference.build_memories({reference.WHOLE: list(rows)}, ["whole_memory"], len(rows), 0)["whole_memory"]
    alone = [memory.without(torch.tensor([i])).distance(rows[i].view(1, -1, 1, 1)).item() for i in range(60)]
    unseen = memory.reference.distance(new).flatten()
    assert np.mean(alone) == pytest.approx(unseen.mean().item(), rel=0.05)


def test_a_row_knows_its_picture():
    samples = [torch.full((3, 2), float(number)) + torch.rand(3, 2) / 9 for number in range(7)]
    memory = build_memory(samples, 7, 0, 0)
    assert memory.reference.spacing is None
    assert torch.equal(memory.reference.bank.round().amin(dim=1).long(), memory.owners)
    assert torch.equal(memory.without(torch.tensor([2, 3])).bank.round().unique(), torch.tensor([0.0, 1, 4, 5, 6]))


def test_a_local_outlier_factor_is_a_distance_in_units_of_the_neighbours_own():
    bank, points, count = torch.randn(60, 3), torch.randn(1, 3, 2, 5), reference.NEIGHBOURS
    own = [(bank - row).square().sum(dim=1).sqrt().sort().values[1 : count + 1].mean() for row in bank]
    expected = []
    for point in points[0].flatten(1).T:
        far, places = (bank - point).square().sum(dim=1).sqrt().sort()
        near = [(1 - (far[i] / far[count]) ** 2, far[i], own[places[i]]) for i in range(count)]
        weighted = [torch.stack([weight * value[i] for weight, *value in near]).sum() for i in (0, 1)]
        expected.append(weighted[0] / weighted[1])
    found = with_spacing(bank).distance(points)
    torch.testing.assert_close(found.flatten(), torch.stack(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("places", [*itertools.pairwise(range(8))])
def test_a_factor_does_not_jump_where_rows_change_places(places):
    """Of rows at almost the same distance each program takes another one, as their rounding differs."""
    factors = []
    for change in (-1e-6, 1e-6):
        lengths = 1 + torch.arange(8) / 10
        lengths[places[0]] = lengths[places[1]] + change
        bank = Reference(torch.eye(8), lengths.diag(), spacing=torch.arange(1.0, 9))
        factors.append(bank.distance(torch.zeros(1, 8, 1, 1)))
    torch.testing.assert_close(*factors, rtol=1e-4, atol=0)


def test_a_distance_that_is_usual_among_sparse_rows_is_unusual_among_dense_ones():
    dense, sparse = torch.randn(100, 2) * 0.1, torch.randn(100, 2) * 10 + 500
    two_away = torch.tensor([[2.0, 502.0], [0.0, 500.0]]).view(1, 2, 1, 2)  # 20 and 0.2 standard deviations
    near_dense, near_sparse = with_spacing(torch.cat([dense, sparse])).distance(two_away).flatten().tolist()
    assert near_dense > 10 * near_sparse


@pytest.mark.parametrize("bank", [torch.ones(1, 2), torch.ones(3, 2), torch.zeros(50, 2)])
def test_a_bank_of_equal_rows_gives_finite_factors(bank):
    assert torch.isfinite(with_spacing(bank).distance(torch.ones(1, 2, 3, 3))).all()


def test_whitening_goes_from_no_change_to_a_sphere():
    samples = torch.randn(5000, 3) * torch.tensor([8.0, 1.0, 2.0])
    for evened, expected in ((0, [8, 1, 2]), (0.5, [8**0.5, 1, 2**0.5]), (1, [1, 1, 1])):
        scales = (samples @ reference.whitening(samples, evened)).std(dim=0)
        torch.testing.assert_close(scales, torch.tensor(expected, dtype=torch.float32), rtol=0.25, atol=0)


def test_farthest_points_leave_no_cluster_out():
    clusters = torch.arange(10).repeat_interleave(50)
    samples = 100.0 * nn.functional.one_hot(clusters, 10) + torch.randn(500, 10)
    assert set(clusters[farthest_points(samples, 10, 0)].tolist()) == set(range(10))
    assert sorted(farthest_points(samples[:20], 99, 0).tolist()) == list(range(20))


def test_farthest_points_are_those_of_the_plain_loop(monkeypatch):
    monkeypatch.setattr(reference, "ROWS_AT_ONCE", 70)
    samples = torch.randn(400, 6).double() * torch.rand(400, 1)
    samples[100:120] = samples[100]
    points = (
        samples
        @ (
            torch.randn(6, reference.PROJECTED, generator=torch.Generator().manual_seed(0)) / reference.PROJECTED**0.5
        ).double()
    )
    chosen = [0]
    for _ in range(149):
        chosen.append(int(torch.cdist(points, points[chosen]).amin(dim=1).argmax()))
    assert farthest_points(samples, 150, 0).tolist() == chosen
    assert len(farthest_points(torch.full((20, 6), math.nan), 5, 0)) == 5  # what follows says that maps are not finite


def test_a_distance_is_the_same_in_any_batch():
    reference, maps = Reference(torch.randn(7, 5), torch.randn(40, 5)), torch.randn(6, 7, 8, 8)
    torch.testing.assert_close(reference.distance(maps)[2:3], reference.distance(maps[2:3]), rtol=0, atol=0)


def test_descriptors_stand_side_by_side_on_the_finer_grid():
    found = patch_descriptors([torch.zeros(2, 3, 16, 16), torch.ones(2, 4, 8, 8), torch.full((2, 5, 4, 4), 2.0)])
    assert found.shape == (2, 9, 8, 8)
    assert found[0, :4, 4, 4].eq(1).all() and found[0, 4:, 4, 4].eq(2).all()


@pytest.mark.parametrize(
    ("shape", "expected"), [((64, 64), (32, 32)), ((32, 48), (16, 24)), ((4, 4), (2, 2)), ((1, 3), (1, 3))]
)
def test_wide_descriptors_are_means_around_their_places(shape, expected):
    maps = torch.randn(1, 2, *shape)
    found = reference.wide_descriptors(maps)
    assert found.shape == (1, 2, *expected)
    if shape == (64, 64):
        torch.testing.assert_close(found[0, :, 3, 5], maps[0, :, 5:9, 9:13].mean(dim=(1, 2)))
        torch.testing.assert_close(found[0, :, 0, 31], maps[0, :, :3, 61:].mean(dim=(1, 2)))  # the border alone


def test_positions_are_sampled_without_repeats():
    maps = torch.arange(12.0).view(1, 3, 4)
    assert sorted(sample(maps, 99, 0).flatten().tolist()) == list(range(12))
    assert len(set(sample(maps, 5, 0).flatten().tolist())) == 5


def test_units_reach_one_a_deviation_above_the_mean_of_normal_maxima():
    maps = [torch.tensor([1.0, 3.0]), torch.tensor([5.0, 7.0])]
    assert measure_scale(maps) == (4, 5 + 2, 1) and measure_scale(maps).units(
        torch.tensor(10.0)
    ).item() == pytest.approx(2)
    assert torch.isfinite(measure_scale([torch.ones(3)]).units(torch.ones(3))).all()


@pytest.mark.parametrize(
    ("pooling", "share", "expected"), [("maximum", 0.5, 10), ("top_mean", 0.2, 9.5), ("top_mean", 0.01, 10)]
)
def test_scores_pool_the_highest_pixels(pooling, share, expected):
    assert image_score(torch.arange(1.0, 11).view(1, 1, 2, 5), pooling, share) == expected


# whole runs

PARTS = (
    "score.parts=[pixel, feature, memory, wide_memory, whole_memory, patch_memory]",
    "model.unet_size=16",
    "score.pooling=top_mean",
)


def test_parts_need_normal_pictures(run_main):
    code, _, err = run_main("--detection", "score.parts=[pixel]", "score.protocol=published")
    assert code == 2 and "set score.protocol=per_image, or score.parts=null" in err
    code, _, err = run_main("--detection", "score.parts=[pixels]")
    assert code == 2 and "did you mean pixel?" in err


@pytest.mark.parametrize(("part", "weight"), [("wide_memory", 1), ("diffusion", 1), ("pixel", 0.5)])
def test_blurred_parts_grow_linearly_above_their_top(part, weight):
    sharp, blurred = torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.tensor([0.5, 6.0, 8.0, -2.0])
    squares = reference.fuse_parts({"memory": sharp, part: blurred})[:3].square()
    torch.testing.assert_close(squares, torch.tensor([1 + weight * 0.25, 1 + weight * 6, weight * 8]))
    assert reference.fuse_parts({"memory": sharp, part: blurred})[3] == -1


def test_placeless_parts_boost_the_maximum_of_the_scored_area_up_to_a_limit_and_keep_zeros():
    sharp, whole = torch.tensor([9.0, 2.0, 1.0, 0.0, -1.0]), torch.full((5,), 0.8)
    lifted = reference.fuse_parts({"memory": sharp, "whole_memory": whole}, lambda maps: maps[1:])
    assert lifted[1].item() == pytest.approx((4 + 0.5 * 0.64) ** 0.5)
    torch.testing.assert_close(lifted[:4] / lifted[1], sharp[:4] / sharp[1])
    assert lifted[4] == -1
    for unit, weight in ((-3.0, 0.0), (1.0, 0.5), (1.5, 0.75), (50.0, 4.0)):  # beyond the top by no square
        found = reference.fuse_parts({"memory": sharp, "whole_memory": torch.full((5,), unit)})
        assert found[0].item() == pytest.approx((81 + weight) ** 0.5)
    for nothing in (torch.zeros(5), torch.full((5,), -2.0)):
        assert torch.equal(reference.fuse_parts({"memory": nothing, "whole_memory": torch.full((5,), 3.0)}), nothing)
    assert torch.equal(reference.fuse_parts({"whole_memory": whole}), whole)  # alone it is the map


def test_a_whole_picture_has_one_descriptor():
    maps = torch.randn(2, 3, 5, 7)
    found = reference.describe_pictures([torch.zeros(2, 1, 10, 14), maps], ["whole_memory"])[reference.WHOLE]
    torch.testing.assert_close(found[..., 0, 0], reference.patch_descriptors([maps, maps]).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("transform", "bank"),
    [(torch.zeros(3), torch.zeros(3, 3)), (torch.zeros(3, 4), torch.zeros(5, 3)), ("text", torch.zeros(2, 2))],
)
def test_a_reference_of_anything_but_two_matching_matrices_is_refused(transform, bank):
    with pytest.raises(ValueError, match="two matrices"):
        Reference(transform, bank)


@pytest.mark.parametrize("spacing", ["text", torch.ones(3), torch.ones(2, 1)])
def test_a_spacing_of_another_length_than_the_bank_is_refused(spacing):
    with pytest.raises(ValueError, match="each of the 2 rows"):
        Reference(torch.eye(3), torch.zeros(2, 3), spacing)


@pytest.mark.parametrize(("pictures", "area"), [(2, 2), (2, 3), (10, 10)])
def test_a_memory_bank_is_limited_per_square_of_pixels_and_in_total(pictures, area, monkeypatch):
    monkeypatch.setattr(reference, "BANK", 300)
    rows = min(300, area * reference.KEPT_PER_SQUARE)
    described = {reference.PICTURE: list(torch.rand(pictures, 500, 4, generator=torch.Generator().manual_seed(0)))}
    memory = reference.build_memories(described, ["memory"], area, 0)["memory"].reference
    assert memory.bank.shape == reference.placeholder(4, area).bank.shape == (rows, 4)
    assert reference.samples_per_square(area) == reference.SAMPLED_PER_KEPT * rows // area
