import pytest
import torch
from torch import nn

from calibration import fingerprint, normal_balance


def test_the_balance_lifts_a_normal_score_alike_by_both_distances():
    top_feature, top_pixel = torch.tensor([1.0, 3.0]), torch.tensor([0.1, 0.3])
    balance = normal_balance(top_feature, top_pixel)
    assert (balance * top_pixel).mean() == pytest.approx(top_feature.mean().item())


def test_reconstructions_without_any_error_are_refused():
    with pytest.raises(ValueError, match=r"lower model\.w"):
        normal_balance(torch.ones(3), torch.zeros(3))


def test_the_fingerprint_changes_with_weights_and_settings_alone():
    torch.manual_seed(0)
    network, settings = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), {"w": 3.0, "skip": 25}
    before = fingerprint([network], settings)
    assert fingerprint([network], dict(reversed(settings.items()))) == before
    assert fingerprint([network], settings | {"w": 4.0}) != before
    network[1].num_batches_tracked += 1
    assert fingerprint([network], settings) != before
    network[1].num_batches_tracked -= 1
    with torch.no_grad():
        network[0].weight[0, 0] += 1e-6
    assert fingerprint([network], settings) != before
