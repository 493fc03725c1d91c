"""What normal pictures teach a detector, measured once and kept beside the weights: references, spreads, the balance and thresholds."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import calibration
import checkpoint
import metrics
import normality
import parallel
import runtime
from anomaly_map import resized, smooth
from calibration import Calibration
from dataset import ImageFolder, to_unit_range
from ddad import content_seed
from detection import Detector, fingerprint, in_batches
from normality import Reference
from settings import Settings
from synthetic import ALL_DEFECTS, spoilt

SPOILT = 42  # normal pictures, at most, that get made defects to choose parts by
LEAST_GAIN = 0.01  # of image AUROC

Parts = dict[str, Tensor]


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
    if not processes.leads:
        return processes.told(None)
    kept = detector.parts
    if settings.score.drop_parts and len(kept) > 1:
        made = made_defects(normal.drawn(SPOILT, settings.model.seed).pixels(settings.model.num_workers), 1, settings.model.seed)
        spoilt_parts = [part for picture in made.pictures for part in parts_alone(detector, picture[None], references)]
        kept = useful(detector, parts, spoilt_parts, made.kinds)
    return processes.told(judged(detector, kept, parts, references, len(unseen) > 0, made_with, settings))


class MadeDefects(NamedTuple):
    """Normal pictures (C, H, W) in [−1, 1] with a made defect each, its kind, and its mask (H, W)."""

    pictures: list[Tensor]
    kinds: NDArray[np.str_]
    masks: list[NDArray[np.bool_]]


def made_defects(normal: Sequence[Tensor], copies: int, seed: int) -> MadeDefects:
    """`copies` of each normal picture (C, H, W) uint8; the kinds take turns, where a defect lies follows from the seed."""
    rng, names = np.random.default_rng(seed), list(ALL_DEFECTS)
    kinds = [names[number % len(names)] for number in range(copies * len(normal))]
    arrays = [pixels.permute(1, 2, 0).numpy().astype(np.float32) / np.float32(255) for pixels in normal]
    made = [spoilt(arrays[number % len(arrays)], ALL_DEFECTS[kind], rng) for number, kind in enumerate(kinds)]
    pixels = [torch.from_numpy((changed.clip(0, 1) * 255).round().astype(np.uint8)).permute(2, 0, 1).contiguous() for changed, _ in made]
    return MadeDefects([to_unit_range(one) for one in pixels], np.array(kinds), [mask for _, mask in made])


def useful(detector: Detector, normal: Sequence[Parts], defective: Sequence[Parts], kinds: NDArray[np.str_]) -> tuple[str, ...]:
    """The detector's parts without those that only hide made defects: as long as leaving one out lets them be told from normal pictures better,
    by LEAST_GAIN of the mean image AUROC over the kinds, the one whose loss gains most is left out."""

    def told_apart(parts: tuple[str, ...]) -> float:
        kept = judged(detector, parts, normal, {}, True, {}, None)
        scores = [np.array([scored(replace(detector, calibration=kept), one) for one in some]) for some in (normal, defective)]
        of = [np.r_[scores[0], scores[1][kinds == kind]] for kind in np.unique(kinds)]
        return float(np.mean([metrics.image_auroc(both, np.arange(len(both)) >= len(normal)) for both in of]))

    kept, best = detector.parts, told_apart(detector.parts)
    while len(kept) > 1:
        fewer = {tuple(part for part in kept if part != left_out): left_out for left_out in kept}
        found = {parts: told_apart(parts) for parts in fewer}
        candidate = max(found, key=lambda parts: found[parts])
        if found[candidate] < best + LEAST_GAIN:
            break
        print(f"part {fewer[candidate]} is left out: without it made defects have an image AUROC of {found[candidate]:.3f}, with it {best:.3f}")
        kept, best = candidate, found[candidate]
    return kept


def scored(detector: Detector, parts: Parts) -> float:
    """The image score of a picture's parts (1, 1, h, w)."""
    known = detector.known_normals
    anomaly = detector.combined(parts, known.balance, known.spreads)[0]
    return detector.finding(torch.empty(0), parts["feature"][0], parts["pixel"][0], anomaly).score


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


def parts_alone(detector: Detector, pictures: Tensor, references: Mapping[str, Reference]) -> list[Parts]:
    """The parts (1, 1, h, w) of each picture."""
    parts = detector.parts_of(detector.compared(pictures, detector.picture_noise), references)
    return [{part: maps[place : place + 1].cpu() for part, maps in parts.items()} for place in range(len(pictures))]


def judged(
    detector: Detector,
    kept: Sequence[str],
    parts: Sequence[Parts],
    references: Mapping[str, Reference],
    held_out: bool,
    made_with: dict[str, Any],
    settings: Settings | None,
) -> Calibration:
    """The calibration that normal pictures of these parts give, of which those that are `kept` make the map."""

    def smoothed(maps: Tensor) -> Tensor:
        return detector.cropped(smooth(maps, detector.blur_sigma))

    feature, pixel = calibration.mean_tops(torch.tensor([[smoothed(one[part]).max() for part in normality.DISTANCES] for one in parts]))
    spreads = {part: normality.spread([smoothed(resized(one[part], one["pixel"].shape[-2:])) for one in parts]) for part in kept}
    maps = [detector.combined(one, feature / pixel, spreads) for one in parts]
    findings = [detector.finding(torch.empty(0), one["feature"][0], one["pixel"][0], whole[0]) for one, whole in zip(parts, maps, strict=True)]
    return Calibration(
        feature,
        pixel,
        scores=tuple(sorted(finding.score for finding in findings)),
        pixels=calibration.pixel_quantiles(detector.cropped(finding.anomaly).numpy() for finding in findings),
        held_out=held_out,
        made_with=made_with,
        settings=settings.as_dict() if settings else {},
        spreads=spreads,
        references={part: reference for part, reference in references.items() if part in kept},
    )


def unseen_pictures(settings: Settings) -> set[str]:
    """The pictures of train/good that neither the UNet nor the adapted features were trained on, as far as their files say."""
    folder, model = settings.checkpoint_folder, settings.model
    unseen = set(checkpoint.held_out(checkpoint.find(folder, model.load_chp)))
    return unseen & set(checkpoint.held_out(checkpoint.find(folder, model.DA_chp, checkpoint.FEATURES_PREFIX))) if model.DA_chp else unseen
