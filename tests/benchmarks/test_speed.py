import pytest
import torch

from benchmarks import speed, speed_rows

CPU = torch.device("cpu")


def test_a_row_holds_both_times_and_their_ratio():
    run = speed.Run(speed_rows.ABLATION, repeats=2, processes=1, device=CPU, peak=1e9)
    cells = speed.table_row("average", run).strip("| ").split(" | ")
    plain, ours, ratio = (float(cell.split()[0]) for cell in cells[1:4])
    assert len(cells) == 7 and min(plain, ours, ratio) > 0  # which is faster is for the benchmark to say


@pytest.mark.parametrize(
    "make",
    [lambda folder: speed_rows.time_loading(3, 50, folder), lambda _: speed_rows.time_metrics(6, 64)],
    ids=["loading", "metrics"],
)
def test_both_sides_of_a_row_can_be_timed(make, tmp_path):
    row = make(tmp_path)
    assert min(speed.measure_seconds(side, CPU) for side in (row.ours, row.plain)) > 0
