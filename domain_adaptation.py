"""Stage 2: fine-tune the feature extractor to ignore what a reconstruction changes in normal pictures (section 4.3)."""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_map import resize_maps
from config.keys import Settings
from dataset import ImageFolder, View, full_batches, picture_fingerprint, shuffled_batches
from ddad import gaussian_draws, noise_predictor, reconstruct
from feature_extractor import FeatureExtractor
from runtime import distributed
from runtime.device import choose_device
from runtime.errors import UserError
from runtime.interrupt import stop_requests
from runtime.progress import Progress, announce, check_loss, follow_steps
from storage.atomic_file import ensure_writable
from storage.fingerprint import weights_hash
from training import checkpoint
from training.checkpoint import FEATURES_PREFIX
from training.log import ADAPTATION, Log, check_log_kind
from training.networks import build_schedule
from training.pixel_cache import cached_pixels
from unet import UNet

LEARNING_RATE = 1e-4  # AdamW, as published
SECONDS_PER_MINUTE = 60

Features = Sequence[Tensor]
Rebuild = Callable[[Tensor, Tensor], Tensor]  # (picture to start from, target) → reconstruction


@dataclass(frozen=True)
class AdaptationPlan:
    """An adaptation that passed `check_adaptation`: its settings and all of train/good."""

    settings: Settings
    pictures: ImageFolder
    resume: bool


@dataclass(frozen=True)
class Adaptation:
    """The networks and pictures of an adaptation. `weights` and `origin` say where the networks come from."""

    settings: Settings
    pictures: ImageFolder  # those that the UNet has learned from
    held_out: list[str]
    unet: UNet
    weights: Path
    tuned: FeatureExtractor
    origin: Path | str
    made_with: dict[str, object]  # all that the adapted features depend on

    @property
    def steps(self) -> int:
        batch_size = self.settings.data.DA_batch_size
        return self.settings.model.DA_epochs * full_batches(len(self.pictures), batch_size, "data.DA_batch_size")

    def is_done(self) -> bool:
        """Return whether the features of the last epoch exist, made with the same network, settings and pictures."""
        folder, epochs = self.settings.checkpoint_folder, self.settings.model.DA_epochs
        return checkpoint.is_made_with(folder, epochs, self.made_with, FEATURES_PREFIX)

    def save_epoch(self, epoch: int) -> None:
        checkpoint.save_features(
            self.settings.checkpoint_folder / f"{FEATURES_PREFIX}{epoch}",
            self.tuned,
            held_out=self.held_out,
            epoch=epoch,
            settings=self.settings.as_dict(),
            made_with=self.made_with,
        )


def adaptation_loss(
    tuned_reconstruction: Features,
    tuned_target: Features,
    frozen_target: Features,
    frozen_reconstruction: Features,
    distillation: float,
) -> Tensor:
    """Return d(φ(x̂_0), φ(y_0)) + λ·[d(φ(y_0), ψ(y_0)) + d(φ(x̂_0), ψ(x̂_0))].

    φ is the tuned network, ψ the frozen one, λ is `distillation`. Each list holds the feature maps (B, C_j, H_j, W_j) of all layers.
    """
    similarity = layer_distance(tuned_reconstruction, tuned_target)
    drift = layer_distance(tuned_target, frozen_target) + layer_distance(tuned_reconstruction, frozen_reconstruction)
    return similarity + distillation * drift


def layer_distance(a: Features, b: Features) -> Tensor:
    """Return the cosine distance of whole, flattened feature maps: the mean over the batch, summed over the layers."""
    distances = [
        1 - F.cosine_similarity(map_a.flatten(1), map_b.flatten(1), dim=1).mean()
        for map_a, map_b in zip(a, b, strict=True)
    ]
    return torch.stack(distances).sum()


def check_adaptation(settings: Settings, resume: bool = False) -> AdaptationPlan:
    """Return the adaptation that the settings describe. Raise UserError for what would stop it later."""
    check_log_kind(settings.training.log)
    pictures = ImageFolder(settings.category_dir, "train", View(**settings.view_arguments()))
    batch_size, processes = settings.data.DA_batch_size, distributed.group().size
    full_batches(len(pictures.split(**settings.split_arguments())[0]), batch_size, "data.DA_batch_size")
    if batch_size // 2 % processes:
        raise UserError(
            f"data.DA_batch_size is {batch_size}, whose half {processes} processes do not divide; change one of them"
        )
    if settings.model.save_model:
        ensure_writable(settings.checkpoint_folder, checkpoint.UNWRITABLE)
    return AdaptationPlan(settings, pictures, resume)


