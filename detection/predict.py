"""Stage 3 on pictures without labels: a verdict, a score, a p-value and the defects of each, written as they are done."""

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from config.keys import PER_IMAGE, Settings
from dataset import pictures_below, read_ahead
from detection.calibrate import calibrate
from detection.detector import Detection, Detector, calibration_inputs, load_detector
from images.read import read_header, read_picture
from reports import drawing
from reports.predictions import Predictions
from reports.writer import Writer
from runtime import distributed
from runtime.device import choose_device
from runtime.errors import UserError
from runtime.progress import announce, count_progress
from storage.safe_names import file_stems

FORMAT = "ddad-predictions-1"
DRAWN = ("heatmaps", "outlines", "anomaly_maps")  # subfolders of the output
MOST_PIXELS_AT_ONCE = (
    50_000_000  # of a batch, as its pictures, their maps and the next batch are in memory: some 100 bytes each
)
ANOMALOUS, NORMAL, UNREADABLE = "anomalous", "normal", "unreadable"


def check_prediction(
    settings: Settings, source: Path, output: Path | None = None, resume: bool = False, force: bool = False
) -> tuple[dict[str, Path], Writer]:
    """The pictures by their names in `source`, and the writer of the results; raises what would stop the stage later."""
    if settings.score.protocol != PER_IMAGE:
        raise UserError(
            "score.protocol is published, whose scores depend on the batch and have no threshold; set score.protocol=per_image for --input"
        )
    pictures = input_pictures(settings, source, output)
    writer = Writer(predictions_folder(settings, output))
    if distributed.group().is_main:
        writer.refuse_others()
    if not (resume or force):
        Predictions.refuse_others(writer.folder)
    return pictures, writer


def input_pictures(settings: Settings, source: Path, output: Path | None = None) -> dict[str, Path]:
    """Return the pictures to judge by their names in `source`; the pictures that earlier runs left are not among them."""
    folder = predictions_folder(settings, output)
    inside = source.resolve() in folder.resolve().parents
    leave_out = [folder] if inside else [folder / kind for kind in DRAWN]
    return {
        path.name if path == source else path.relative_to(source).as_posix(): path
        for path in pictures_below(source, leave_out)
    }


def predictions_folder(settings: Settings, output: Path | None) -> Path:
    return output or settings.results_folder / "predictions"


def predict_input(
    settings: Settings, source: Path, output: Path | None = None, resume: bool = False, force: bool = False
) -> int:
    """Judge the picture or the pictures in the folder `source`; returns how many could not be read.

    Leaves predictions.csv and predictions.jsonl, heat maps, outlines and raw maps in `output` (results/<exp_name>/<category>/predictions).
    """
    pictures, writer = check_prediction(settings, source, output, resume, force)
    with writer.locked() if distributed.group().is_main else nullcontext():
        return predict_folder(settings, source, pictures, writer, resume, force)


def predict_folder(
    settings: Settings, source: Path, pictures: dict[str, Path], writer: Writer, resume: bool, force: bool
) -> int:
    """Judge the pictures, by their names in `source`, and say what came of it."""
    device = choose_device(settings.model.device)
    torch.manual_seed(settings.model.seed)
    detector, settings, origins = load_detector(settings, settings.checkpoint_folder, device)
    announce(
        f"Inspecting pictures as {settings.data.category}",
        device,
        settings.as_dict(),
        {"reads": f"{source} ({len(pictures)} pictures)", **origins, "writes": writer.folder},
    )
    began = time.monotonic()
    detector = calibrate(detector, settings)
    processes = distributed.group()
    if processes.is_main and force and not resume and Predictions.there(writer.folder):
        writer.clear(*DRAWN)
    at_once, anew = largest_input_batch(pictures, detector, processes), force and not resume
    rows = (
        Predictions(writer.folder, prediction_inputs(source, detector, settings), at_once, anew)
        if processes.is_main
        else None
    )
    done = processes.broadcast(rows.done.intersection(pictures) if rows else set())
    if resume:
        print(f"{len(done)} of {len(pictures)} pictures are done already", flush=True)
    names, at_once = list(pictures), processes.broadcast(rows.at_once if rows else None)
    batches = (names[first : first + at_once] for first in range(0, len(names), at_once))
    left = [
        name for batch in batches if not done.issuperset(batch) for name in batch
    ]  # whole batches, on which last digits depend
    stems = file_stems(pictures)
    verdicts: Counter[str] = Counter()
    found = predict_each(left, at_once, pictures, detector, settings.model.num_workers, processes)
    for name, picture, outcome in count_progress(found, len(left), "inspecting"):
        if name in done:
            continue
        if isinstance(outcome, Detection) and picture is not None:
            draw_detection(writer, stems[name], picture, outcome, detector.threshold, settings)
        row = prediction_row(name, outcome)
        if rows:
            rows.add(row)
        verdicts[row["verdict"]] += 1
    counts = ", ".join(f"{verdicts[verdict]} {verdict}" for verdict in (ANOMALOUS, NORMAL, UNREADABLE))
    print(f"{verdicts.total()} pictures in {time.monotonic() - began:.0f} s: {counts}")
    print(
        f"results in {writer.folder}: {', '.join(['predictions.csv', 'predictions.jsonl', *writer.written])}",
        flush=True,
    )
    return verdicts[UNREADABLE]


