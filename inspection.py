"""Stage 3 on pictures without labels: a verdict, a score, a p-value and the defects of each, written as they are done."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import report
import runtime
from config import PER_IMAGE, Settings
from dataset import pictures_below, read_ahead, read_picture
from detection import Detection, Detector, build, calibrated, fingerprint

FORMAT = "ddad-predictions-1"
ANOMALOUS, NORMAL, UNREADABLE = "anomalous", "normal", "unreadable"


def check(settings: Settings, source: Path, output: Path | None = None, resume: bool = False) -> tuple[dict[str, Path], report.Writer]:
    """The pictures by their names in `source`, and the writer of the results; raises what would stop the stage later."""
    if settings.score.protocol != PER_IMAGE:
        raise ValueError(
            "score.protocol is published, whose scores depend on the batch and have no threshold; set score.protocol=per_image for --input"
        )
    folder = output or Path("results") / settings.model.exp_name / settings.data.category / "predictions"
    pictures = {path.name if path == source else path.relative_to(source).as_posix(): path for path in pictures_below(source, folder)}
    writer = report.Writer(folder)
    if not resume:
        report.Predictions.refuse_others(folder)
    return pictures, writer


def run(settings: Settings, source: Path, output: Path | None = None, resume: bool = False) -> int:
    """Judge the picture or the pictures in the folder `source`; returns how many could not be read.

    Leaves predictions.csv and predictions.jsonl, heat maps, outlines and raw maps in `output` (results/<exp_name>/<category>/predictions).
    """
    device = runtime.choose_device(settings.model.device)
    torch.manual_seed(settings.model.seed)
    pictures, writer = check(settings, source, output, resume)
    detector, settings, origins = build(settings, settings.checkpoint_folder, device)
    runtime.announce(
        f"Inspecting pictures as {settings.data.category}",
        device,
        settings.as_dict(),
        {"reads": f"{source} ({len(pictures)} pictures)", **origins, "writes": writer.folder},
    )
    began = time.monotonic()
    detector = calibrated(detector, settings)
    made_with = {"format": FORMAT, "input": str(source.resolve()), "detector": fingerprint(detector, settings)}
    predictions = report.Predictions(writer.folder, made_with)
    left = [name for name in pictures if name not in predictions.done]
    if resume:
        print(f"{len(pictures) - len(left)} of {len(pictures)} pictures are done already", flush=True)
    same_stem = Counter(Path(name).with_suffix("") for name in pictures)
    verdicts: Counter[str] = Counter()
    for name, picture, outcome in runtime.count(outcomes(left, pictures, detector, settings.model.num_workers), len(left), "inspecting"):
        if isinstance(outcome, Detection):
            draw(writer, name, picture, outcome, settings, report.HOTTEST * detector.threshold, whole_name=same_stem[Path(name).with_suffix("")] > 1)
        row = as_row(name, outcome)
        predictions.add(row)
        verdicts[row["verdict"]] += 1
    counts = ", ".join(f"{verdicts[verdict]} {verdict}" for verdict in (ANOMALOUS, NORMAL, UNREADABLE))
    print(f"{len(left)} pictures in {time.monotonic() - began:.0f} s: {counts}")
    print(f"results in {writer.folder}: {', '.join(['predictions.csv', 'predictions.jsonl', *writer.written])}", flush=True)
    return verdicts[UNREADABLE]


def outcomes(
    names: Sequence[str], pictures: Mapping[str, Path], detector: Detector, workers: int
) -> Iterator[tuple[str, Image.Image, Detection | str]]:
    """Each name with its picture and what was found in it, or (beside an empty picture) why it could not be read."""

    def read(name: str) -> tuple[str, Image.Image | str]:
        try:
            return name, read_picture(pictures[name], detector.view.channels)
        except (ValueError, OSError) as error:
            return name, str(error)

    for batch in read_ahead(read, names, detector.pictures_at_once, workers):
        readable = [picture for _, picture in batch if isinstance(picture, Image.Image)]
        found = iter(detector.detect(readable))
        for name, picture in batch:
            yield (name, Image.new("L", (1, 1)), picture) if isinstance(picture, str) else (name, picture, next(found))


def as_row(name: str, outcome: Detection | str) -> dict[str, Any]:
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


def draw(writer: report.Writer, name: str, picture: Image.Image, detection: Detection, settings: Settings, top: float, *, whole_name: bool) -> None:
    """The picture's heat map, its outlined defects and its raw map, as far as they are wanted."""
    pixels = np.asarray(picture.convert("RGB"))
    if settings.metrics.visualisation:
        shown = name if name.lower().endswith(".png") else f"{name}.png"
        writer.picture(f"heatmaps/{shown}", Image.fromarray(report.overlaid(pixels, detection.map, top)), "heatmaps")
        writer.picture(f"outlines/{shown}", Image.fromarray(report.outlined(pixels, detection.mask)), "outlines")
    if settings.metrics.raw_maps is not False:
        writer.raw_map(settings.data.category, f"test/{name}", detection.map, whole_name=whole_name)
