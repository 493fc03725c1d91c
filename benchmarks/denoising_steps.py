"""Measure what fewer denoising steps cost in accuracy and save in time.

    python -m benchmarks.denoising_steps CHECKPOINT_FOLDER DATA_DIR LOG [--every 3] [--draws 1]

A row is image AUROC and processor seconds a picture with n network calls: by longer strides from the same start, and by
an earlier start with the same stride. Each setting measures its own calibration on held-out normal pictures of the
category. LOG gets one JSON line for each finished setting; a rerun takes it from there, so that a stopped run goes on.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

import torch

import metrics
from benchmarks.shared import add_detector_arguments, every_nth, score_pictures
from config.load import build_settings
from dataset import ImageFolder
from ddad import strides
from detection.calibrate import measure_calibration
from detection.detector import Detector

STRIDES = ((250, 25), (250, 50), (249, 83), (250, 125), (250, 250))  # (start, skip): n = 10, 5, 3, 2, 1
STARTS = ((125, 25), (75, 25), (50, 25), (25, 25))  # n = 5, 3, 2, 1
NORMALS = 20  # held-out normal pictures of each calibration


class Measurement(TypedDict):
    """Image AUROC with its 95 % interval, and processor seconds a picture."""

    pictures: int
    auroc: float
    interval: tuple[float, float]
    seconds: float


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.denoising_steps",
        description="Measures what fewer denoising steps cost in accuracy and save in time.",
    )
    add_detector_arguments(parser)
    parser.add_argument("log", type=Path, help="file that gets a JSON line for each finished setting")
    parser.add_argument("--draws", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # processor seconds are those of one core
    detector, folder = Detector.load(options.checkpoint_folder, options.device), options.checkpoint_folder.resolve()
    lines = [json.loads(line) for line in options.log.read_text().splitlines()] if options.log.exists() else []
    print("| start | skip | n | image AUROC | CPU s a picture |\n|---|---|---|---|---|")
    for start, skip in (*STRIDES, *STARTS):
        setting = {"category": folder.name, "every": options.every, "draws": options.draws}
        setting |= {"start": start, "skip": skip, "n": len(strides(start, skip))}
        done = next((line for line in lines if setting.items() <= line.items()), None)
        if done is None:
            networks = replace(detector.networks, start=start, skip=skip, draws=options.draws)
            done = measure_setting(replace(detector, networks=networks), folder, options.data_dir, options.every)
            with options.log.open("a") as file:
                file.write(json.dumps(setting | done) + "\n")
        print(f"| {start} | {skip} | {setting['n']} | {table_cells(done)} |", flush=True)


def measure_setting(detector: Detector, folder: Path, data_dir: Path, every: int) -> Measurement:
    """Return the measurement of a detector on the test pictures, after a calibration of its own."""
    settings = build_settings(detector.required_calibration.settings)
    settings = replace(
        settings,
        data=replace(settings.data, data_dir=data_dir, category=folder.name),
        model=replace(settings.model, checkpoint_dir=folder.parent),
        calibration=replace(settings.calibration, pictures=NORMALS),
    )
    normals = ImageFolder(settings.category_dir, "train", detector.view)
    calibration = measure_calibration(replace(detector, calibration=None), normals, settings)
    pictures = every_nth(ImageFolder(settings.category_dir, "test", detector.view, masks=False), every)
    began = time.process_time()
    scores, labels = score_pictures(replace(detector, calibration=calibration), pictures, "detecting")
    return {
        "pictures": len(pictures),
        "auroc": metrics.image_auroc(scores, labels),
        "interval": metrics.bootstrap_intervals(scores, labels)["auroc"],
        "seconds": (time.process_time() - began) / len(pictures),
    }


def table_cells(measurement: Measurement) -> str:
    auroc, (low, high) = 100 * measurement["auroc"], (100 * end for end in measurement["interval"])
    return f"{auroc:.1f} [{low:.1f}, {high:.1f}] | {measurement['seconds']:.3f}"


if __name__ == "__main__":
    main()
