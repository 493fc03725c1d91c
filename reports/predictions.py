"""predictions.jsonl and predictions.csv: rows are added one by one, so that a killed run can continue."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from reports.writer import REMEDY
from runtime.errors import UserError, UserFileError
from storage import folder_lock
from storage.atomic_file import atomic_write, write_error_text
from storage.json_file import read_json_object
from storage.safe_csv import write_rows

PREDICTIONS = "predictions"
AT_ONCE = "at_once"  # the batch size in predictions.json
COLUMNS = ("path", "verdict", "score", "p_value", "regions", "area", "boxes", "error")


class PredictionRow(TypedDict):
    """A line of predictions.jsonl; each region has box, area and peak."""

    path: str
    verdict: str
    score: float | None
    p_value: float | None
    regions: Sequence[Mapping[str, Any]]
    error: str


class Predictions:
    """Keep a folder's predictions: the earlier rows that are complete and have no error, then new rows.

    `run` says what the rows depend on; raise UserError where earlier rows depend on something else. `replace` drops
    earlier rows. `batch_size` stays that of the earlier rows, as the last digits of a score depend on it.
    """

    def __init__(self, folder: Path, run: Mapping[str, object], batch_size: int = 1, replace: bool = False):
        self._lines, self._table, note = (folder / f"{PREDICTIONS}.{ending}" for ending in ("jsonl", "csv", "json"))
        rows = [] if replace else list(read_rows(self._lines))
        earlier = read_json_object(note) if rows else {}
        stored = earlier.pop(AT_ONCE, None)
        if rows and earlier != run:
            raise UserError(f"{folder} holds predictions of another detector, threshold or input; {REMEDY}")
        self.batch_size = stored if type(stored) is int and stored > 0 else batch_size
        rows = [row for row in rows if not row["error"]]
        self.done = {row["path"] for row in rows}
        with atomic_write(note, REMEDY, "w") as file:
            json.dump({**run, AT_ONCE: self.batch_size}, file)
        with atomic_write(self._lines, REMEDY, "w") as file:
            file.writelines(f"{json.dumps(row)}\n" for row in rows)
        with atomic_write(self._table, REMEDY, "w") as file:
            write_rows(file, [COLUMNS, *map(table_row, rows)])

    @staticmethod
    def exist_in(folder: Path) -> bool:
        return (folder / f"{PREDICTIONS}.jsonl").is_file()

    @staticmethod
    def refuse_existing(folder: Path) -> None:
        """Raise UserError where the folder holds predictions."""
        if count := sum(1 for _ in read_rows(folder / f"{PREDICTIONS}.jsonl")):
            choices = f"continue them with --resume, replace them with --force, or {REMEDY}"
            raise UserError(f"{folder} holds predictions of {count} pictures; {choices}")

    def add(self, row: PredictionRow) -> None:
        try:
            folder_lock.refuse_replaced(self._lines)
            with self._lines.open("a", encoding="utf-8", errors="surrogateescape") as file:
                file.write(f"{json.dumps(row)}\n")
            with self._table.open("a", encoding="utf-8", errors="surrogateescape", newline="") as file:
                write_rows(file, [table_row(row)])
        except OSError as error:
            reason = f"{write_error_text(error, REMEDY)}; --resume continues"
            raise UserFileError(f"can't write {self._lines}: {reason}") from error


def table_row(row: PredictionRow) -> list[object]:
    """Return the cells of predictions.csv; a box is "left top right bottom", semicolons separate boxes."""
    boxes = "; ".join(" ".join(map(str, region["box"])) for region in row["regions"])
    area = sum(region["area"] for region in row["regions"])
    numbers = ["" if value is None else f"{value:.8g}" for value in (row["score"], row["p_value"])]
    return [row["path"], row["verdict"], *numbers, len(row["regions"]), area, boxes, row["error"]]


def read_rows(path: Path) -> Iterator[PredictionRow]:
    """Yield the rows of a predictions.jsonl, except damaged ones."""
    for line in path.read_bytes().split(b"\n") if path.is_file() else ():
        try:
            row = json.loads(line.decode("utf-8"))
            "".join(map(str, table_row(row))).encode("utf-8", "surrogateescape")
            valid = isinstance(row["path"] + row["error"], str)
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
            continue
        if valid:
            yield row
