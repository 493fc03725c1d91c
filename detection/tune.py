"""--tune: choose settings of detection without labels, by synthetic anomalies on pictures that training has not seen.

Settings are tuned one by one. Each takes the value that best separates these pictures from their copies with anomalies,
full or faint. The value must gain LEAST_GAIN, and no kind of anomaly may lose more than MOST_LOST.
"""

import itertools
import json
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

import metrics
from config.checks import check_combinations
from config.keys import PER_IMAGE, Settings
from dataset import ImageFolder, to_unit_range
from detection.calibrate import (
    Parts,
    UnseenJudges,
    build_calibration,
    learn_memories,
    leaves_one_out,
    parts_of_batch,
    unseen_pictures,
    weighs_parts,
)
from detection.detector import Detector, crop_centre, load_detector
from detection.reference import DESCRIBED_BY
from images.synthetic_defects import make_synthetic_anomalies
from runtime.device import choose_device
from runtime.errors import UserError
from runtime.progress import announce
from storage import folder_lock
from storage.atomic_file import atomic_write, ensure_writable
from training import checkpoint
from training.networks import prepare_features
from training.normal_pictures import normal_pictures

TUNED, LOG = "tuned.yaml", "tuning.jsonl"
REMEDY = "name another folder with --output"
PICTURES = 40  # held-out normal ones, at most
COPIES = 2  # of each picture; each copy has its own anomaly and noise, as single draws vary
FAINT = 0.3  # share of an anomaly's change in a faint copy; most settings find the full change
LEAST_GAIN = 0.005  # of the objective, at most 1: 2.5 standard deviations between draws on most categories
MOST_LOST = 0.02  # of a kind's image AUROC, as real defects may all be of that kind
PRO_LIMIT = 0.3
FEATURES = "model.DA_chp"
RECONSTRUCTION_SETTINGS: Mapping[str, Sequence[object]] = {  # the values to try; each needs new reconstructions
    "model.w": (0.0, 1.0, 2.0, 3.0, 5.0, 8.0),
    "model.test_trajectoy_steps": (100, 250, 400, 650),
    "model.skip": (25, 50, 125),
}
SCORE_SETTINGS: Mapping[str, Sequence[object]] = {  # they change only maps and scores
    "model.v": (0.25, 0.5, 1.0, 2.0, 4.0),
    "score.pooling": ("maximum", "top_mean"),
    "score.pooled_share": (0.002, 0.01, 0.05),
}


class Quality(NamedTuple):
    """How well synthetic anomalies are found, as fractions: image AUROC by kind, and PRO over all pictures."""

    kinds: dict[str, float]
    pro: float

    @property
    def objective(self) -> float:
        """Return the mean of image AUROC and PRO: detection and localisation count alike."""
        return (float(np.mean(list(self.kinds.values()))) + self.pro) / 2

    def replaces(self, other: "Quality") -> bool:
        """Return whether settings of this quality replace those of the `other`."""
        lost = max(other.kinds[kind] - image_auroc for kind, image_auroc in self.kinds.items())
        return self.objective > other.objective + LEAST_GAIN and lost <= MOST_LOST


@dataclass(frozen=True, eq=False)
class Bench:
    """Normal pictures (C, H, W), copies with anomalies and their masks (H, W); the quality ignores `others`."""

    unseen: list[str]
    clean: list[Tensor]
    anomalous: list[Tensor]
    kinds: NDArray[np.str_]
    masks: list[NDArray[np.bool_]]
    learnt_from: ImageFolder
    others: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Trial:
    """A calibrated detector, and the parts of a bench's pictures that it measured."""

    detector: Detector
    clean: list[Parts]
    anomalous: list[Parts]
    others: list[Parts]


class TrialResult(NamedTuple):
    """The setting that a trial changed, the trial's quality, and the best settings so far."""

    setting: str
    value: object
    quality: Quality
    taken: bool
    best: Settings
    trial: Trial


