"""What normal pictures teach a detector, measured once and kept beside the weights: references, spreads, the balance and thresholds."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import calibration
import checkpoint
import normality
import parallel
import runtime
from anomaly_map import resized, smooth
from calibration import Calibration
from dataset import ImageFolder
from ddad import content_seed
from detection import Detector, fingerprint, in_batches
from normality import Reference
from settings import Settings


def calibrated(detector: Detector, settings: Settings) -> Detector:
    """With the calibration of the category's checkpoint folder, if it is of these networks and settings; else it is measured and kept there.

    Raises FileNotFoundError where it has to be measured and train/good is not at hand.
    """
    folder, now = settings.checkpoint_folder, fingerprint(detector, settings)
    there = parallel.group().told(checkpoint.load_calibration(folder))
    stale = there.staleness(now) if there else f"no {checkpoint.CALIBRATION} of this version in {folder}"
    if there and not stale:
        kept = replace(there, settings=settings.as_dict())  # what does not matter to it may be new
    else:
        print(f"calibration is to be measured: {stale}", flush=True)
        try:
            whole = ImageFolder(settings.category_dir, "train", detector.view)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{folder / checkpoint.CALIBRATION} can't be used ({stale}), nor measured again: {error}") from error
        kept = measured(detector, whole, now, settings)
    if settings.model.save_model and kept != there:
        try:
            checkpoint.save_calibration(folder, kept)
        except OSError as error:
            print(f"the calibration is not kept: {error}")
    print(kept.describe(detector.false_positive_rate), flush=True)
    return replace(detector, calibration=kept)


def measured(detector: Detector, whole: ImageFolder, made_with: dict[str, Any], settings: Settings) -> Calibration:
    """On the pictures that no stage has seen; on others of train/good where there are none, as with released weights. References are learnt
    from those that it is not measured on."""
    processes = parallel.group()
    unseen = whole.only(unseen_pictures(settings))
    normal = (unseen or whole).drawn(settings.calibration.pictures, settings.model.seed)
    references = processes.told(referred(detector, whole.without(normal.names()), settings)) if detector.parts else {}
    found = in_batches(detector, normal, lambda pictures: parts_alone(detector, pictures, references), settings.model.num_workers, processes)
    parts = [one for _, one in runtime.count(found, len(normal), "calibrating")]
    return processes.told(judged(detector, parts, references, len(unseen) > 0, made_with, settings) if processes.leads else None)


def referred(detector: Detector, pictures: ImageFolder, settings: Settings) -> dict[str, Reference]:
    """The references of the detector's parts, from so many descriptors of all these pictures as are needed."""
    processes, seed = parallel.group(), settings.model.seed
    each = max(1, normality.SAMPLE // len(pictures))

    def sampled(batch: Tensor) -> list[dict[str, Tensor]]:
        described = detector.compared(batch, detector.picture_noise).described
        streams = [torch.Generator().manual_seed(content_seed(picture, seed)) for picture in batch]
        return [{kind: normality.drawn(maps[place], each, stream) for kind, maps in described.items()} for place, stream in enumerate(streams)]

    found = in_batches(detector, pictures, sampled, settings.model.num_workers, processes)
    samples = [one for _, one in runtime.count(found, len(pictures), "learning what is normal")]
    kinds = {kind: torch.cat([one[kind] for one in samples]) for kind in (samples[0] if samples else {})}
    return normality.learnt(kinds, detector.parts, torch.Generator().manual_seed(seed)) if processes.leads else {}


def parts_alone(detector: Detector, pictures: Tensor, references: dict[str, Reference]) -> list[dict[str, Tensor]]:
    """The parts (1, 1, h, w) of each picture."""
    parts = detector.parts_of(detector.compared(pictures, detector.picture_noise), references)
    return [{part: maps[place : place + 1].cpu() for part, maps in parts.items()} for place in range(len(pictures))]


def judged(
    detector: Detector,
    parts: list[dict[str, Tensor]],
    references: dict[str, Reference],
    held_out: bool,
    made_with: dict[str, Any],
    settings: Settings,
) -> Calibration:
    """The calibration that normal pictures of these parts give."""

    def scored(maps: Tensor) -> Tensor:
        return detector.cropped(smooth(maps, detector.blur_sigma))

    feature, pixel = calibration.mean_tops(torch.tensor([[scored(one[part]).max() for part in normality.DISTANCES] for one in parts]))
    spreads = {part: normality.spread([scored(resized(one[part], one["pixel"].shape[-2:])) for one in parts]) for part in detector.parts}
    maps = [detector.combined(one, feature / pixel, spreads) for one in parts]
    findings = [detector.finding(torch.empty(0), one["feature"][0], one["pixel"][0], whole[0]) for one, whole in zip(parts, maps, strict=True)]
    return Calibration(
        feature,
        pixel,
        scores=tuple(sorted(finding.score for finding in findings)),
        pixels=calibration.pixel_quantiles(detector.cropped(finding.anomaly).numpy() for finding in findings),
        held_out=held_out,
        made_with=made_with,
        settings=settings.as_dict(),
        spreads=spreads,
        references=references,
    )


def unseen_pictures(settings: Settings) -> set[str]:
    """The pictures of train/good that neither the UNet nor the adapted features were trained on, as far as their files say."""
    folder, model = settings.checkpoint_folder, settings.model
    unseen = set(checkpoint.held_out(checkpoint.find(folder, model.load_chp)))
    return unseen & set(checkpoint.held_out(checkpoint.find(folder, model.DA_chp, checkpoint.FEATURES_PREFIX))) if model.DA_chp else unseen
