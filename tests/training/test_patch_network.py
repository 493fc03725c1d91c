"""The denoiser of single patch descriptors."""

import pytest
import torch

from dataset import View
from runtime.errors import UserError
from train import BatchSource
from training import checkpoint
from training.feature_space import place_grid
from training.patch_network import PatchNetwork, RowLinear, learning_members, unseen_names

GENERATOR = torch.Generator().manual_seed(3)


def random_network(**arguments) -> PatchNetwork:
    torch.manual_seed(0)
    network = PatchNetwork(6, 8, blocks_per_level=2, **arguments).eval()
    for member in network.members:
        torch.nn.init.normal_(member.last.weight)
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


@pytest.mark.parametrize("shape", [(2, 2), (3, 5), (4, 3), (1, 1)])
def test_the_members_take_turns_like_the_colours_of_a_checkerboard(shape):
    network, x, t = random_network(), torch.randn(3, 6, *shape, generator=GENERATOR), torch.tensor([5, 70, 300])
    first, second = (member(x, t) for member in network.members)
    is_first = torch.tensor([[(row + column) % 2 == 0 for column in range(shape[1])] for row in range(shape[0])])
    torch.testing.assert_close(network(x, t), torch.where(is_first, first, second))


def test_a_linear_layer_is_the_same_as_a_convolution():
    layer, rows = RowLinear(6, 9), torch.randn(2, 5, 6, generator=GENERATOR)
    torch.testing.assert_close(layer.eval()(rows), layer.train()(rows))


def test_for_each_picture_the_named_member():
    network, x, t = random_network(), torch.randn(3, 6, 2, 2, generator=GENERATOR), torch.tensor([5, 70, 300])
    first, second = (member(x, t) for member in network.members)
    torch.testing.assert_close(network(x, t, torch.tensor([1, 0, 1])), torch.stack([second[0], first[1], second[2]]))


@pytest.mark.parametrize("count", [2, 3, 8, 9, 90])
def test_each_picture_is_learnt_by_one_member_and_unseen_by_the_other(count):
    names = [str(place) for place in range(count)]
    unseen = unseen_names(names)
    assert sorted(unseen[0] + unseen[1]) == sorted(names) and abs(len(unseen[0]) - len(unseen[1])) <= count / 8 + 1
    learners = learning_members(range(count), count, positions=3)
    assert learners.tolist() == [int(name in unseen[0]) for name in names for _ in range(3)]


def test_the_place_of_a_position_counts_and_a_whole_picture_has_the_usual_places():
    network, t = random_network(), torch.tensor([5, 700])
    x, places = torch.randn(2, 6, 4, 3, generator=GENERATOR), place_grid((4, 3)).repeat(2, 1, 1, 1)
    torch.testing.assert_close(network(x, t, places=places), network(x, t))
    places[1, :, 2, 1] += 0.1
    differs = (network(x, t) != network(x, t, places=places)).any(dim=1)
    assert differs.nonzero().tolist() == [[1, 2, 1]]
    outputs = network(torch.zeros(2, 6, 4, 3), t)[0].flatten(1)
    assert torch.cdist(outputs.T, outputs.T).fill_diagonal_(1).min() > 1e-4  # no two places are alike


def test_both_members_learn_a_single_picture():
    assert unseen_names(["one"]) == [[], []]
    assert learning_members([0, 0], 1, positions=3).tolist() == [0, 1] * 3


@pytest.mark.parametrize("damage", [7, [["a"]], [["a"], 3], [["a"], [[]]]])
def test_damaged_lists_of_unseen_pictures_are_refused(tmp_path, damage):
    checkpoint.save(tmp_path / "2", {"format": checkpoint.FORMAT, "unseen": damage})
    with pytest.raises(UserError, match="its unseen is not a list of names for each member; replace or remove it"):
        checkpoint.unseen_by_member(tmp_path / "2")


def test_a_member_learns_nothing_of_the_pictures_of_the_other():
    network, t = random_network(), torch.tensor([5, 700, 20])
    x, places = torch.randn(3, 6, 2, 2, generator=GENERATOR), place_grid((2, 2)).repeat(3, 1, 1, 1)
    network(x, t, torch.tensor([1, 1, 1]), places).sum().backward()
    assert not any(weights.grad.any() for weights in network.members[0].parameters())
    assert all(weights.grad.any() for weights in network.members[1].parameters())


@pytest.mark.parametrize("shapes", [[(4, 5)] * 3, [(4, 5), (2, 3), (30, 1)]])
def test_batches_hold_random_positions_of_each_picture(shapes):
    pictures = [torch.full((8, *shape), float(number)) for number, shape in enumerate(shapes)]
    for z in pictures:
        z[0] = torch.arange(z[0].numel()).view(z.shape[1:])  # each position's own number
    source = BatchSource(pictures, 2, View(8), 1000, positions=50)
    (batch,) = source.draw_batch([2, 0], GENERATOR)
    assert batch.x_0.shape == batch.noise.shape == (100, 6, 1, 1) and len(batch.places) == len(batch.t) == 100
    assert batch.x_0[:, 1, 0, 0].tolist() == [2] * 50 + [0] * 50
    assert len(set(batch.x_0[:50, 0, 0, 0].tolist())) > 10 and batch.x_0[:50, 0].max() < pictures[2][0].numel()
    assert len(set(batch.t.tolist())) > 50
    assert batch.given["members"].tolist() == learning_members([2, 0], 3, 50).tolist()
    assert batch.given["places"].shape == (100, 2, 1, 1)
