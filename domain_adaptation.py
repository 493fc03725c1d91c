"""Stage 2: the features learn to overlook what a reconstruction changes on normal pictures (section 4.3 of the paper)."""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_map import resize_maps
from config.keys import Settings
from dataset import ImageFolder, View, picture_fingerprint
from ddad import gaussian_draws, noise_predictor, reconstruct
from feature_extractor import FeatureExtractor
from runtime import distributed
from runtime.device import choose_device
from runtime.errors import UserError
from runtime.progress import Progress, announce, check_loss, follow_steps
from storage.atomic_file import ensure_writable
from storage.fingerprint import weights_hash
from training import checkpoint
from training.batches import full_batches, shuffled_batches
from training.log import ADAPTATION, Log, check_log_kind
from training.networks import build_schedule
from training.pixel_cache import cached_pixels
from unet import UNet

LEARNING_RATE = 1e-4  # AdamW, as published

Features = Sequence[Tensor]
Rebuild = Callable[[Tensor, Tensor], Tensor]  # (picture to start from, target) → reconstruction


def adaptation_loss(
    tuned_reconstruction: Features,
    tuned_target: Features,
    frozen_target: Features,
    frozen_reconstruction: Features,
    distillation: float,
) -> Tensor:
    """d(φ(x̂_0), φ(y_0)) + λ·[d(φ(y_0), ψ(y_0)) + d(φ(x̂_0), ψ(x̂_0))]: tuned φ, frozen ψ, λ = `distillation`.

    Each argument is a list of feature maps (B, C_j, H_j, W_j), all layers.
    """
    similarity = layer_distance(tuned_reconstruction, tuned_target)
    drift = layer_distance(tuned_target, frozen_target) + layer_distance(tuned_reconstruction, frozen_reconstruction)
    return similarity + distillation * drift


def layer_distance(a: Features, b: Features) -> Tensor:
    """Sum over the layers of the batch mean of the cosine distance between whole, flattened feature maps."""
    distances = [
        1 - F.cosine_similarity(map_a.flatten(1), map_b.flatten(1), dim=1).mean()
        for map_a, map_b in zip(a, b, strict=True)
    ]
    return torch.stack(distances).sum()


def check_adaptation(settings: Settings, resume: bool = False) -> ImageFolder:
    """All of train/good; raises what would stop the stage later."""
    check_log_kind(settings.training.log)
    whole = ImageFolder(settings.category_dir, "train", View(**settings.view_arguments()))
    full_batches(len(whole.split(**settings.split_arguments())[0]), settings.data.DA_batch_size, "data.DA_batch_size")
    processes, half = distributed.group().size, settings.data.DA_batch_size // 2
    if half % processes:
        raise UserError(
            f"data.DA_batch_size is {settings.data.DA_batch_size}, whose half {processes} processes do not divide; change one of them"
        )
    if settings.model.save_model:
        ensure_writable(settings.checkpoint_folder, checkpoint.UNWRITABLE)
    return whole


def adapt_features(settings: Settings, resume: bool = False) -> None:
    """Fine-tune the feature extractor on train/good; leave feat0 (untouched) to feat<DA_epochs> in the category's checkpoint folder.

    With `resume` nothing is done where they are there, of this network and these settings and pictures.
    """
    with checkpoint.locked(settings.checkpoint_folder, settings.model.save_model):
        adapt_category(settings, resume)


