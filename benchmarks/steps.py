"""python -m benchmarks.steps CHECKPOINT_FOLDER DATA_DIR LOG [--every 3] [--draws 1]: what fewer denoising steps cost and save.

n network calls by longer strides from the same start, and by an earlier start at the same stride. Each setting measures its own balance on
the category's held-out normal pictures. A setting is a line of LOG (JSON) when it is done, and is not done again: a stopped run goes on.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import metrics
from config.load import build_settings
from dataset import ImageFolder
from ddad import strides
from detection.calibrate import measure_calibration
from detection.detector import Detector, predict_pictures
from runtime.progress import count_progress

STRIDES = ((250, 25), (250, 50), (249, 83), (250, 125), (250, 250))  # (start, skip): n = 10, 5, 3, 2, 1
STARTS = ((125, 25), (75, 25), (50, 25), (25, 25))  # n = 5, 3, 2, 1
NORMALS = 20  # pictures on which the balance is measured
WORKERS = 1


def outcome(detector: Detector, folder: Path, data_dir: Path, every: int) -> dict[str, Any]:
    """Image AUROC with its 95 % interval, and processor seconds a picture, of a detector that is calibrated anew."""
    settings = build_settings(detector.known_normals.settings)
    settings = replace(
        settings,
        data=replace(settings.data, data_dir=data_dir, category=folder.name),
        model=replace(settings.model, checkpoint_dir=folder.parent),
        calibration=replace(settings.calibration, pictures=NORMALS),
    )
    normals = ImageFolder(settings.category_dir, "train", detector.view)
    detector = replace(
        detector, calibration=measure_calibration(replace(detector, calibration=None), normals, {}, settings)
    )
    pictures = ImageFolder(settings.category_dir, "test", detector.view, masks=False)
    pictures = pictures.only(pictures.names()[::every])
    began = time.process_time()
    found = predict_pictures(detector, pictures, detector.picture_noise, WORKERS)
    judged = [(finding.score, item.label) for item, finding in count_progress(found, len(pictures), "detecting")]
    seconds = (time.process_time() - began) / len(pictures)
    scores, labels = (np.array(column) for column in zip(*judged, strict=True))
    interval = metrics.bootstrap_intervals(scores, labels)["auroc"]
    return {
        "pictures": len(pictures),
        "auroc": metrics.image_auroc(scores, labels),
        "interval": interval,
        "seconds": seconds,
    }


def as_line(done: dict[str, Any]) -> str:
    auroc, (low, high) = 100 * done["auroc"], (100 * end for end in done["interval"])
    return f"| {done['start']} | {done['skip']} | {done['n']} | {auroc:.1f} [{low:.1f}, {high:.1f}] | {done['seconds']:.3f} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.steps", description="What fewer denoising steps cost and save."
    )
    parser.add_argument("checkpoint_folder", type=Path, help="a category's, with its calibration.json")
    parser.add_argument("data_dir", type=Path, help="holds the category's pictures")
    parser.add_argument("log", type=Path, help="JSON lines, one a setting that is done")
    parser.add_argument("--every", type=int, default=1, help="take every so-many-th test picture")
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # processor seconds are those of one core
    detector, folder = Detector.load(options.checkpoint_folder, options.device), options.checkpoint_folder.resolve()
    wanted = {"category": folder.name, "every": options.every, "draws": options.draws}
    known = [json.loads(line) for line in options.log.read_text().splitlines()] if options.log.exists() else []
    print("| start | skip | n | image AUROC | CPU s a picture |\n|---|---|---|---|---|")
    for start, skip in (*STRIDES, *STARTS):
        setting = wanted | {"start": start, "skip": skip, "n": len(strides(start, skip))}
        done = next((line for line in known if setting.items() <= line.items()), None)
        if done is None:
            networks = replace(detector.networks, start=start, skip=skip, draws=options.draws)
            done = setting | outcome(replace(detector, networks=networks), folder, options.data_dir, options.every)
            with options.log.open("a") as file:
                file.write(json.dumps(done) + "\n")
        print(as_line(done), flush=True)


if __name__ == "__main__":
    main()
