"""Stage 1: train the UNet to predict the noise in normal pictures (DDPM's simple loss)."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from anomaly_map import resize_maps
from config.keys import COSINE, CROSS, PATCH, WSD, Settings
from data_tools import check, check_output
from dataset import ImageFolder, View, picture_fingerprint, to_unit_range
from ddad import NoisePredictor, NoiseSchedule, loss_weights, noise_loss, noise_predictor
from runtime import distributed, interrupt
from runtime.device import autocast, choose_device, compile_network, resolve_dtype, send
from runtime.errors import UserError
from runtime.progress import Progress, announce, follow_steps
from storage.atomic_file import ensure_writable
from storage.fingerprint import weights_hash
from training import checkpoint, networks, pixel_cache
from training.batches import augment, full_batches, random_tiles, shuffled_order
from training.feature_space import FeatureReader, FeatureSpace
from training.log import TRAINING, Log, check_log_kind
from training.normal_pictures import split_pictures
from training.pace import SECONDS_PER_MINUTE, Clock, Pace
from training.patch_network import learning_members, unseen_names
from training.resume import Trainer, restore_trainer

LOSS_WINDOW = 100  # steps over which the printed loss is averaged
POSITIONS = 128  # of each picture of a batch, for a network that sees them one by one
SPIKE = 5.0  # a mean loss above this multiple of the lowest one ends the run
AVERAGE_RAMP = 10  # steps; a young moving average forgets faster: decay = min(ema, (1 + n) / (10 + n))
CLIP_REMEDY = "lower model.learning_rate, or set training.clip=1"

Tensors = tuple[Tensor, ...] | list[Tensor]


@dataclass(frozen=True)
class TrainingPlan:
    """The settings and pictures of a training; with `resume` it continues an unfinished one."""

    settings: Settings
    pictures: ImageFolder
    held_out: ImageFolder  # for calibration
    resume: bool
    clock: Clock | None = None  # decides the number of steps; None: the settings do

    @property
    def batches(self) -> int:
        """Return the number of steps of an epoch. Raise UserError if the pictures do not fill one batch."""
        size, held_out = self.settings.data.batch_size, len(self.held_out)
        return full_batches(len(self.pictures), size, "data.batch_size", held_out)

    def pace(self) -> Pace:
        """Return the pace of the training at its beginning."""
        if self.clock:
            return Pace(clock=self.clock)
        decay = self.settings.training.decay
        return Pace.of_steps(decay[-1] if decay else self.settings.model.epochs * self.batches, decay)

    def settled(self, pace: Pace) -> "TrainingPlan":
        """Return the plan with the steps that the clock has decided, as the weights record them."""
        if self.clock is None or pace.last is None:
            return self
        epochs = math.ceil(pace.last / self.batches)
        return replace(self, settings=self.settings.with_steps(epochs, WSD, pace.decay), clock=None)

    @cached_property
    def made_with(self) -> dict[str, object]:
        """Return all that the weights depend on."""
        pictures = "{files}, {hash}".format(**picture_fingerprint(self.pictures.samples))
        return {**self.settings.training_arguments(), "pictures": pictures}


class Losses:
    """The losses of the last steps, fetched from the device only on demand, so that no step waits for it."""

    def __init__(self, lowest: float = math.inf, last: Sequence[float] = ()):
        self.lowest = lowest
        self.last: deque[Tensor | float] = deque(last, maxlen=LOSS_WINDOW)

    def values(self) -> list[float]:
        values = [float(loss) for loss in self.last]
        self.last = deque(values, maxlen=LOSS_WINDOW)
        return values

    def mean(self, count: int = LOSS_WINDOW) -> float:
        recent = self.values()[-count:]
        return sum(recent) / len(recent)

    def check(self, epoch: int) -> None:
        """Raise UserError where the loss is not finite, or far above its lowest mean."""
        mean = self.mean()
        if not math.isfinite(mean):
            raise UserError(f"the loss is {self.values()[-1]} after epoch {epoch}; {CLIP_REMEDY}")
        if len(self.last) == LOSS_WINDOW:
            if mean > SPIKE * self.lowest:
                raise UserError(f"the loss rose from {self.lowest:.4g} to {mean:.4g} in epoch {epoch}; {CLIP_REMEDY}")
            self.lowest = min(self.lowest, mean)


class MovingAverage(AveragedModel):
    """An exponential moving average of the weights, whose count stays on the CPU.

    Its parent copies the count to the device and reads it there, so that each step would wait for the device.
    """

    def __init__(self, unet: nn.Module, ema: float):
        super().__init__(unet)
        self.average = ramped_average(ema)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        averages, weights = ([each.detach() for each in network.parameters()] for network in (self.module, model))
        if self.n_averaged == 0:
            self.module.load_state_dict(model.state_dict())
        else:
            self.average(averages, weights, self.n_averaged)
        self.n_averaged += 1


class Batch(NamedTuple):
    """Pictures of one shape: x_0 (B, C, H, W), steps t (B,), noise (B, C, H, W), and their places in the order.

    The network also gets what is `given`, by the names of its arguments; each has B rows.
    """

    x_0: Tensor
    t: Tensor
    noise: Tensor
    places: list[int]
    given: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True)
class BatchSource:
    """Draws batches: pictures or random tiles of them, augmented and shrunk, with steps t and noise."""

    pixels: Sequence[Tensor]  # each (C, H, W) uint8, or features (K, h, w)
    batch_size: int
    view: View
    highest_step: int  # t is drawn from 0…highest_step − 1
    size: int | None = None  # side of squares after shrinking; None: that of the view
    augmentation: str | None = None
    factor: int = 1  # the UNet's sides are multiples of it
    positions: int | None = None  # drawn from each picture, for a network that sees them one by one; None: all

    def draw_batch(self, order: list[int], generator: torch.Generator) -> list[Batch]:
        """Return the pictures with these indices, in a batch for each shape, or positions of them in one batch."""
        if self.positions:
            return [self._positions_of(order, self.positions, generator)]
        tiles = random_tiles([self.pixels[index] for index in order], self.view, generator)
        shapes = [tile.shape for tile in tiles]
        return [
            self._batch_of([place for place, other in enumerate(shapes) if other == shape], tiles, generator)
            for shape in dict.fromkeys(shapes)
        ]

    def _batch_of(self, places: list[int], tiles: Sequence[Tensor], generator: torch.Generator) -> Batch:
        sent = send(torch.stack([tiles[place] for place in places]), generator.device)
        pictures = to_unit_range(sent) if sent.dtype == torch.uint8 else sent.float()
        shape = self.view.scaled_shape(pictures.shape[-2:], self.size or self.view.size, self.factor)
        x_0 = resize_maps(augment(pictures, self.augmentation, generator), shape)
        t = torch.randint(self.highest_step, (len(places),), generator=generator, device=generator.device)
        return Batch(x_0, t, torch.randn(x_0.shape, generator=generator, device=generator.device), places)

    def _positions_of(self, order: list[int], count: int, generator: torch.Generator) -> Batch:
        """Return `count` random positions of each picture, as pictures of their own (B·count, K, 1, 1)."""
        device, total = generator.device, len(order) * count
        shares = torch.rand(len(order), count, generator=generator, device=device).cpu()
        flat = [self.pixels[index].flatten(1) for index in order]
        drawn = [z[:, (z.shape[1] * of_picture).long()].T for z, of_picture in zip(flat, shares, strict=True)]
        rows = send(torch.cat(drawn), device).float()[..., None, None]
        x_0, places = rows[:, :-2], rows[:, -2:]
        t = torch.randint(self.highest_step, (total,), generator=generator, device=device)
        noise = torch.randn(x_0.shape, generator=generator, device=device)
        members = send(learning_members(order, len(self.pixels), count), device)
        given = {"members": members, "places": places}
        return Batch(x_0, t, noise, list(range(total)), given)


@dataclass(frozen=True)
class UpdateRule:
    """How a batch changes the weights."""

    schedule: NoiseSchedule
    predict: NoisePredictor  # the trainer's network in the form in which it is called
    weights: Tensor | None = None  # of the loss at each step t
    parts: int = 1  # parts of a batch that pass the network one by one; their gradients are added
    clip: float | None = None  # largest norm of the gradient
    share: Callable[[Tensor], Tensor] = lambda batch: batch  # this process's part of a batch; all draw the same one
    exchanged: Callable[[bool], AbstractContextManager[object]] = lambda now: nullcontext()


def plan_training(settings: Settings, resume: bool = False) -> TrainingPlan:
    """Return the training that the settings describe, unchecked. Raise MissingFileError without pictures.

    A batch has no more pictures than there are, and as many for each process.
    """
    learnt, held_out = split_pictures(settings)
    processes, data = distributed.group().size, settings.data
    if 0 < (fitting := len(learnt) // processes * processes) < data.batch_size:
        settings = replace(settings, data=replace(data, batch_size=fitting))
    return TrainingPlan(settings, learnt, held_out, resume)


def check_training(settings: Settings, resume: bool = False, clock: Clock | None = None) -> TrainingPlan:
    """Return the training that the settings describe. Raise UserError for what would stop it later."""
    plan, processes = replace(plan_training(settings, resume), clock=clock), distributed.group()
    calibration = settings.calibration
    calibrates_on_train = not calibration.on_validation and (calibration.share or calibration.method == CROSS)
    if calibrates_on_train and len(plan.pictures) + len(plan.held_out) == 1:
        few = f"{settings.category_dir / 'train'} holds 1 picture, and none is left to calibrate on"
        raise UserError(f"{few}; add normal pictures, or set calibration.method=split calibration.share=0")
    batch_size = plan.settings.data.batch_size
    if batch_size < settings.data.batch_size:
        pictures = f"{len(plan.pictures)} pictures to learn from and {len(plan.held_out)} held out"
        print(f"data.batch_size is {settings.data.batch_size}, train/good has {pictures}: a batch has {batch_size}")
    if plan.batches and batch_size % processes.size:
        remainder = f"not a multiple of the {processes.size} processes; change one of the two"
        raise UserError(f"data.batch_size is {batch_size}, {remainder}")
    check_log_kind(settings.training.log)
    if settings.model.save_model and processes.is_main:
        ensure_writable(settings.checkpoint_folder, checkpoint.UNWRITABLE)
    if resume:
        checkpoint.check_training_state(settings.checkpoint_folder, plan.made_with)
    return plan


def train_unet(plan: TrainingPlan) -> None:
    """Train on train/good and save weights, unless `resume` is set and weights of these settings and pictures exist."""
    folder, epochs, saves = plan.settings.checkpoint_folder, plan.settings.model.epochs, plan.settings.model.save_model
    with checkpoint.locked(folder) if saves else nullcontext():
        if plan.resume and checkpoint.is_made_with(folder, epochs, plan.made_with):
            category = plan.settings.data.category
            print(f"{category} is trained: {folder / str(epochs)} has these settings and pictures", flush=True)
        else:
            epochs = run_training(plan)
        if saves:
            checkpoint.make_latest(folder / str(epochs))
            (folder / checkpoint.TRAINING_STATE).unlink(missing_ok=True)


def run_training(plan: TrainingPlan) -> int:
    """Build or restore the trainer, do the steps that are left, print the result and return the last epoch."""
    settings, model, folder = plan.settings, plan.settings.model, plan.settings.checkpoint_folder
    device = choose_device(model.device)
    torch.manual_seed(model.seed)
    pace = plan.pace()
    trainer, losses = build_trainer(settings, pace, device), Losses()
    if plan.resume and (state := checkpoint.load_training_state(folder, plan.made_with)):
        path, pictures = folder / checkpoint.TRAINING_STATE, len(plan.pictures)
        losses = Losses(*restore_trainer(trainer, state, path, pictures=pictures, pace=pace))
        del state  # as large as network and optimizer
    announce_training(plan, trainer, pace)
    began = time.monotonic()
    pixels = pixel_cache.cached_pixels(plan.pictures, **settings.cache_arguments())
    findings = check.quick_check(settings.category_dir, plan.pictures.names(), [picture.numpy() for picture in pixels])
    for line in check_output.brief_findings(findings):
        print(line, flush=True)
    if settings.learns_features:
        pixels = learn_features(plan, trainer, pixels)
    follow_training(plan, trainer, pace, losses, pixels)
    minutes = (time.monotonic() - began) / SECONDS_PER_MINUTE
    result = f"loss {losses.mean():.4g} (last {len(losses.last)} steps)"
    epochs = plan.settled(pace).settings.model.epochs
    print(f"trained {settings.data.category} for {epochs} epochs, {pace.last} steps, in {minutes:.1f} min; {result}")
    print(f"weights in {folder / str(epochs) if model.save_model else checkpoint.NOWHERE}", flush=True)
    return epochs


def announce_training(plan: TrainingPlan, trainer: Trainer, pace: Pace) -> None:
    """Print what is trained, where, and what happens to an earlier run."""
    settings, device, saves = plan.settings, trainer.generator.device, plan.settings.model.save_model
    folder = settings.checkpoint_folder
    precision = str(resolve_dtype(settings.speed.precision, device)).removeprefix("torch.")
    size = sum(weights.numel() for weights in trainer.unet.parameters())
    steps = f"{settings.model.epochs} epochs, {pace.last} steps"
    if plan.clock:
        steps = f"about {pace.expected_steps(trainer.step)} steps; the clock decides"
    network = f"{size:,} weights in {precision}, {steps}"
    pictures = f"{len(plan.pictures)} pictures; {len(plan.held_out)} more are held out for calibration"
    paths = {"reads": f"{settings.category_dir / 'train'} ({pictures})", "writes": folder if saves else "nothing"}
    announce(f"Training {settings.data.category}: {network}", device, settings.as_dict(), paths)
    if trainer.step:
        print(f"continuing after step {trainer.step}", flush=True)
        return
    if (folder / checkpoint.TRAINING_STATE).exists():
        print(f"starting again: this replaces the unfinished run in {folder}; --resume would continue it", flush=True)
    if saves:
        checkpoint.print_replaced(folder, settings.saved_epochs)


def feature_reader(settings: Settings, trainer: Trainer) -> FeatureReader:
    """Return what computes the features that the trainer's network learns."""
    model, view, device = settings.model, View(**settings.view_arguments()), trainer.generator.device
    folder, name = settings.checkpoint_folder, model.feature_extractor
    extractor, _ = checkpoint.restore_features(folder, 0, name, model.backbone_weights)
    grid = partial(view.seen_shape, size=settings.unet_size, factor=trainer.unet.factor)
    prepared, single = networks.prepare_features(extractor, view, device), model.network == PATCH
    return FeatureReader(prepared, grid, device, model.feature_channels, single)


