"""The settings and accuracies that the paper publishes for each category: section 5, supplement, tables of results."""

import csv
import functools
from pathlib import Path

PUBLISHED_METRICS = ("image_auroc", "pixel_auroc", "pro")
TABLE = Path(__file__).with_name("published.csv")


@functools.cache
def published_rows() -> dict[str, dict[str, str]]:
    """Return the rows of published.csv by category, in the paper's order. Accuracies are in percent."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return {row["category"]: row for row in csv.DictReader(file)}


def published_row(category: str, data_set: str | None = None) -> dict[str, str]:
    """Return the row of a category in this data set, or in any if None; an empty dict if the paper has none."""
    row = published_rows().get(category, {})
    return row if data_set is None or data_set.lower() == row.get("data_set", "").lower() else {}


def published_metrics(category: str, data_set: str | None = None) -> dict[str, float]:
    """Return the paper's metrics of a category in percent; an empty dict if it has none."""
    row = published_row(category, data_set)
    return {name: float(row[name]) for name in PUBLISHED_METRICS if row}
