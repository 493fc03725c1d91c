"""The denoiser of single patch descriptors."""

import pytest
import torch

from dataset import View
from train import BatchSource
from training.patch_network import PatchNetwork

GENERATOR = torch.Generator().manual_seed(3)


def random_network(**arguments) -> PatchNetwork:
    torch.manual_seed(0)
    network = PatchNetwork(6, 8, blocks_per_level=2, **arguments).eval()
    torch.nn.init.normal_(network.last.weight)
    return network


def test_a_position_changes_its_own_output_alone():
    network, t = random_network(), torch.tensor([5, 700])
    x = torch.randn(2, 6, 4, 3, generator=GENERATOR)
    changed = x.clone()
    changed[1, :, 2, 1] += 1
    differs = (network(x, t) != network(changed, t)).any(dim=1)
    assert differs.nonzero().tolist() == [[1, 2, 1]]


def test_a_step_of_its_own_for_each_picture():
    network, x = random_network(), torch.randn(2, 6, 4, 3, generator=GENERATOR)
    together = network(x, torch.tensor([5, 700]))
    alone = torch.cat([network(x[:1], torch.tensor([5])), network(x[1:], torch.tensor([700]))])
    torch.testing.assert_close(together, alone)
    assert not torch.allclose(together, network(x, torch.tensor([700, 5])))


def test_the_architecture_builds_the_same_network():
    network = random_network(dropout=0.2, predicts="x0")
    again = PatchNetwork(**network.architecture)
    again.load_state_dict(network.state_dict())
    x, t = torch.randn(1, 6, 2, 2, generator=GENERATOR), torch.tensor([9])
    assert torch.equal(network(x, t), again.eval()(x, t))


@pytest.mark.parametrize("shapes", [[(4, 5)] * 3, [(4, 5), (2, 3), (30, 1)]])
def test_batches_hold_random_positions_of_each_picture(shapes):
    pictures = [torch.full((6, *shape), float(place)) for place, shape in enumerate(shapes)]
    for z in pictures:
        z[0] = torch.arange(z[0].numel()).view(z.shape[1:])  # each position's own number
    source = BatchSource(pictures, 2, View(8), 1000, positions=50)
    (batch,) = source.draw_batch([2, 0], GENERATOR)
    assert batch.x_0.shape == batch.noise.shape == (100, 6, 1, 1) and len(batch.places) == len(batch.t) == 100
    assert batch.x_0[:, 1, 0, 0].tolist() == [2] * 50 + [0] * 50
    assert len(set(batch.x_0[:50, 0, 0, 0].tolist())) > 10 and batch.x_0[:50, 0].max() < pictures[2][0].numel()
    assert len(set(batch.t.tolist())) > 50
