"""Read the scores that a run has left."""

import csv
from pathlib import Path


def read_rows(folder: Path) -> list[dict[str, str]]:
    """Return the rows of a results folder's scores.csv."""
    with (folder / "scores.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
