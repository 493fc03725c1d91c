"""--recalibrate: measure the thresholds anew on new normal pictures, in seconds and without training.

Networks, memory banks, scales and the balance stay. Only the scores and pixels that set the thresholds are measured.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tabulate import tabulate
from torch import Tensor

from config.keys import PER_IMAGE, SPLIT, Settings
from dataset import NORMAL, Sample, hash_files, picture_fingerprint, pictures_in, read_ahead, to_unit_range
from detection.calibrate import calibrate, current_calibration, normal_folder
from detection.calibration_file import calibration_name, load_calibration, save_calibration, stored_source
from detection.detector import Detector, Prediction, load_detector
from detection.operating_points import operating_rows
from detection.threshold import Calibration, NormalSource, pixel_quantiles
from runtime.device import choose_device
from runtime.errors import UserError
from runtime.progress import announce, count_progress

MAPS = 200  # kept for the pixel threshold, at most; they have millions of pixels
HEAD = ("wanted", "threshold", "before", "expected", "before", "at most (95 %)", "before")


class NormalPicture(NamedTuple):
    """The image score of a normal picture, and the scored area of its map if that is kept."""

    score: float
    map: NDArray[np.float32] | None


def recalibrate(settings: Settings, source: Path) -> int:
    """Store the thresholds of a folder of normal pictures; the usual one goes back. Return how many are unreadable."""
    if settings.score.protocol != PER_IMAGE:
        reason = "score.protocol is published, whose scores depend on the batch and have no threshold"
        raise UserError(f"{reason}; set score.protocol=per_image for --recalibrate")
    began, goes_back = time.monotonic(), source.resolve() == normal_folder(settings).resolve()
    paths = pictures_in(source) if goes_back else distinct_pictures(source, settings)
    device, folder = choose_device(settings.model.device), settings.checkpoint_folder
    torch.manual_seed(settings.model.seed)
    detector, settings, origins = load_detector(settings, folder, device)
    name = calibration_name(settings)
    places = {"reads": f"{source} ({len(paths)} pictures)", **origins, "writes": folder / name}
    announce(f"Recalibrating {settings.data.category}", device, settings.as_dict(), places)
    if goes_back:
        (folder / name).unlink(missing_ok=True)
        calibrate(detector, settings)
        return 0
    stored = load_calibration(folder, name)
    before = current_calibration(detector, settings, stored and replace(stored, source=None))
    measured = measure_pictures(replace(detector, calibration=before), paths, settings.model.num_workers)
    now = calibration_of(before, measured, source)
    save_calibration(folder, now, name, detector.region)
    for line in change_lines(before, now, detector.false_positive_rate):
        print(line)
    print(f"thresholds measured in {time.monotonic() - began:.0f} s; --detection and --input use them from now on")
    print(f"to go back: --recalibrate {normal_folder(settings)}", flush=True)
    return len(paths) - len(measured)


def refuse_training(settings: Settings) -> None:
    """Raise UserError where training would make thresholds of --recalibrate invalid, and detection would end."""
    path = settings.checkpoint_folder / calibration_name(settings)
    if stored_source(path):
        problem = f"{path} holds thresholds of --recalibrate, which new weights make invalid"
        raise UserError(f"{problem}; remove it, or run --train alone and --recalibrate again after it")


def distinct_pictures(source: Path, settings: Settings) -> list[Path]:
    """Return the pictures of a folder without copies. Raise UserError where all are copies of train/good."""
    paths, trained = pictures_in(source), set[str]()
    with suppress(FileNotFoundError):  # weights can be used without train/good
        trained.update(hash_files(pictures_in(settings.category_dir / "train" / NORMAL)))
    by_content = {content: path for path, content in zip(paths, hash_files(paths), strict=True)}
    distinct = sorted(path for content, path in by_content.items() if content not in trained)
    if not distinct:
        raise UserError(f"all pictures in {source} are copies of train/good; --recalibrate needs new normal pictures")
    if copies := len(paths) - len(distinct):
        print(f"left out: copies of other pictures, or of train/good, which training has seen: {copies}")
    return distinct


def measure_pictures(detector: Detector, paths: Sequence[Path], workers: int) -> dict[Path, NormalPicture]:
    """Return the readable pictures, and print why the others are not. Raise UserError where none is readable."""
    measured: dict[Path, NormalPicture] = {}
    every = math.ceil(len(paths) / MAPS)
    for path, outcome in count_progress(predict_each(detector, paths, workers), len(paths), "calibrating"):
        if isinstance(outcome, str):
            print(f"left out: {outcome}")
        else:
            scored = detector.crop_maps(outcome.anomaly).numpy() if len(measured) % every == 0 else None
            measured[path] = NormalPicture(outcome.score, scored)
    if not measured:
        raise UserError(f"none of the {len(paths)} pictures in {paths[0].parent} can be read; name a folder of others")
    return measured


def predict_each(detector: Detector, paths: Sequence[Path], workers: int) -> Iterator[tuple[Path, Prediction | str]]:
    """Yield each path with its prediction, or with an error message."""

    def read(path: Path) -> tuple[Path, Tensor | str]:
        try:
            pixels, size = detector.view.read(path)
            detector.check_size(size)
            return path, to_unit_range(pixels)
        except (ValueError, OSError) as error:
            return path, str(error)

    for batch in read_ahead(read, paths, detector.pictures_per_batch, workers):
        pictures = [picture for _, picture in batch if isinstance(picture, Tensor)]
        predictions = iter(detector.predict(pictures))
        yield from ((path, picture if isinstance(picture, str) else next(predictions)) for path, picture in batch)


def calibration_of(before: Calibration, pictures: Mapping[Path, NormalPicture], source: Path) -> Calibration:
    """Return the calibration with the scores and pixels of other normal pictures."""
    scores, names = zip(*sorted((picture.score, path.name) for path, picture in pictures.items()), strict=True)
    pixels = pixel_quantiles(picture.map for picture in pictures.values() if picture.map is not None)
    content = picture_fingerprint(Sample(path, NORMAL) for path in pictures)
    origin = NormalSource(str(source.resolve()), len(pictures), str(content["hash"]))
    now = replace(before, scores=scores, pictures=names, pixels=pixels, held_out=True, source=origin)
    return replace(now, method=SPLIT, independent=None, dependence="")


def change_lines(before: Calibration, now: Calibration, rate: float) -> Iterator[str]:
    """Yield the operating table before and now, and what such a number of pictures can promise."""
    rows = zip(operating_rows(now, rate), operating_rows(before, rate), strict=True)
    cells = []
    for new, old in rows:
        (wanted, *values), (_, *earlier) = new.cells()[:4], old.cells()[:4]
        cells.append([wanted, *(cell for pair in zip(values, earlier, strict=True) for cell in pair)])
    table = tabulate(cells, HEAD, "plain", colalign=["right"] * len(HEAD), disable_numparse=True)
    yield from (f"  {line}" for line in table.splitlines())
    yield now.describe(rate)
    if now.promise(rate).rate > rate:
        yield f"{len(now.scores)} pictures can't promise {100 * rate:.3g} %; that takes {math.ceil(1 / rate) - 1}"
