"""Stage 3 on pictures without labels: a verdict, a score, a p-value and the defects of each picture."""

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from config.keys import PER_IMAGE, Settings
from dataset import pictures_below, read_ahead
from detection.assessment import ANOMALOUS, NORMAL, UNREADABLE, VERDICTS, assess_input, warning_lines
from detection.calibrate import calibrate
from detection.detector import Detection, Detector, calibration_inputs, load_detector
from images.read import read_header, read_picture
from reports import drawing
from reports.predictions import PREDICTIONS, PredictionRow, Predictions, read_rows
from reports.writer import Writer
from runtime import distributed
from runtime.device import choose_device
from runtime.errors import UserError
from runtime.progress import announce, count_progress
from storage.safe_names import file_stems

FORMAT = "ddad-predictions-1"
HEATMAPS, OUTLINES = "heatmaps", "outlines"
SUBFOLDERS = (HEATMAPS, OUTLINES, "anomaly_maps")
PIXELS_PER_BATCH = 50_000_000  # at most; pictures, maps and the next batch take about 100 bytes of memory a pixel


def check_prediction(
    settings: Settings, source: Path, output: Path | None, resume: bool, force: bool
) -> tuple[dict[str, Path], Writer]:
    """Return the pictures by name, and the writer of the results. Raise UserError for what would stop the stage."""
    if settings.score.protocol != PER_IMAGE:
        reason = "score.protocol is published, whose scores depend on the batch and have no threshold"
        raise UserError(f"{reason}; set score.protocol=per_image for --input")
    pictures = input_pictures(settings, source, output)
    writer = Writer(output or settings.results_folder / PREDICTIONS)
    if distributed.group().is_main:
        writer.refuse_locked()
    if not (resume or force):
        Predictions.refuse_existing(writer.folder)
    return pictures, writer


def input_pictures(settings: Settings, source: Path, output: Path | None = None) -> dict[str, Path]:
    """Return the pictures by their names in `source`, without those that earlier runs wrote."""
    folder = output or settings.results_folder / PREDICTIONS
    inside = source.resolve() in folder.resolve().parents
    pictures = pictures_below(source, [folder] if inside else [folder / kind for kind in SUBFOLDERS])
    return {path.name if path == source else path.relative_to(source).as_posix(): path for path in pictures}


def predict_input(settings: Settings, source: Path, output: Path | None, resume: bool, force: bool) -> int:
    """Inspect the pictures in `source`, a folder or a picture. Return how many could not be read."""
    pictures, writer = check_prediction(settings, source, output, resume, force)
    with writer.locked() if distributed.group().is_main else nullcontext():
        return predict_folder(settings, source, pictures, writer, resume, force and not resume)


def predict_folder(
    settings: Settings, source: Path, pictures: dict[str, Path], writer: Writer, resume: bool, replace: bool
) -> int:
    """Inspect the pictures, named by their paths in `source`, and print a summary. Return how many are unreadable."""
    detector, settings = load_inspector(settings, f"{source} ({len(pictures)} pictures)", writer.folder)
    began, group, table = time.monotonic(), distributed.group(), None
    size = largest_input_batch(pictures, detector, group)
    if group.is_main:
        if replace and Predictions.exist_in(writer.folder):
            writer.clear(*SUBFOLDERS)
        table = Predictions(writer.folder, prediction_inputs(source, detector, settings), size, replace)
    done, size = group.broadcast((table.done.intersection(pictures), table.batch_size) if table else None)
    if resume:
        print(f"{len(done)} of {len(pictures)} pictures are done already", flush=True)
    left = unfinished_batches(list(pictures), done, size)
    outcomes = predict_each(left, size, pictures, detector, settings.model.num_workers)
    stems, verdicts = file_stems(pictures), Counter[str]()
    for name, picture, outcome in count_progress(outcomes, len(left), "inspecting"):
        if name in done:
            continue
        if isinstance(outcome, Detection) and picture is not None:
            draw_detection(writer, stems[name], picture, outcome, detector, settings)
        row = prediction_row(name, outcome)
        if table:
            table.add(row)
        verdicts[row["verdict"]] += 1
    counts = ", ".join(f"{verdicts[verdict]} {verdict}" for verdict in VERDICTS)
    print(f"{verdicts.total()} pictures in {time.monotonic() - began:.0f} s: {counts}")
    if group.is_main:
        write_summary(writer, detector, list(pictures))
    files = ", ".join(["predictions.csv", "predictions.jsonl", *writer.written])
    print(f"results in {writer.folder}: {files}", flush=True)
    return verdicts[UNREADABLE]


