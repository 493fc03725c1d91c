import math

import pytest
import torch
from small_training import PIXELS, do_steps, gradients, small_unet, trainer_of
from torch import nn
from torch.optim.swa_utils import AveragedModel

from dataset import View
from ddad import NoiseSchedule, noise_loss
from runtime.distributed import Group
from train import (
    LOSS_WINDOW,
    BatchSource,
    Losses,
    MovingAverage,
    UpdateRule,
    build_optimizer,
    learn_batch,
    learning_rate_factor,
    ramped_average,
)
from training.batches import augment, full_batches, shuffled_batches
from training.pace import Pace
from training.resume import restore_trainer


def one_step(name: str) -> float:
    """Return the weight after a step from 1.0 with weight decay and a loss without gradient."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    optimizer = build_optimizer(layer, name, learning_rate=0.1, weight_decay=0.5)
    (layer.weight * 0).sum().backward()
    optimizer.step()
    return layer.weight.item()


def test_weight_decay_is_part_of_the_gradient_in_adam_and_decoupled_in_adamw():
    assert one_step("adam") == pytest.approx(
        1 - 0.1, abs=1e-6
    )  # Adam scales any gradient to a step of the learning rate
    assert one_step("adamw") == pytest.approx(1 - 0.1 * 0.5, abs=1e-6)


def test_the_learning_rate_rises_then_stays_or_falls_to_zero():
    constant, cosine = (
        learning_rate_factor(schedule, warmup_steps=4, pace=Pace.of_steps(104)) for schedule in ("constant", "cosine")
    )
    assert [constant(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0] and constant(100) == 1
    assert cosine(4) == 1 and cosine(54) == pytest.approx(0.5) and cosine(104) == pytest.approx(0)
    assert learning_rate_factor("constant", 0, Pace.of_steps(10))(0) == 1


def test_the_moving_average_forgets_its_start_and_follows_the_weights():
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 5.0)
    average = AveragedModel(layer, multi_avg_fn=ramped_average(0.9))
    expected = 5.0
    for count in range(60):
        nn.init.constant_(layer.weight, math.cos(count / 10))
        average.update_parameters(layer)
        decay = min(0.9, (1 + count) / (10 + count)) if count else 0.0
        expected = decay * expected + (1 - decay) * layer.weight.item()
    assert average.module.weight.item() == pytest.approx(expected, abs=1e-5)


def test_the_moving_average_interpolates_bit_for_bit():
    averages, weights = ([torch.randn(3, 5), torch.randn(7)] for _ in range(2))
    expected = [average.lerp(weight, 1 - 3 / 12) for average, weight in zip(averages, weights, strict=True)]
    ramped_average(0.9)(averages, weights, torch.tensor(2))
    torch.testing.assert_close(averages, expected, rtol=0, atol=0)


def test_a_moving_average_with_its_count_on_the_cpu_equals_that_of_torch():
    layer = nn.Linear(5, 3)
    ours, torchs = MovingAverage(layer, 0.9), AveragedModel(layer, multi_avg_fn=ramped_average(0.9))
    for _ in range(4):
        nn.init.normal_(layer.weight)
        ours.update_parameters(layer)
        torchs.update_parameters(layer)
    torch.testing.assert_close(ours.state_dict(), torchs.state_dict(), rtol=0, atol=0)


def test_an_epoch_shows_each_picture_once_except_the_incomplete_batch():
    pixels = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    epochs = [
        [((batch + 1) * 127.5).round().flatten().tolist() for batch in shuffled_batches(pixels, 4, View(1), generator)]
        for _ in range(2)
    ]
    for batches in epochs:
        assert [len(batch) for batch in batches] == [4, 4] and len({value for batch in batches for value in batch}) == 8
    assert epochs[0] != epochs[1]


def test_fewer_pictures_than_a_batch_are_refused():
    assert full_batches(10, 4, "data.batch_size", 0) == 2
    with pytest.raises(
        ValueError,
        match="data.batch_size is 16, but train/good holds 10 pictures to learn from and 3 held out; "
        "set data.batch_size=10 or less",
    ):
        full_batches(10, 16, "data.batch_size", 3)


def test_t_stays_below_the_highest_step_and_epochs_end():
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, x, t):
            seen.extend(t.tolist())
            return self.weight * x

    progress = do_steps(trainer_of(Spy()), 80, highest_step=50)
    assert [(p.step, p.epoch, p.epoch_ends) for p in progress[:3]] == [
        (1, 1, False),
        (2, 1, True),
        (3, 2, False),
    ] and len(progress) == 80
    assert min(seen) == 0 and max(seen) == 49


@pytest.mark.parametrize(("augmentation", "kinds"), [(None, 1), ("flip", 2), ("rotate", 8)])
def test_augmentation_keeps_mirrors_or_turns_pictures(augmentation, kinds):
    picture = PIXELS[0].float()
    alike = {
        tuple(one.rot90(turns, (1, 2)).flatten().tolist()) for one in (picture, picture.flip(2)) for turns in range(4)
    }
    shown = augment(picture.expand(200, -1, -1, -1), augmentation, torch.Generator().manual_seed(0))
    found = {tuple(one.flatten().tolist()) for one in shown}
    assert len(found) == kinds and found <= alike
    assert augmentation != "flip" or found == {tuple(one.flatten().tolist()) for one in (picture, picture.flip(2))}


def test_rectangles_are_turned_upside_down_only():
    picture = torch.arange(6.0).view(1, 2, 3)
    shown = augment(picture.expand(100, -1, -1, -1), "rotate", torch.Generator().manual_seed(0))
    found = {tuple(one.flatten().tolist()) for one in shown}
    alike = [picture, picture.flip(2), picture.flip(1), picture.flip(1, 2)]
    assert found == {tuple(one.flatten().tolist()) for one in alike}


@pytest.mark.parametrize("processes", [1, 2])
def test_a_batch_of_several_shapes_has_the_mean_gradient_of_its_pictures(processes):
    """Each shape passes the network alone; the processes share the pictures, however many of each shape there are."""
    wide, tall = (
        [torch.randint(256, (3, *shape), dtype=torch.uint8) for _ in range(2)] for shape in ((8, 16), (16, 8))
    )
    source = BatchSource([*wide, PIXELS[0], *tall], 5, View(12, fit="proportions"), 1000, factor=4)
    batches = source.draw_batch([0, 3, 1, 2], torch.Generator().manual_seed(0))
    assert [batch.places for batch in batches] == [[0, 2], [1], [3]]
    assert [tuple(batch.x_0.shape[2:]) for batch in batches] == [(8, 16), (16, 8), (16, 16)]
    unet, schedule = small_unet(), NoiseSchedule()
    losses = [
        noise_loss(unet, *(tensor[row : row + 1] for tensor in batch[:3]), schedule)
        for batch in batches
        for row in range(len(batch.places))
    ]
    expected, found = torch.autograd.grad(torch.stack(losses).mean(), list(unet.parameters())), []
    for rank in range(processes):
        trainer = trainer_of(small_unet())
        learn_batch(trainer, batches, UpdateRule(schedule, trainer.unet, share=Group(rank, processes).share))
        found.append([parameter.grad for parameter in trainer.unet.parameters()])
    for gradient, parts in zip(expected, zip(*found, strict=True), strict=True):
        torch.testing.assert_close(torch.stack(parts).mean(dim=0), gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stopped", [1, 2, 5])
def test_a_stopped_training_continues_bit_for_bit(tmp_path, stopped):
    """With dropout, a moving average, a changing learning rate and random squares, within an epoch and at its end."""
    unbroken = trainer_of(small_unet(dropout=0.3), average=True)
    losses = [progress.loss for progress in do_steps(unbroken, 9, window=12)]
    first = trainer_of(small_unet(dropout=0.3), average=True)
    do_steps(first, stopped, window=12)
    torch.save(first.state_dict(), tmp_path / "state")
    second = trainer_of(small_unet(dropout=0.3), average=True)
    torch.rand(5)  # another state of the global generator
    second.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    torch.testing.assert_close(
        [progress.loss for progress in do_steps(second, 9, window=12)], losses[stopped:], rtol=0, atol=0
    )
    for part in ("unet", "average"):
        torch.testing.assert_close(
            getattr(second, part).state_dict(), getattr(unbroken, part).state_dict(), rtol=0, atol=0
        )


def test_a_state_of_another_device_is_not_reported_as_damaged(tmp_path):
    state = {"trainer": trainer_of(small_unet()).state_dict() | {"device": "cuda"}, "losses": [1.0, [1.0]]}
    with pytest.raises(
        ValueError, match="training.state belongs to a training on cuda, this one is on cpu; continue on cuda"
    ):
        restore_trainer(trainer_of(small_unet()), state, tmp_path / "training.state", pictures=3, pace=Pace.of_steps(9))


def test_accumulated_and_recomputed_gradients_equal_those_of_the_batch():
    expected = gradients()
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for arguments in ({"parts": 2}, {"parts": 3}, {"checkpointing": True}):
        for name, gradient in gradients(**arguments).items():
            torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-6 * largest, msg=name)


def test_long_gradients_are_clipped():
    lengths = [
        torch.stack([gradient.norm() for gradient in gradients(clip=clip).values()]).norm().item()
        for clip in (None, 0.5)
    ]
    assert lengths[0] > 1 and lengths[1] == pytest.approx(0.5, rel=1e-4)


def test_a_loss_that_is_not_finite_or_rises_fast_ends_the_training():
    losses = Losses()
    for value in [100.0] * LOSS_WINDOW + [120.0] * LOSS_WINDOW:
        losses.last.append(torch.tensor(value))
        losses.check(1)
    losses.last.extend([torch.tensor(700.0)] * LOSS_WINDOW)
    with pytest.raises(ValueError, match="the loss rose from 100 to 700 in epoch 7; lower model.learning_rate"):
        losses.check(7)
    losses.last.append(torch.tensor(math.nan))
    with pytest.raises(ValueError, match="the loss is nan after epoch 8"):
        losses.check(8)
