import torch
from torch import nn

from storage.fingerprint import as_stored, describe_differences, weights_hash


def test_the_hash_of_weights_is_the_one_in_earlier_files():
    """Stored calibrations contain this hash: a new one would make them all stale."""
    network = nn.Sequential(nn.Linear(2, 1))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[0.5, -1.0]]))
        network[0].bias.fill_(0.25)
    assert weights_hash([network]) == "82ffdb9558d8ed37"
    assert weights_hash([network, network]) == "f7cf48576ed9a740"


def test_differences_name_old_and_new_values():
    assert describe_differences({"w": 3, "v": 1}, {"w": 2, "v": 1, "eta": 0}) == "w was 3, is 2, eta was None, is 0"
    assert describe_differences({"w": 3}, {"w": 3}) == ""


def test_stored_values_compare_equal_to_present_ones():
    assert as_stored({"sizes": (8, 16), "dtype": torch.float32}) == {"sizes": [8, 16], "dtype": "torch.float32"}
