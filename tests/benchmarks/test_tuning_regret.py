import json
import re

import pytest

from benchmarks.tuning_regret import print_regret
from config.load import load_settings
from detection import tune


def test_the_regret_uses_the_image_auroc_of_detection(run_main, tiny_config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tune, "RECONSTRUCTION_SETTINGS", {"model.w": (1.0,)})
    monkeypatch.setattr(tune, "SCORE_SETTINGS", {"model.v": (4.0,)})
    run_main("--train")
    run_main("--detection")
    capsys.readouterr()
    print_regret(load_settings(tiny_config), 1)
    *lines, last = [line for line in capsys.readouterr().out.splitlines() if re.match("[|] (present|model)|nut", line)]
    aurocs = [float(line.strip("| ").split(" | ")[-1]) for line in lines]
    taken = [auroc for line, auroc in zip(lines, aurocs, strict=True) if "| yes |" in line]
    detected = json.loads((tmp_path / "results" / "metrics.json").read_text())["image_auroc"]
    assert len(lines) == 3 and aurocs[0] == pytest.approx(100 * detected, abs=0.05)
    assert last == f"nut: chosen {taken[-1]:.1f}, best {max(aurocs):.1f}, regret {max(aurocs) - taken[-1]:.1f}"
