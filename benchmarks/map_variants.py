"""Measure which anomaly map separates synthetic anomalies best from normal pictures.

    python -m benchmarks.map_variants CHECKPOINT_DIR DATA_DIR/CATEGORY … --work FOLDER [--seeds 0 1] [--rows ROW …]

Each map separates held-out normal pictures of each category from copies with synthetic anomalies, as --tune does. It
reads no test picture. CHECKPOINT_DIR/CATEGORY holds the weights. FOLDER gets finished measurements, so that a stopped
run goes on.

The first table has a row for each map and a column for each category in FOLDER: the objective of --tune in percent
(half image AUROC averaged over kinds of anomalies, half PRO), the mean over seeds. The second table has image AUROC by
kind.

The preset takes the parts with the highest mean. It takes other constants or features where each of three seeds has
them ahead, neither half of the objective loses, no kind loses half a point, and a run still fits ten minutes.
"""

import argparse
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.shared import CONFIG, load_category_settings
from config.keys import Settings
from config.presets import LAPTOP, PRESETS
from detection import reference, tune
from detection.calibrate import build_calibration
from detection.comparison import Networks
from detection.detector import Detector, Parts, load_detector
from detection.tune import Bench, Quality, Trial
from runtime.device import choose_device, keep_memory
from storage.atomic_file import atomic_write

Qualities = dict[str, Quality]  # by the name of the map


@dataclass(frozen=True)
class Change:
    """A change of the preset's map.

    `constants` are names of reference.py with other values, `relearnt` the parts that learn from normal pictures again
    with them, `side` the pixels of the pictures that features see, `blur` a factor of the map's blur.
    """

    constants: Mapping[str, object] = field(default_factory=dict)
    relearnt: tuple[str, ...] = ()
    side: int | None = None
    blur: float = 1


def power_sum(power: float) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """Return a `reference.sum_contributions` that joins units by their sum to a power; 2 is the present one."""
    return lambda units: torch.stack(
        [reference.contribution(part, values.clamp_min(0)) for part, values in units.items()]
    ).norm(power / 2, dim=0)


def unlimited_square(part: str, units: Tensor) -> Tensor:
    """Return a `reference.contribution` that uses squares beyond the top of blurred parts as well."""
    return reference.BLURRED.get(part, 1) * units.square()


def other_boost(factor: float = 1, limit: float = math.inf) -> Callable[[str, Tensor], Tensor]:
    """Return a `reference.contribution` that multiplies and limits the weight of parts that boost."""
    return lambda part, units: (
        (factor * CONTRIBUTION(part, units)).clamp_max(limit)
        if part in reference.PLACELESS
        else CONTRIBUTION(part, units)
    )


