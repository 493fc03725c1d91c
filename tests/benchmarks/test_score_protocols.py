import json

import pytest

from benchmarks import score_protocols
from benchmarks.shared import CENTRE_CROP


def test_the_table_holds_what_detection_measures(run_main, tiny_config, tmp_path, category, capsys):
    run_main("--train")
    expected = []
    for settings in (["score.protocol=published", "data.test_batch_size=16"], ["score.draws=2"]):
        run_main("--detection", CENTRE_CROP, *settings)
        metrics = json.loads((tmp_path / "results" / "metrics.json").read_text())
        expected.append([100 * metrics[key] for key in ("image_auroc", "pixel_auroc", "pro")])
    capsys.readouterr()
    score_protocols.main([str(category), str(tmp_path / "checkpoints"), "--config", str(tiny_config)])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| nut, "))
    cells = line.strip("| ").split(" | ")
    for cell, values in zip((cells[1], cells[4]), expected, strict=True):
        assert [float(value.split()[0]) for value in cell.split(" / ")] == pytest.approx(values, abs=0.051)
    assert len(cells) == 3 + len(score_protocols.DRAWS) + len(score_protocols.RATES)
    assert cells[-1].startswith(tuple("0123")) and " of 3 (" in cells[-1]
