"""Stage 1: the UNet learns what normal pictures look like (DDPM's simple loss).

<checkpoint_dir>/<category>/training.state   all that a step changes, so that --resume goes on where a run was stopped; one file, replaced
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from anomaly_map import resize_maps
from config.keys import Settings
from data_tools.check import quick_check
from data_tools.check_output import brief_findings
from dataset import ImageFolder, View, picture_fingerprint
from ddad import NoisePredictor, NoiseSchedule, loss_weights, noise_loss, noise_predictor
from runtime import distributed
from runtime.device import autocast, choose_device, compile_network, resolve_dtype
from runtime.errors import UserError
from runtime.interrupt import stop_requests
from runtime.progress import Progress, announce, follow_steps
from storage.atomic_file import ensure_writable
from training import checkpoint
from training.batches import augment, full_batches, random_squares, shuffled_order
from training.log import TRAINING, Log, check_log_kind
from training.networks import build_schedule, build_unet
from training.pixel_cache import cached_pixels
from training.resume import restore_trainer
from unet import UNet

LOSS_WINDOW = 100  # steps over which the shown loss is averaged
SECONDS_PER_MINUTE = 60
SPIKE = 5.0  # a windowed loss so many times the lowest one ends the run
AVERAGE_RAMP = 10  # steps; a young moving average forgets faster: decay = min(ema, (1 + n) / (10 + n))

Tensors = tuple[Tensor, ...] | list[Tensor]


@dataclass
class Trainer:
    """All that a step changes: after `load_state_dict` the next step is the one that would have followed, bit for bit on the same machine."""

    unet: UNet
    optimizer: torch.optim.Optimizer
    rate: torch.optim.lr_scheduler.LRScheduler
    generator: torch.Generator  # of order, squares, steps and noise; its device is the network's
    average: AveragedModel | None = None
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler(enabled=False))
    step: int = 0
    order: list[int] = field(default_factory=list)  # pictures that the epoch has yet to show

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        device = self.generator.device
        places = {
            "step": self.step,
            "order": self.order,
            "random": self.generator.get_state(),
            "dropout": torch.get_rng_state(),
        }
        places["device"] = device.type
        if device.type == "cuda":  # of several processes all draw as many numbers
            places["dropout_there"] = torch.cuda.get_rng_state(device)
        elif device.type == "mps":
            places["dropout_there"] = torch.mps.get_rng_state()
        return {name: part.state_dict() for name, part in self.parts().items()} | places

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        self.step, self.order = state["step"], list(state["order"])
        self.generator.set_state(state["random"])
        torch.set_rng_state(state["dropout"])
        device = self.generator.device
        if device.type == "cuda":
            torch.cuda.set_rng_state(state["dropout_there"], device)
        elif device.type == "mps":
            torch.mps.set_rng_state(state["dropout_there"])

    def parts(self) -> dict[str, Any]:
        parts = {
            "unet": self.unet,
            "optimizer": self.optimizer,
            "rate": self.rate,
            "scaler": self.scaler,
            "average": self.average,
        }
        return {name: part for name, part in parts.items() if part is not None}


class Losses:
    """The last losses. They are fetched from the device only when asked for, so that steps need not wait for it."""

    def __init__(self, lowest: float = math.inf, last: Sequence[float] = ()):
        self.lowest = lowest
        self.last: deque[Tensor | float] = deque(last, maxlen=LOSS_WINDOW)

    def values(self) -> list[float]:
        self.last = deque((float(loss) for loss in self.last), maxlen=LOSS_WINDOW)
        return [float(loss) for loss in self.last]

    def mean(self, count: int = LOSS_WINDOW) -> float:
        """Of the last `count` steps, LOSS_WINDOW at most."""
        recent = self.values()[-count:]
        return sum(recent) / len(recent)

    def check(self, epoch: int) -> None:
        """Raises ValueError where the training is lost: the loss is not finite, or far above what it was."""
        now = self.mean()
        if not math.isfinite(now):
            raise UserError(
                f"the loss is {self.values()[-1]} after epoch {epoch}; lower model.learning_rate, or set training.clip=1"
            )
        if len(self.last) == LOSS_WINDOW and now > SPIKE * self.lowest:
            raise UserError(
                f"the loss rose from {self.lowest:.4g} to {now:.4g} in epoch {epoch}; lower model.learning_rate, or set training.clip=1"
            )
        if len(self.last) == LOSS_WINDOW:
            self.lowest = min(self.lowest, now)


def check_training(settings: Settings, resume: bool = False) -> tuple[ImageFolder, ImageFolder]:
    """The pictures to learn from, and those held out for calibration; raises what would stop the stage later."""
    whole = ImageFolder(settings.category_dir, "train", View(**settings.view_arguments()))
    pictures, kept = whole.split(**settings.split_arguments())
    full_batches(len(pictures), settings.data.batch_size, "data.batch_size")
    processes = distributed.group().size
    if settings.data.batch_size % processes:
        raise UserError(
            f"data.batch_size is {settings.data.batch_size}, which {processes} processes do not divide; change one of them"
        )
    check_log_kind(settings.training.log)
    if settings.model.save_model and distributed.group().is_main:
        ensure_writable(settings.checkpoint_folder, checkpoint.UNWRITABLE)
    if resume:
        checkpoint.load_training_state(settings.checkpoint_folder, training_inputs(settings, pictures))
    return pictures, kept


def training_inputs(settings: Settings, pictures: ImageFolder) -> dict[str, Any]:
    """All that the weights depend on."""
    return settings.training_arguments() | {
        "pictures": "{files}, {hash}".format(**picture_fingerprint(pictures.samples))
    }


def train_unet(settings: Settings, resume: bool = False) -> None:
    """Train on train/good and leave weights in the category's checkpoint folder; with `resume` go on where an earlier run was stopped."""
    with checkpoint.locked(settings.checkpoint_folder, settings.model.save_model):
        train_category(settings, resume)


