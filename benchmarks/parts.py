"""python -m benchmarks.parts CHECKPOINTS DATA_DIR/CATEGORY … --work FOLDER: which map made defects speak for.

Each map tells held-out normal pictures of each category from copies with made defects, as --tune does; test pictures are not read. A line of the
table is a map, a column a category that FOLDER holds: the objective of --tune in percent, half image AUROC by kind and half PRO, the mean over seeds.
The preset takes what has the highest mean; constants, one or several, where each of three seeds has them ahead, neither half loses by them and no
kind of defect half a point of image AUROC, and so features (adapted ones, those of another network), if ten minutes still hold a run. A second table
tells the kinds.
CHECKPOINTS/CATEGORY holds the weights; a run goes on where it was stopped.
"""

import argparse
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import mean
from types import MappingProxyType
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from config.keys import Settings
from config.load import load_settings
from config.presets import LAPTOP, PRESETS
from detection import reference
from detection.calibrate import build_calibration
from detection.comparison import Networks
from detection.detector import load_detector
from detection.tune import REMEDY, Bench, Quality, Trial, check_tuning, measure_quality, prepare_bench, try_detector
from runtime.device import choose_device, keep_memory
from storage.atomic_file import atomic_write


class Otherwise(NamedTuple):
    """Constants of normality.py for the preset's parts, the parts that are made anew by them, the pixels of a side that features see, and how many
    times as far maps are smoothed."""

    constants: Mapping[str, Any] = MappingProxyType({})
    anew: tuple[str, ...] = ()
    side: int | None = None
    smoothed: float = 1


def length(power: float) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """`reference.sum_of_weights` whose root is the sum of the units to this power, to its inverse; of 2 it is as it was."""
    return lambda units: torch.stack(
        [reference.part_weight(part, some.clamp_min(0)) for part, some in units.items()]
    ).norm(power / 2, dim=0)


def square(part: str, units: Tensor) -> Tensor:
    """`reference.part_weight` by squares beyond the top as well."""
    return (reference.BLURRED_WEIGHT if part in reference.BLURRED else 1) * units.square()


def lifting(times: float = 1, most: float = math.inf) -> Callable[[str, Tensor], Tensor]:
    """`reference.part_weight`, of PLACELESS parts so many times as much, and so much at most."""
    return lambda part, units: (
        (times * WEIGHT(part, units)).clamp_max(most) if part in reference.PLACELESS else WEIGHT(part, units)
    )


WEIGHT = reference.part_weight  # as it is
ROOT = Path(__file__).parents[1]
OF_PRESET = tuple(PRESETS[LAPTOP]["score.parts"])
MEMORIES = ("memory", "wide_memory", "whole_memory")
SOME = [some for count in range(1, len(MEMORIES) + 1) for some in itertools.combinations(MEMORIES, count)]
SETS = [(*some, *beside) for beside in ((), ("pixel",)) for some in SOME] + [("pixel",), ("patch_memory",)]
SHARP = {"BLURRED": reference.BLURRED - {"pixel"}}
OTHERWISE = {
    "blurred parts weigh 0.25": Otherwise({"BLURRED_WEIGHT": 0.25}),
    "blurred parts weigh 1": Otherwise({"BLURRED_WEIGHT": 1.0}),
    "pixel is no blurred part": Otherwise(SHARP),
    "pixel is no blurred part, which weigh 0.25": Otherwise(SHARP | {"BLURRED_WEIGHT": 0.25}),
    "pixel is no blurred part, which weigh 1": Otherwise(SHARP | {"BLURRED_WEIGHT": 1.0}),
    "means over 8×8": Otherwise({"WIDTH": 8}, ("wide_memory",)),
    "not evened out": Otherwise({"HALF_WHITE": reference.UNCHANGED}, MEMORIES),
    "2 neighbours": Otherwise({"NEIGHBOURS": 2}, MEMORIES),
    "8 neighbours": Otherwise({"NEIGHBOURS": 8}, MEMORIES),
    "32 descriptors of a picture": Otherwise({"KEPT_PER_PICTURE": 32}, MEMORIES),
    "128 descriptors of a picture": Otherwise({"KEPT_PER_PICTURE": 128}, MEMORIES),
    "memories of 10000": Otherwise({"BANK": 10_000}, MEMORIES),
    "features of 256 pixels": Otherwise({}, MEMORIES, 256),
    "features of 384 pixels": Otherwise({}, MEMORIES, 384),
    "whole_memory lifts nothing": Otherwise({"PLACELESS": set()}),
    "sum of the units": Otherwise({"sum_of_weights": length(1)}),
    "highest of the units": Otherwise({"sum_of_weights": length(math.inf)}),
    "squares beyond the top": Otherwise({"part_weight": square}),
    **{f"tops {deviations} deviations above": Otherwise({"DEVIATIONS": deviations}) for deviations in (0, 1.5, 2, 3)},
    **{f"lifted {times} times as far": Otherwise({"part_weight": lifting(times)}) for times in (0.5, 2, 4)},
    **{f"lifted by {most} at most": Otherwise({"part_weight": lifting(most=most)}) for most in (1, 2, 4)},
    "lifted by 1 at most, tops 2 deviations above": Otherwise(
        {"part_weight": lifting(most=1), "DEVIATIONS": 2}
    ),  # as before
    "lifted 2 times as far, tops 2 deviations above": Otherwise({"part_weight": lifting(2), "DEVIATIONS": 2}),
    **{f"tops of {least} at least": Otherwise({"LEAST_TOP": least}) for least in (0.01, 0.25, 1)},
    **{f"blur times {times}": Otherwise(smoothed=times) for times in (0.25, 0.5, 0.75, 1.5, 2)},
}
ROWS = [*map(", ".join, SETS), *OTHERWISE]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.parts", description="Judges maps by made defects on normal pictures."
    )
    parser.add_argument("checkpoint_dir", type=Path, help="holds a folder of each category's weights")
    parser.add_argument("categories", type=Path, nargs="+", metavar="DATA_DIR/CATEGORY")
    parser.add_argument("--work", type=Path, required=True, help="folder of what is done")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="of noise, made defects and what memories keep"
    )
    parser.add_argument("--rows", nargs="+", default=ROWS, choices=ROWS, metavar="ROW", help="these maps alone")
    parser.add_argument(
        "--settings",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="of all maps, above the preset's; FOLDER is of these alone",
    )
    options = parser.parse_args()
    keep_memory()
    options.work.mkdir(parents=True, exist_ok=True)
    for seed, category in itertools.product(options.seeds, options.categories):
        done = options.work / f"{category.name} {seed}.json"
        found = json.loads(done.read_text()) if done.exists() else {}
        places = [
            f"data.data_dir={category.parent}",
            f"data.category={category.name}",
            f"model.checkpoint_dir={options.checkpoint_dir}",
        ]
        settings = load_settings(
            ROOT / "config.yaml", ["preset=laptop", "data.name=own", *places, f"model.seed={seed}", *options.settings]
        )
        for name, quality in judged(settings, [row for row in options.rows if row not in found]):
            found[name] = quality._asdict()
            with atomic_write(done, REMEDY, "w") as file:
                json.dump(found, file, indent=1)
    found = {done.stem: json.loads(done.read_text()) for done in sorted(options.work.glob("*.json"))}
    print("\n".join([*table(found), "", *kinds_table(found)]))