def prediction_inputs(source: Path, detector: Detector, settings: Settings) -> dict[str, Any]:
    """What rows must share to stand in one table."""
    thresholds = [detector.known_normals.balance, detector.threshold, detector.pixel_threshold]
    return {
        "format": FORMAT,
        "input": str(source.resolve()),
        "detector": calibration_inputs(detector, settings),
        "thresholds": thresholds,
    }


def largest_input_batch(pictures: Mapping[str, Path], detector: Detector, group: distributed.Group) -> int:
    """How many pictures at once, the same on all processes, so that no batch holds more than MOST_PIXELS_AT_ONCE."""
    largest = max((math.prod(stored[0]) for path in pictures.values() if (stored := read_header(path))), default=0)
    return group.broadcast(min(detector.pictures_at_once, max(1, MOST_PIXELS_AT_ONCE // max(1, largest))))


def predict_each(
    names: Sequence[str],
    at_once: int,
    pictures: Mapping[str, Path],
    detector: Detector,
    workers: int,
    group: distributed.Group,
) -> Iterator[tuple[str, Image.Image | None, Detection | str]]:
    """Each name with its picture and what was found in it, or why it could not be read; processes do every so-many-th batch of `at_once` each,
    and the first one yields all of them."""

    def read(name: str) -> Image.Image | str:
        try:
            picture = read_picture(pictures[name], detector.view.channels)
            detector.view.shape(*picture.size)
            return picture
        except (ValueError, OSError) as error:
            return str(error)

    batches = read_ahead(lambda name: (name, read(name)), group.own_share_of(names, at_once), at_once, workers)
    for _ in range(math.ceil(len(names) / (group.size * at_once))):
        batch = next(batches, [])  # the last processes may have a batch less
        found = iter(detector.detect([picture for _, picture in batch if isinstance(picture, Image.Image)]))
        yield from group.gather(
            [(name, None, read) if isinstance(read, str) else (name, read, next(found)) for name, read in batch]
        )


def prediction_row(name: str, outcome: Detection | str) -> dict[str, Any]:
    if isinstance(outcome, str):
        return {"path": name, "verdict": UNREADABLE, "score": None, "p_value": None, "regions": [], "error": outcome}
    return {
        "path": name,
        "verdict": ANOMALOUS if outcome.is_anomalous else NORMAL,
        "score": outcome.score,
        "p_value": outcome.p_value,
        "regions": [region._asdict() for region in outcome.regions],
        "error": "",
    }


def draw_detection(
    writer: Writer, stem: str, picture: Image.Image, detection: Detection, threshold: float, settings: Settings
) -> None:
    """The picture's heat map, its outlined defects and its raw map, as far as they are wanted."""
    if settings.metrics.visualisation:
        pixels, top = np.asarray(picture.convert("RGB")), drawing.HOTTEST * threshold
        writer.picture(f"{stem}.png", Image.fromarray(drawing.overlay_heat(pixels, detection.map, top)), "heatmaps")
        writer.picture(f"{stem}.png", Image.fromarray(drawing.draw_outline(pixels, detection.mask)), "outlines")
    if settings.metrics.raw_maps is not False:
        writer.raw_map(f"test/{stem}", detection.map, settings.data.category)
