"""Measure how far reduced precision changes the scores of real pictures.

    python -m benchmarks.reduced_precision CHECKPOINT_FOLDER DATA_DIR [--every 4]

The calibrated detector of a category scores its test pictures in fp32, in bf16 and fp16, and in fp32 with another seed.
Changes are in units of the standard deviation of the calibration's normal scores; reduced precision should change less
than a tenth of it. A CPU without units for bf16 or fp16 emulates them: with the same results, and slowly.
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from benchmarks.shared import Labels, Scores, add_detector_arguments, every_nth, score_pictures
from dataset import ImageFolder
from detection.detector import Detector
from runtime.device import device_name

BOUND = 0.1  # standard deviations of the normal scores


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reduced_precision",
        description="Measures how far reduced precision changes the scores of real pictures.",
    )
    add_detector_arguments(parser)
    options = parser.parse_args(arguments)
    detector = with_precision(Detector.load(options.checkpoint_folder, options.device), "fp32")
    category = options.checkpoint_folder.resolve().name
    test = ImageFolder(options.data_dir / category, "test", detector.view, masks=False)
    pictures, device = every_nth(test, options.every), device_name(detector.device)
    draws = detector.networks.draws
    print(f"{category}, {len(pictures)} pictures, {draws} draws, torch {torch.__version__} on {device}")
    print(f"changes in standard deviations of the normal scores; the bound is {BOUND}\n")
    print("| | largest, normal | largest, defective | relative | changed verdicts |\n|---|---|---|---|---|")
    for line in table_rows(detector, pictures):
        print(line, flush=True)


def table_rows(detector: Detector, pictures: ImageFolder) -> Iterator[str]:
    """Yield a row for each reduced precision, and one for another seed."""
    others = {precision: with_precision(detector, precision) for precision in ("bf16", "fp16")}
    others["another seed"] = replace(detector, seed=detector.seed + 1)
    exact, defective = score_pictures(detector, pictures, "fp32")
    for name, other in others.items():
        changed, _ = score_pictures(other, pictures, name)
        yield table_row(name, changed, exact, defective, detector)


def with_precision(detector: Detector, precision: str) -> Detector:
    return replace(detector, networks=replace(detector.networks, precision=precision))


def table_row(name: str, changed: Scores, exact: Scores, defective: Labels, detector: Detector) -> str:
    """Return the largest changes of a normal, a defective and any score, and how many verdicts change."""
    change, unit = np.abs(changed - exact), statistics.pstdev(detector.required_calibration.scores)
    verdicts = int(((changed > detector.threshold) != (exact > detector.threshold)).sum())
    normal, damaged = (change[kind].max() / unit if kind.any() else float("nan") for kind in (~defective, defective))
    relative = 100 * (change / exact).max()
    return f"| {name} | {normal:.2g} | {damaged:.2g} | {relative:.2g} % | {verdicts} of {len(exact)} |"


if __name__ == "__main__":
    main()