def judged(settings: Settings, rows: Collection[str]) -> Iterator[tuple[str, Quality]]:
    """Each of these maps, by its name."""
    if not rows:
        return
    detector, *_ = load_detector(settings, settings.checkpoint_folder, choose_device(settings.model.device))
    _, pictures, unseen = check_tuning(settings)
    bench = prepare_bench(pictures, unseen, settings)
    sets = {name: parts for name, parts in zip(ROWS, SETS, strict=False) if name in rows}
    others = {name: otherwise for name, otherwise in OTHERWISE.items() if name in rows}
    needed = tuple(dict.fromkeys(itertools.chain(*sets.values(), OF_PRESET if others else ())))
    trial = try_detector(replace(detector, parts=needed), bench, settings)
    for name, parts in sets.items():
        yield name, of_parts(trial, parts, bench)
    for name, (constants, anew, side, smoothed) in others.items():
        with ExitStack() as stack:
            stack.enter_context(patch.multiple(reference, **constants) if constants else nullcontext())
            stack.enter_context(patch.object(Networks, "features", seeing(side)) if side else nullcontext())
            other = try_detector(replace(detector, parts=anew), bench, settings) if anew else trial
            clean, spoilt = (
                [one | {part: two[part] for part in anew} for one, two in zip(*some, strict=True)]
                for some in ((trial.clean, other.clean), (trial.anomalous, other.anomalous))
            )
            detector = replace(trial.detector, blur_sigma=smoothed * trial.detector.blur_sigma)
            yield name, of_parts(replace(trial, detector=detector, clean=clean, anomalous=spoilt), OF_PRESET, bench)


def seeing(side: int) -> Any:
    """`Networks.features` of pictures that are made so small."""
    whole = Networks.features
    return lambda networks, pictures: whole(
        networks, F.interpolate(pictures, size=(side, side), mode="bilinear", antialias=True)
    )


def of_parts(trial: Trial, parts: Sequence[str], bench: Bench) -> Quality:
    detector = replace(trial.detector, parts=tuple(parts))
    known = build_calibration(detector, trial.clean, {})
    return measure_quality(replace(trial, detector=replace(detector, calibration=known)), bench)


def table(found: dict[str, dict[str, dict[str, Any]]]) -> Iterator[str]:
    """The best of all categories first; `found` by category and seed, of which those maps are shown that all have."""
    objectives = {
        name: {category: mean(of.objective for of in some) for category, some in by.items()}
        for name, by in by_map(found).items()
    }
    yield from lines(
        "map",
        {name: objectives[name] for name in sorted(objectives, key=lambda name: -mean(objectives[name].values()))},
    )


def kinds_table(found: dict[str, dict[str, dict[str, Any]]]) -> Iterator[str]:
    """Image AUROC of each kind of defect, the mean over categories."""
    yield from lines(
        "kind",
        {
            name: mean_of([mean_of([of.kinds for of in some]) for some in by.values()])
            for name, by in by_map(found).items()
        },
    )


def mean_of(alike: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of numbers of the same names."""
    return {name: mean(one[name] for one in alike) for name in alike[0]}


def by_map(found: dict[str, dict[str, dict[str, Any]]]) -> dict[str, dict[str, list[Quality]]]:
    """Of those maps that all have, by category, each seed's."""
    names = set.intersection(*(set(qualities) for qualities in found.values()))
    by: dict[str, dict[str, list[Quality]]] = {name: defaultdict(list) for name in ROWS if name in names}
    for done, qualities in found.items():
        for name, some in by.items():
            some[done.rsplit(" ", 1)[0]].append(Quality(**qualities[name]))
    return by


def lines(title: str, rows: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    columns = list(next(iter(rows.values()), {}))
    yield f"| {title} | mean | {' | '.join(columns)} |\n|{'---|' * (2 + len(columns))}"
    for name, values in rows.items():
        yield f"| {name} | {100 * mean(values.values()):.2f} | {' | '.join(f'{100 * values[column]:.1f}' for column in columns)} |"


if __name__ == "__main__":
    main()
