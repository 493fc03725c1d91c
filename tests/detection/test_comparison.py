import pytest
import torch
from tiny_networks import SCHEDULE, Wavy, make_detector
from torch import nn

from dataset import View
from detection.comparison import ACTIVE_SHARE, Networks, largest_batch


@pytest.mark.parametrize(
    ("free", "pictures"), [(0, 1), (1, 1), (2.2, 2), (3.9, 2), (4.1, 4), (1e9, 32), (float("inf"), 32)]
)
def test_a_batch_fits_half_of_the_free_memory(free, pictures):
    networks = Networks(Wavy(), nn.Conv2d(3, 10, 1), SCHEDULE, w=3, start=100, skip=50, eta=1)
    picture = ACTIVE_SHARE * 4 * 10 * 8 * 8  # bytes
    assert largest_batch(networks, View(8), free * 2 * picture, most=32) == pictures


def test_maps_are_means_over_draws():
    pictures = torch.rand(2, 3, 32, 32)
    noise = [torch.randn(2, 3, 32, 32) for _ in range(6)]
    networks = make_detector(draws=2).networks
    both = networks.reconstruct(pictures, iter(noise).__next__)
    apart = torch.cat([make_detector().networks.reconstruct(pictures, iter(noise[i : i + 3]).__next__) for i in (0, 3)])
    torch.testing.assert_close(both, apart)
    (f_1, p_1), (f_2, p_2) = (networks.compare(pictures, pictures, draw[None]).distances.values() for draw in both)
    d_feature, d_pixel = networks.compare(pictures, pictures, both).distances.values()
    torch.testing.assert_close(d_feature, (f_1 + f_2) / 2)
    torch.testing.assert_close(d_pixel, (p_1 + p_2) / 2)
