"""The space of features in which the diffusion model may work."""

from functools import partial

import torch
import torch.nn.functional as F
from tiny_networks import Pyramid

from dataset import View
from training import feature_space
from training.feature_space import FeatureReader, FeatureSpace, as_picture, patch_descriptors, place_grid

GENERATOR = torch.Generator().manual_seed(1)
PICTURES = list(torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8, generator=GENERATOR))
CPU = torch.device("cpu")
CHANNELS = 48


class Wide(Pyramid):
    """Feature maps with more channels than the space."""

    def forward(self, x):
        kernel = torch.randn(40, 9, 3, 3, generator=torch.Generator().manual_seed(2))
        return [F.conv2d(maps, kernel, padding=1) for maps in super().forward(x)]


def reader(extractor=None, size=8, single=False) -> FeatureReader:
    grid = partial(View(32, fit="proportions").seen_shape, size=size, factor=2)
    return FeatureReader(extractor or Wide(), grid, CPU, CHANNELS, single)


def test_channels_of_normal_pictures_have_mean_0_and_variance_1_and_are_uncorrelated():
    space = reader().learn_space(PICTURES)
    values = torch.stack(reader().encode(PICTURES, space)).float().transpose(0, 1).flatten(1)
    assert values.shape == (CHANNELS, 6 * 8 * 8)
    assert values.mean(dim=1).abs().max() < 1e-2
    strong = values.std(dim=1) > 0.5  # the others repeat these
    assert strong.sum() >= 8
    assert (torch.corrcoef(values[strong]) - torch.eye(int(strong.sum()))).abs().max() < 0.05
    torch.testing.assert_close(values[strong].std(dim=1), torch.ones(int(strong.sum())), atol=0.02, rtol=0)


def test_the_first_channels_vary_most_before_they_are_scaled():
    space = reader().learn_space(PICTURES)
    lengths = space.directions.norm(dim=1)
    assert (lengths[1:] >= lengths[:-1] * 0.999).all()


def test_single_positions_are_sampled_within_the_memory_that_they_may_take(monkeypatch):
    space = reader().learn_space(PICTURES)
    whole = reader().encode(PICTURES, space)
    monkeypatch.setattr(feature_space, "KEPT", 60)
    sampled = reader(single=True).encode(PICTURES, space)
    for z, few in zip(whole, sampled, strict=True):
        assert few.shape == (CHANNELS + 2, 10, 1)
        both = torch.cat([z, place_grid((8, 8))[0].half()]).flatten(1)
        found = (both[:, :, None] == few[:, None, :, 0]).all(dim=0)  # (positions, 10)
        assert found.any(dim=0).all() and (found.sum(dim=1) <= 1).all()


def test_a_picture_has_the_same_features_in_any_batch():
    space, features = reader().learn_space(PICTURES), Wide()(torch.rand(3, 3, 32, 32, generator=GENERATOR))
    together = space.encode(features, (8, 8))
    alone = [space.encode([maps[i : i + 1] for maps in features], (8, 8))[0] for i in range(3)]
    torch.testing.assert_close(together, torch.stack(alone), atol=0, rtol=0)


def test_pictures_of_several_shapes_keep_their_order_and_proportions():
    wide, tall = (torch.randint(256, (3, *shape), dtype=torch.uint8) for shape in ((24, 40), (40, 24)))
    space = reader().learn_space(PICTURES)
    shapes = [tuple(z.shape[1:]) for z in reader().encode([wide, PICTURES[0], tall, tall], space)]
    assert shapes == [(6, 10), (8, 8), (10, 6), (10, 6)]


def test_constant_pictures_and_few_channels_give_finite_values():
    flat = [torch.full((3, 32, 32), 7, dtype=torch.uint8)] * 2
    narrow = reader(Pyramid())
    space = narrow.learn_space(flat)
    assert all(torch.isfinite(z).all() for z in narrow.encode(flat + PICTURES, space))
    assert space.directions.shape == (CHANNELS, 18) and not space.directions[18:].any()


def test_a_restored_space_maps_alike():
    space = reader().learn_space(PICTURES)
    other = FeatureSpace.restore(space.state_dict())
    features = Wide()(torch.rand(1, 3, 32, 32, generator=GENERATOR))
    assert torch.equal(space.encode(features, (4, 4)), other.encode(features, (4, 4)))
    assert patch_descriptors(features).shape[1] == space.mean.numel()


def test_features_are_shown_as_colours():
    shown = as_picture(10 * torch.randn(2, CHANNELS, 4, 5, generator=GENERATOR))
    assert shown.shape == (2, 3, 4, 5) and shown.abs().max() == 1