def learn_features(plan: TrainingPlan, trainer: Trainer, pixels: Sequence[Tensor]) -> list[Tensor]:
    """Give the trainer a space, learnt from normal pictures (C, H, W) uint8; return z (K, h, w) of each of them."""
    reader, speed = feature_reader(plan.settings, trainer), plan.settings.speed
    space = (plan.settings.unet_size, reader.channels, reader.single)
    made_by = ", ".join(map(str, (weights_hash([reader.extractor]), *space)))
    features = partial(reader.learn, pixels)
    found = pixel_cache.cached_features(plan.pictures, made_by, features, speed.cache, speed.cache_limit)
    trainer.space = FeatureSpace.restore(found["space"]).to(reader.device)
    return found["features"]


def follow_training(plan: TrainingPlan, trainer: Trainer, pace: Pace, losses: Losses, pixels: Sequence[Tensor]) -> None:
    """Do the steps that are left and record them. Ctrl-C and SIGTERM end it after the present step."""
    settings, device, processes = plan.settings, trainer.generator.device, distributed.group()
    folder, saves, checked_at = settings.checkpoint_folder, settings.model.save_model, time.monotonic()
    log = Log(folder, TRAINING, settings.training.log, trainer.step) if saves else None
    with interrupt.stop_requests() as stop:
        steps = training_loop(trainer, pixels, pace, settings)
        for progress in follow_steps(steps, lambda: pace.expected_steps(trainer.step), "training", trainer.step):
            losses.last.append(progress.loss)
            ends = progress.step == pace.last
            stopped = processes.any(stop.requested, device) and not ends
            minutes = (time.monotonic() - checked_at) / SECONDS_PER_MINUTE
            due = stopped or minutes > settings.training.checkpoint_minutes
            if progress.epoch_ends or due or ends:
                losses.check(progress.epoch)
            if log and (progress.epoch_ends or ends):
                loss, rate = losses.mean(plan.batches), trainer.optimizer.param_groups[0]["lr"]
                log.add(progress.step, progress.epoch, loss, rate, settings.data.batch_size)
                if ends or progress.epoch % settings.training.checkpoint_epochs == 0:
                    if plan.clock:  # the names of the weights were not known before
                        checkpoint.print_replaced(folder, [progress.epoch])
                    save_weights(plan.settled(pace) if ends else plan, trainer, progress.epoch)
            if log and due:
                save_state(plan, trainer, pace, losses)
            if due:
                checked_at = time.monotonic()
            if stopped:
                rest = "the same command with --resume continues" if saves else "nothing is saved"
                print(f"stopped after step {progress.step} of {pace.expected_steps(progress.step)}; {rest}", flush=True)
                raise stop.as_exception()
        if processes.any(stop.requested, device):  # the request came while the last weights were written
            raise stop.as_exception()


