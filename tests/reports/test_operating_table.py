import json

import pytest

from reports.operating_table import OperatingRow, Share, operating_lines, read_operating_rows

ROW = OperatingRow(0.01, 1.25, 0.02, 0.0613, True, Share.of(1, 32), Share.of(48, 48), None)


def test_the_interval_of_a_share_is_exact():
    """The values of Clopper and Pearson's table; with no success, the bound is 1 − 0.025^(1/n)."""
    assert Share.of(5, 10)[2:] == pytest.approx((0.1871, 0.8129), abs=1e-4)
    assert Share.of(0, 60)[2:] == pytest.approx((0, 1 - 0.025 ** (1 / 60)))
    assert Share.of(0, 0) is None


def test_the_printed_table_has_the_columns_that_there_are_labels_for():
    _, head, row = operating_lines([ROW])
    assert head.split("  ")[-1].strip() == "precision" and "1 of 32 (0.1–16.2 %)" in row and row.endswith("–")
    assert "* 1 %" in row and "6.1 %" in row
    _, head, row = operating_lines([ROW._replace(false_alarms=None, recall=None)])
    assert head.endswith("at most (95 %)") and row.endswith("6.1 %")
    assert not list(operating_lines([]))


def test_rows_survive_a_file_and_damaged_ones_are_left_out():
    stored = json.loads(json.dumps([ROW.as_stored()]))
    assert read_operating_rows(stored) == [ROW]
    for damaged in (None, 3, [3], [{}], [{**stored[0], "recall": 3}], [{**stored[0], "threshold": "high"}]):
        assert read_operating_rows(damaged) == []
