"""python -m benchmarks.accuracy DATA_DIR/CATEGORY … --work FOLDER [--seeds 0 1 2] [--rows WORD …] [--plot FILE.png]: what each choice of
preset: laptop is worth.

A row is the preset with some settings changed, on each category and seed: trained, detected and measured by main.py like any run, maps and masks
at 256 pixels, the centre 224 of them. Rows that train alike share weights. What is done is not done again, so that a stopped run goes on. The
table, medians over the seeds with their range, is printed and written to FOLDER/accuracy.md.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from config.published import published_rows
from reports import manifest

ROOT = Path(__file__).parents[1]
METRICS = {"image AUROC": "image_auroc", "pixel AUROC": "pixel_auroc", "PRO": "pro"}
SECONDS_PER_MINUTE = 60
TICKS = (1, 5, 10, 20, 60)  # minutes, of the plot


@dataclass(frozen=True)
class Row:
    """The preset with other `settings`; `weights` names the training, for rows that have the same one."""

    name: str
    why: str
    settings: tuple[str, ...] = ()
    weights: str = "preset"
    stages: tuple[str, ...] = ("--train", "--detection")


FIVE, TEN = ("budget_minutes=5",), ("budget_minutes=10",)
ONE_CALL = ("model.skip=250", "score.draws=1")  # a reconstruction that the map does not look at is made quickly
AT_256 = ("data.image_size=256", "model.blur_sigma=2")
WITH_ADAPTATION = ("--train", "--domain_adaptation", "--detection")
ROWS = (
    Row("preset, 5 minutes", "the curve", FIVE, "5 minutes"),
    Row("preset, 10 minutes", "what a user gets", TEN, "10 minutes"),
    Row("preset, 20 minutes", "the curve", ("budget_minutes=20",), "20 minutes"),
    Row("preset, 60 minutes", "the default", ("budget_minutes=60",), "60 minutes"),
    *(
        Row(name, why, (*TEN, *settings), "10 minutes")
        for name, why, settings in (
            ("whole picture", "measured without a crop", ("metrics.centre_crop=1",)),
            (
                "whole picture, patch memory",
                "the bar, so measured",
                ("metrics.centre_crop=1", "score.parts=[patch_memory]", *ONE_CALL),
            ),
            (
                "patch memory",
                "the bar: nearest normal patch, no reconstruction",
                ("score.parts=[patch_memory]", *ONE_CALL),
            ),
            ("the paper's map", "D_f + v·balance·D_p", ("score.parts=null",)),
            (
                "memory alone",
                "half-white patches, local outlier factors, no reconstruction",
                ("score.parts=[memory]", *ONE_CALL),
            ),
            ("wide_memory alone", "means of them over 4×4 positions", ("score.parts=[wide_memory]", *ONE_CALL)),
            ("whole_memory alone", "means of them over the picture", ("score.parts=[whole_memory]", *ONE_CALL)),
            ("pixel alone", "D_p", ("score.parts=[pixel]",)),
            (
                "no reconstruction",
                "by the pictures alone",
                ("score.parts=[memory, wide_memory, whole_memory]", *ONE_CALL),
            ),
            ("no wide_memory", "without it", ("score.parts=[memory, whole_memory, pixel]",)),
            ("no whole_memory", "without it", ("score.parts=[memory, wide_memory, pixel]",)),
            ("EfficientNet-Lite1", "larger features", ("model.feature_extractor=efficientnet_lite1",)),
            ("EfficientNet-Lite2", "still larger ones", ("model.feature_extractor=efficientnet_lite2",)),
            ("blur as published", "sigma 4 of 256", ("model.blur_sigma=8",)),
            ("top_mean of 1 %", "pooling", ("score.pooling=top_mean",)),
            ("w = 2", "a weaker pull", ("model.w=2",)),
            ("w = 8", "a stronger pull", ("model.w=8",)),
            ("T' = 100", "less noise, 2 calls", ("model.test_trajectory_steps=100", "model.skip=50")),
            ("2 calls", "skip 125", ("model.skip=125",)),
            ("5 calls", "skip 50", ("model.skip=50",)),
            ("25 calls", "skip 10", ("model.skip=10",)),
            ("2 draws", "the mean of two reconstructions", ("score.draws=2",)),
            ("raw weights", "without the moving average", ("model.averaged=False",)),
        )
    ),
    *(
        Row(name, why, (*TEN, *AT_256, *settings), weights)
        for name, why, settings, weights in (
            ("256 pixels", "faster, larger defects", (), "256 pixels"),
            (
                "256 pixels, patch memory",
                "the bar, as it is usually run",
                ("score.parts=[patch_memory]", *ONE_CALL),
                "256 pixels",
            ),
            (
                "256 pixels, no reconstruction",
                "beside tiles",
                ("score.parts=[memory, wide_memory, whole_memory]", *ONE_CALL),
                "256 pixels",
            ),
            (
                "256 pixels, tiles",
                "the picture in its proportions, at twice the size",
                ("data.tiles=2",),
                "256 pixels, tiles",
            ),
            (
                "256 pixels, tiles, no reconstruction",
                "by the pictures alone",
                ("score.parts=[memory, wide_memory, whole_memory]", *ONE_CALL, "data.tiles=2"),
                "256 pixels, tiles",
            ),
        )
    ),
    *(
        Row(
            name,
            why,
            (*TEN, "model.DA_epochs=1", "model.DA_chp=1", "data.DA_batch_size=8", *settings),
            "10 minutes",
            WITH_ADAPTATION,
        )
        for name, why, settings in (
            ("adapted", "stage 2 for an epoch, as published", ()),
            ("adapted, tied", "the same, a hundred times as close to the pretrained features", ("model.DLlambda=10",)),
        )
    ),
    *(
        Row(name, why, (*FIVE, *settings), name)  # beside 5 minutes of the preset
        for name, why, settings in (
            ("all timesteps", "not those of detection alone", ("training.highest_step=null",)),
            ("half the width", "more steps of fewer weights", ("model.base_channels=16",)),
            (
                "128-pixel UNet",
                "finer reconstructions, fewer steps",
                ("model.unet_size=128", "model.attention_sizes=[16]"),
            ),
            ("x0-prediction", "the picture, not the noise", ("model.predicts=x0",)),
            ("mirrored", "half of the training pictures", ("training.augmentation=flip",)),
            ("turned", "and by multiples of 90°", ("training.augmentation=rotate",)),
        )
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy", description="Runs variants of preset: laptop and compares them."
    )
    parser.add_argument("categories", type=Path, nargs="+", metavar="DATA_DIR/CATEGORY")
    parser.add_argument("--work", type=Path, required=True, help="folder of weights, results and logs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", default=[""], help="words that the names of the wanted rows hold (all)")
    parser.add_argument("--plot", type=Path, help="draw image AUROC against minutes, of the rows with a budget")
    options = parser.parse_args()
    wanted = [row for row in ROWS if any(word in row.name for word in options.rows)]
    for seed in options.seeds:
        for row in wanted:
            for category in options.categories:
                run(row, category, seed, options.work)
    table = "\n".join(lines(options.categories, options.seeds, options.work))
    print(table)
    (options.work / "accuracy.md").write_text(table + "\n", encoding="utf-8")
    if options.plot:
        plot(options.categories, options.seeds, options.work, options.plot)


def run(row: Row, category: Path, seed: int, work: Path) -> None:
    """One row of one category and seed, unless its result is there; what it prints goes to a log."""
    folder = result_folder(row, category, seed, work)
    if (folder / "metrics.json").exists():
        return
    places = {"data.name": "own", "data.data_dir": category.parent, "data.category": category.name, "model.seed": seed}
    places |= {"model.checkpoint_dir": work / "weights" / f"{row.weights} s{seed}", "metrics.visualisation": False}
    settings = ["preset=laptop", *(f"{name}={value}" for name, value in places.items()), *row.settings]
    flags = [*row.stages, "--resume", "--config", ROOT / "config.yaml", "--output", folder]
    print(f"{row.name}, {category.name}, seed {seed}", flush=True)
    log = work / "logs" / f"{row.name}, {category.name} s{seed}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        subprocess.run(
            [str(part) for part in (sys.executable, ROOT / "main.py", *flags, *settings)],
            check=True,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def result_folder(row: Row, category: Path, seed: int, work: Path) -> Path:
    return work / "results" / row.name / f"{category.name} s{seed}"


def results(row: Row, category: Path, seeds: Sequence[int], work: Path) -> list[Mapping[str, Any]]:
    """The manifests that are there."""
    folders = (result_folder(row, category, seed, work) for seed in seeds)
    return [manifest.load_manifest(folder) for folder in folders if (folder / "metrics.json").exists()]


def minutes(made: Mapping[str, Any], without: str = "") -> float:
    return sum(seconds for stage, seconds in made["seconds"].items() if stage != without) / SECONDS_PER_MINUTE


def lines(categories: Sequence[Path], seeds: Sequence[int], work: Path) -> Iterator[str]:
    """A table a category: rows by name, what they are for, minutes, seeds and figures in percent."""
    for category in categories:
        yield f"\n{category.name}\n\n| | why | minutes | seeds | {' | '.join(METRICS)} |\n|{'---|' * (4 + len(METRICS))}"
        for row in ROWS:
            found = results(row, category, seeds, work)
            if found:
                figures = " | ".join(spread([100 * made["metrics"][key] for made in found]) for key in METRICS.values())
                yield f"| {row.name} | {row.why} | {spread([minutes(made) for made in found])} | {len(found)} | {figures} |"


def spread(values: Sequence[float]) -> str:
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.1f} ({low:.1f}–{high:.1f})" if low < high else f"{middle:.1f}"


def plot(categories: Sequence[Path], seeds: Sequence[int], work: Path, path: Path) -> None:
    """Image AUROC against minutes, the patch memory, which needs no training, as a cross, the paper's figure as a line where it has one."""
    figure = Figure(figsize=(2.6 * len(categories), 2.6), layout="constrained")
    budgets, bar = (
        [row for row in ROWS if row.name.startswith("preset")],
        next(row for row in ROWS if row.name == "patch memory"),
    )
    for axes, category in zip(
        figure.subplots(1, len(categories), squeeze=False, sharey=True)[0], categories, strict=True
    ):
        for rows, style, name, left_out in (
            (budgets, "o-", "preset: laptop", ""),
            ([bar], "x", "patch memory", "training"),
        ):
            found = [one for row in rows if (one := results(row, category, seeds, work))]
            times = [statistics.median(minutes(made, left_out) for made in one) for one in found]
            figures = [statistics.median(100 * made["metrics"]["image_auroc"] for made in one) for one in found]
            if found:
                axes.plot(times, figures, style, label=name)
        paper = published_rows().get(category.name, {}).get("image_auroc")
        if paper:
            axes.axhline(float(paper), color="0.5", linestyle="--", label="paper")
        axes.set(title=category.name, xlabel="minutes", xscale="log", xlim=(0.3, 70), xticks=TICKS, xticklabels=TICKS)
        axes.minorticks_off()
        axes.legend(fontsize=7, loc="lower right")
    figure.axes[0].set(ylabel="image AUROC, %", ylim=(None, 101))
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
