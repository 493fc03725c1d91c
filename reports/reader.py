"""A results folder read back: scores, metrics, curves, manifest, and the first threshold of its page."""

import csv
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast

from config.published import published_metrics
from metrics import youden_threshold
from reports.manifest import MANIFEST
from reports.metric_summary import MetricSummary, Points, percent
from reports.writer import CURVES, METRICS_FILE, SCORES
from runtime.errors import MissingFileError, UserError

SCORE_DIGITS = 9  # of scores.csv: a threshold of as many digits gives the same verdicts as the unrounded one
REMEDY = "run --detection True on that category again"


class ScoredPicture(NamedTuple):
    """A row of scores.csv."""

    path: str
    defective: bool
    score: float
    p_value: float | None

    @property
    def kind(self) -> str:
        """The name of its folder in test."""
        return self.path.split("/")[1] if self.path.count("/") > 1 else ""


class ResultFolder(NamedTuple):
    """The content of a results folder.

    name: of the category. metrics: all of metrics.json. layers: of the gallery, as far as this run has drawn them.
    threshold: the first one of the page, a score above it means anomalous; `source` says where it comes from.
    """

    folder: Path
    name: str
    data_set: str
    rows: list[ScoredPicture]
    metrics: dict[str, object]
    summary: MetricSummary
    curves: dict[str, Points]
    layers: list[str]
    manifest: dict[str, object]
    threshold: float
    source: str

    @property
    def published(self) -> dict[str, float]:
        """The paper's metrics of this category in percent; empty where the manifest names another data set."""
        return published_metrics(self.name, self.data_set or None)


def read_result(folder: Path) -> ResultFolder:
    """Read a results folder, as far as its files go.

    Raise MissingFileError without scores, UserError for damaged ones. Other files may be missing or damaged.
    """
    rows = list(read_scores(folder / SCORES))
    metrics, curves, manifest = (read_json_object(folder / name) for name in (METRICS_FILE, CURVES, MANIFEST))
    layers = curves.pop("layers", [])
    try:
        summary = MetricSummary.from_stored(metrics)
    except UserError:
        summary = MetricSummary()
    return ResultFolder(
        folder,
        str(manifest.get("category", folder.resolve().name)),
        str(manifest.get("data_set") or ""),
        rows,
        metrics,
        summary,
        cast(dict[str, Points], curves),
        cast(list[str], layers),
        manifest,
        *initial_threshold(rows, summary, metrics.get("calibration")),
    )


def read_scores(path: Path) -> Iterator[ScoredPicture]:
    """Yield the rows of a scores.csv; raise UserError, MissingFileError where there is none."""
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            lines = list(csv.DictReader(file))
    except FileNotFoundError:
        raise MissingFileError(f"no results at {path}; {REMEDY}") from None
    if not lines:
        raise UserError(f"{path} holds no scores; {REMEDY}")
    for number, line in enumerate(lines, start=1):
        try:
            p_value = float(line["p_value"]) if line.get("p_value") else None
            row = ScoredPicture(line["path"], line["label"] == "1", float(line["score"]), p_value)
        except (KeyError, TypeError, ValueError):
            raise UserError(f"row {number} of {path} has no valid path, label and score; {REMEDY}") from None
        if not math.isfinite(row.score):
            raise UserError(f"row {number} of {path} has the score {row.score}; {REMEDY}")
        yield row


def read_json_object(path: Path) -> dict[str, object]:
    """Return the object in a JSON file; an empty one where the file is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def initial_threshold(rows: Sequence[ScoredPicture], summary: MetricSummary, calibration: object) -> tuple[float, str]:
    """Return the calibrated threshold, else Youden's on the test pictures, else the highest score; and its source."""
    if summary.operating_point:
        threshold = float(f"{summary.operating_point.threshold:.{SCORE_DIGITS}g}")
        return threshold, calibration_text(calibration if isinstance(calibration, dict) else {})
    scores, labels = [row.score for row in rows], [row.defective for row in rows]
    if all(labels) or not any(labels):
        return max(scores), (
            "There is no calibrated threshold, and these scores cannot give one: all test pictures have one label. "
            "The first threshold is the highest score. Set it by hand."
        )
    best = youden_threshold(scores, labels)
    below = max((score for score in scores if score < best), default=best - abs(best) - 1)
    return float(f"{(best + below) / 2:.{SCORE_DIGITS}g}"), (
        "There is no calibrated threshold. The first one maximises recall minus false-positive rate on these test "
        "pictures (Youden). It depends on their labels: expect more errors on new pictures."
    )


def calibration_text(calibration: dict[str, object]) -> str:
    source = (
        "held out of training"
        if calibration.get("held_out")
        else "of the training set; new normal pictures may score higher"
    )
    rate, most = (percent(calibration.get(key)) for key in ("rate", "at_most"))
    return (
        f"Calibrated on {calibration.get('pictures')} normal pictures {source}. No test picture was used. "
        f"Expected false alarms: {rate} %; with 95 % confidence at most {most} %."
    )