def adapt_features(plan: AdaptationPlan) -> None:
    """Fine-tune the feature extractor on train/good; save feat0 (not adapted) to feat<DA_epochs> in the checkpoint folder.

    A resumed plan does nothing where they exist already, made with this network, these settings and pictures.
    """
    model, folder = plan.settings.model, plan.settings.checkpoint_folder
    with checkpoint.locked(folder, model.save_model):
        device = choose_device(model.device)
        torch.manual_seed(model.seed)
        adaptation = load_adaptation(plan, device)
        is_done = plan.resume and model.DA_epochs and adaptation.is_done()
        if not is_done:
            run_adaptation(adaptation, device)
            return
        last = folder / f"{FEATURES_PREFIX}{model.DA_epochs}"
        category = plan.settings.data.category
        print(f"{category} is adapted: {last} has this network and these settings and pictures", flush=True)
        if model.save_model:
            checkpoint.make_latest(last)


def load_adaptation(plan: AdaptationPlan, device: torch.device) -> Adaptation:
    """Return the networks of an adaptation and the pictures that the UNet has learned from."""
    settings, model, folder = plan.settings, plan.settings.model, plan.settings.checkpoint_folder
    weights = checkpoint.find_weights(folder, model.load_chp)
    held_out = checkpoint.held_out_names(weights)
    unet = checkpoint.restore_unet(weights, settings).to(device).eval()
    tuned, origin = checkpoint.restore_features(folder, 0, model.feature_extractor, model.backbone_weights)
    pictures = plan.pictures.without(held_out)
    made_with: dict[str, object] = {
        **settings.adaptation_arguments(),
        "weights": weights_hash([unet, tuned]),
        "features": tuned.name,
        "pictures": picture_fingerprint(pictures.samples),
    }
    return Adaptation(settings, pictures, held_out, unet, weights, tuned, origin, made_with)


def run_adaptation(adaptation: Adaptation, device: torch.device) -> None:
    """Do all steps, from the first to the last line printed."""
    settings, tuned = adaptation.settings, adaptation.tuned
    model, folder = settings.model, settings.checkpoint_folder
    announce(
        f"Adapting {tuned.name} to {settings.data.category}: {model.DA_epochs} epochs, {adaptation.steps} steps",
        device,
        settings.as_dict(),
        {
            "reads": f"{settings.category_dir / 'train'} ({len(adaptation.pictures)} pictures)",
            "unet": adaptation.weights,
            "features": f"{tuned.name} from {adaptation.origin}",
            "writes": folder if model.save_model else "nothing",
        },
    )
    began = time.monotonic()
    if model.save_model:
        checkpoint.print_replaced(folder, range(1, model.DA_epochs + 1), FEATURES_PREFIX)
        if not isinstance(adaptation.origin, Path):
            checkpoint.save_features(folder / f"{FEATURES_PREFIX}0", tuned, epoch=0)
    loss = follow_adaptation(adaptation, device)
    result = "not adapted" if loss is None else f"{model.DA_epochs} epochs, last loss {loss:.4g}"
    minutes = (time.monotonic() - began) / SECONDS_PER_MINUTE
    print(f"adapted {tuned.name} to {settings.data.category} in {minutes:.1f} min: {result}")
    saved = (
        f"in {folder}, feat0 to feat{model.DA_epochs}" if model.save_model else "nowhere (model.save_model is False)"
    )
    print(f"features {saved}", flush=True)


