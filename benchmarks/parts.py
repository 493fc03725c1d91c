"""python -m benchmarks.parts CHECKPOINTS DATA_DIR/CATEGORY … --work FOLDER: which parts of the map made defects speak for.

The preset's map, of each set of parts, tells held-out normal pictures of each category from copies with made defects, half of these faint, as
--tune does; test pictures are not read. A line of the table is a set of parts, a column a category that FOLDER holds: the objective of --tune in
percent, half image AUROC by kind and half PRO. The preset takes what has the highest mean. CHECKPOINTS/CATEGORY holds the weights.
"""

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import patch

import numpy as np

import config
import normal_pictures
import normality
import runtime
import tuning
from files import whole_file
from presets import LAPTOP, PRESETS
from settings import Settings
from tuning import Bench, Quality, Trial

ROOT = Path(__file__).parents[1]
FAINT = 0.3  # of a defect's change
OF_PRESET = tuple(PRESETS[LAPTOP]["score.parts"])
MEMORIES = ("memory", "wide_memory", "whole_memory")
REBUILT = ("pixel", "coarse_memory", "coarse", "residual_memory")  # parts that look at reconstructions
ALL = (*MEMORIES, *REBUILT, "patch_memory")
SOME = [some for count in range(1, len(MEMORIES) + 1) for some in itertools.combinations(MEMORIES, count)]
SETS = [(*some, *beside) for beside in ((), ("pixel",), ("coarse_memory",)) for some in SOME]
SETS += [(*MEMORIES, "coarse_memory", part) for part in REBUILT if part != "coarse_memory"] + [(part,) for part in (*REBUILT, "patch_memory")]
OTHERWISE: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {  # constants of normality.py for the preset's parts, and those made anew by them
    "blurred parts weigh 0.25": ((), {"BLURRED_WEIGHT": 0.25}),
    "blurred parts weigh 1": ((), {"BLURRED_WEIGHT": 1.0}),
    "pixel is a blurred part": ((), {"BLURRED": normality.BLURRED | {"pixel"}}),
    "means over 8×8": (("wide_memory",), {"WIDTH": 8}),
    "not evened out": (MEMORIES, {"HALF_WHITE": normality.AS_THEY_ARE}),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parts", description="Judges sets of parts by made defects on normal pictures.")
    parser.add_argument("checkpoint_dir", type=Path, help="holds a folder of each category's weights")
    parser.add_argument("categories", type=Path, nargs="+", metavar="DATA_DIR/CATEGORY")
    parser.add_argument("--work", type=Path, required=True, help="folder of what is done")
    options = parser.parse_args()
    runtime.keep_memory()
    options.work.mkdir(parents=True, exist_ok=True)
    for category in options.categories:
        done = options.work / f"{category.name}.json"
        if not done.exists():
            places = [f"data.data_dir={category.parent}", f"data.category={category.name}", f"model.checkpoint_dir={options.checkpoint_dir}"]
            settings = config.load(ROOT / "config.yaml", ["preset=laptop", "data.name=own", *places])
            found = {name: quality._asdict() for name, quality in judged(settings)}
            with whole_file(done, tuning.REMEDY, "w") as file:
                json.dump(found, file, indent=1)
    print("\n".join(table({done.stem: json.loads(done.read_text()) for done in sorted(options.work.glob("*.json"))})))


def judged(settings: Settings) -> Iterator[tuple[str, Quality]]:
    """Each set of parts, by its name."""
    device = runtime.choose_device(settings.model.device)
    _, pictures, unseen = tuning.check(settings)
    bench = with_faint(tuning.prepared(pictures, unseen, settings))
    trial = tuning.tried(tuning.with_value(settings, "score.parts", ALL), bench, device)
    for parts in SETS:
        yield ", ".join(parts), of_parts(trial, parts, bench)
    for name, (anew, constants) in OTHERWISE.items():
        with patch.multiple(normality, **constants):
            other = tuning.tried(tuning.with_value(settings, "score.parts", anew), bench, device) if anew else trial
            clean, spoilt = (
                [one | {part: two[part] for part in anew} for one, two in zip(*some, strict=True)]
                for some in ((trial.clean, other.clean), (trial.spoilt, other.spoilt))
            )
            yield name, of_parts(replace(trial, clean=clean, spoilt=spoilt), OF_PRESET, bench)


def with_faint(bench: Bench) -> Bench:
    """Every defect in full, and once more FAINT."""
    clean = [bench.clean[number % len(bench.clean)] for number in range(len(bench.spoilt))]
    faint = [normal + FAINT * (spoilt - normal) for normal, spoilt in zip(clean, bench.spoilt, strict=True)]
    kinds = np.r_[bench.kinds, [f"{kind}, faint" for kind in bench.kinds]]
    return replace(bench, spoilt=bench.spoilt + faint, kinds=kinds, masks=2 * bench.masks)


def of_parts(trial: Trial, parts: Sequence[str], bench: Bench) -> Quality:
    detector = replace(trial.detector, parts=tuple(parts))
    known = normal_pictures.judged(detector, trial.clean, {}, held_out=True, made_with={}, settings={})
    return tuning.judged(replace(trial, detector=replace(detector, calibration=known)), bench)


def table(found: dict[str, dict[str, dict[str, Any]]]) -> Iterator[str]:
    """The best of all categories first."""
    objectives = {name: [100 * Quality(**of[name]).objective for of in found.values()] for name in next(iter(found.values()))}
    yield f"| parts | mean | {' | '.join(found)} |\n|{'---|' * (2 + len(found))}"
    for name, values in sorted(objectives.items(), key=lambda one: -mean(one[1])):
        yield f"| {name} | {mean(values):.2f} | {' | '.join(f'{value:.1f}' for value in values)} |"


if __name__ == "__main__":
    main()
