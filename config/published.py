"""What the paper and its release publish of each category: settings and accuracies (published.csv; section 5, the supplement, the tables)."""

import csv
import functools
from pathlib import Path

PUBLISHED_METRICS = ("image_auroc", "pixel_auroc", "pro")
TABLE = Path(__file__).with_name("published.csv")


@functools.cache
def published_rows() -> dict[str, dict[str, str]]:
    """Category → row of published.csv, in the paper's order. Accuracies in percent."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return {row["category"]: row for row in csv.DictReader(file)}


def published_metrics(category: str, data_set: str | None = None) -> dict[str, float]:
    """The paper's figures of a category in percent; none where it has none, or where the category is another `data_set`'s."""
    row = published_rows().get(category)
    if row is None or (data_set is not None and data_set.lower() != row["data_set"].lower()):
        return {}
    return {name: float(row[name]) for name in PUBLISHED_METRICS}
