"""A results folder read back: its scores, figures, curves and notes, and the threshold that its page starts from."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from config.published import published_metrics
from metrics import youden_threshold
from reports.manifest import MANIFEST
from reports.writer import CURVES, METRICS, SCORES, read_json
from runtime.errors import MissingFileError, UserError

SCORE_DIGITS = 9  # of scores.csv; a threshold of as many compares with them as the unrounded ones do


class ScoredPicture(NamedTuple):
    """A picture of scores.csv."""

    path: str
    defective: bool
    score: float
    p_value: float | None

    @property
    def kind(self) -> str:
        """The folder it is in, below test."""
        return self.path.split("/")[1] if self.path.count("/") > 1 else ""


class InitialThreshold(NamedTuple):
    """Where the threshold begins, and a sentence on where it comes from; a picture is anomalous where its score is above it."""

    threshold: float
    source: str


class ResultFolder(NamedTuple):
    """What a results folder holds; `name` is the category's."""

    folder: Path
    name: str
    rows: list[ScoredPicture]
    figures: dict[str, Any]
    curves: dict[str, Any]
    manifest: dict[str, Any]
    start: InitialThreshold

    @property
    def published(self) -> dict[str, float]:
        """The paper's values in percent, of the category of this name; none where the manifest names another data set."""
        return published_metrics(self.name, self.manifest.get("data_set"))


def read_result(folder: Path) -> ResultFolder:
    """Raises FileNotFoundError or ValueError where its scores are missing or damaged; does without whatever else is."""
    rows = list(read_scores(folder / SCORES))
    figures, curves, manifest = (read_metrics(folder / name) for name in (METRICS, CURVES, MANIFEST))
    name = str(manifest.get("category", folder.resolve().name))
    return ResultFolder(folder, name, rows, figures, curves, manifest, initial_threshold(rows, figures))


def read_scores(path: Path) -> Iterator[ScoredPicture]:
    remedy = "run --detection True on that category again"
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            lines = list(csv.DictReader(file))
    except FileNotFoundError:
        raise MissingFileError(f"no results at {path}; {remedy}") from None
    if not lines:
        raise UserError(f"{path} holds no scores; {remedy}")
    for number, line in enumerate(lines, start=1):
        try:
            row = ScoredPicture(
                line["path"],
                line["label"] == "1",
                float(line["score"]),
                float(line["p_value"]) if line.get("p_value") else None,
            )
        except (KeyError, TypeError, ValueError):
            raise UserError(f"picture {number} of {path} has no path, label and score; {remedy}") from None
        if not math.isfinite(row.score):
            raise UserError(f"picture {number} of {path} has the score {row.score}; {remedy}")
        yield row


def read_metrics(path: Path) -> dict[str, Any]:
    """A JSON file's content; nothing where it is missing or damaged, for the page is useful without."""
    content = read_json(path)
    return content if isinstance(content, dict) else {}


def initial_threshold(rows: Sequence[ScoredPicture], figures: Mapping[str, Any]) -> InitialThreshold:
    point, calibration = figures.get("operating_point"), figures.get("calibration") or {}
    if point:
        seen = (
            "held out of training"
            if calibration.get("held_out")
            else "that training has seen, so that new normal ones may score higher"
        )
        rate, most = (f"{100 * calibration.get(key, math.nan):.1f} %" for key in ("rate", "at_most"))
        source = (
            f"Measured on {calibration.get('pictures')} normal pictures {seen}, before any test picture: "
            f"{rate} false alarms are expected, at most {most} with 95 % confidence."
        )
        return InitialThreshold(float(f"{point['threshold']:.{SCORE_DIGITS}g}"), source)
    scores, labels = [row.score for row in rows], [row.defective for row in rows]
    if all(labels) or not any(labels):
        return InitialThreshold(
            max(scores),
            "No threshold was measured, and none can be taken from these scores: it starts at the highest. Set it by hand.",
        )
    best = youden_threshold(scores, labels)
    below = max((score for score in scores if score < best), default=best - abs(best) - 1)
    return InitialThreshold(
        float(f"{(best + below) / 2:.{SCORE_DIGITS}g}"),
        "No threshold was measured on normal pictures. It starts where recall minus false alarms is largest on these test pictures (Youden), "
        "which needs their labels: on new pictures it will do worse.",
    )
