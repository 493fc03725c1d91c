from pathlib import Path

from conftest import BACKBONE

from benchmarks import judging


def test_each_form_of_a_detector_has_a_row(run_main, tmp_path, category, capsys, monkeypatch):
    monkeypatch.setattr(judging, "BANKS", (50,))
    arguments = (f"model.feature_extractor={BACKBONE}", "score.parts=[memory, pixel]", "score.protocol=per_image")
    assert run_main("--train", *arguments)[0] == 0
    assert run_main("--detection", *arguments)[0] == 0
    capsys.readouterr()
    judging.main([str(Path(tmp_path, "checkpoints", "nut")), str(category.parent), "--every", "3", "--repeats", "1"])
    rows = [line.split(" | ")[0].removeprefix("| ") for line in capsys.readouterr().out.splitlines() if "–" in line]
    assert rows[:2] == ["as calibrated: memory", "network calls: 1"] and rows[-1].startswith("plain patch memory")
