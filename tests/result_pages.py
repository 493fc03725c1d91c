"""Results folders without a run, for the tests of reports/."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import metrics
from detection.operating_points import measure_rows
from reports.drawing import ColourScale, Panel
from reports.metric_summary import MetricSummary, build_curves
from reports.operating_table import OperatingRow
from reports.writer import Writer
from storage.safe_names import file_stems

WARNING = "2 of 4 normal test pictures are called <b>anomalous</b>, where 2.3 % were promised"
SIZE = (60, 40)  # width and height of each picture


def write_folder(
    folder: Path,
    scores: Mapping[str, tuple[bool, float]],
    *,
    threshold: float | None = None,
    masks: bool = True,
    **manifest: object,
) -> Path:
    """Write a results folder with pictures, from label and score by path; with a manifest if parts of one are given."""
    writer, stems, rng = Writer(folder), file_stems(list(scores)), np.random.default_rng(0)
    for path, (defective, score) in scores.items():
        panel = make_panel(path, score, defective and masks, rng)
        writer.gallery(stems[path].removeprefix("test/"), panel, ColourScale(1, 1, 1))
    write_tables(writer, scores, threshold)
    if manifest:
        (folder / "manifest.json").write_text(json.dumps({"format": "ddad-manifest-1", **manifest}), encoding="utf-8")
    return folder


def write_tables(writer: Writer, scores: Mapping[str, tuple[bool, float]], threshold: float | None = None) -> None:
    labels, values = (np.array(column) for column in zip(*scores.values(), strict=True))
    content, curves = {}, {}
    if labels.any() and not labels.all():
        ranking = metrics.rank_anomalies(values, labels)
        summary = MetricSummary({"image_auroc": ranking.auroc()}, {"image_auroc": (0.5, 1.0)})
        content = {**summary.as_stored(), "size": 256, "scored": 224}
        curves = build_curves("pictures", ranking)
    if threshold is not None:
        content["operating_point"] = vars(metrics.operating_point(values, labels, threshold))
        content["calibration"] = {"pictures": 42, "held_out": True, "rate": 0.023, "at_most": 0.069}
        points = [OperatingRow(rate, threshold - rate, rate, 2 * rate, rate == 0.01) for rate in (0.01, 0.1)]
        content["operating_points"] = [row.as_stored() for row in measure_rows(points, values, labels)]
        content["warnings"] = [WARNING]
    writer.scores(list(scores), labels, values)
    writer.metrics(content)
    writer.curves({**curves, "training": [[1, 3.0], [2, 1.0], [3, 0.5]]})


def make_panel(path: str, score: float, masked: bool, rng: np.random.Generator) -> Panel:
    picture = np.full((32, 32, 3), rng.integers(60, 200, 3), np.uint8)
    mask = np.zeros((64, 64), bool)
    mask[20:30, 30:50] = True
    ramp = np.tile(np.linspace(0, 1, 32), (32, 1))
    return Panel(path, score, picture, 255 - picture, ramp, ramp, ramp, mask if masked else None, SIZE)


def copy_gallery(writer: Writer, paths: list[str], side: int = 256) -> None:
    """Write the same picture of noise, which hardly compresses, under each path."""
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)
    stems, folder, flat = file_stems(paths), writer.folder / "gallery", np.zeros((side, side))
    writer.gallery("one", Panel("one", 0.0, noise, noise, flat, flat, flat, None, (side, side)), ColourScale(1, 1, 1))
    for layer in ("picture", "reconstruction", "map"):
        content = (folder / layer / "one.webp").read_bytes()
        for path in paths:
            file = folder / layer / f"{stems[path].removeprefix('test/')}.webp"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(content)
