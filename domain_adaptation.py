"""Stage 2: fine-tune the features to ignore what a reconstruction changes in normal pictures (Sec. 4.3)."""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_map import resize_maps
from config.keys import Settings
from dataset import SQUARE, ImageFolder, View, picture_fingerprint
from ddad import gaussian_draws, noise_predictor, reconstruct
from feature_extractor import FeatureExtractor
from runtime import distributed, interrupt
from runtime.device import choose_device
from runtime.errors import UserError
from runtime.progress import Progress, announce, check_loss, follow_steps
from storage.atomic_file import ensure_writable
from storage.fingerprint import weights_hash
from training import checkpoint, networks, pixel_cache
from training.batches import full_batches, shuffled_batches
from training.checkpoint import FEATURES_PREFIX
from training.log import ADAPTATION, Log, check_log_kind
from training.networks import Denoiser
from training.normal_pictures import normal_pictures

LEARNING_RATE = 1e-4  # AdamW, as published
SECONDS_PER_MINUTE = 60

Features = Sequence[Tensor]
Rebuild = Callable[[Tensor, Tensor], Tensor]  # (picture to start from, target) → reconstruction


@dataclass(frozen=True)
class Adaptation:
    """An adaptation that is ready to start: its networks, pictures and what its result depends on."""

    settings: Settings
    device: torch.device
    unet: Denoiser
    weights: Path  # file of the UNet
    tuned: FeatureExtractor
    origin: Path | str  # of the extractor's weights
    held_out: list[str]  # names of pictures that the UNet was not trained on
    pictures: ImageFolder  # the other pictures of train/good
    made_with: dict[str, object]

    @property
    def steps(self) -> int:
        batch_size = self.settings.data.DA_batch_size
        batches = full_batches(len(self.pictures), batch_size, "data.DA_batch_size", len(self.held_out))
        return self.settings.model.DA_epochs * batches

    def save_epoch(self, epoch: int) -> None:
        path = self.settings.checkpoint_folder / f"{FEATURES_PREFIX}{epoch}"
        notes = {"held_out": self.held_out, "epoch": epoch, "settings": self.settings.as_dict()}
        checkpoint.save_features(path, self.tuned, **notes, made_with=self.made_with)


def adaptation_loss(
    tuned_reconstruction: Features,
    tuned_target: Features,
    frozen_target: Features,
    frozen_reconstruction: Features,
    distillation: float,
) -> Tensor:
    """Return d(φ(x̂_0), φ(y_0)) + λ·[d(φ(y_0), ψ(y_0)) + d(φ(x̂_0), ψ(x̂_0))].

    φ is the tuned network, ψ the frozen one, λ is `distillation`. Lists hold the maps (B, C_j, H_j, W_j) of all layers.
    """
    similarity = layer_distance(tuned_reconstruction, tuned_target)
    drift = layer_distance(tuned_target, frozen_target) + layer_distance(tuned_reconstruction, frozen_reconstruction)
    return similarity + distillation * drift


def layer_distance(a: Features, b: Features) -> Tensor:
    """Return the cosine distance of flattened feature maps: mean over the batch, sum over the layers."""
    flat = [(map_a.flatten(1), map_b.flatten(1)) for map_a, map_b in zip(a, b, strict=True)]
    return torch.stack([1 - F.cosine_similarity(*maps, dim=1).mean() for maps in flat]).sum()


def check_adaptation(settings: Settings) -> ImageFolder:
    """Return all pictures of train/good. Raise UserError for what would stop stage 2 later."""
    check_log_kind(settings.training.log)
    pictures = normal_pictures(settings)
    batch_size, processes = settings.data.DA_batch_size, distributed.group().size
    learnt, held_out = pictures.split(**settings.split_arguments())
    full_batches(len(learnt), batch_size, "data.DA_batch_size", len(held_out))
    if batch_size // 2 % processes:
        remainder = f"its half is not a multiple of the {processes} processes; change one of the two"
        raise UserError(f"data.DA_batch_size is {batch_size}, {remainder}")
    if settings.model.save_model:
        ensure_writable(settings.checkpoint_folder, checkpoint.UNWRITABLE)
    return pictures


