"""Measure what each choice of `preset: laptop` is worth.

    python -m benchmarks.accuracy DATA_DIR/CATEGORY … --work FOLDER [--seeds 0 1 2] [--rows WORD …] [--plot FILE.png]

A row is the preset with some settings changed. For each row, category and seed main.py trains, detects and measures as
in any run: whole pictures. Rows that train alike share weights. Finished runs are not repeated, so that a stopped
benchmark goes on. The table of medians over the seeds, with their range, is printed and written to FOLDER/accuracy.md.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.shared import CENTRE_CROP, CONFIG, ROOT
from config.presets import LAPTOP_DIFFUSION, LAPTOP_PIXELS, LAPTOP_UNET
from config.published import published_rows
from reports import manifest

METRICS = {"image AUROC": "image_auroc", "pixel AUROC": "pixel_auroc", "PRO": "pro"}
SECONDS_PER_MINUTE = 60
TICKS = (1, 2, 5, 10, 30, 60)  # minutes, of the plot


@dataclass(frozen=True)
class Variant:
    """The preset with other `settings`. Variants with the same `weights` train alike and share a checkpoint folder."""

    name: str
    why: str
    settings: tuple[str, ...] = ()
    weights: str = "preset"
    stages: tuple[str, ...] = ("--train", "--detection")


FIVE, TEN = ("budget_minutes=5",), ("budget_minutes=10",)
AT_256 = ("data.image_size=256", "model.blur_sigma=2")
CENTRE = (CENTRE_CROP,)
PATCH_MEMORY = ("score.parts=[patch_memory]",)
NO_RECONSTRUCTION = ("score.parts=[memory, wide_memory, whole_memory]",)
ON_PIXELS = (f"preset={LAPTOP_PIXELS}",)
ADAPTED = ("model.DA_epochs=1", "model.DA_chp=1", "data.DA_batch_size=8")
WITH_ADAPTATION = ("--train", "--domain_adaptation", "--detection")
SHARED_WEIGHTS = (  # name, why, settings of detection; with the networks of 10 minutes
    ("centre", "measured in the centre, as published", CENTRE),
    ("patch memory", "the baseline: distance to the nearest normal patch, no reconstruction", PATCH_MEMORY),
    ("diffusion alone", "preset laptop-diffusion", (f"preset={LAPTOP_DIFFUSION}",)),
    ("memory alone", "local outlier factors of half-whitened patches", ("score.parts=[memory]",)),
    ("wide_memory alone", "the same of means over 4×4 positions", ("score.parts=[wide_memory]",)),
    ("whole_memory alone", "the same of means over the picture", ("score.parts=[whole_memory]",)),
    ("no reconstruction", "the memories alone", NO_RECONSTRUCTION),
    ("no memory", "without this part", ("score.parts=[wide_memory, whole_memory, diffusion]",)),
    ("no wide_memory", "without this part", ("score.parts=[memory, whole_memory, diffusion]",)),
    ("no whole_memory", "without this part", ("score.parts=[memory, wide_memory, diffusion]",)),
    ("equal weights", "parts weigh what their kind says", ("score.weights=equal",)),
    ("blur as published", "sigma 4 of 256", ("model.blur_sigma=8",)),
    ("top_mean of 1 %", "pooling", ("score.pooling=top_mean",)),
    ("T' = 100", "less noise", ("model.test_trajectory_steps=100",)),
    ("T' = 400", "more noise", ("model.test_trajectory_steps=400",)),
    ("5 calls", "Algorithm 1 from step 201", ("model.test_trajectory_steps=201", "model.skip=50")),
    ("5 calls, w = 1", "pulled to the features", ("model.test_trajectory_steps=201", "model.skip=50", "model.w=1")),
    ("2 draws", "the mean of two reconstructions", ("score.draws=2",)),
    ("raw weights", "without the moving average", ("model.averaged=False",)),
)
PIXEL_MAPS = (  # name, why, settings of detection; with a network that learns pictures
    ("on pixels", "the preset with diffusion on pictures", ("score.parts=[memory, wide_memory, whole_memory, pixel]",)),
    ("the paper's map", "D_f + v·balance·D_p", ("score.parts=null",)),
    ("pixel alone", "D_p", ("score.parts=[pixel]",)),
)
SMALL_PICTURES = (  # name, why, settings; at 256 pixels
    ("256 pixels", "faster; for larger defects", ()),
    ("256 pixels, patch memory", "the baseline at its usual size", PATCH_MEMORY),
    ("256 pixels, no reconstruction", "the memories alone", NO_RECONSTRUCTION),
)
OTHER_TRAINING = (  # name, why, settings; to compare with 5 minutes of the preset
    ("EfficientNet-Lite1", "a larger network for features", ("model.feature_extractor=efficientnet_lite1",)),
    ("EfficientNet-Lite2", "a still larger one", ("model.feature_extractor=efficientnet_lite2",)),
    ("squares", "not in their own proportions", ("data.fit=square",)),
    ("half the width", "more steps of fewer weights", ("model.base_channels=128",)),
    ("a UNet", "of features on a grid of 32, with five calls", (f"preset={LAPTOP_UNET}",)),
    ("noise prediction", "the network predicts the noise, as published", ("model.predicts=null",)),
)
ROWS = (
    *(
        Variant(f"preset, {minutes} minutes", "the curve", (f"budget_minutes={minutes}",), f"{minutes} minutes")
        for minutes in (1, 2, 5, 10, 30, 60)
    ),
    *(Variant(name, why, (*TEN, *settings), "10 minutes") for name, why, settings in SHARED_WEIGHTS),
    *(Variant(name, why, (*TEN, *ON_PIXELS, *settings), "pixels") for name, why, settings in PIXEL_MAPS),
    *(Variant(name, why, (*TEN, *AT_256, *settings), "256 pixels") for name, why, settings in SMALL_PICTURES),
    Variant(
        "adapted",
        "the paper's map after an epoch of stage 2, as published",
        (*TEN, *ON_PIXELS, "score.parts=null", *ADAPTED),
        "pixels",
        WITH_ADAPTATION,
    ),
    *(Variant(name, why, (*FIVE, *settings), name) for name, why, settings in OTHER_TRAINING),
)


@dataclass(frozen=True)
class VariantRun:
    """Seconds of each stage, and metrics as fractions."""

    seconds: Mapping[str, float]
    metrics: Mapping[str, float]

    def minutes(self, without: str = "") -> float:
        """Return the minutes of all stages but the one that is named."""
        return sum(seconds for stage, seconds in self.seconds.items() if stage != without) / SECONDS_PER_MINUTE


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy", description="Runs variants of preset: laptop and compares them."
    )
    parser.add_argument("categories", type=Path, nargs="+", metavar="DATA_DIR/CATEGORY")
    parser.add_argument("--work", type=Path, required=True, help="folder of weights, results and logs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--rows", nargs="+", default=[""], metavar="WORD", help="run rows whose names have one of these words (all)"
    )
    parser.add_argument("--plot", type=Path, help="draw image AUROC against minutes, of the rows with a budget")
    options = parser.parse_args()
    rows = [row for row in ROWS if any(word in row.name for word in options.rows)]
    for seed in options.seeds:
        for row in rows:
            for category in options.categories:
                run_variant(row, category, seed, options.work)
    table = "\n".join(table_lines(options.categories, options.seeds, options.work))
    print(table)
    (options.work / "accuracy.md").write_text(table + "\n", encoding="utf-8")
    if options.plot:
        plot_minutes(options.categories, options.seeds, options.work, options.plot)


def run_variant(row: Variant, category: Path, seed: int, work: Path) -> None:
    """Run a variant on a category with a seed unless its result exists; its output goes to a log."""
    folder = result_folder(row, category, seed, work)
    if (folder / "metrics.json").exists():
        return
    paths = {"data.data_dir": category.parent, "data.category": category.name}
    paths["model.checkpoint_dir"] = work / "weights" / f"{row.weights} s{seed}"
    settings = ["preset=laptop", "data.name=own", *(f"{key}={value}" for key, value in paths.items())]
    settings += [f"model.seed={seed}", "metrics.visualisation=False", *row.settings]
    flags = [*row.stages, "--resume", "--config", str(CONFIG), "--output", str(folder)]
    print(f"{row.name}, {category.name}, seed {seed}", flush=True)
    log = work / "logs" / f"{row.name}, {category.name} s{seed}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "main.py"), *flags, *settings]
    with log.open("w", encoding="utf-8") as file:
        subprocess.run(command, check=True, stdout=file, stderr=subprocess.STDOUT)


def result_folder(row: Variant, category: Path, seed: int, work: Path) -> Path:
    return work / "results" / row.name / f"{category.name} s{seed}"


def load_runs(row: Variant, category: Path, seeds: Sequence[int], work: Path) -> list[VariantRun]:
    """Return the finished runs of these seeds."""
    folders = (result_folder(row, category, seed, work) for seed in seeds)
    contents = [manifest.load_manifest(folder) for folder in folders if (folder / "metrics.json").exists()]
    named = [{key: cast(float, content["metrics"][key]) for key in METRICS.values()} for content in contents]
    return [VariantRun(content["seconds"], metrics) for content, metrics in zip(contents, named, strict=True)]


def table_lines(categories: Sequence[Path], seeds: Sequence[int], work: Path) -> Iterator[str]:
    """Yield the lines of one table for each category."""
    heading = f"| | why | minutes | seeds | {' | '.join(METRICS)} |\n|{'---|' * (4 + len(METRICS))}"
    for category in categories:
        yield f"\n{category.name}\n\n{heading}"
        for row in ROWS:
            seed_runs = load_runs(row, category, seeds, work)
            if seed_runs:
                minutes = spread([run.minutes() for run in seed_runs])
                metrics = [spread([100 * run.metrics[key] for run in seed_runs]) for key in METRICS.values()]
                yield f"| {row.name} | {row.why} | {minutes} | {len(seed_runs)} | {' | '.join(metrics)} |"


def spread(values: Sequence[float]) -> str:
    """Return the median, with the range in brackets where there is one."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.1f} ({low:.1f}–{high:.1f})" if low < high else f"{middle:.1f}"