def save_weights(plan: TrainingPlan, trainer: Trainer, epoch: int) -> None:
    settings, average = plan.settings, trainer.average.module if trainer.average is not None else None
    notes = {"epoch": epoch, "settings": settings.as_dict(), "held_out": plan.held_out.names()}
    notes |= {"made_with": plan.made_with, **settings.planning_arguments()}
    if settings.model.network == PATCH:
        notes["unseen"] = unseen_names(plan.pictures.names())
    path = settings.checkpoint_folder / str(epoch)
    checkpoint.save_unet(path, trainer.unet, average=average, space=trainer.space, **notes)


def save_state(plan: TrainingPlan, trainer: Trainer, pace: Pace, losses: Losses) -> None:
    """Save all that --resume needs to continue after the present step."""
    state = {"trainer": trainer.state_dict(), "losses": [losses.lowest, losses.values()]}
    notes = {"made_with": plan.made_with, **plan.settings.planning_arguments(), "pace": pace.state_dict()}
    checkpoint.save_training_state(plan.settings.checkpoint_folder, {**state, **notes})


def build_trainer(settings: Settings, pace: Pace, device: torch.device) -> Trainer:
    """Return the untrained network, in the form that trains fastest on its device, and its optimizer."""
    model, training, speed = settings.model, settings.training, settings.speed
    unet = networks.build_unet(settings).to(device)
    if device.type == "cuda":  # on a CPU training in channels_last was 4 % slower, though detection is faster
        unet = unet.to(memory_format=torch.channels_last)
    unet.checkpointing = speed.activation_checkpointing
    average = MovingAverage(unet, training.ema) if training.ema else None
    optimizer = build_optimizer(unet, training.optimizer, model.learning_rate, model.weight_decay)
    factor = learning_rate_factor(training.schedule, training.warmup_steps, pace)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    scaler = torch.amp.GradScaler(device.type, enabled=resolve_dtype(speed.precision, device) == torch.float16)
    return Trainer(unet, optimizer, rate, torch.Generator(device).manual_seed(model.seed), average, scaler)


