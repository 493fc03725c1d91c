"""Results folders made in no time, for the tests of the page that shows them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import metrics
from reports.drawing import ColourScale, Panel
from reports.metric_summary import curve_points
from reports.writer import Writer
from storage.safe_names import file_stems

SIZE = (60, 40)  # width and height of each picture


def write_folder(
    folder: Path,
    scores: Mapping[str, tuple[bool, float]],
    *,
    threshold: float | None = None,
    masks: bool = True,
    **manifest: Any,
) -> Path:
    """A results folder as detection leaves it, of scores by path; with pictures, and a manifest where parts of one are given."""
    writer, paths = Writer(folder), list(scores)
    stems, rng = file_stems(paths), np.random.default_rng(0)
    for path, (defective, score) in scores.items():
        writer.gallery(
            stems[path].removeprefix("test/"), panel(path, score, defective and masks, rng), ColourScale(1, 1, 1)
        )
    write_tables(writer, scores, threshold)
    if manifest:
        (folder / "manifest.json").write_text(json.dumps({"format": "ddad-manifest-1", **manifest}), encoding="utf-8")
    return folder


def write_tables(writer: Writer, scores: Mapping[str, tuple[bool, float]], threshold: float | None = None) -> None:
    labels, values = (np.array(column) for column in zip(*scores.values(), strict=True))
    content, lines = {}, {}
    if labels.any() and not labels.all():
        ranking = metrics.rank_anomalies(values, labels)
        content = {"image_auroc": ranking.auroc(), "intervals": {"image_auroc": [0.5, 1.0]}, "size": 256, "scored": 224}
        lines = curve_points("pictures", ranking, 0.3)
    if threshold is not None:
        content["operating_point"] = vars(metrics.operating_point(values, labels, threshold))
        content["calibration"] = {"pictures": 42, "held_out": True, "rate": 0.023, "at_most": 0.069}
    writer.scores(list(scores), labels, values)
    writer.metrics(content)
    writer.curves({**lines, "training": [[1, 3.0], [2, 1.0], [3, 0.5]]})


def panel(path: str, score: float, masked: bool, rng: np.random.Generator) -> Panel:
    picture = np.full((32, 32, 3), rng.integers(60, 200, 3), np.uint8)
    mask = np.zeros((64, 64), bool)
    mask[20:30, 30:50] = True
    ramp = np.tile(np.linspace(0, 1, 32), (32, 1))
    return Panel(path, score, picture, 255 - picture, ramp, ramp, ramp, mask if masked else None, SIZE)


def copied_gallery(writer: Writer, paths: list[str], side: int = 256) -> None:
    """The pictures of each path, all the same, of noise, which takes more bytes than pictures do."""
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)
    stems, folder = file_stems(paths), writer.folder / "gallery"
    writer.gallery(
        "one", Panel("one", 0.0, noise, noise, *[np.zeros((side, side))] * 3, None, (side, side)), ColourScale(1, 1, 1)
    )
    for layer in ("picture", "reconstruction", "map"):
        content = (folder / layer / "one.webp").read_bytes()
        for path in paths:
            file = folder / layer / f"{stems[path].removeprefix('test/')}.webp"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(content)