def check_tuning(settings: Settings, output: Path | None = None) -> tuple[Path, ImageFolder, ImageFolder]:
    """Return the results folder, all normal pictures, and the unseen ones. Raise UserError for a wrong setting."""
    if settings.score.protocol != PER_IMAGE:
        reason = "--tune needs thresholds for single pictures, which score.protocol=published has not"
        raise UserError(f"{reason}; set it to per_image")
    folder = output or settings.results_folder
    pictures = normal_pictures(settings)
    # with `cross`, the network has seen all, but the memories that a trial learns have not seen these
    unseen = pictures if leaves_one_out(settings, len(pictures)) else unseen_pictures(settings, pictures)
    unseen = unseen.sample(min(PICTURES, len(pictures) // 2), settings.model.seed)
    if not len(unseen):
        remedy = "--tune needs some: train with calibration.share above 0"
        raise UserError(f"training has seen all normal pictures of {settings.data.category}; {remedy}")
    ensure_writable(folder, REMEDY)
    return folder, pictures, unseen


def tune_settings(settings: Settings, output: Path | None = None) -> Path:
    """Choose settings; write tuned.yaml and tuning.jsonl to `output` (or the results folder), and return it."""
    folder, pictures, unseen = check_tuning(settings, output)
    began, device, category = time.monotonic(), choose_device(settings.model.device), settings.data.category
    with folder_lock.locked(folder, REMEDY):
        detector, settings, origins = load_detector(settings, settings.checkpoint_folder, device)
        bench = prepare_bench(pictures, unseen, settings)
        counts = f"{len(bench.clean)} normal pictures, {len(bench.anomalous)} synthetic anomalies, half of them faint"
        places = {"reads": settings.category_dir / "train", **origins, "writes": folder}
        announce(f"Tuning {category}: {counts}", device, settings.as_dict(), places)
        best, lines = settings, []
        for setting, value, quality, taken, chosen, _ in run_trials(detector, settings, bench):
            best, mark = chosen, " *" if taken else ""
            print(f"  {setting} = {value}: objective {quality.objective:.4f}{mark}", flush=True)
            entry = {"setting": setting, "value": value, "objective": quality.objective, "taken": taken}
            lines.append(json.dumps({**entry, "pro": quality.pro, "image_auroc": quality.kinds}) + "\n")
            with atomic_write(folder / LOG, REMEDY, "w") as file:
                file.writelines(lines)
        with atomic_write(folder / TUNED, REMEDY, "w") as file:
            yaml.safe_dump(best.as_dict(), file, sort_keys=False)
    values = {name: attrgetter(name)(best) for name in (*RECONSTRUCTION_SETTINGS, *SCORE_SETTINGS, FEATURES)}
    changed = [f"{name}={value}" for name, value in values.items() if value != attrgetter(name)(settings)]
    print(f"tuned {category} in {(time.monotonic() - began) / 60:.1f} min: {', '.join(changed) or 'no value gains'}")
    print(f"use it with --config {shlex.quote(str(folder / TUNED))}; all trials are in {folder / LOG}", flush=True)
    return folder


def prepare_bench(pictures: ImageFolder, unseen: ImageFolder, settings: Settings) -> Bench:
    """Return the pictures of all trials, with every anomaly in full and faint."""
    pixels = unseen.pixels(settings.model.num_workers)
    changed, kinds, masks = make_synthetic_anomalies(pixels, COPIES, settings.model.seed)
    clean, full = ([to_unit_range(picture) for picture in group] for group in (pixels, changed))
    faint = [clean[number % len(clean)].lerp(picture, FAINT) for number, picture in enumerate(full)]
    kinds = np.r_[kinds, [f"{kind}, faint" for kind in kinds]]
    return Bench(unseen.names(), clean, full + faint, kinds, 2 * masks, pictures.without(unseen.names()))


def run_trials(detector: Detector, settings: Settings, bench: Bench) -> Iterator[TrialResult]:
    """Yield each trial's result; the first one is of the present settings."""
    trial = try_detector(detector, bench, settings)
    best, quality = settings, measure_quality(trial, bench)
    yield TrialResult("present settings", None, quality, True, best, trial)
    features = {FEATURES: features_to_try(settings, bench.unseen)}
    for name, values in {**RECONSTRUCTION_SETTINGS, **features, **SCORE_SETTINGS}.items():
        for candidate in alternatives(settings, best, name, values):
            changed = with_settings(trial.detector, candidate)
            if name in SCORE_SETTINGS:
                other = replace(trial, detector=changed)
            elif name == FEATURES:
                other = try_detector(with_features(changed, candidate), bench, candidate)
            else:
                other = try_detector(changed, bench, candidate, trial)
            measured = measure_quality(other, bench)
            if taken := measured.replaces(quality):
                best, trial, quality = candidate, other, measured
            yield TrialResult(name, attrgetter(name)(candidate), measured, taken, best, other)


def features_to_try(settings: Settings, unseen: Sequence[str]) -> list[int]:
    """Return other adaptation epochs of the same network, whose adaptation has not seen these pictures."""
    model, epochs = settings.model, checkpoint.epochs_in(settings.checkpoint_folder, checkpoint.FEATURES_PREFIX)
    usable = []
    for epoch, path in sorted(epochs.items()):
        is_other = epoch != model.DA_chp and checkpoint.extractor_name(path) == model.feature_extractor
        is_unseen = epoch == 0 or settings.calibration.on_validation
        if is_other and (is_unseen or set(unseen) <= set(checkpoint.held_out_names(path))):
            usable.append(epoch)
    return usable


def alternatives(settings: Settings, best: Settings, name: str, values: Sequence[object]) -> Iterator[Settings]:
    """Yield the best settings with each other value of the key `name`, if the combination is valid."""
    if has_no_effect(name, best):
        return
    for value in values:
        if value != attrgetter(name)(settings):
            with suppress(UserError):
                candidate = with_setting(best, name, value)
                check_combinations(candidate)
                yield candidate


def has_no_effect(name: str, settings: Settings) -> bool:
    """Return whether the score does not depend on this setting."""
    parts = settings.score.parts
    if name == "model.v":
        return bool(parts)
    if name == "score.pooled_share":
        return settings.score.pooling == "maximum"
    return name in RECONSTRUCTION_SETTINGS and bool(parts) and set(parts or ()) <= set(DESCRIBED_BY)


def with_settings(detector: Detector, settings: Settings) -> Detector:
    """Return the detector with the same networks and all tuned settings except the features."""
    model, score = settings.model, settings.score
    networks = replace(detector.networks, w=model.w, start=model.test_trajectoy_steps, skip=model.skip)
    return replace(detector, networks=networks, v=model.v, pooling=score.pooling, pooled_share=score.pooled_share)


def with_features(detector: Detector, settings: Settings) -> Detector:
    """Return the detector with the features of another adaptation epoch."""
    folder, model = settings.checkpoint_folder, settings.model
    extractor, _ = checkpoint.restore_features(folder, model.DA_chp, model.feature_extractor, model.backbone_weights)
    prepared = prepare_features(extractor, detector.view, detector.device)
    return replace(detector, networks=replace(detector.networks, extractor=prepared))


def try_detector(detector: Detector, bench: Bench, settings: Settings, before: Trial | None = None) -> Trial:
    """Measure and calibrate a detector; its memory parts, which need no reconstructions, come from `before`."""
    taken_over = [part for part in detector.parts if before and part in DESCRIBED_BY]
    measured = replace(detector, parts=tuple(part for part in detector.parts if part not in taken_over))
    memories, _ = learn_memories(measured, bench.learnt_from, settings)
    references = {part: memory.reference for part, memory in memories.items()}
    judges = UnseenJudges.of(measured, settings)

    def measure(pictures: Sequence[Tensor], earlier: Sequence[Parts]) -> list[Parts]:
        by_picture = zip(pictures, itertools.cycle(map(judges.judge_of, bench.unseen)))  # copies follow in their order
        parts = [parts_of_batch(judge, picture[None], [references])[0] for picture, judge in by_picture]
        pairs = zip(parts, earlier or parts, strict=True)
        return [new | {part: old[part] for part in taken_over} for new, old in pairs]

    earlier = (before.clean, before.anomalous, before.others) if before else ((), (), ())
    clean, anomalous, others = map(measure, (bench.clean, bench.anomalous, bench.others), earlier)
    if before:
        references |= {part: before.detector.required_calibration.references[part] for part in taken_over}
    weighing = anomalous if weighs_parts(settings) else ()
    calibration = build_calibration(detector, clean, references, anomalous=weighing)
    return Trial(replace(detector, calibration=calibration), clean, anomalous, others)


def measure_quality(trial: Trial, bench: Bench) -> Quality:
    """Return how well the trial separates synthetic anomalies from normal pictures, and locates them."""
    detector, known = trial.detector, trial.detector.required_calibration
    predictions = [detector.assemble(parts, known.balance, known.scales) for parts in trial.clean + trial.anomalous]
    normal, anomalous = np.split(np.array([prediction.score for prediction in predictions]), [len(trial.clean)])
    kinds = {}
    for kind in np.unique(bench.kinds):
        scores = np.r_[normal, anomalous[bench.kinds == kind]]
        kinds[str(kind)] = metrics.image_auroc(scores, np.arange(len(scores)) >= len(normal))
    maps = [crop_centre(prediction.anomaly, detector.crop).numpy() for prediction in predictions]
    empty = [np.zeros(picture.shape[-2:], dtype=bool) for picture in bench.clean]
    masks = [crop_centre(torch.from_numpy(mask), detector.crop).numpy() for mask in empty + bench.masks]
    judged = detector.judged_area(bench.clean[0].shape[-2:])
    return Quality(kinds, mean_pro(maps, masks, None if judged is None else judged.numpy()))


def mean_pro(
    maps: Sequence[NDArray[np.float32]], masks: Sequence[NDArray[np.bool_]], counted: metrics.Counted = None
) -> float:
    """Return PRO of maps of one shape, ranked together; for several shapes, the mean weighted by counts.

    Only pixels where `counted` is true are ranked; all maps then have its shape.
    """
    total = 0.0
    for shape in {values.shape for values in maps}:
        same = [place for place, values in enumerate(maps) if values.shape == shape]
        pro = metrics.pro(np.stack([maps[i] for i in same]), np.stack([masks[i] for i in same]), PRO_LIMIT, counted)
        total += len(same) * pro
    return total / len(maps)


def with_setting(settings: Settings, name: str, value: object) -> Settings:
    section, _, key = name.partition(".")
    return replace(settings, **{section: replace(getattr(settings, section), **{key: value})})