def adapt_category(settings: Settings, resume: bool) -> None:
    data, model, folder = settings.data, settings.model, settings.checkpoint_folder
    device = choose_device(model.device)
    torch.manual_seed(model.seed)
    whole = check_adaptation(settings)
    weights = checkpoint.find_weights(folder, model.load_chp)
    unseen = checkpoint.held_out_names(weights)
    pictures = whole.without(unseen)
    unet = checkpoint.restore_unet(weights, settings).to(device).eval()
    tuned, origin = checkpoint.restore_features(folder, 0, model.feature_extractor, model.backbone_weights)
    made_with = {
        **settings.adaptation_arguments(),
        "weights": weights_hash([unet, tuned]),
        "features": tuned.name,
        "pictures": picture_fingerprint(pictures.samples),
    }
    if (
        resume
        and model.DA_epochs
        and checkpoint.is_made_with(folder, model.DA_epochs, made_with, checkpoint.FEATURES_PREFIX)
    ):
        print(
            f"{data.category} is adapted: {folder / f'feat{model.DA_epochs}'} is of this network and these settings and pictures",
            flush=True,
        )
        if model.save_model:
            checkpoint.make_latest(folder / f"{checkpoint.FEATURES_PREFIX}{model.DA_epochs}")
        return
    steps = model.DA_epochs * full_batches(len(pictures), data.DA_batch_size, "data.DA_batch_size")
    announce(
        f"Adapting {tuned.name} to {data.category}: {model.DA_epochs} epochs, {steps} steps",
        device,
        settings.as_dict(),
        {
            "reads": f"{settings.category_dir / 'train'} ({len(pictures)} pictures)",
            "unet": weights,
            "features": f"{tuned.name} from {origin}",
            "writes": folder if model.save_model else "nothing",
        },
    )
    began = time.monotonic()
    if model.save_model:
        checkpoint.print_replaced(folder, range(1, model.DA_epochs + 1), checkpoint.FEATURES_PREFIX)
    if model.save_model and not isinstance(origin, Path):
        checkpoint.save_features(folder / "feat0", tuned, epoch=0)
    loop = adaptation_loop(
        tuned.to(device), unet, cached_pixels(pictures, **settings.cache_arguments()), settings, device
    )
    log = Log(folder, ADAPTATION, settings.training.log) if model.save_model and steps else None
    losses, shown_at = [], began
    result = "untouched"
    for progress in follow_steps(loop, steps, "adapting"):
        losses.append(progress.loss)
        if not progress.epoch_ends:
            continue
        check_loss(progress, "lower model.DLlambda or model.w_DA")
        result = f"{model.DA_epochs} epochs, last loss {progress.loss:.4g}"
        if log:
            now, loss = time.monotonic(), torch.stack(losses).mean().item()
            log.add(
                progress.step, progress.epoch, loss, LEARNING_RATE, len(losses) * data.DA_batch_size, now - shown_at
            )
            losses, shown_at = [], now
            notes = {
                "held_out": unseen,
                "epoch": progress.epoch,
                "settings": settings.as_dict(),
                "made_with": made_with,
            }
            checkpoint.save_features(folder / f"feat{progress.epoch}", tuned, **notes)
    print(f"adapted {tuned.name} to {data.category} in {(time.monotonic() - began) / 60:.1f} min: {result}")
    saved = (
        f"in {folder}, feat0 to feat{model.DA_epochs}" if model.save_model else "nowhere (model.save_model is False)"
    )
    print(f"features {saved}", flush=True)


def adaptation_loop(
    tuned: FeatureExtractor, unet: UNet, pixels: Sequence[Tensor], settings: Settings, device: torch.device
) -> Iterator[Progress]:
    """`adaptation_steps` as the settings want it; order and noise come from one stream. Of several processes each reconstructs its share of a
    batch, and all learn from the whole of it alike."""
    model, schedule = settings.model, build_schedule(settings)
    generator = torch.Generator(device).manual_seed(model.seed)

    processes, predictor = distributed.group(), noise_predictor(unet, model.predicts, schedule)

    def rebuild(start_from: Tensor, target: Tensor) -> Tensor:
        seen_start, seen_target = (
            resize_maps(pictures, (settings.unet_size,) * 2) for pictures in (start_from, target)
        )
        draw = gaussian_draws(seen_target.shape, generator)
        rebuilt = reconstruct(
            predictor,
            processes.share(seen_start),
            processes.share(seen_target),
            schedule=schedule,
            w=model.w_DA,
            start=model.test_trajectoy_steps_DA,
            skip=model.skip_DA,
            eta=model.eta,
            draw=lambda: processes.share(draw()),
        )
        return resize_maps(processes.all_gather(rebuilt), target.shape[-2:])

    return adaptation_steps(
        tuned,
        rebuild,
        pixels,
        epochs=model.DA_epochs,
        batch_size=settings.data.DA_batch_size,
        window=settings.data.image_size,
        distillation=model.DLlambda,
        generator=generator,
    )


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
    """One optimisation step of `tuned` a turn. `pixels` are (C, H, W) uint8, of which squares of side `window` serve;
    `rebuild(x, target)` gives the reconstruction.

    The first half of a batch is the targets, the second the pictures to start from; batch norm is in train mode.
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
