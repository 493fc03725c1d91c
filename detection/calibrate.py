"""What normal pictures teach a detector, measured once and kept beside the weights: references, scales, the balance and thresholds."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from anomaly_map import resize_maps, smooth
from config.keys import LATEST, Settings
from dataset import ImageFolder, picture_fingerprint
from ddad import content_seed
from detection import reference
from detection.calibration_file import CALIBRATION, load_calibration, save_calibration
from detection.detector import Detector, Prediction, calibration_inputs, in_batches
from detection.reference import Reference, Scale
from detection.threshold import Calibration, mean_maxima, pixel_quantiles
from runtime import distributed
from runtime.errors import MissingFileError
from runtime.progress import count_progress
from training import checkpoint

Parts = dict[str, Tensor]


def calibrate(detector: Detector, settings: Settings) -> Detector:
    """With the calibration of the category's checkpoint folder, if it is of these networks and settings, and of the pictures of train/good
    where they are at hand; else it is measured and kept there.

    Raises FileNotFoundError where it has to be measured and train/good is not at hand.
    """
    folder, now = settings.checkpoint_folder, calibration_inputs(detector, settings)
    there = distributed.group().broadcast(load_calibration(folder))
    stale = there.staleness(now) if there else f"no {CALIBRATION} of this version in {folder}"
    try:
        whole = ImageFolder(settings.category_dir, "train", detector.view)
    except FileNotFoundError as error:
        if there is None or stale:
            raise MissingFileError(
                f"{folder / CALIBRATION} can't be used ({stale}), nor measured again: {error}"
            ) from error
        normals = there.normals
    else:
        normals = "{files}, {hash}".format(**picture_fingerprint(whole.samples))
    if there and not stale and there.normals not in (None, normals):
        stale = "the pictures of train/good have changed"
    if there and not stale:
        kept = replace(there, settings=settings.as_dict())  # what does not matter to it may be new
    else:
        print(f"calibration is to be measured: {stale}", flush=True)
        kept = replace(measure_calibration(detector, whole, now, settings), normals=normals)
    if settings.model.save_model and kept != there:
        try:
            save_calibration(folder, kept)
        except OSError as error:
            print(f"the calibration is not kept: {error}")
    print(kept.describe(detector.false_positive_rate), flush=True)
    return replace(detector, calibration=kept)


def measure_calibration(
    detector: Detector, whole: ImageFolder, made_with: dict[str, Any], settings: Settings
) -> Calibration:
    """On the pictures that no stage has seen; on others of train/good where there are none, as with released weights. References are learnt
    from those that it is not measured on, for which half of them are left where all have been seen."""
    processes = distributed.group()
    unseen = whole.only(unseen_pictures(settings))
    normal = (unseen or whole).sample(
        calibration_size(len(whole), len(unseen), settings.calibration.pictures, detector.parts), settings.model.seed
    )
    references = (
        processes.broadcast(learn_references(detector, whole.without(normal.names()) or whole, settings))
        if detector.parts
        else {}
    )
    batches = in_batches(
        detector,
        normal,
        lambda pictures: parts_of_batch(detector, pictures, references),
        settings.model.num_workers,
        processes,
    )
    parts = [one for _, one in count_progress(batches, len(normal), "calibrating")]
    if not processes.is_main:
        return processes.broadcast(None)
    notes = {"held_out": len(unseen) > 0, "made_with": made_with, "settings": settings.as_dict()}
    return processes.broadcast(build_calibration(detector, parts, references, **notes))


def assemble(detector: Detector, parts: Parts, ratio: float, scales: Mapping[str, Scale]) -> Prediction:
    """What the detector finds in a picture of these parts, whose reconstruction it leaves out."""
    return detector.finding(torch.empty(0), parts, ratio, scales)


def learn_references(detector: Detector, pictures: ImageFolder, settings: Settings) -> dict[str, Reference]:
    """Return the references of the detector's parts, learnt from what normal pictures look like."""
    if not reference.kinds_of(detector.parts):
        return {}
    processes, seed, each = distributed.group(), settings.model.seed, reference.samples_per_picture(len(pictures))

    def samples(batch: Tensor) -> list[dict[str, Tensor]]:
        described = image_descriptors(detector, batch)
        seeds = [content_seed(picture, seed) for picture in batch]
        return [
            {kind: reference.sample(maps[i], each, own) for kind, maps in described.items()}
            for i, own in enumerate(seeds)
        ]

    batches = in_batches(detector, pictures, samples, settings.model.num_workers, processes)
    found = [one for _, one in count_progress(batches, len(pictures), "learning what pictures look like")]
    if not processes.is_main:
        return {}
    return reference.build_references({kind: [one[kind] for one in found] for kind in found[0]}, detector.parts, seed)


