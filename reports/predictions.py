"""Split off results.py."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reports.writer import REMEDY, read_json
from runtime.errors import UserError, UserFileError
from storage import folder_lock
from storage.atomic_file import atomic_write, write_error_text
from storage.safe_csv import write_rows

PREDICTIONS = "predictions"
AT_ONCE = "at_once"
PREDICTION_COLUMNS = ("path", "verdict", "score", "p_value", "regions", "area", "boxes", "error")


class Predictions:
    """A row a picture in predictions.jsonl and predictions.csv, added as they are done; the former is what a later run continues.

    Rows that are there are kept, but for one cut short and those of pictures that could not be read. `run` names what the rows are made
    with; `anew` drops those that are there. `at_once` pictures are judged together: as many as before where rows are there. Raises ValueError
    where those were made with something else.
    """

    def __init__(self, folder: Path, run: dict[str, Any], at_once: int = 1, anew: bool = False):
        self._lines, self._table, note = (folder / f"{PREDICTIONS}.{ending}" for ending in ("jsonl", "csv", "json"))
        rows = [] if anew else list(whole_rows(self._lines))
        noted = read_json(note) if rows else None
        before = noted.pop(AT_ONCE, None) if isinstance(noted, dict) else None
        if rows and noted != run:
            raise UserError(
                f"{folder} holds predictions by another detector or threshold, or of other pictures than asked for; {REMEDY}"
            )
        self.at_once = before if type(before) is int and before > 0 else at_once
        kept = [row for row in rows if not row["error"]]
        with atomic_write(note, REMEDY, "w") as file:
            json.dump({**run, AT_ONCE: self.at_once}, file)
        with atomic_write(self._lines, REMEDY, "w") as file:
            file.writelines(json_line(row) for row in kept)
        with atomic_write(self._table, REMEDY, "w") as file:
            write_rows(file, [PREDICTION_COLUMNS, *map(table_row, kept)])
        self.done = {row["path"] for row in kept}

    @staticmethod
    def there(folder: Path) -> bool:
        return (folder / f"{PREDICTIONS}.jsonl").is_file()

    @staticmethod
    def refuse_others(folder: Path) -> None:
        """Raises ValueError where the folder holds predictions."""
        rows = sum(1 for _ in whole_rows(folder / f"{PREDICTIONS}.jsonl"))
        if rows:
            raise UserError(
                f"{folder} holds predictions of {rows} pictures; continue them with --resume, replace them with --force, or {REMEDY}"
            )

    def add(self, row: dict[str, Any]) -> None:
        """A row with path, verdict, score, p_value, regions (each box, area and peak) and error."""
        try:
            folder_lock.refuse_replaced(self._lines)
            with self._lines.open("a", encoding="utf-8", errors="surrogateescape") as file:
                file.write(json_line(row))
            with self._table.open("a", encoding="utf-8", errors="surrogateescape", newline="") as file:
                write_rows(file, [table_row(row)])
        except OSError as error:
            raise UserFileError(
                f"can't write {self._lines}: {write_error_text(error, REMEDY)}; --resume continues"
            ) from error


def json_line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"


def table_row(row: dict[str, Any]) -> list[object]:
    """`boxes` are left top right bottom, apart by semicolons."""
    boxes = "; ".join(" ".join(map(str, region["box"])) for region in row["regions"])
    area = sum(region["area"] for region in row["regions"])
    numbers = ["" if row[name] is None else f"{row[name]:.8g}" for name in ("score", "p_value")]
    return [row["path"], row["verdict"], *numbers, len(row["regions"]), area, boxes, row["error"]]


def whole_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a predictions.jsonl, but for those that are cut short or damaged."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        yield from (row for row in map(read_row, file) if row is not None)


def read_row(line: bytes) -> dict[str, Any] | None:
    """A line of predictions.jsonl; None for what is none."""
    try:
        row = json.loads(line.decode("utf-8"))
        "".join(map(str, table_row(row))).encode("utf-8", "surrogateescape")
        return row if isinstance(row["path"] + row["error"], str) else None
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
        return None