def load_inspector(settings: Settings, reads: str, writes: Path) -> tuple[Detector, Settings]:
    """Return the calibrated detector and its settings without `auto`; print what it reads and writes."""
    device = choose_device(settings.model.device)
    torch.manual_seed(settings.model.seed)
    detector, settings, origins = load_detector(settings, settings.checkpoint_folder, device)
    places = {"reads": reads, **origins, "writes": writes}
    announce(f"Inspecting pictures as {settings.data.category}", device, settings.as_dict(), places)
    if detector.crop < 1:
        print(f"defects outside the centre are not detected: metrics.centre_crop is {detector.crop}; 1 takes all")
    return calibrate(detector, settings), settings


def write_summary(writer: Writer, detector: Detector, names: Sequence[str]) -> None:
    """Write summary.json about all predictions of the folder, those of earlier runs too; print its warnings."""
    rows = read_rows(writer.folder / f"{PREDICTIONS}.jsonl")
    outcomes = {row["path"]: (row["verdict"], row["score"]) for row in rows}
    summary = assess_input(detector, [outcomes[name] for name in names if name in outcomes])
    writer.summary(summary)
    for line in warning_lines(summary):
        print(line, flush=True)


def prediction_inputs(source: Path, detector: Detector, settings: Settings) -> dict[str, object]:
    """Return what all rows of a table depend on: the input, the detector and the thresholds."""
    thresholds = [detector.required_calibration.balance, detector.threshold, detector.pixel_threshold]
    inputs: dict[str, object] = {"format": FORMAT, "input": str(source.resolve())}
    return inputs | {"detector": calibration_inputs(detector, settings), "thresholds": thresholds}


def largest_input_batch(pictures: Mapping[str, Path], detector: Detector, group: distributed.Group) -> int:
    """Return how many pictures a batch of at most PIXELS_PER_BATCH holds, the same in all processes."""
    largest = max((math.prod(stored[0]) for path in pictures.values() if (stored := read_header(path))), default=0)
    return group.broadcast(min(detector.pictures_per_batch, max(1, PIXELS_PER_BATCH // max(1, largest))))


def unfinished_batches(names: Sequence[str], done: set[str], size: int) -> list[str]:
    """Return the names in all unfinished batches. Batches stay whole: the last digits of scores depend on them."""
    batches = (names[first : first + size] for first in range(0, len(names), size))
    return [name for batch in batches if not done.issuperset(batch) for name in batch]


def predict_each(
    names: Sequence[str], size: int, pictures: Mapping[str, Path], detector: Detector, workers: int
) -> Iterator[tuple[str, Image.Image | None, Detection | str]]:
    """Yield each name with its picture and verdict, or with an error message; the processes share the batches."""
    group = distributed.group()

    def read(name: str) -> tuple[str, Image.Image | str]:
        try:
            picture = read_picture(pictures[name], detector.view.channels, detector.view.bits)
            detector.view.shape(*picture.size)  # refuses a picture too narrow to be tiled
            detector.check_size(picture.size)
        except (ValueError, OSError) as error:
            return name, str(error)
        return name, picture

    batches = read_ahead(read, group.own_share_of(names, size), size, workers)
    for _ in range(math.ceil(len(names) / (group.size * size))):
        batch = next(batches, [])  # the last processes may have a batch less
        detections = iter(detector.detect([picture for _, picture in batch if isinstance(picture, Image.Image)]))
        outcomes = [(name, None, x) if isinstance(x, str) else (name, x, next(detections)) for name, x in batch]
        yield from group.gather(outcomes)


def prediction_row(name: str, outcome: Detection | str) -> PredictionRow:
    if isinstance(outcome, str):
        return PredictionRow(path=name, verdict=UNREADABLE, score=None, p_value=None, regions=[], error=outcome)
    verdict, regions = ANOMALOUS if outcome.is_anomalous else NORMAL, [region._asdict() for region in outcome.regions]
    score, p_value = outcome.score, outcome.p_value
    return PredictionRow(path=name, verdict=verdict, score=score, p_value=p_value, regions=regions, error="")


def draw_detection(
    writer: Writer, stem: str, picture: Image.Image, detection: Detection, detector: Detector, settings: Settings
) -> None:
    """Write the heat map, the outlined defects and the raw map, as far as the settings ask for them."""
    if settings.metrics.visualisation:
        pixels, top = np.asarray(picture.convert("RGB")), drawing.HOTTEST * detector.threshold
        heat, outlined = drawing.overlay_heat(pixels, detection.map, top), drawing.draw_outline(pixels, detection.mask)
        for drawn, folder in ((heat, HEATMAPS), (outlined, OUTLINES)):
            shaded = drawing.shade_outside(drawn, pixels, detector.region)
            writer.picture(f"{stem}.png", Image.fromarray(shaded), folder)
    if settings.metrics.raw_maps is not False:
        writer.raw_map(f"test/{stem}", detection.map, settings.data.category)