def adapt_features(settings: Settings, pictures: ImageFolder, resume: bool = False) -> None:
    """Fine-tune the feature extractor on train/good; save feat0 (not adapted) to feat<DA_epochs>.

    With `resume`, skip the stage if features made with this network, these settings and pictures exist.
    """
    folder, epochs, saves = settings.checkpoint_folder, settings.model.DA_epochs, settings.model.save_model
    with checkpoint.locked(folder) if saves else nullcontext():
        adaptation = prepare_adaptation(settings, pictures)
        if resume and epochs and checkpoint.is_made_with(folder, epochs, adaptation.made_with, FEATURES_PREFIX):
            last = folder / f"{FEATURES_PREFIX}{epochs}"
            reason = f"{last} has this network and these settings and pictures"
            print(f"{settings.data.category} is adapted: {reason}", flush=True)
            if saves:
                checkpoint.make_latest(last)
        else:
            run_adaptation(adaptation)


def prepare_adaptation(settings: Settings, pictures: ImageFolder) -> Adaptation:
    """Return the adaptation with the networks of the checkpoint folder."""
    model, folder, device = settings.model, settings.checkpoint_folder, choose_device(settings.model.device)
    torch.manual_seed(model.seed)
    weights = checkpoint.find_weights(folder, model.load_chp)
    held_out = checkpoint.held_out_names(weights)
    unet = checkpoint.restore_unet(weights, settings).to(device).eval()
    tuned, origin = checkpoint.restore_features(folder, 0, model.feature_extractor, model.backbone_weights)
    tuned.enlarges_by_area = pictures.view.fit != SQUARE
    pictures = pictures.without(held_out)
    made_with = {**settings.adaptation_arguments(), "weights": weights_hash([unet, tuned])}
    made_with |= {"features": tuned.name, "pictures": picture_fingerprint(pictures.samples)}
    return Adaptation(settings, device, unet, weights, tuned, origin, held_out, pictures, made_with)


def run_adaptation(adaptation: Adaptation) -> None:
    """Print what is adapted, do all steps, and print the result."""
    settings, model, name = adaptation.settings, adaptation.settings.model, adaptation.tuned.name
    folder, category = settings.checkpoint_folder, settings.data.category
    title = f"Adapting {name} to {category}: {model.DA_epochs} epochs, {adaptation.steps} steps"
    paths = {
        "reads": f"{settings.category_dir / 'train'} ({len(adaptation.pictures)} pictures)",
        "unet": adaptation.weights,
        "features": f"{name} from {adaptation.origin}",
        "writes": folder if model.save_model else "nothing",
    }
    announce(title, adaptation.device, settings.as_dict(), paths)
    began = time.monotonic()
    if model.save_model:
        checkpoint.print_replaced(folder, range(1, model.DA_epochs + 1), FEATURES_PREFIX)
        if not isinstance(adaptation.origin, Path):
            checkpoint.save_features(folder / f"{FEATURES_PREFIX}0", adaptation.tuned, epoch=0)
    loss = follow_adaptation(adaptation)
    result = "no epochs" if loss is None else f"{model.DA_epochs} epochs, last loss {loss:.4g}"
    print(f"adapted {name} to {category} in {(time.monotonic() - began) / SECONDS_PER_MINUTE:.1f} min: {result}")
    saved = f"in {folder}, feat0 to feat{model.DA_epochs}" if model.save_model else checkpoint.NOWHERE
    print(f"features {saved}", flush=True)


