"""The settings and accuracies that the paper publishes for each category: section 5, supplement, tables of results."""

import csv
import functools
from collections.abc import Sequence
from pathlib import Path

from config.checks import did_you_mean
from config.keys import PER_IMAGE
from runtime.errors import UserError

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


def published_data_set(data_set: str) -> dict[str, dict[str, str]]:
    """Return the rows of MVTec AD or VisA by category, in the paper's order. Raise UserError for another name."""
    rows = {name: row for name, row in published_rows().items() if row["data_set"].lower() == data_set.lower()}
    if not rows:
        known = sorted({row["data_set"] for row in published_rows().values()})
        remedy = f"{did_you_mean(data_set, known)}; choose {' or '.join(known)}"
        raise UserError(f"nothing is published for {data_set!r}{remedy}")
    return rows


def counts_centre(data_set: str, protocol: str, parts: Sequence[str] | None) -> bool:
    """Return whether these settings reproduce a published table, which counts the centre of a picture alone.

    They have the published protocol, or the paper's anomaly map (no `parts`) on one of the paper's data sets.
    """
    data_sets = {row["data_set"].lower() for row in published_rows().values()}
    return protocol != PER_IMAGE or (parts is None and data_set.lower() in data_sets)


def published_metrics(category: str, data_set: str | None = None) -> dict[str, float]:
    """Return the paper's metrics of a category in percent; an empty dict if it has none."""
    row = published_row(category, data_set)
    return {name: float(row[name]) for name in PUBLISHED_METRICS if row}
