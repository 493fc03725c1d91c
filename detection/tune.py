"""--tune: settings of detection chosen without labels, by made defects on normal pictures that training has not seen.

Each of these pictures is judged as it is and with defects of several kinds (synthetic.py), in full and faint. One setting after the other takes
the value by which the two are told apart best; a value that gains less than LEAST_GAIN does not replace the present one, nor one by which a kind of
defect loses more than MOST_LOST. All that was tried is in tuning.jsonl, what was chosen in tuned.yaml, a configuration for --config.
"""

import json
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

import metrics
from config.checks import check_combinations
from config.keys import PER_IMAGE, Settings
from dataset import ImageFolder, View, to_unit_range
from detection import reference
from detection.calibrate import assemble, build_calibration, learn_references, parts_of_batch, unseen_pictures
from detection.detector import Detector, load_detector
from images.synthetic_defects import make_synthetic_anomalies
from runtime.device import choose_device
from runtime.errors import UserError
from runtime.progress import announce
from storage import folder_lock
from storage.atomic_file import atomic_write, ensure_writable
from training import checkpoint

TUNED, LOG = "tuned.yaml", "tuning.jsonl"
REMEDY = "name another folder with --output"
PICTURES = 40  # held-out normal ones, at most
COPIES = 2  # of each, with a defect and noise of its own: what one draw comes to is averaged
FAINT = 0.3  # of a defect's change, as what it makes in full is told apart by most settings
LEAST_GAIN = 0.005  # of the objective, which is at most 1: 2.5 standard deviations of gains between draws on most categories (benchmarks/accuracy.md)
MOST_LOST = 0.02  # of a kind's image AUROC: real defects may all be of a kind that others' gains would pay for
PRO_LIMIT = 0.3
REBUILT: dict[str, Sequence[Any]] = {  # settings that take new reconstructions of all pictures, and values to try
    "model.w": (1.0, 2.0, 3.0, 5.0, 8.0),
    "model.test_trajectoy_steps": (100, 250, 400),
    "model.skip": (25, 50, 125),
}
SCORED: dict[str, Sequence[Any]] = {  # those that only change what is made of them
    "model.v": (0.25, 0.5, 1.0, 2.0, 4.0),
    "score.pooling": ("maximum", "top_mean"),
    "score.pooled_share": (0.002, 0.01, 0.05),
}

Parts = list[dict[str, Tensor]]


class Quality(NamedTuple):
    """How well made defects are found: image AUROC by kind, and PRO of all pictures, normal ones among them; fractions."""

    kinds: dict[str, float]
    pro: float

    @property
    def objective(self) -> float:
        """Finding the pictures and outlining the defects count alike."""
        return (float(np.mean(list(self.kinds.values()))) + self.pro) / 2

    def replaces(self, other: "Quality") -> bool:
        """Whether settings of this quality are taken in place of those of the `other`."""
        lost = max(other.kinds[kind] - image_auroc for kind, image_auroc in self.kinds.items())
        return self.objective > other.objective + LEAST_GAIN and lost <= MOST_LOST


@dataclass(frozen=True, eq=False)
class Trial:
    """What a detector makes of a bench's pictures."""

    detector: Detector
    clean: Parts
    spoilt: Parts
    others: Parts


@dataclass(frozen=True, eq=False)
class Bench:
    """Normal pictures (C, H, W) with their names, spoilt copies of them with kinds and masks (H, W), the pictures to learn references from, and
    others that are compared as well, but judge nothing."""

    unseen: list[str]
    clean: list[Tensor]
    spoilt: list[Tensor]
    kinds: NDArray[np.str_]
    masks: list[NDArray[np.bool_]]
    learnt_from: ImageFolder
    others: list[Tensor] = field(default_factory=list)


def check_tuning(settings: Settings, output: Path | None = None) -> tuple[Path, ImageFolder, ImageFolder]:
    """The folder of the results, all normal pictures, and those that training has not seen; raises what would stop the stage later."""
    if settings.score.protocol != PER_IMAGE:
        raise UserError(
            "--tune judges by thresholds of single pictures, which score.protocol=published has not; set it to per_image"
        )
    folder, pictures = (
        output or settings.results_folder,
        ImageFolder(settings.category_dir, "train", View(**settings.view_arguments())),
    )
    unseen = pictures.only(unseen_pictures(settings)).sample(PICTURES, settings.model.seed)
    if not len(unseen):
        raise UserError(
            f"training has seen all normal pictures of {settings.data.category}; --tune needs some: train with calibration.share above 0"
        )
    ensure_writable(folder, REMEDY)
    return folder, pictures, unseen