CONTRIBUTION, BLURRED = reference.contribution, reference.BLURRED  # the present ones
PRESET_PARTS = tuple(PRESETS[LAPTOP]["score.parts"])
MEMORIES = ("memory", "wide_memory", "whole_memory")
SUBSETS = [parts for count in range(1, len(MEMORIES) + 1) for parts in itertools.combinations(MEMORIES, count)]
PART_SETS = [(*parts, *beside) for beside in ((), ("diffusion",)) for parts in SUBSETS] + [
    ("diffusion",),
    ("patch_memory",),
]
CHANGES = {
    "all parts alike": Change({"BLURRED": {}}),
    "diffusion is no blurred part": Change(
        {"BLURRED": {part: w for part, w in BLURRED.items() if part != "diffusion"}}
    ),
    "diffusion weighs 0.5": Change({"BLURRED": BLURRED | {"diffusion": 0.5}}),
    "wide_memory weighs 0.5": Change({"BLURRED": BLURRED | {"wide_memory": 0.5}}),
    "both weigh 0.5": Change({"BLURRED": dict.fromkeys(BLURRED, 0.5)}),
    "both weigh 2": Change({"BLURRED": BLURRED | {"wide_memory": 2, "diffusion": 2}}),
    "means over 8×8": Change({"WIDTH": 8}, ("wide_memory",)),
    "no whitening": Change({"HALF_WHITE": reference.UNCHANGED}, MEMORIES),
    "2 neighbours": Change({"NEIGHBOURS": 2}, MEMORIES),
    "8 neighbours": Change({"NEIGHBOURS": 8}, MEMORIES),
    "32 descriptors of a picture": Change({"KEPT_PER_SQUARE": 32}, MEMORIES),
    "128 descriptors of a picture": Change({"KEPT_PER_SQUARE": 128}, MEMORIES),
    **{f"memories of {rows}": Change({"BANK": rows}, MEMORIES) for rows in (2_500, 10_000, 20_000)},
    **{f"features of {side} pixels": Change(relearnt=MEMORIES, side=side) for side in (256, 384, 512, 768)},
    "no boost": Change({"PLACELESS": set()}),
    "sum of the units": Change({"sum_contributions": power_sum(1)}),
    "highest of the units": Change({"sum_contributions": power_sum(math.inf)}),
    "squares beyond the top": Change({"contribution": unlimited_square}),
    **{f"top at {deviations} deviations": Change({"DEVIATIONS": deviations}) for deviations in (0, 1.5, 2, 3)},
    **{f"boost times {factor}": Change({"contribution": other_boost(factor)}) for factor in (0.5, 2, 4)},
    **{f"boost of at most {limit}": Change({"LARGEST_BOOST": limit}) for limit in (1, 2, math.inf)},
    "boost of at most 1, top at 2 deviations": Change({"contribution": other_boost(limit=1), "DEVIATIONS": 2}),
    "boost times 2, top at 2 deviations": Change({"contribution": other_boost(2), "DEVIATIONS": 2}),
    **{f"boosted maps' top of at least {least}": Change({"LEAST_TOP": least}) for least in (0.01, 0.25, 1)},
    **{f"blur times {factor}": Change(blur=factor) for factor in (0.25, 0.5, 0.75, 1.5, 2)},
}
ROWS = [*map(", ".join, PART_SETS), *CHANGES]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    keep_memory()
    options.work.mkdir(parents=True, exist_ok=True)
    for seed, category in itertools.product(options.seeds, options.categories):
        changes = ["preset=laptop", f"model.seed={seed}", *options.settings]
        settings = load_category_settings(CONFIG, category, options.checkpoint_dir, changes)
        measure_category(settings, options.rows, options.work / f"{category.name} {seed}.json")
    runs = {path.stem: load_qualities(path) for path in sorted(options.work.glob("*.json"))}
    print("\n".join([*objective_table(runs), "", *kinds_table(runs)]))


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.map_variants",
        description="Compares anomaly maps by synthetic anomalies on held-out normal pictures.",
    )
    parser.add_argument("checkpoint_dir", type=Path, help="folder that holds a folder of weights for each category")
    parser.add_argument("categories", type=Path, nargs="+", metavar="DATA_DIR/CATEGORY")
    parser.add_argument("--work", type=Path, required=True, help="folder of finished measurements")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of noise, anomalies and memories")
    parser.add_argument("--rows", nargs="+", default=ROWS, choices=ROWS, metavar="ROW", help="measure these maps only")
    parser.add_argument(
        "--settings",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="settings of all maps, above the preset's; use another FOLDER for others",
    )
    return parser.parse_args(arguments)


def measure_category(settings: Settings, names: Collection[str], path: Path) -> None:
    """Measure those of the named maps that the file lacks, and write the file after each."""
    qualities = load_qualities(path) if path.exists() else {}
    for name, quality in measure_maps(settings, [name for name in names if name not in qualities]):
        qualities[name] = quality
        with atomic_write(path, tune.REMEDY, "w") as file:
            json.dump({name: quality._asdict() for name, quality in qualities.items()}, file, indent=1)


def load_qualities(path: Path) -> Qualities:
    return {name: Quality(**quality) for name, quality in json.loads(path.read_text()).items()}


def measure_maps(settings: Settings, names: Collection[str]) -> Iterator[tuple[str, Quality]]:
    """Yield the name and quality of each of these maps."""
    if not names:
        return
    detector, *_ = load_detector(settings, settings.checkpoint_folder, choose_device(settings.model.device))
    _, pictures, unseen = tune.check_tuning(settings)
    bench = tune.prepare_bench(pictures, unseen, settings)
    part_sets = {", ".join(parts): parts for parts in PART_SETS if ", ".join(parts) in names}
    changes = {name: change for name, change in CHANGES.items() if name in names}
    needed = dict.fromkeys(itertools.chain(*part_sets.values(), PRESET_PARTS if changes else ()))
    trial = tune.try_detector(replace(detector, parts=tuple(needed)), bench, settings)
    for name, parts in part_sets.items():
        yield name, measure_parts(trial, parts, bench)
    for name, change in changes.items():
        yield name, measure_change(change, trial, detector, settings, bench)


