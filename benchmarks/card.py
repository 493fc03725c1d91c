"""Use a few minutes on a card: golden numbers, speed, and the published network on a real category.

    python -m benchmarks.card --minutes 9 --data DATA_DIR/CATEGORY --out FOLDER [--work FOLDER] [KEY=VALUE …]

The minutes count from the start of Python. First benchmarks/card_rows.py measures golden numbers, speed and memory.
Then main.py trains the published network with a moving average, for as many of the published epochs as fit, adapts the
features, detects by both protocols and draws a figure. Each step is a process of its own. It ends in time, and its
files are complete. The same command goes on where the last one stopped. FOLDER gets card.json, card.md, figure.png and
a page for each protocol; logs, weights and results go to --work (FOLDER/work). `--scale toy` tries it on a CPU.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.card_report import PROTOCOLS, REPORT, Card, Places, load_card, save_card
from benchmarks.card_rows import COMPILED, EXPECTED_COMPILING, FORWARD, PUBLISHED, SCALES, TOY, TRAINING, Row
from benchmarks.shared import CONFIG, ROOT
from config.keys import PER_IMAGE
from config.load import load_settings
from config.published import published_row
from dataset import ImageFolder
from ddad import strides
from runtime import interrupt
from train import TrainingPlan, plan_training
from training import checkpoint

MEASURE, TRAIN, ADAPT, FIGURE = "measurement", "training", "adaptation", "figure"
SECONDS_PER_MINUTE = 60
MEASURING_SHARE = 0.35  # of the minutes
ENDING_SECONDS = 12.0  # kept free at the end, in which a stopped step saves its state
POLL_SECONDS = 0.1
SAVES = 10  # of weights in training
PLANNED_SHARE = 0.85  # of the time that training may take, as the first steps are slower
LEAST_SHARE = 0.5  # of the time left that training gets, however long the steps after it take
LATER_PROCESSES = 4  # after training
DRAWING_SECONDS = 0.3  # for a test picture's figure and rows of tables
FEATURES_SHARE = 0.3  # time of features and maps, as a share of the UNet's
UNKNOWN_SECONDS = 0.02  # of a picture in a row that is missing
TOY_SETTINGS = (
    "data.image_size=32", "data.batch_size=4", "data.DA_batch_size=4", "model.base_channels=8",
    "model.channel_multipliers=[1, 2]", "model.blocks_per_level=1", "model.attention_sizes=[16]", "model.heads=2",
    "model.feature_extractor=efficientnet_lite0", "model.epochs=2", "model.DA_epochs=1", "model.w=3",
    "model.test_trajectory_steps=100", "model.test_trajectory_steps_DA=100", "model.skip=50", "model.skip_DA=50",
    "score.draws=1", "metrics.resamples=100",
)  # fmt: skip
SETTINGS = {PUBLISHED: ("training.ema=0.999",), TOY: TOY_SETTINGS}

Step = tuple[str, list[str], float]  # name, arguments of Python, seconds that it may take


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the steps that are left. Return 0 if all are done, 1 if some need another try."""
    age, options = seconds_since_start(), parse_arguments(arguments)
    ends = time.monotonic() - age + options.minutes * SECONDS_PER_MINUTE - ENDING_SECONDS
    places = Places(options.data.resolve(), options.out.resolve(), (options.work or options.out / "work").resolve())
    places.work.mkdir(parents=True, exist_ok=True)
    card = load_card(places, options.scale)
    card.starts.append(round(age, 2))
    with interrupt.stop_requests() as stop:
        for name, command, seconds in planned_steps(card, places, ends, options):
            if seconds <= 0:
                break
            began = time.monotonic()
            code = run_python(command, places.log(name), min(ends, began + seconds), stop)
            spent = time.monotonic() - began
            card.steps[name] = {"seconds": round(card.steps.get(name, {}).get("seconds", 0) + spent, 1), "code": code}
            save_card(card, places)
            left = ends - time.monotonic()
            print(f"{name}: exit code {code} after {spent:.0f} s; {left:.0f} s left", flush=True)
            if stop.requested:
                break
    save_card(card, places)
    print(f"report in {places.out / REPORT}", flush=True)
    return 0 if card.is_done(FIGURE) and all(step["code"] == 0 for step in card.steps.values()) else 1


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.card", description="Uses a few minutes on a card.")
    parser.add_argument("--minutes", type=float, required=True, help="from the start of Python to the end")
    parser.add_argument("--data", type=Path, required=True, metavar="DATA_DIR/CATEGORY")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="report, figure and pages")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="logs, weights, results (OUT/work)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--scale", choices=SCALES, default=PUBLISHED, help="toy: tiny networks, to try the command")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    return parser.parse_intermixed_args(arguments)


def seconds_since_start() -> float:
    """Return the age of this process, as imports take part of the minutes; 0 where the system does not say."""
    with suppress(OSError, ValueError, IndexError):
        began = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return float(Path("/proc/uptime").read_text().split()[0]) - began
    return 0.0


