"""CSV tables that a spreadsheet shows as they are: a cell that it would take for a formula stands behind an apostrophe.

A file may be called =cmd|…, and Excel, LibreOffice and Google Sheets run what a cell beginning with one of FORMULA_SIGNS says. Numbers stay
numbers. `plain` gives a cell back as it was.
"""

import csv
from collections.abc import Iterable, Sequence
from typing import IO

FORMULA_SIGNS = tuple("=+-@\t\r\n＝＋－＠")
QUOTE = "'"


def write_rows(file: IO[str], rows: Iterable[Sequence[object]]) -> None:
    """Rows, as far as they are text, with no cell that a spreadsheet would run."""
    plainly, quoting = (
        csv.writer(file, lineterminator="\n", quoting=how) for how in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
    )
    for row in rows:
        cells = [harmless(cell) for cell in row]
        lines = any(
            isinstance(cell, str) and "\r" in cell for cell in cells
        )  # which the csv module does not quote in every Python
        (quoting if lines else plainly).writerow(cells)


def harmless(cell: object) -> object:
    return f"{QUOTE}{cell}" if isinstance(cell, str) and is_formula(cell) and not is_number(cell) else cell


def plain(cell: str) -> str:
    """The text of which `harmless` made the cell."""
    return cell[1:] if cell.startswith(QUOTE) and is_formula(cell) else cell


def is_formula(cell: str) -> bool:
    """Also one that stands behind apostrophes already, so that `plain` takes away what was put there and no more."""
    return cell.lstrip(QUOTE).startswith(FORMULA_SIGNS)


def is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