def follow_adaptation(adaptation: Adaptation, device: torch.device) -> float | None:
    """Do the steps, check and record each epoch; return the last loss. Ctrl-C and SIGTERM end it after the present step."""
    settings, steps, processes = adaptation.settings, adaptation.steps, distributed.group()
    folder, saves = settings.checkpoint_folder, settings.model.save_model
    pixels = cached_pixels(adaptation.pictures, **settings.cache_arguments())
    loop = adaptation_loop(adaptation.tuned.to(device), adaptation.unet, pixels, settings, device)
    log = Log(folder, ADAPTATION, settings.training.log) if saves and steps else None
    losses: list[Tensor] = []
    began, last = time.monotonic(), None
    with stop_requests() as stop:
        for progress in follow_steps(loop, steps, "adapting"):
            losses.append(progress.loss)
            stopped = processes.any(stop.requested, device) and progress.step < steps
            if progress.epoch_ends:
                check_loss(progress, "lower model.DLlambda or model.w_DA")
                last = progress.loss.item()
                if log:
                    pictures, loss = len(losses) * settings.data.DA_batch_size, torch.stack(losses).mean().item()
                    now = time.monotonic()
                    log.add(progress.step, progress.epoch, loss, LEARNING_RATE, pictures, now - began)
                    adaptation.save_epoch(progress.epoch)
                    began = now
                losses = []
            if stopped:
                print(
                    f"stopped after step {progress.step} of {steps}; {remaining_features(progress, saves)}", flush=True
                )
                raise stop.as_exception()
        if processes.any(stop.requested, device):  # while the last features were written
            raise stop.as_exception()
    return last


def remaining_features(progress: Progress, saves: bool) -> str:
    """Return what a stopped adaptation keeps and what it loses."""
    if not saves:
        return "nothing is saved: model.save_model is False"
    epoch = progress.epoch if progress.epoch_ends else progress.epoch - 1
    return f"feat0 to feat{epoch} are saved; later steps are lost, and the same command starts again from feat0"


def adaptation_loop(
    tuned: FeatureExtractor, unet: UNet, pixels: Sequence[Tensor], settings: Settings, device: torch.device
) -> Iterator[Progress]:
    """Return `adaptation_steps` with what the settings ask for; order and noise come from one random stream."""
    generator = torch.Generator(device).manual_seed(settings.model.seed)
    return adaptation_steps(
        tuned,
        rebuild_function(unet, settings, generator),
        pixels,
        epochs=settings.model.DA_epochs,
        batch_size=settings.data.DA_batch_size,
        window=settings.data.image_size,
        distillation=settings.model.DLlambda,
        generator=generator,
    )


def rebuild_function(unet: UNet, settings: Settings, generator: torch.Generator) -> Rebuild:
    """Return the reconstruction at the UNet's size. Each process of a run does its share of a batch, and all get the whole."""
    model, schedule, processes = settings.model, build_schedule(settings), distributed.group()
    predictor = noise_predictor(unet, model.predicts, schedule)
    size = (settings.unet_size, settings.unet_size)

    def rebuild(start_from: Tensor, target: Tensor) -> Tensor:
        small_start, small_target = resize_maps(start_from, size), resize_maps(target, size)
        draw = gaussian_draws(small_target.shape, generator)
        rebuilt = reconstruct(
            predictor,
            processes.share(small_start),
            processes.share(small_target),
            schedule=schedule,
            w=model.w_DA,
            start=model.test_trajectoy_steps_DA,
            skip=model.skip_DA,
            eta=model.eta,
            draw=lambda: processes.share(draw()),
        )
        return resize_maps(processes.all_gather(rebuilt), target.shape[-2:])

    return rebuild


def adaptation_steps(
    tuned: FeatureExtractor,
    rebuild: Rebuild,
    pixels: Sequence[Tensor],
    *,
    epochs: int,
    batch_size: int,
    window: int,
    distillation: float,
    generator: torch.Generator,
) -> Iterator[Progress]:
    """Yield each optimizer step of `tuned` on random squares of side `window` of `pixels`, each (C, H, W) uint8.

    The first half of a batch holds the targets, the second half the pictures to start from. Batch norm is in train mode.
    """
    frozen = copy.deepcopy(tuned).eval().requires_grad_(False)
    tuned.train()
    optimizer = torch.optim.AdamW(tuned.parameters(), lr=LEARNING_RATE)
    step, batches, half = 0, len(pixels) // batch_size, batch_size // 2
    for epoch in range(1, epochs + 1):
        for position, pictures in enumerate(shuffled_batches(pixels, batch_size, window, generator), start=1):
            target, start_from = pictures[:half], pictures[half : 2 * half]
            reconstruction = rebuild(start_from, target)
            loss = adaptation_loss(
                tuned(reconstruction), tuned(target), frozen(target), frozen(reconstruction), distillation
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            yield Progress(step, epoch, position == batches, loss.detach())