def follow_adaptation(adaptation: Adaptation) -> float | None:
    """Do the steps, record each epoch, return the last loss. Ctrl-C and SIGTERM end it after the present step."""
    settings, steps, processes = adaptation.settings, adaptation.steps, distributed.group()
    saves, loop = settings.model.save_model, adaptation_loop(adaptation)
    log = Log(settings.checkpoint_folder, ADAPTATION, settings.training.log) if saves and steps else None
    losses, last_loss = [], None
    with interrupt.stop_requests() as stop:
        for progress in follow_steps(loop, lambda: steps, "adapting"):
            losses.append(progress.loss)
            stopped = processes.any(stop.requested, adaptation.device) and progress.step < steps
            if progress.epoch_ends:
                check_loss(progress, "lower model.DLlambda or model.w_DA")
                last_loss = progress.loss.item()
                if log:
                    loss, batch_size = torch.stack(losses).mean().item(), settings.data.DA_batch_size
                    log.add(progress.step, progress.epoch, loss, LEARNING_RATE, batch_size)
                    adaptation.save_epoch(progress.epoch)
                losses = []
            if stopped:
                epoch = progress.epoch if progress.epoch_ends else progress.epoch - 1
                rest = f"feat0 to feat{epoch} are saved, later steps are lost" if saves else "nothing is saved"
                print(f"stopped after step {progress.step} of {steps}; {rest}", flush=True)
                raise stop.as_exception()
        if processes.any(stop.requested, adaptation.device):  # the request came while the last features were written
            raise stop.as_exception()
    return last_loss


def adaptation_loop(adaptation: Adaptation) -> Iterator[Progress]:
    """Return `adaptation_steps` of the settings; order and noise come from one random stream."""
    settings, device = adaptation.settings, adaptation.device
    data, model = settings.data, settings.model
    generator = torch.Generator(device).manual_seed(model.seed)
    rebuild = rebuild_function(adaptation.unet, settings, generator)
    pixels = pixel_cache.cached_pixels(adaptation.pictures, **settings.cache_arguments())
    sizes = {"epochs": model.DA_epochs, "batch_size": data.DA_batch_size}
    tuned = adaptation.tuned.to(device)
    view = adaptation.pictures.view
    return adaptation_steps(
        tuned, rebuild, pixels, **sizes, view=view, distillation=model.DLlambda, generator=generator
    )


def rebuild_function(unet: Denoiser, settings: Settings, generator: torch.Generator) -> Rebuild:
    """Return a function that reconstructs a batch: each process does its share, all get the result."""
    model, schedule, processes = settings.model, networks.build_schedule(settings), distributed.group()
    predictor, view = noise_predictor(unet, model.predicts, schedule), View(**settings.view_arguments())
    sample = partial(reconstruct, predictor, schedule=schedule, w=model.w_DA, eta=model.eta)
    start, skip = model.test_trajectoy_steps_DA, model.skip_DA

    def rebuild(start_from: Tensor, target: Tensor) -> Tensor:
        shape = view.scaled_shape(target.shape[-2:], settings.unet_size, unet.factor)
        small_start, small_target = resize_maps(start_from, shape), resize_maps(target, shape)
        draw = gaussian_draws(small_target.shape, generator)
        shares = processes.share(small_start), processes.share(small_target)
        rebuilt = sample(*shares, start=start, skip=skip, draw=lambda: processes.share(draw()))
        return resize_maps(processes.all_gather(rebuilt), target.shape[-2:])

    return rebuild


def adaptation_steps(
    tuned: FeatureExtractor,
    rebuild: Rebuild,
    pixels: Sequence[Tensor],
    *,
    epochs: int,
    batch_size: int,
    view: View,
    distillation: float,
    generator: torch.Generator,
) -> Iterator[Progress]:
    """Do the optimizer steps of `tuned` on random tiles of `pixels`, (C, H, W) uint8 each, and yield each step.

    The first half of a batch holds the targets, the second the pictures to start from. Batch norm is in train mode.
    """
    frozen = copy.deepcopy(tuned).eval().requires_grad_(False)
    tuned.train()
    optimizer = torch.optim.AdamW(tuned.parameters(), lr=LEARNING_RATE)
    step, batches, half = 0, len(pixels) // batch_size, batch_size // 2
    for epoch in range(1, epochs + 1):
        for position, pictures in enumerate(shuffled_batches(pixels, batch_size, view, generator), start=1):
            target, start_from = pictures[:half], pictures[half : 2 * half]
            reconstruction = rebuild(start_from, target)
            features = tuned(reconstruction), tuned(target), frozen(target), frozen(reconstruction)
            loss = adaptation_loss(*features, distillation)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            yield Progress(step, epoch, position == batches, loss.detach())
