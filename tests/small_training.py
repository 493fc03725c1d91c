"""A small UNet on random pictures, trained for a few steps."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from dataset import View
from ddad import NoiseSchedule
from runtime.progress import Progress
from train import (
    BatchSource,
    Trainer,
    UpdateRule,
    build_optimizer,
    learning_rate_factor,
    ramped_average,
    training_steps,
)
from training.pace import Pace
from unet import UNet

PIXELS = torch.randint(256, (9, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def small_unet(**arguments) -> UNet:
    torch.manual_seed(0)
    unet = UNet(16, 8, channel_multipliers=[1, 2], blocks_per_level=1, attention_sizes=(8,), heads=2, **arguments)
    for parameter in unet.parameters():  # zeros at initialisation hide differences
        nn.init.normal_(parameter, std=0.1)
    return unet


def trainer_of(unet: nn.Module, average: bool = False) -> Trainer:
    optimizer = build_optimizer(unet, "adamw", 1e-3, 0.01)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor("cosine", 2, Pace.of_steps(9)))
    averaged = AveragedModel(unet, multi_avg_fn=ramped_average(0.9)) if average else None
    return Trainer(unet, optimizer, rate, torch.Generator().manual_seed(0), averaged)


def do_steps(
    trainer: Trainer, steps: int, window: int = 16, highest_step: int = 1000, predict=None, **rule
) -> list[Progress]:
    """Train until `steps` are done, in batches of four of PIXELS; `rule` are fields of UpdateRule."""
    source = BatchSource(PIXELS, 4, View(window, tiles=1), highest_step)
    update = UpdateRule(NoiseSchedule(), predict or trainer.unet, **rule)
    return list(training_steps(trainer, source, update, Pace.of_steps(steps)))


def gradients(**arguments) -> dict[str, torch.Tensor]:
    unet = small_unet()
    unet.checkpointing = arguments.pop("checkpointing", False)
    do_steps(trainer_of(unet), 1, **arguments)
    return {name: parameter.grad for name, parameter in unet.named_parameters()}
