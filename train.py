"""Stage 1: the UNet learns what normal pictures look like (DDPM's simple loss)."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import checkpoint
import runtime
from config import Settings
from dataset import ImageFolder, View, full_batches, shuffled_batches
from ddad import NoiseSchedule, noise_loss
from runtime import Progress
from unet import UNet

SHOWN_LOSSES = 100  # steps over which the final loss is averaged
AVERAGE_RAMP = 10  # steps; a young moving average forgets faster: decay = min(ema, (1 + n) / (10 + n))


Tensors = tuple[Tensor, ...] | list[Tensor]


def check(settings: Settings) -> tuple[ImageFolder, ImageFolder]:
    """The pictures to learn from, and those held out for calibration; raises what would stop the stage later."""
    whole = ImageFolder(settings.category_dir, "train", View(**settings.view_arguments()))
    pictures, kept = whole.split(**settings.split_arguments())
    full_batches(len(pictures), settings.data.batch_size, "data.batch_size")
    if settings.model.save_model:
        checkpoint.ensure_writable(settings.checkpoint_folder)
    return pictures, kept


def run(settings: Settings) -> None:
    """Train on train/good and leave weights in the category's checkpoint folder."""
    data, model, training, folder = settings.data, settings.model, settings.training, settings.checkpoint_folder
    device = runtime.choose_device(model.device)
    torch.manual_seed(model.seed)
    pictures, kept = check(settings)
    steps = model.epochs * full_batches(len(pictures), data.batch_size, "data.batch_size")
    unet = UNet(**settings.unet_arguments())
    weights = sum(parameter.numel() for parameter in unet.parameters())
    runtime.announce(
        f"Training {data.category}: {weights:,} weights, {model.epochs} epochs, {steps} steps",
        device,
        settings.as_dict(),
        {
            "reads": f"{settings.category_dir / 'train'} ({len(pictures)} pictures; {len(kept)} more are held out for calibration)",
            "writes": folder if model.save_model else "nothing",
        },
    )
    began = time.monotonic()
    average = AveragedModel(unet.to(device), multi_avg_fn=ramped_average(training.ema)) if training.ema else None
    loop = training_loop(unet.to(device), average, pictures.pixels(model.num_workers), steps, settings, device)
    saved: Path | str = "nowhere (model.save_model is False)"
    losses: deque[Tensor] = deque(maxlen=SHOWN_LOSSES)
    for progress in runtime.follow(loop, steps, "training"):
        losses.append(progress.loss)
        if not progress.epoch_ends:
            continue
        runtime.check_loss(progress, "lower model.learning_rate")
        if model.save_model and (progress.epoch % training.checkpoint_epochs == 0 or progress.epoch == model.epochs):
            saved = folder / str(progress.epoch)
            averaged = average.module if average is not None else None
            checkpoint.save_unet(saved, unet, average=averaged, held_out=kept.names(), epoch=progress.epoch, settings=settings.as_dict())
    minutes = (time.monotonic() - began) / 60
    loss = torch.stack(list(losses)).mean()
    print(f"trained {data.category} for {model.epochs} epochs in {minutes:.1f} min; loss {loss:.4g} (last {len(losses)} steps)")
    print(f"weights in {saved}", flush=True)


def training_loop(
    unet: UNet, average: AveragedModel | None, pixels: Sequence[Tensor], steps: int, settings: Settings, device: torch.device
) -> Iterator[Progress]:
    """`training_steps` as the settings want it."""
    model, training = settings.model, settings.training
    optimizer = build_optimizer(unet, training.optimizer, model.learning_rate, model.weight_decay)
    return training_steps(
        unet,
        pixels,
        NoiseSchedule(**settings.schedule_arguments()),
        optimizer,
        torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor(training.schedule, training.warmup_steps, steps)),
        epochs=model.epochs,
        batch_size=settings.data.batch_size,
        window=settings.data.image_size,
        highest_step=training.highest_step or model.trajectory_steps,
        generator=torch.Generator(device).manual_seed(model.seed),
        average=average,
    )


def training_steps(
    unet: nn.Module,
    pixels: Sequence[Tensor],
    schedule: NoiseSchedule,
    optimizer: torch.optim.Optimizer,
    rate: torch.optim.lr_scheduler.LRScheduler,
    *,
    epochs: int,
    batch_size: int,
    window: int,
    highest_step: int,
    generator: torch.Generator,
    average: AveragedModel | None = None,
) -> Iterator[Progress]:
    """One optimisation step a turn. `pixels` are (C, H, W) uint8, of which squares of side `window` are learnt; the last
    incomplete batch of an epoch is dropped.

    Steps t are drawn from 0…highest_step − 1. Order, steps and noise come from `generator`, whose device is the network's.
    """
    unet.train()
    step, batches = 0, len(pixels) // batch_size
    for epoch in range(1, epochs + 1):
        for position, x_0 in enumerate(shuffled_batches(pixels, batch_size, window, generator), start=1):
            t = torch.randint(highest_step, (len(x_0),), generator=generator, device=generator.device)
            noise = torch.randn(x_0.shape, generator=generator, device=generator.device)
            loss = noise_loss(unet, x_0, t, noise, schedule)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
            if average is not None:
                average.update_parameters(unet)
            step += 1
            yield Progress(step, epoch, position == batches, loss.detach())


def build_optimizer(unet: nn.Module, name: str, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """`adam`: L2 inside the gradient, as published; `adamw`: decoupled decay."""
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return kinds[name](unet.parameters(), lr=learning_rate, weight_decay=weight_decay)


def learning_rate_factor(schedule: str, warmup_steps: int, steps: int) -> Callable[[int], float]:
    """Factor on the learning rate at a step: a linear rise over `warmup_steps`, then constant or half a cosine down to zero."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))

    return factor


def ramped_average(ema: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """Exponential moving average for AveragedModel."""

    @torch.no_grad()
    def update(averages: Tensors, weights: Tensors, count: Tensor | int) -> None:
        decay = min(ema, (1 + int(count)) / (AVERAGE_RAMP + int(count)))
        torch._foreach_lerp_(averages, weights, 1 - decay)

    return update
