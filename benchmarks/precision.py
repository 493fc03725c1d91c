"""python -m benchmarks.precision CHECKPOINT_FOLDER DATA_DIR [--every 4]: how far reduced precision moves the scores of real pictures.

Test pictures of a category are scored by its calibrated detector in fp32, in bf16 and fp16, and in fp32 with another seed for comparison.
A change is given in spreads, the standard deviation of the calibration's normal scores; the bound that reduced precision has to keep is a
tenth of one. On a CPU without such units reduced precision is emulated: as exact as elsewhere, and slow.
"""

import argparse
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dataset import ImageFolder
from detection.detector import Detector, predict_pictures
from runtime.device import device_name
from runtime.progress import count_progress

BOUND = 0.1  # spreads
WORKERS = 1


def in_precision(detector: Detector, precision: str) -> Detector:
    return replace(detector, networks=replace(detector.networks, precision=precision))


def scores(detector: Detector, pictures: ImageFolder, label: str) -> NDArray[np.float64]:
    found = predict_pictures(detector, pictures, detector.picture_noise, WORKERS)
    return np.array([finding.score for _, finding in count_progress(found, len(pictures), label)])


def row(
    name: str, changed: NDArray[np.float64], exact: NDArray[np.float64], normal: NDArray[np.bool_], detector: Detector
) -> str:
    """Largest change of a normal and of a defective picture's score, in spreads; of any, relative to it; how many verdicts it turns."""
    change, spread = np.abs(changed - exact), statistics.pstdev(detector.required_calibration.scores)
    turned = int(((changed > detector.threshold) != (exact > detector.threshold)).sum())
    largest = (change[kind].max() / spread if kind.any() else float("nan") for kind in (normal, ~normal))
    return " | ".join(
        [
            f"| {name}",
            *(f"{value:.2g}" for value in largest),
            f"{100 * (change / exact).max():.2g} %",
            f"{turned} of {len(exact)} |",
        ]
    )


def rows(detector: Detector, pictures: ImageFolder) -> Iterable[str]:
    normal = np.array([sample.kind == "good" for sample in pictures.samples])
    exact = scores(detector, pictures, "fp32")
    for precision in ("bf16", "fp16"):
        yield row(precision, scores(in_precision(detector, precision), pictures, precision), exact, normal, detector)
    yield row(
        "another seed",
        scores(replace(detector, seed=detector.seed + 1), pictures, "another seed"),
        exact,
        normal,
        detector,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.precision", description="How far reduced precision moves scores."
    )
    parser.add_argument("checkpoint_folder", type=Path, help="a category's, with its calibration.json")
    parser.add_argument("data_dir", type=Path, help="holds the category's pictures")
    parser.add_argument("--every", type=int, default=1, help="take every so-many-th test picture")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    detector = in_precision(Detector.load(options.checkpoint_folder, options.device), "fp32")
    category = options.checkpoint_folder.resolve().name
    pictures = ImageFolder(options.data_dir / category, "test", detector.view, masks=False)
    pictures = pictures.only(pictures.names()[:: options.every])
    print(
        f"{category}, {len(pictures)} pictures, {detector.networks.draws} draws, torch {torch.__version__} on {device_name(detector.device)}"
    )
    print(f"changes in spreads of the normal scores; the bound is {BOUND}\n")
    print("| | largest, normal | largest, defective | relative | verdicts turned |\n|---|---|---|---|---|")
    for line in rows(detector, pictures):
        print(line, flush=True)


if __name__ == "__main__":
    main()
