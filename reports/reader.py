"""Read a results folder: scores, metrics, curves, manifest, and the first threshold of its page."""

import csv
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
from storage.json_file import read_json_object

SCORE_DIGITS = 9  # of scores.csv: a threshold of as many digits gives the same verdicts as the unrounded one
REMEDY = "run --detection True on that category again"
ONE_LABEL = (
    "There is no calibrated threshold, and these scores cannot give one: all test pictures have one label. "
    "The first threshold is the highest score. Set it by hand."
)
YOUDEN = (
    "There is no calibrated threshold. The first one maximises recall minus false-positive rate on these test "
    "pictures (Youden). It depends on their labels: expect more errors on new pictures."
)


class ScoredPicture(NamedTuple):
    """A row of scores.csv."""

    path: str
    defective: bool
    score: float
    p_value: float | None

    @property
    def kind(self) -> str:  # the name of its folder in test
        return self.path.split("/")[1] if self.path.count("/") > 1 else ""


class ResultFolder(NamedTuple):
    """The content of a results folder."""

    folder: Path
    name: str  # of the category
    data_set: str
    rows: list[ScoredPicture]
    metrics: dict[str, object]  # all of metrics.json
    summary: MetricSummary
    curves: dict[str, Points]
    layers: list[str]  # of the gallery, as far as this run has drawn them
    manifest: dict[str, object]
    threshold: float  # the first one of the page; a score above it means anomalous
    source: str  # of the threshold

    @property
    def published(self) -> dict[str, float]:
        """The paper's metrics of this category in percent; empty where the manifest names another data set."""
        return published_metrics(self.name, self.data_set or None)


def read_result(folder: Path) -> ResultFolder:
    """Read a results folder. Raise UserError for damaged scores; other files may be missing or damaged."""
    rows = list(read_scores(folder / SCORES))
    metrics, curves, manifest = (read_json_object(folder / name) for name in (METRICS_FILE, CURVES, MANIFEST))
    layers = curves.pop("layers", [])
    try:
        summary = MetricSummary.from_stored(metrics)
    except UserError:
        summary = MetricSummary()
    name, data_set = str(manifest.get("category", folder.resolve().name)), str(manifest.get("data_set") or "")
    contents = metrics, summary, cast(dict[str, Points], curves), cast(list[str], layers), manifest
    first = initial_threshold(rows, summary, metrics.get("calibration"))
    return ResultFolder(folder, name, data_set, rows, *contents, *first)


def read_scores(path: Path) -> Iterator[ScoredPicture]:
    """Yield the rows of a scores.csv. Raise UserError if it is damaged, MissingFileError if it is missing."""
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            lines = list(csv.DictReader(file))
    except FileNotFoundError:
        raise MissingFileError(f"no results at {path}; {REMEDY}") from None
    except csv.Error as error:
        raise UserError(f"{path} is no table of scores: {error}; {REMEDY}") from None
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


def initial_threshold(rows: Sequence[ScoredPicture], summary: MetricSummary, calibration: object) -> tuple[float, str]:
    """Return the calibrated threshold, else Youden's, else the highest score; and where it comes from."""
    if summary.operating_point:
        threshold, stored = summary.operating_point.threshold, calibration if isinstance(calibration, dict) else {}
        source = "held out of training" if stored.get("held_out") else "of the training set; new ones may score higher"
        if isinstance(recalibrated := stored.get("source"), dict):
            source = f"in {recalibrated.get('folder')} (--recalibrate)"
        rate, most = (percent(stored.get(key)) for key in ("rate", "at_most"))
        return float(f"{threshold:.{SCORE_DIGITS}g}"), (
            f"Calibrated on {stored.get('pictures')} normal pictures {source}. No test picture was used. "
            f"Expected false alarms: {rate} %; with 95 % confidence at most {most} %."
        )
    scores, labels = [row.score for row in rows], [row.defective for row in rows]
    if all(labels) or not any(labels):
        return max(scores), ONE_LABEL
    best = youden_threshold(scores, labels)
    below = max((score for score in scores if score < best), default=best - abs(best) - 1)
    return float(f"{(best + below) / 2:.{SCORE_DIGITS}g}"), YOUDEN