def training_loop(trainer: Trainer, pixels: Sequence[Tensor], pace: Pace, settings: Settings) -> Iterator[Progress]:
    """Return `training_steps` with the network, batches and update rule of the settings."""
    data, model, training, speed = settings.data, settings.model, settings.training, settings.speed
    device, processes, schedule = trainer.generator.device, distributed.group(), networks.build_schedule(settings)
    shared, exchanged = processes.share_gradients(trainer.unet)
    network = compile_network(autocast(shared, speed.precision, device), speed.compile, device)
    predict, weights = noise_predictor(network, model.predicts, schedule), loss_weights(model.predicts, schedule)
    weights = weights if weights is None else weights.float().to(device)  # once, as no step should wait for a copy
    highest_step = training.highest_step or model.trajectory_steps
    view, size, augmentation = View(**settings.view_arguments()), settings.unet_size, training.augmentation
    if settings.learns_features:
        view = replace(view, size=size)  # z has the UNet's scale already
    positions = POSITIONS if model.network == PATCH else None
    shaped = (size, augmentation, trainer.unet.factor, positions)
    source = BatchSource(pixels, data.batch_size, view, highest_step, *shaped)
    rule = UpdateRule(schedule, predict, weights, training.accumulate, training.clip, processes.share, exchanged)
    return training_steps(trainer, source, rule, pace)


