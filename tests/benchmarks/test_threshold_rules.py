"""The comparison of threshold rules, on made-up scores."""

import numpy as np
import pytest

from benchmarks import threshold_rules
from detection.calibration_file import save_calibration
from detection.threshold import PIXEL_RATES, Calibration


def test_each_rule_has_a_rate_near_the_wanted_one(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(threshold_rules, "DRAWS", 20)
    scores = tuple(np.sort(np.random.default_rng(0).exponential(size=300)).tolist())
    (tmp_path / "nut").mkdir()
    save_calibration(tmp_path / "nut", Calibration(1.0, 1.0, scores, (0.0,) * len(PIXEL_RATES)))
    threshold_rules.main([str(tmp_path / "nut")])
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert all(name in head for name in threshold_rules.RULES) and len(rows) == 9
    for row in rows:
        _, _, _, wanted, *cells, _ = row.split("|")
        for cell in cells:
            assert float(cell.split("±")[0]) == pytest.approx(float(wanted.strip(" %")), abs=2.5)


def test_a_folder_without_calibration_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="run python main.py --detection first"):
        threshold_rules.main([str(tmp_path)])