def measure_change(change: Change, trial: Trial, detector: Detector, settings: Settings, bench: Bench) -> Quality:
    """Return the quality of the preset's map with a change; `trial` holds its other parts."""
    with ExitStack() as stack:
        for constant, value in change.constants.items():
            stack.enter_context(patch.object(reference, constant, value))
        if change.side:
            stack.enter_context(patch.object(Networks, "features", features_at(change.side)))
        blurred = replace(trial.detector, blur_sigma=change.blur * trial.detector.blur_sigma)
        changed = replace(trial, detector=blurred)
        if change.relearnt:
            other = tune.try_detector(replace(detector, parts=change.relearnt), bench, settings)
            clean = replace_parts(trial.clean, other.clean, change.relearnt)
            changed = replace(
                changed, clean=clean, anomalous=replace_parts(trial.anomalous, other.anomalous, change.relearnt)
            )
        return measure_parts(changed, PRESET_PARTS, bench)


def replace_parts(old: Sequence[Parts], new: Sequence[Parts], parts: Sequence[str]) -> list[Parts]:
    """Return the maps of each picture with these parts from `new`."""
    return [maps | {part: other[part] for part in parts} for maps, other in zip(old, new, strict=True)]


def features_at(side: int) -> Callable[[Networks, Tensor], list[Tensor]]:
    """Return a `Networks.features` that resizes its pictures to a side."""
    original = Networks.features
    return lambda networks, pictures: original(
        networks, F.interpolate(pictures, size=(side, side), mode="bilinear", antialias=True)
    )


def measure_parts(trial: Trial, parts: Sequence[str], bench: Bench) -> Quality:
    """Return the quality of the map of these parts, with a calibration of its own."""
    detector = replace(trial.detector, parts=tuple(parts))
    calibration = build_calibration(detector, trial.clean, {})
    return tune.measure_quality(replace(trial, detector=replace(detector, calibration=calibration)), bench)


def objective_table(runs: Mapping[str, Qualities]) -> Iterator[str]:
    """Yield the lines of the table of objectives, the highest mean first; `runs` has names "CATEGORY SEED"."""
    objectives = {
        name: {category: mean(quality.objective for quality in seeds) for category, seeds in categories.items()}
        for name, categories in group_by_map(runs).items()
    }
    ranked = sorted(objectives, key=lambda name: -mean(objectives[name].values()))
    yield from table_lines("map", {name: objectives[name] for name in ranked})


def kinds_table(runs: Mapping[str, Qualities]) -> Iterator[str]:
    """Yield the lines of the table of image AUROC by kind of anomaly, the mean over categories."""
    rows = {
        name: mean_by_key([mean_by_key([quality.kinds for quality in seeds]) for seeds in categories.values()])
        for name, categories in group_by_map(runs).items()
    }
    yield from table_lines("kind", rows)


def mean_by_key(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each key's numbers; all rows have the same keys."""
    return {key: mean(row[key] for row in rows) for key in rows[0]}


def group_by_map(runs: Mapping[str, Qualities]) -> dict[str, dict[str, list[Quality]]]:
    """Return each map's qualities by category, one for each seed; only maps that all runs have."""
    common = set.intersection(*(set(qualities) for qualities in runs.values()))
    grouped: dict[str, dict[str, list[Quality]]] = {name: defaultdict(list) for name in ROWS if name in common}
    for run, qualities in runs.items():
        category, _ = run.rsplit(" ", 1)
        for name, categories in grouped.items():
            categories[category].append(qualities[name])
    return grouped


def table_lines(title: str, rows: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Yield the lines of a Markdown table of fractions in percent, with their mean."""
    columns = list(next(iter(rows.values()), {}))
    yield f"| {title} | mean | {' | '.join(columns)} |\n|{'---|' * (2 + len(columns))}"
    for name, values in rows.items():
        cells = " | ".join(f"{100 * values[column]:.1f}" for column in columns)
        yield f"| {name} | {100 * mean(values.values()):.2f} | {cells} |"


if __name__ == "__main__":
    main()