def plot_minutes(categories: Sequence[Path], seeds: Sequence[int], work: Path, path: Path) -> None:
    """Draw image AUROC against minutes for each category into an image file."""
    figure = Figure(figsize=(2.6 * len(categories), 2.6), layout="constrained")
    panels = figure.subplots(1, len(categories), squeeze=False, sharey=True)[0]
    for axes, category in zip(panels, categories, strict=True):
        plot_category(axes, category, seeds, work)
    figure.axes[0].set(ylabel="image AUROC, %", ylim=(None, 101))
    figure.savefig(path, dpi=150)


def plot_category(axes: Axes, category: Path, seeds: Sequence[int], work: Path) -> None:
    """Draw the budgets as a curve, the patch memory, without training, as a cross, the paper's figure as a line."""
    budgets = [row for row in ROWS if row.name.startswith("preset")]
    baseline = [row for row in ROWS if row.name == "patch memory"]
    for rows, style, label, left_out in (
        (budgets, "o-", "preset: laptop", ""),
        (baseline, "x", "patch memory", "training"),
    ):
        runs = [seed_runs for row in rows if (seed_runs := load_runs(row, category, seeds, work))]
        times = [statistics.median(run.minutes(left_out) for run in seed_runs) for seed_runs in runs]
        aurocs = [statistics.median(100 * run.metrics["image_auroc"] for run in seed_runs) for seed_runs in runs]
        if runs:
            axes.plot(times, aurocs, style, label=label)
    paper = published_rows().get(category.name, {}).get("image_auroc")
    if paper:
        axes.axhline(float(paper), color="0.5", linestyle="--", label="paper")
    axes.set(title=category.name, xlabel="minutes", xscale="log", xlim=(0.3, 70), xticks=TICKS, xticklabels=TICKS)
    axes.minorticks_off()
    axes.legend(fontsize=7, loc="lower right")


if __name__ == "__main__":
    main()
