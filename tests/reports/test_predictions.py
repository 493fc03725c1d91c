import csv
import json

import pytest

from reports.predictions import Predictions


def row(path, error="", regions=()):
    return {"path": path, "verdict": "normal", "score": 0.5, "p_value": 0.25, "regions": list(regions), "error": error}


def test_predictions_continue_after_a_truncated_row(tmp_path):
    regions = [{"box": (1, 2, 3, 4), "area": 4, "peak": 1.0}, {"box": (5, 5, 9, 6), "area": 3, "peak": 0.7}]
    first = Predictions(tmp_path, {"detector": 1}, batch_size=4)
    for content in (row("a.png", regions=regions), row("=b.png", error="it is empty"), row("c.png")):
        first.add(content)
    with (tmp_path / "predictions.jsonl").open("a") as file:
        file.write('{"path": "d.png", "verd')
    with (tmp_path / "predictions.csv").open("a") as file:
        file.write("d.p")
    second = Predictions(tmp_path, {"detector": 1}, batch_size=8)
    assert second.done == {"a.png", "c.png"} and second.batch_size == 4  # the last digits of a score depend on it
    for path in ("=b.png", "d.png"):
        second.add(row(path))
    with (tmp_path / "predictions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["path"] for line in table] == ["a.png", "c.png", "'=b.png", "d.png"]
    assert (table[0]["regions"], table[0]["area"], table[0]["boxes"]) == ("2", "7", "1 2 3 4; 5 5 9 6")
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["path"] for line in lines] == ["a.png", "c.png", "=b.png", "d.png"]


def test_predictions_of_another_detector_are_not_continued(tmp_path):
    Predictions(tmp_path, {"detector": 1}).add(row("a.png"))
    with pytest.raises(ValueError, match="of another detector"):
        Predictions(tmp_path, {"detector": 2})
    with pytest.raises(ValueError, match="holds predictions of 1 pictures; continue them with --resume"):
        Predictions.refuse_existing(tmp_path)
    assert not Predictions(tmp_path, {"detector": 2}, replace=True).done