def train_category(settings: Settings, resume: bool) -> None:
    data, model, folder = settings.data, settings.model, settings.checkpoint_folder
    device = choose_device(model.device)
    torch.manual_seed(model.seed)
    pictures, kept = check_training(settings)
    made = training_inputs(settings, pictures)
    if resume and checkpoint.is_made_with(folder, model.epochs, made):
        print(f"{data.category} is trained: {folder / str(model.epochs)} is of these settings and pictures", flush=True)
        if model.save_model:
            checkpoint.remove_training_state(folder)  # of a run that was killed between its last two writes
            checkpoint.make_latest(folder / str(model.epochs))
        return
    steps = model.epochs * full_batches(len(pictures), data.batch_size, "data.batch_size")
    trainer, losses = build_trainer(settings, steps, device), Losses()
    earlier = checkpoint.load_training_state(folder, made) if resume else None
    if earlier:
        path = folder / checkpoint.TRAINING_STATE
        losses = Losses(*restore_trainer(trainer, earlier, path, pictures=len(pictures), most_steps=steps))
    precision = str(resolve_dtype(settings.speed.precision, device)).removeprefix("torch.")
    size = sum(weights.numel() for weights in trainer.unet.parameters())
    announce(
        f"Training {data.category}: {size:,} weights in {precision}, {model.epochs} epochs, {steps} steps",
        device,
        settings.as_dict(),
        {
            "reads": f"{settings.category_dir / 'train'} ({len(pictures)} pictures; {len(kept)} more are held out for calibration)",
            "writes": folder if model.save_model else "nothing",
        },
    )
    if earlier:
        print(f"going on behind step {trainer.step}", flush=True)
    elif checkpoint.has_training_state(folder):
        print(
            f"starting anew; the unfinished run in {folder}, which --resume would go on with, is replaced", flush=True
        )
    if model.save_model and not earlier:
        checkpoint.print_replaced(folder, settings.saved_epochs)
    began = time.monotonic()
    saved: Path | str = "nowhere (model.save_model is False)"
    pixels = cached_pixels(pictures, **settings.cache_arguments())
    notes = {"held_out": kept.names(), "made_with": made, **settings.planning_arguments()}
    shown = [picture.numpy() for picture in pixels]
    for line in brief_findings(quick_check(settings.category_dir, pictures.names(), shown)):
        print(line, flush=True)
    for path in save_during(trainer, losses, pixels, steps, notes, settings):
        saved = path
    if model.save_model:
        checkpoint.remove_training_state(folder)
    minutes = (time.monotonic() - began) / 60
    print(
        f"trained {data.category} for {model.epochs} epochs in {minutes:.1f} min; loss {losses.mean():.4g} (last {len(losses.last)} steps)"
    )
    print(f"weights in {saved}", flush=True)


