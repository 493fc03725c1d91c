"""Write CSV tables whose cells no spreadsheet runs as a formula.

A cell that begins with one of FORMULA_SIGNS, such as `=cmd|…`, gets an apostrophe in front. Numbers stay unchanged.
"""

import csv
from collections.abc import Iterable, Sequence
from typing import IO

FORMULA_SIGNS = tuple("=+-@\t\r\n＝＋－＠")
QUOTE = "'"


def write_rows(file: IO[str], rows: Iterable[Sequence[object]]) -> None:
    """Write the rows, with an apostrophe before each formula."""
    minimal = csv.writer(file, lineterminator="\n")
    quote_all = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        cells = [escape(cell) for cell in row]
        has_return = any(isinstance(cell, str) and "\r" in cell for cell in cells)  # some Pythons do not quote it
        (quote_all if has_return else minimal).writerow(cells)


def escape(cell: object) -> object:
    """Return the cell, with an apostrophe in front if it is a formula."""
    return f"{QUOTE}{cell}" if isinstance(cell, str) and is_formula(cell) and not is_number(cell) else cell


def unescape(cell: str) -> str:
    """Return the text that `escape` changed to this cell."""
    return cell[1:] if cell.startswith(QUOTE) and is_formula(cell) else cell


def is_formula(cell: str) -> bool:
    """Return whether the cell is a formula, or one after apostrophes, so that `unescape` undoes `escape` exactly."""
    return cell.lstrip(QUOTE).startswith(FORMULA_SIGNS)


def is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