def training_steps(trainer: Trainer, source: BatchSource, rule: UpdateRule, pace: Pace) -> Iterator[Progress]:
    """Do the optimizer steps that `pace` asks for and yield each; drop the last incomplete batch of an epoch."""
    trainer.unet.train()
    batches = len(source.pixels) // source.batch_size
    while pace.goes_on(trainer.step):
        trainer.order = trainer.order or shuffled_order(len(source.pixels), source.batch_size, trainer.generator)
        chosen, trainer.order = trainer.order[: source.batch_size], trainer.order[source.batch_size :]
        loss = learn_batch(trainer, source.draw_batch(chosen, trainer.generator), rule)
        trainer.step += 1
        yield Progress(trainer.step, math.ceil(trainer.step / batches), trainer.step % batches == 0, loss)


def learn_batch(trainer: Trainer, batches: Sequence[Batch], rule: UpdateRule) -> Tensor:
    """Do one optimizer step on a batch per shape; return the loss of this process's share of all their pictures."""
    own = set(rule.share(torch.arange(sum(len(batch.places) for batch in batches))).tolist())  # places
    parts: list[tuple[Tensor, ...]] = []
    for batch in batches:
        tensors = [batch.x_0, batch.t, batch.noise, *batch.given.values()]
        rows = [row for row, place in enumerate(batch.places) if place in own]
        all_own = len(rows) == len(batch.places)
        chosen = slice(None) if all_own else rows  # a list of indices would be copied to the device
        parts += zip(*(tensor[chosen].chunk(rule.parts) for tensor in tensors if rows), strict=True)
    total = torch.zeros((), device=trainer.generator.device)
    trainer.optimizer.zero_grad()
    names = list(batches[0].given)
    for number, (x_0, t, noise, *given) in enumerate(parts, start=1):
        with rule.exchanged(number == len(parts)):
            predict = partial(rule.predict, **dict(zip(names, given, strict=True)))
            loss = noise_loss(predict, x_0, t, noise, rule.schedule, rule.weights) * (len(t) / len(own))
            trainer.scaler.scale(loss).backward()
        total += loss.detach()
    if rule.clip is not None:
        trainer.scaler.unscale_(trainer.optimizer)
        nn.utils.clip_grad_norm_(trainer.unet.parameters(), rule.clip)
    trainer.scaler.step(trainer.optimizer)
    trainer.scaler.update()
    trainer.rate.step()
    if trainer.average is not None:
        trainer.average.update_parameters(trainer.unet)
    return total


def build_optimizer(unet: nn.Module, name: str, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """Return `adam`, whose decay is part of the gradient, as published, or `adamw`."""
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return kinds[name](unet.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True)


def learning_rate_factor(schedule: str, warmup_steps: int, pace: Pace) -> Callable[[int], float]:
    """Return the learning rate's factor by step: a linear rise, then 1, half a cosine down to 0, or the pace's."""
    steps = pace.last or 0  # a clock goes with WSD alone

    def factor(step: int) -> float:
        rise = (step + 1) / warmup_steps if step < warmup_steps else 1.0
        if schedule == WSD:
            return min(rise, pace.factor(step))
        if step < warmup_steps or schedule != COSINE:
            return rise
        return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))

    return factor


def ramped_average(ema: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """Return the update of an exponential moving average, for AveragedModel."""

    def update(averages: Tensors, weights: Tensors, count: Tensor | int) -> None:
        decay = min(ema, (1 + int(count)) / (AVERAGE_RAMP + int(count)))
        get_ema_multi_avg_fn(decay)(averages, weights, count)

    return update
