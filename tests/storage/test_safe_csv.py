"""A spreadsheet shows our tables and runs none of their cells."""

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reports.predictions import Predictions
from reports.writer import Writer
from storage.safe_csv import FORMULA_SIGNS, escape, is_number, unescape, write_rows

OTHERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")  # csv of Python 3.10 refuses a NUL
CELLS = st.text(alphabet=st.one_of(st.sampled_from("=+-@'\t\r\n\"a1.,"), OTHERS), max_size=8)


def write_and_read(rows) -> list[list[str]]:
    file = io.StringIO(newline="")
    write_rows(file, rows)
    file.seek(0)
    return list(csv.reader(file))


@pytest.mark.parametrize(
    "cell",
    [
        "=1+1",
        "+1+1",
        "-1+1",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "\n=1",
        "=cmd|'/C calc'!A0",
        "＝1+1",
        "'=1",
        "-",
        '=HYPERLINK("x")',
    ],
)
def test_a_formula_is_written_as_text(cell):
    ((cell_read,),) = write_and_read([[cell]])
    assert cell_read == f"'{cell}" and unescape(cell_read) == cell


@pytest.mark.parametrize(
    "cell", ["-1.5", "+3", "-1e-07", "0.25", "-inf", "good", "a=b", "test/-1.png", "'", "", "it's"]
)
def test_numbers_and_words_stay_unchanged(cell):
    assert escape(cell) == cell == unescape(cell)
    assert escape(-1.5) == -1.5 and escape(None) is None


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.lists(st.lists(CELLS, min_size=1, max_size=3), min_size=1, max_size=3))
def test_every_cell_is_restored_and_none_is_a_formula(rows):
    """The csv module reads the table; it quotes a single empty cell."""
    cells_read = write_and_read(rows)
    assert [[unescape(cell) for cell in row] for row in cells_read] == rows
    for cell in (cell for row in cells_read for cell in row):
        assert not cell.startswith(FORMULA_SIGNS) or is_number(cell)


def test_all_result_tables_escape_formulas(tmp_path):
    name, number = "=cmd|'/C calc'!A0.png", -0.5
    writer = Writer(tmp_path)
    writer.scores([name], [True], [number], p_value=["0.1"], kind=["@x"])
    writer.misclassifications([name], ["missed"], [number], 1.0)
    row = {"path": name, "verdict": "unreadable", "score": number, "p_value": None, "regions": [], "error": "-x: gone"}
    Predictions(tmp_path, {}).add(row | {"error": "", "verdict": "normal"})
    for _ in range(2):  # a later run writes the row again
        Predictions(tmp_path, {}).add(row)
    for table, cells in (
        ("scores.csv", [f"'{name}", "1", "-0.5", "0.1", "'@x"]),
        ("misclassifications.csv", [f"'{name}", "missed", "-0.5", "1"]),
        ("predictions.csv", [f"'{name}", "unreadable", "-0.5", "", "0", "0", "", "'-x: gone"]),
    ):
        with (tmp_path / table).open(encoding="utf-8", newline="") as file:
            assert list(csv.reader(file))[-1] == cells
    assert Predictions(tmp_path, {}).done == {name}
