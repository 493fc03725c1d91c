"""The operating table: a threshold for each wanted false-alarm rate, what it promises, and what it does to pictures."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tabulate import tabulate

from reports.metric_summary import MISSING

CONFIDENCE = 0.95  # of the intervals
IN_USE = "* "  # before the wanted rate that calibration.false_positive_rate names
HEAD = ("wanted", "threshold", "expected", "at most (95 %)", "false alarms", "recall", "precision")
SHARES = ("false_alarms", "recall", "precision")  # they need labelled pictures


class Share(NamedTuple):
    """A part of `total` pictures, with the exact 95 % interval of its share (Clopper and Pearson 1934)."""

    part: int
    total: int
    low: float
    high: float

    @classmethod
    def of(cls, part: int, total: int) -> "Share | None":
        """Return the share; None where there are no pictures."""
        if total == 0:
            return None
        from scipy.stats import binomtest  # takes long to load; a detector does without

        interval = binomtest(part, total).proportion_ci(CONFIDENCE)
        return cls(part, total, float(interval.low), float(interval.high))

    def __str__(self) -> str:
        return f"{self.part} of {self.total} ({100 * self.low:.1f}–{100 * self.high:.1f} %)"


class OperatingRow(NamedTuple):
    """A threshold and its promise; without labelled pictures the shares are None."""

    wanted_rate: float
    threshold: float  # an image score above it means anomalous
    expected_rate: float  # of false alarms on new normal pictures
    at_most: float  # with 95 % confidence
    in_use: bool
    false_alarms: Share | None = None  # of the normal pictures
    recall: Share | None = None  # of the defective pictures
    precision: Share | None = None  # of the pictures called anomalous

    def as_stored(self) -> dict[str, object]:
        """Return the row for a JSON file."""
        return {name: value._asdict() if isinstance(value, Share) else value for name, value in self._asdict().items()}

    def cells(self) -> list[str]:
        """Return the row's text below `HEAD`."""
        rates = (f"{100 * rate:.1f} %" for rate in (self.expected_rate, self.at_most))
        shares = (MISSING if share is None else str(share) for share in self[5:])
        wanted = f"{IN_USE if self.in_use else ''}{100 * self.wanted_rate:.3g} %"
        return [wanted, f"{self.threshold:.4g}", *rates, *shares]


def read_operating_rows(stored: object) -> list[OperatingRow]:
    """Return the rows of a metrics.json; none where it is damaged or of an earlier version."""
    try:
        rows = [stored_row(row) for row in stored] if isinstance(stored, list) else []
        return rows if all(row.cells() for row in rows) else []
    except (TypeError, ValueError, LookupError):
        return []


def stored_row(stored: Mapping[str, Any]) -> OperatingRow:
    shares = {name: stored[name] and Share(**stored[name]) for name in SHARES}
    return OperatingRow(**{**stored, **shares})


def operating_lines(rows: Sequence[OperatingRow]) -> Iterator[str]:
    """Yield the printed table, without the columns that need labelled pictures where there are none."""
    if not rows:
        return
    width = len(HEAD) if any(row.false_alarms or row.recall for row in rows) else HEAD.index("false alarms")
    cells = [row.cells()[:width] for row in rows]
    align = ["right"] * width
    yield f"  operating points ({IN_USE}in use: calibration.false_positive_rate), with 95 % intervals:"
    table = tabulate(cells, HEAD[:width], "plain", colalign=align, disable_numparse=True)
    yield from (f"  {line}" for line in table.splitlines())