def save_during(
    trainer: Trainer, losses: Losses, pixels: Sequence[Tensor], steps: int, notes: dict[str, Any], settings: Settings
) -> Iterator[Path]:
    """Do the steps that are left; yields the files of weights as they are written, and writes the log and the state to go on from.

    Ctrl-C and SIGTERM end it behind the present step, its state kept.
    """
    model, training, folder = settings.model, settings.training, settings.checkpoint_folder
    batches, processes = steps // model.epochs, distributed.group()
    log = Log(folder, TRAINING, training.log, trainer.step) if model.save_model else None
    kept_at = shown_at = time.monotonic()
    shown_step = trainer.step
    with stop_requests() as stop:
        for progress in follow_steps(steps_of(trainer, pixels, steps, settings), steps, "training", trainer.step):
            losses.last.append(progress.loss)
            stopped = processes.any(stop.requested, trainer.generator.device) and progress.step < steps
            due = stopped or time.monotonic() - kept_at > SECONDS_PER_MINUTE * training.checkpoint_minutes
            if progress.epoch_ends or due:
                losses.check(progress.epoch)
            if progress.epoch_ends and log:
                done, now = (progress.step - shown_step) * settings.data.batch_size, time.monotonic()
                rate = trainer.optimizer.param_groups[0]["lr"]
                log.add(progress.step, progress.epoch, losses.mean(batches), rate, done, now - shown_at)
                shown_at, shown_step = now, progress.step
            if progress.epoch_ends and model.save_model and progress.epoch in settings.saved_epochs:
                yield save_weights(trainer, progress.epoch, notes, settings)
            if due and model.save_model:
                state = {"trainer": trainer.state_dict(), "losses": [losses.lowest, losses.values()]}
                checkpoint.save_training_state(
                    folder, state | {"made_with": notes["made_with"], **settings.planning_arguments()}
                )
                kept_at = time.monotonic()
            if stopped:
                remedy = (
                    "the same command with --resume goes on"
                    if model.save_model
                    else "nothing is kept, as model.save_model is False"
                )
                print(f"stopped behind step {progress.step} of {steps}; {remedy}", flush=True)
                raise stop.as_exception()
        if processes.any(
            stop.requested, trainer.generator.device
        ):  # as the last weights were written: what would follow is not done
            raise stop.as_exception()


def save_weights(trainer: Trainer, epoch: int, notes: dict[str, Any], settings: Settings) -> Path:
    path, average = (
        settings.checkpoint_folder / str(epoch),
        trainer.average.module if trainer.average is not None else None,
    )
    checkpoint.save_unet(path, trainer.unet, average=average, epoch=epoch, settings=settings.as_dict(), **notes)
    return path


def build_trainer(settings: Settings, steps: int, device: torch.device) -> Trainer:
    """The network as it is at the start, on its device and as it trains fastest there."""
    model, training, speed = settings.model, settings.training, settings.speed
    unet = build_unet(settings).to(device)
    if device.type == "cuda":  # on a CPU training in channels_last was 4 % slower, though detection is faster
        unet = unet.to(memory_format=torch.channels_last)
    unet.checkpointing = speed.activation_checkpointing
    average = AveragedModel(unet, multi_avg_fn=ramped_average(training.ema)) if training.ema else None
    optimizer = build_optimizer(unet, training.optimizer, model.learning_rate, model.weight_decay)
    return Trainer(
        unet,
        optimizer,
        torch.optim.lr_scheduler.LambdaLR(
            optimizer, learning_rate_factor(training.schedule, training.warmup_steps, steps)
        ),
        torch.Generator(device).manual_seed(model.seed),
        average,
        torch.amp.GradScaler(device.type, enabled=resolve_dtype(speed.precision, device) == torch.float16),
    )


