import math

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from dataset import full_batches, shuffled_batches
from ddad import NoiseSchedule
from train import build_optimizer, learning_rate_factor, ramped_average, training_steps


def one_step(name: str) -> float:
    """Weight after one step from 1.0 without a gradient of the loss: what the decay alone does."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    optimizer = build_optimizer(layer, name, learning_rate=0.1, weight_decay=0.5)
    (layer.weight * 0).sum().backward()
    optimizer.step()
    return layer.weight.item()


def test_weight_decay_is_inside_the_gradient_as_published_and_decoupled_in_adamw():
    assert one_step("adam") == pytest.approx(1 - 0.1, abs=1e-6)  # Adam scales any gradient to a step of the learning rate
    assert one_step("adamw") == pytest.approx(1 - 0.1 * 0.5, abs=1e-6)


def test_the_learning_rate_rises_then_stays_or_falls_to_zero():
    constant, cosine = (learning_rate_factor(schedule, warmup_steps=4, steps=104) for schedule in ("constant", "cosine"))
    assert [constant(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0] and constant(100) == 1
    assert cosine(4) == 1 and cosine(54) == pytest.approx(0.5) and cosine(104) == pytest.approx(0)
    assert learning_rate_factor("constant", 0, 10)(0) == 1


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


def test_epochs_see_each_picture_once_but_for_the_incomplete_batch():
    pixels = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    epochs = [[((batch + 1) * 127.5).round().flatten().tolist() for batch in shuffled_batches(pixels, 4, 1, generator)] for _ in range(2)]
    for batches in epochs:
        assert [len(batch) for batch in batches] == [4, 4] and len({value for batch in batches for value in batch}) == 8
    assert epochs[0] != epochs[1]


def test_a_set_smaller_than_a_batch_is_refused():
    assert full_batches(10, 4, "data.batch_size") == 2
    with pytest.raises(ValueError, match="data.batch_size is 16, but train/good holds 10 pictures to learn from; set data.batch_size=10 or less"):
        full_batches(10, 16, "data.batch_size")


def test_steps_stay_below_the_highest_and_epochs_end():
    told = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, x, t):
            told.extend(t.tolist())
            return self.weight * x

    unet = Spy()
    optimizer = build_optimizer(unet, "adam", 1e-3, 0)
    loop = training_steps(
        unet,
        torch.zeros(9, 3, 8, 8, dtype=torch.uint8),
        NoiseSchedule(),
        optimizer,
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0),
        epochs=40,
        batch_size=4,
        window=8,
        highest_step=50,
        generator=torch.Generator().manual_seed(0),
    )
    progress = list(loop)
    assert [(p.step, p.epoch, p.epoch_ends) for p in progress[:3]] == [(1, 1, False), (2, 1, True), (3, 2, False)] and len(progress) == 80
    assert min(told) == 0 and max(told) == 49