def planned_steps(card: Card, places: Places, ends: float, options: argparse.Namespace) -> Iterator[Step]:
    """Yield the steps that are not done, as they follow from those before them.

    A training that is out of time leaves the weights of earlier epochs to the steps after it.
    """
    if not card.is_done(MEASURE):
        seconds = min(MEASURING_SHARE * options.minutes * SECONDS_PER_MINUTE, ends - time.monotonic())
        command = ["-m", "benchmarks.card_rows", str(places.rows), "--device", options.device, "--scale", options.scale]
        yield MEASURE, [*command, "--seconds", f"{seconds - card.starts[-1]:.0f}"], seconds
    base = [*category_settings(places), f"model.device={options.device}", *SETTINGS[card.scale], *options.settings]
    plan = plan_training(load_settings(CONFIG, base))
    if card.epochs is None or TRAIN not in card.steps:  # a training that has begun keeps its plan
        card.published_epochs = plan.settings.model.epochs
        card.epochs = fitting_epochs(plan, card, ends - time.monotonic())
    epochs = f"training.checkpoint_epochs={max(1, card.epochs // SAVES)}"
    base += [f"model.epochs={card.epochs}", epochs, "model.load_chp=latest", "model.DA_chp=latest"]
    if any("error" in row for name, row in card.rows.items() if COMPILED in name):
        base.append("speed.compile=False")
    commands = {TRAIN: ["--train", "--resume", *base], ADAPT: ["--domain_adaptation", *base]}
    if not plan.settings.model.DA_epochs:
        del commands[ADAPT]
    for protocol in PROTOCOLS:
        scoring = [f"score.protocol={protocol}", f"metrics.visualisation={protocol == PER_IMAGE}"]
        commands[protocol] = ["--detection", "--force", "--output", str(places.results(protocol)), *base, *scoring]
    commands[FIGURE] = ["--figure", str(places.results(PER_IMAGE)), "--output", str(places.out / FIGURE)]
    for name, command in commands.items():
        if card.is_done(name):
            continue
        left = ends - time.monotonic()
        later = min(seconds_after_training(plan, card), (1 - LEAST_SHARE) * left) if name == TRAIN else 0.0
        yield name, ["main.py", *command], left - later
        if name == TRAIN:
            card.steps = {each: card.steps[each] for each in (MEASURE, TRAIN) if each in card.steps}  # new weights
            if checkpoint.latest_epoch(plan.settings.checkpoint_folder) is None:
                return


def category_settings(places: Places) -> list[str]:
    """Return the settings of paths, and the data set of which the paper has this category, if any."""
    paths = {"data.data_dir": places.data.parent, "data.category": places.data.name}
    paths["model.checkpoint_dir"] = places.work / "weights"
    data_set = published_row(places.data.name).get("data_set", "own")
    return [f"data.name={data_set}", *(f"{key}={path}" for key, path in paths.items())]


def fitting_epochs(plan: TrainingPlan, card: Card, left: float) -> int:
    """Return how many of the settings' epochs fit into the seconds left, beside the steps after training."""
    settings, scale = plan.settings, SCALES[card.scale]
    rows = [row for name, row in card.rows.items() if name.startswith(f"{TRAINING} {scale.trained} ")]
    compiled = [row for row in rows if COMPILED in row["row"] and "median" in row]
    trained = next(iter(compiled or rows), {})  # rows are in the order of the formats that training prefers
    compiling = trained["first_seconds"] if compiled else EXPECTED_COMPILING if scale.compiled else 0.0
    step = seconds_a_picture(trained) * settings.data.batch_size
    begins = card.starts[-1] + compiling
    seconds = PLANNED_SHARE * max(left - seconds_after_training(plan, card), LEAST_SHARE * left) - begins
    return max(1, min(settings.model.epochs, int(seconds / step / plan.batches)))


def seconds_after_training(plan: TrainingPlan, card: Card) -> float:
    """Return the seconds that adaptation, detection by both protocols and the figure are expected to take."""
    settings, model, scale = plan.settings, plan.settings.model, SCALES[card.scale]
    call = seconds_a_picture(card.rows.get(f"{FORWARD} {scale.trained} {scale.precisions[-1]}", {}))
    test = len(ImageFolder(settings.category_dir, "test", plan.pictures.view, masks=False))
    adapted = model.DA_epochs * len(plan.pictures) // 2  # the other half are targets
    detected = settings.score.draws * (len(plan.held_out) + test) + test
    calls = detected * len(strides(model.test_trajectoy_steps, model.skip))
    calls += adapted * len(strides(model.test_trajectoy_steps_DA, model.skip_DA))
    seconds = calls * call * (1 + FEATURES_SHARE) + test * DRAWING_SECONDS
    return seconds + LATER_PROCESSES * card.starts[-1]


def seconds_a_picture(row: Row) -> float:
    return row["median"] / row["pictures"] if "median" in row else UNKNOWN_SECONDS


def run_python(arguments: Sequence[str], log: Path, ends: float, stop: interrupt.StopRequest) -> int:
    """Run Python with these arguments until `ends` (time.monotonic) at most; return the exit code.

    At the end it gets SIGTERM, at which main.py saves its state, and ENDING_SECONDS to do so.
    """
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        while process.poll() is None and time.monotonic() < ends and not stop.requested:
            time.sleep(POLL_SECONDS)
        process.terminate()
        try:
            return process.wait(ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


if __name__ == "__main__":
    sys.exit(main())