def steps_of(trainer: Trainer, pixels: Sequence[Tensor], steps: int, settings: Settings) -> Iterator[Progress]:
    """`training_steps` as the settings want it."""
    training, device, processes = settings.training, trainer.generator.device, distributed.group()
    schedule, predicts = build_schedule(settings), settings.model.predicts
    shared, exchanged = processes.share_gradients(trainer.unet)
    network = compile_network(autocast(shared, settings.speed.precision, device), settings.speed.compile, device)
    return training_steps(
        trainer,
        pixels,
        schedule,
        noise_predictor(network, predicts, schedule),
        steps=steps,
        batch_size=settings.data.batch_size,
        window=settings.data.image_size,
        size=settings.unet_size,
        highest_step=training.highest_step or settings.model.trajectory_steps,
        weights=loss_weights(predicts, schedule),
        augmentation=training.augmentation,
        parts=training.accumulate,
        clip=training.clip,
        share=processes.share,
        exchanged=exchanged,
    )


def training_steps(
    trainer: Trainer,
    pixels: Sequence[Tensor],
    schedule: NoiseSchedule,
    predict: NoisePredictor,
    *,
    steps: int,
    batch_size: int,
    window: int,
    size: int | None = None,
    highest_step: int,
    weights: Tensor | None = None,
    augmentation: str | None = None,
    parts: int = 1,
    clip: float | None = None,
    share: Callable[[Tensor], Tensor] = lambda batch: batch,
    exchanged: Callable[[bool], AbstractContextManager[Any]] = lambda now: nullcontext(),
) -> Iterator[Progress]:
    """One optimisation step a turn, until `trainer` has done `steps`. `pixels` are (C, H, W) uint8, of which squares of side `window` are
    learnt, shrunk to a side of `size` (None: their own) and `augmented`; the last incomplete batch of an epoch is dropped. `predict` is the
    trainer's network as it is to be called.

    Steps t are drawn from 0…highest_step − 1, at which losses count by `weights`. A batch goes through the network in `parts`, whose gradients
    add up to the batch's; `clip` is the longest gradient. All processes of a run draw the same batch, of which each learns its `share`, and
    exchange gradients once a batch.
    """
    unet, generator, batches = trainer.unet.train(), trainer.generator, len(pixels) // batch_size
    while trainer.step < steps:
        trainer.order = trainer.order or shuffled_order(len(pixels), batch_size, generator)
        chosen, trainer.order = trainer.order[:batch_size], trainer.order[batch_size:]
        squares = random_squares([pixels[index] for index in chosen], window, generator)
        x_0 = resize_maps(augment(squares, augmentation, generator), [size or window] * 2)
        t = torch.randint(highest_step, (batch_size,), generator=generator, device=generator.device)
        noise = torch.randn(x_0.shape, generator=generator, device=generator.device)
        total = torch.zeros((), device=generator.device)
        trainer.optimizer.zero_grad()
        chunks = list(zip(*(share(tensor).chunk(parts) for tensor in (x_0, t, noise)), strict=True))
        for number, part in enumerate(chunks, start=1):
            with exchanged(number == len(chunks)):
                loss = noise_loss(predict, part[0], part[1], part[2], schedule, weights) * (
                    len(part[0]) / len(share(t))
                )
                trainer.scaler.scale(loss).backward()
            total += loss.detach()
        if clip is not None:
            trainer.scaler.unscale_(trainer.optimizer)
            nn.utils.clip_grad_norm_(unet.parameters(), clip)
        trainer.scaler.step(trainer.optimizer)
        trainer.scaler.update()
        trainer.rate.step()
        if trainer.average is not None:
            trainer.average.update_parameters(unet)
        trainer.step += 1
        yield Progress(trainer.step, math.ceil(trainer.step / batches), trainer.step % batches == 0, total)


def build_optimizer(unet: nn.Module, name: str, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """`adam`: L2 inside the gradient, as published; `adamw`: decoupled decay."""
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return kinds[name](unet.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True)


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