def tune_settings(settings: Settings, output: Path | None = None) -> Path:
    """Choose; leaves tuned.yaml and tuning.jsonl in a folder (results/<exp_name>/<category>), which is returned."""
    folder, pictures, unseen = check_tuning(settings, output)
    with folder_lock.locked(folder, REMEDY):
        tune_category(settings, folder, pictures, unseen)
    return folder


def tune_category(settings: Settings, folder: Path, pictures: ImageFolder, unseen: ImageFolder) -> None:
    began, device = time.monotonic(), choose_device(settings.model.device)
    _, settings, origins = load_detector(settings, settings.checkpoint_folder, device)
    bench = prepare_bench(pictures, unseen, settings)
    announce(
        f"Tuning {settings.data.category}: {len(bench.clean)} normal pictures, {len(bench.spoilt)} made defects, half of them faint",
        device,
        settings.as_dict(),
        {"reads": settings.category_dir / "train", **origins, "writes": folder},
    )
    chosen, tried = settings, []
    for line, best, _ in choices(settings, bench, device):
        tried.append(line)
        chosen = best
        print(
            f"  {line['setting']} = {line['value']}: objective {line['objective']:.4f}{' *' if line['taken'] else ''}",
            flush=True,
        )
        with atomic_write(folder / LOG, REMEDY, "w") as file:
            file.writelines(json.dumps(one) + "\n" for one in tried)
    with atomic_write(folder / TUNED, REMEDY, "w") as file:
        yaml.safe_dump(chosen.as_dict(), file, sort_keys=False)
    changed = [
        f"{name}={setting_value(chosen, name)}"
        for name in (*REBUILT, *SCORED, "model.DA_chp")
        if setting_value(chosen, name) != setting_value(settings, name)
    ]
    print(
        f"tuned {settings.data.category} in {(time.monotonic() - began) / 60:.1f} min: {', '.join(changed) or 'nothing gains'}"
    )
    print(f"use it with --config {shlex.quote(str(folder / TUNED))}; what was tried is in {folder / LOG}", flush=True)


def prepare_bench(pictures: ImageFolder, unseen: ImageFolder, settings: Settings) -> Bench:
    """The pictures of all trials: every defect is made in full, and once more FAINT."""
    pixels = unseen.pixels(settings.model.num_workers)
    made = make_synthetic_anomalies(pixels, COPIES, settings.model.seed)
    clean, spoilt = ([to_unit_range(one) for one in some] for some in (pixels, made.pictures))
    faint = [clean[number % len(clean)].lerp(changed, FAINT) for number, changed in enumerate(spoilt)]
    kinds = np.r_[made.kinds, [f"{kind}, faint" for kind in made.kinds]]
    return Bench(unseen.names(), clean, spoilt + faint, kinds, 2 * made.masks, pictures.without(unseen.names()))


def choices(settings: Settings, bench: Bench, device: torch.device) -> Iterator[tuple[dict[str, Any], Settings, Trial]]:
    """What each trial gave, for the log, the best settings so far, and the trial."""
    trial = try_settings(settings, bench, device)
    best, quality = settings, measure_quality(trial, bench)
    yield log_entry("present settings", None, quality, True), best, trial
    for name, values in (REBUILT | {"model.DA_chp": features_to_try(settings, bench.unseen)} | SCORED).items():
        for candidate in alternatives(settings, best, name, values):
            if name in SCORED:
                other = replace(trial, detector=scored_as(trial.detector, candidate))
            else:
                other = try_settings(candidate, bench, device, trial if name in REBUILT else None)
            found = measure_quality(other, bench)
            taken = found.replaces(quality)
            if taken:
                best, trial, quality = candidate, other, found
            yield log_entry(name, setting_value(candidate, name), found, taken), best, other


def features_to_try(settings: Settings, unseen: Sequence[str]) -> list[int]:
    """Other adaptation epochs of the same network, whose adaptation has not seen these pictures."""
    there = checkpoint.epochs_in(settings.checkpoint_folder, checkpoint.FEATURES_PREFIX)
    return [
        epoch
        for epoch, path in sorted(there.items())
        if epoch != settings.model.DA_chp
        and checkpoint.extractor_name(path) == settings.model.feature_extractor
        and (epoch == 0 or set(unseen) <= set(checkpoint.held_out_names(path)))
    ]