def image_descriptors(detector: Detector, pictures: Tensor) -> dict[str, Tensor]:
    """What is described of pictures (B, C, H, W) without reconstructing them."""
    described = reference.picture_descriptors(detector.networks.features(pictures.to(detector.device)))
    return {kind: described[kind] for kind in described if kind in reference.kinds_of(detector.parts)}


def calibration_size(pictures: int, unseen: int, most: int, parts: Collection[str]) -> int:
    """On how many of train/good a calibration is measured."""
    return min(most, unseen or (max(1, pictures // 2) if parts else pictures))


def calibration_work(parts: Collection[str], learnt: int, held_out: int, most: int) -> tuple[int, int]:
    """How many pictures `measured` reconstructs and compares, and how many it only looks at, of those that training learns and holds out; it
    judges `most` at most."""
    judged = calibration_size(learnt + held_out, held_out, most, parts)
    return judged, learnt + held_out - judged if reference.kinds_of(parts) else 0


def placeholder_references(detector: Detector, picture: Tensor, pictures: int) -> dict[str, Reference]:
    """References that take as long as the detector's will that are learnt from so many; made before there are any, of one picture (1, C, H, W)."""
    described = detector.compared(picture, detector.picture_noise).described
    kinds = {part: kind for part, kind in reference.DESCRIBED_BY.items() if part in detector.parts}
    return {part: reference.placeholder(described[kind].shape[1], pictures) for part, kind in kinds.items()}


def parts_of_batch(detector: Detector, pictures: Tensor, references: Mapping[str, Reference]) -> list[Parts]:
    """The parts (1, 1, h, w) of each picture."""
    parts = detector.parts_of(detector.compared(pictures, detector.picture_noise), references)
    return [{part: maps[place : place + 1].cpu() for part, maps in parts.items()} for place in range(len(pictures))]


def measure_scales(detector: Detector, normal: Sequence[Parts]) -> tuple[float, float, dict[str, Scale]]:
    """The mean highest D_f and D_p of normal pictures, and the scale of each of the detector's parts."""
    feature, pixel = mean_maxima(
        torch.tensor([[cropped_maps(detector, one[part]).max() for part in reference.DISTANCES] for one in normal])
    )
    maps = {
        part: [cropped_maps(detector, resize_maps(one[part], one["pixel"].shape[-2:])) for one in normal]
        for part in detector.parts
    }
    return feature, pixel, {part: reference.measure_scale(values) for part, values in maps.items()}


def cropped_maps(detector: Detector, maps: Tensor) -> Tensor:
    """Maps (1, 1, H, W) as they are scored: smooth, and cropped."""
    return detector.cropped(smooth(maps, detector.blur_sigma))


def build_calibration(
    detector: Detector, normal: Sequence[Parts], references: Mapping[str, Reference], **notes: Any
) -> Calibration:
    """The calibration that normal pictures of these parts give; `notes` are its other fields."""
    feature, pixel, scales = measure_scales(detector, normal)
    findings = [assemble(detector, one, feature / pixel, scales) for one in normal]
    return Calibration(
        feature,
        pixel,
        scores=tuple(sorted(finding.score for finding in findings)),
        pixels=pixel_quantiles(detector.cropped(finding.anomaly).numpy() for finding in findings),
        scales=scales,
        references=dict(references),
        **notes,
    )


def unseen_pictures(settings: Settings) -> set[str]:
    """The pictures of train/good that neither the UNet nor the adapted features were trained on, as far as their files say."""
    folder, model = settings.checkpoint_folder, settings.model
    unseen = set(checkpoint.held_out_names(checkpoint.find_weights(folder, model.load_chp)))
    adapted = checkpoint.latest_epoch(folder, checkpoint.FEATURES_PREFIX) if model.DA_chp == LATEST else model.DA_chp
    return (
        unseen & set(checkpoint.held_out_names(checkpoint.find_weights(folder, adapted, checkpoint.FEATURES_PREFIX)))
        if adapted
        else unseen
    )
