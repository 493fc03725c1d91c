"""Stage 2: the features learn to overlook what a reconstruction changes on normal pictures (section 4.3 of the paper)."""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import checkpoint
import runtime
from config import Settings
from dataset import ImageFolder, to_unit_range
from ddad import NoiseSchedule, gaussian_draws, reconstruct
from feature_extractor import FeatureExtractor
from runtime import Progress

LEARNING_RATE = 1e-4  # AdamW, as published

Features = Sequence[Tensor]


def adaptation_loss(
    tuned_reconstruction: Features, tuned_target: Features, frozen_target: Features, frozen_reconstruction: Features, distillation: float
) -> Tensor:
    """d(φ(x̂_0), φ(y_0)) + λ·[d(φ(y_0), ψ(y_0)) + d(φ(x̂_0), ψ(x̂_0))]: tuned φ, frozen ψ, λ = `distillation` (Eqs. 12 to 14).

    Each argument is a list of feature maps (B, C_j, H_j, W_j), all layers.
    """
    similarity = layer_distance(tuned_reconstruction, tuned_target)
    drift = layer_distance(tuned_target, frozen_target) + layer_distance(tuned_reconstruction, frozen_reconstruction)
    return similarity + distillation * drift


def layer_distance(a: Features, b: Features) -> Tensor:
    """Sum over the layers of the batch mean of the cosine distance between whole, flattened feature maps."""
    distances = [1 - F.cosine_similarity(map_a.flatten(1), map_b.flatten(1), dim=1).mean() for map_a, map_b in zip(a, b, strict=True)]
    return torch.stack(distances).sum()


def run(settings: Settings) -> None:
    """Fine-tune the feature extractor on train/good; leave feat0 (untouched) to feat<DA_epochs> in the category's checkpoint folder."""
    data, model = settings.data, settings.model
    device = runtime.choose_device(model.device)
    torch.manual_seed(model.seed)
    folder = Path(model.checkpoint_dir) / data.category
    pictures = ImageFolder(data.data_dir / data.category, "train", data.image_size, data.input_channel)
    if len(pictures) < data.DA_batch_size:
        count = len(pictures)
        raise ValueError(f"data.DA_batch_size is {data.DA_batch_size}, but train/good holds {count} pictures; set data.DA_batch_size={count} or less")
    weights = checkpoint.find(folder, model.load_chp)
    if model.save_model:
        checkpoint.ensure_writable(folder)
    unet = checkpoint.restore_unet(weights, settings.unet_arguments())
    tuned, origin = checkpoint.restore_features(folder, 0, model.feature_extractor, model.backbone_weights)
    steps = model.DA_epochs * (len(pictures) // data.DA_batch_size)
    runtime.announce(
        f"Adapting {tuned.name} to {data.category}: {model.DA_epochs} epochs, {steps} steps",
        device,
        settings.as_dict(),
        {
            "reads": f"{data.data_dir / data.category / 'train'} ({len(pictures)} pictures)",
            "unet": weights,
            "features": origin,
            "writes": folder if model.save_model else "nothing",
        },
    )
    unet.to(device).eval()
    tuned.to(device)
    schedule = NoiseSchedule(model.trajectory_steps, model.beta_start, model.beta_end)
    generator = torch.Generator(device).manual_seed(model.seed)

    def rebuild(start_from: Tensor, target: Tensor) -> Tensor:
        return reconstruct(
            unet,
            start_from,
            target,
            schedule=schedule,
            w=model.w_DA,
            start=model.test_trajectoy_steps_DA,
            skip=model.skip_DA,
            eta=model.eta,
            draw=gaussian_draws(target.shape, generator),
        )

    loop = adaptation_steps(
        tuned,
        rebuild,
        pictures.pixels(model.num_workers),
        epochs=model.DA_epochs,
        batch_size=data.DA_batch_size,
        distillation=model.DLlambda,
        generator=generator,
    )
    began = time.monotonic()
    saved = [0]
    if model.save_model:
        checkpoint.save_features(folder / "feat0", tuned, epoch=0)
    for progress in runtime.follow(loop, steps, "adapting"):
        if progress.epoch_ends and model.save_model:
            checkpoint.save_features(folder / f"feat{progress.epoch}", tuned, epoch=progress.epoch, settings=settings.as_dict())
            saved.append(progress.epoch)
    minutes = (time.monotonic() - began) / 60
    print(f"adapted {tuned.name} to {data.category} for {model.DA_epochs} epochs in {minutes:.1f} min")
    print(
        f"features in {folder}: feat{saved[0]} to feat{saved[-1]}" if model.save_model else "features not saved (model.save_model is False)",
        flush=True,
    )


def adaptation_steps(
    tuned: FeatureExtractor,
    rebuild: Callable[[Tensor, Tensor], Tensor],
    pixels: Tensor,
    *,
    epochs: int,
    batch_size: int,
    distillation: float,
    generator: torch.Generator,
) -> Iterator[Progress]:
    """One optimisation step of `tuned` a turn. `pixels` (N, C, H, W) uint8; `rebuild(x, target)` gives the reconstruction.

    The first half of a batch is the targets, the second the pictures to start from; batch norm is in train mode.
    """
    device = generator.device
    frozen = copy.deepcopy(tuned).eval().requires_grad_(False)
    tuned.train()
    optimizer = torch.optim.AdamW(tuned.parameters(), lr=LEARNING_RATE)
    step, half = 0, batch_size // 2
    for epoch in range(1, epochs + 1):
        order = torch.randperm(len(pixels), generator=generator, device=device).cpu()
        batches = order[: len(order) // batch_size * batch_size].split(batch_size)
        for position, batch in enumerate(batches, start=1):
            pictures = to_unit_range(pixels[batch].to(device))
            target, start_from = pictures[:half], pictures[half : 2 * half]
            reconstruction = rebuild(start_from, target)
            loss = adaptation_loss(tuned(reconstruction), tuned(target), frozen(target), frozen(reconstruction), distillation)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            yield Progress(step, epoch, position == len(batches), loss.detach())