def alternatives(settings: Settings, best: Settings, name: str, values: Sequence[Any]) -> Iterator[Settings]:
    """The best settings with each other value of a key with which they go together."""
    for other in values:
        candidate = with_setting(best, name, other)
        if has_no_effect(name, best) or other == setting_value(settings, name):
            continue
        try:
            check_combinations(candidate)
        except ValueError:
            continue
        yield candidate


def has_no_effect(name: str, settings: Settings) -> bool:
    """Whether the map does not depend on this setting."""
    parts = settings.score.parts
    if name == "model.v":
        return bool(parts)
    if name == "score.pooled_share":
        return settings.score.pooling == "maximum"
    return name in REBUILT and bool(parts) and all(part in reference.DESCRIBED_BY for part in parts or ())


def try_settings(settings: Settings, bench: Bench, device: torch.device, before: Trial | None = None) -> Trial:
    """All pictures, by the detector of these settings; parts that look at the pictures alone are taken from a trial `before`."""
    detector, settings, _ = load_detector(settings, settings.checkpoint_folder, device)
    same = [part for part in detector.parts if before and part in reference.DESCRIBED_BY]
    changing = replace(detector, parts=tuple(part for part in detector.parts if part not in same))
    references = learn_references(changing, bench.learnt_from, settings)

    def compared(pictures: list[Tensor], then: Parts | None) -> Parts:
        parts = [one for picture in pictures for one in parts_of_batch(changing, picture[None], references)]
        return [one | {part: old[part] for part in same} for one, old in zip(parts, then or parts, strict=True)]

    clean, spoilt, others = (
        compared(getattr(bench, some), getattr(before, some, None)) for some in ("clean", "spoilt", "others")
    )
    references |= {part: before.detector.known_normals.references[part] for part in same} if before else {}
    known = build_calibration(detector, clean, references, held_out=True, made_with={}, settings={})
    return Trial(replace(detector, calibration=known), clean, spoilt, others)


def measure_quality(trial: Trial, bench: Bench) -> Quality:
    """How well the spoilt pictures are told from the others."""
    detector, known = trial.detector, trial.detector.known_normals
    found = [assemble(detector, parts, known.balance, known.scales) for parts in (*trial.clean, *trial.spoilt)]
    scores, normals = np.array([finding.score for finding in found]), len(trial.clean)
    maps = [detector.cropped(finding.anomaly).numpy() for finding in found]
    spotless = [np.zeros(picture.shape[-2:], dtype=bool) for picture in bench.clean]
    masks = [detector.cropped(torch.from_numpy(mask)).numpy() for mask in (*spotless, *bench.masks)]
    kinds = by_kind(scores[:normals], scores[normals:], bench.kinds)
    by_shape = [
        [place for place, one in enumerate(maps) if one.shape == shape] for shape in {one.shape for one in maps}
    ]
    pros = [
        (
            len(places),
            metrics.pro(np.stack([maps[at] for at in places]), np.stack([masks[at] for at in places]), PRO_LIMIT),
        )
        for places in by_shape
    ]
    return Quality(kinds, sum(count * pro for count, pro in pros) / len(maps))


def by_kind(normal: NDArray[np.float64], defective: NDArray[np.float64], kinds: NDArray[np.str_]) -> dict[str, float]:
    """Image AUROC of each kind of defect against the normal pictures, from scores (N,) and (M,)."""
    of = {str(kind): defective[kinds == kind] for kind in np.unique(kinds)}
    return {
        kind: metrics.image_auroc(np.r_[normal, some], np.repeat([False, True], [len(normal), len(some)]))
        for kind, some in of.items()
    }


def scored_as(detector: Detector, settings: Settings) -> Detector:
    return replace(
        detector, v=settings.model.v, pooling=settings.score.pooling, pooled_share=settings.score.pooled_share
    )


def log_entry(name: str, tried_value: Any, quality: Quality, taken: bool) -> dict[str, Any]:
    return {
        "setting": name,
        "value": tried_value,
        "objective": quality.objective,
        "taken": taken,
        "pro": quality.pro,
        "image_auroc": quality.kinds,
    }


def setting_value(settings: Settings, name: str) -> Any:
    section, _, key = name.partition(".")
    return getattr(getattr(settings, section), key)


def with_setting(settings: Settings, name: str, new: Any) -> Settings:
    section, _, key = name.partition(".")
    return replace(settings, **{section: replace(getattr(settings, section), **{key: new})})
