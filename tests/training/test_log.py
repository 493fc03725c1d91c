import importlib.util
import itertools
import time

import pytest

from training.log import Log, read_log, stage_seconds


def test_a_log_keeps_the_lines_up_to_the_step_where_it_continues(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "monotonic", itertools.count(step=2.0).__next__)
    log = Log(tmp_path, "training", "jsonl")
    for epoch in (1, 2, 3):
        log.add(10 * epoch, epoch, 0.5, 1e-3, 16)
    with (tmp_path / "training.jsonl").open("a") as file:
        file.write('{"step": 4')
    Log(tmp_path, "training", "jsonl", 20).add(30, 3, 0.4, 1e-3, 16)
    lines = read_log(tmp_path, "training")
    assert [line["step"] for line in lines] == [10, 20, 30] and lines[-1]["pictures_per_second"] == 80
    assert [stage_seconds(tmp_path, {"training": epoch, "adaptation": 1}) for epoch in (3, 2, 4)] == [
        {"training": 6.0},
        {"training": 4.0},
        {},
    ]


def test_tensorboard_is_refused_where_its_package_is_missing(run_main, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, _, err = run_main("--train", "--log", "tensorboard")
    assert code == 2 and "pip install tensorboard" in err


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="the package tensorboard is not installed")
def test_tensorboard_reads_the_log(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = Log(tmp_path, "training", "tensorboard")
    for epoch in (1, 2):
        log.add(10 * epoch, epoch, 0.5 / epoch, 1e-3, 16)
    events = EventAccumulator(str(tmp_path / "tensorboard" / "training"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(10, 0.5), (20, 0.25)]
