import json
import math
import time
from dataclasses import replace
from itertools import islice

import pytest
import torch
from fake_device import fake_cuda

import main
from benchmarks import card, card_bundle, card_rows
from benchmarks.card_report import Card
from benchmarks.golden import golden_shares
from benchmarks.shared import ROOT
from config.load import load_settings
from dataset import ImageFolder, View
from images.read import read_full_mask
from runtime.interrupt import stop_requests
from train import plan_training


def run_here(arguments: list[str], *_: object) -> int:
    """Run a step in this process: a new one takes five seconds to start. `run_python` is tested apart."""
    module, rest = (card_rows, arguments[2:]) if arguments[0] == "-m" else (main, arguments[1:])
    return module.main(rest)


def time_once(monkeypatch):
    for name, value in {"REPEATS": 1, "WARM_UP": 0}.items():
        monkeypatch.setattr(card_rows, name, value)


def test_the_whole_command_ends_with_a_report_and_repeats_nothing(category, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(card, "run_python", run_here)
    time_once(monkeypatch)
    monkeypatch.chdir(ROOT)
    command = ["--minutes", "30", "--data", str(category), "--out", str(tmp_path / "out"), "--device", "cpu"]
    rows = tmp_path / "out" / "work" / "rows.jsonl"
    rows.parent.mkdir(parents=True)
    names = card_rows.row_makers(card_rows.SCALES["toy"], torch.device("cpu"))
    slow = [name for name in names if name.startswith((card_rows.DETECTION, card_rows.GOLDEN, card_rows.CEILING))]
    rows.write_text("".join(json.dumps({"row": name, "error": "of an earlier try"}) + "\n" for name in slow))
    assert card.main([*command, "--scale", "toy"]) == 0
    found = json.loads((tmp_path / "out" / "card.json").read_text(encoding="utf-8"))
    assert len(found["starts"]) == 1 and found["epochs"] == 2 and set(found["results"]) == {"per_image", "published"}
    assert [name for name, row in found["rows"].items() if "error" in row] == slow
    report = (tmp_path / "out" / "card.md").read_text(encoding="utf-8")
    assert all(name in report for name in ("training step DDAD-S fp32", "per_image, 2 of 2 epochs"))
    assert {"figure.png", "per_image.html", "published.html"} <= {path.name for path in (tmp_path / "out").iterdir()}
    capsys.readouterr()
    assert card.main([*command, "--scale", "toy"]) == 0
    assert "exit code" not in capsys.readouterr().out  # nothing was left to do


def test_epochs_are_those_that_fit_the_time_left(tiny_config):
    plan = plan_training(load_settings(tiny_config, ["model.epochs=50"]))  # 2 steps of 4 images each
    rows = {
        "training step DDAD-S fp32": {"median": 0.1, "pictures": 1, "first_seconds": 0.5},
        "forward DDAD-S fp32": {"median": 0.01, "pictures": 1},
    }
    known = Card("nut", "toy", starts=[1.0], rows={name: {"row": name, **row} for name, row in rows.items()})
    fitting = [card.fitting_epochs(plan, known, left) for left in (0, 20, 30, 40, 1000)]
    assert fitting == sorted(fitting) and (fitting[0], fitting[-1]) == (1, 50)
    assert len(set(fitting)) > 3 and 0.1 * 4 * 2 * fitting[3] < 40


def test_a_step_that_is_out_of_time_is_stopped(tmp_path):
    began = time.monotonic()
    with stop_requests() as stop:
        code = card.run_python(["-c", "import time; time.sleep(60)"], tmp_path / "log", began + 0.5, stop)
    assert code != 0 and time.monotonic() - began < 30


def test_rows_run_on_a_gpu(tmp_path, monkeypatch):
    """The stand-in has no values, so that golden numbers differ; nothing else fails."""
    time_once(monkeypatch)
    monkeypatch.setattr(card_rows, "CEILING_SIDE", {})
    scale, device = replace(card_rows.SCALES["toy"], precisions=("bf16",)), torch.device("cuda:0")
    with fake_cuda():
        assert len(list(islice(golden_shares("ddad_s_32", device), 3))) == 3  # all but the reconstructions, which last
        rows = card_rows.row_makers(scale, device)
        makers = {name: measure for name, measure in rows.items() if not name.startswith(card_rows.DETECTION)}
        card_rows.measure_rows(tmp_path / "rows.jsonl", makers, math.inf)
    rows = card_rows.load_rows(tmp_path / "rows.jsonl")
    assert rows.keys() == makers.keys() and not [row for row in rows.values() if "error" in row]


def test_rows_go_on_after_an_error_and_begin_only_where_time_is_left(tmp_path):
    file, measured = tmp_path / "rows.jsonl", []
    file.write_text('{"row": "first", "median": 1}\n{"row": "second", "med', encoding="utf-8")  # killed while it wrote

    def measure(name):
        measured.append(name)
        if name == "second":
            raise RuntimeError("CUDA out of memory")
        return {"median": 2.0}

    makers = {name: lambda name=name: measure(name) for name in ("first", "second", "third", "third compiled")}
    card_rows.measure_rows(file, makers, time.monotonic() + card_rows.EXPECTED + 10)
    rows = card_rows.load_rows(file)
    assert measured == ["second", "third"] and rows["third"]["median"] == 2
    assert rows["second"]["error"] == "RuntimeError: CUDA out of memory"


def test_a_category_in_small_is_what_the_network_and_the_metrics_see(category, tmp_path, capsys):
    card_bundle.main([str(category), "--out", str(tmp_path / "bundle"), "--size", "32"])
    assert "MiB in" in capsys.readouterr().out
    small = tmp_path / "bundle" / "data" / "nut"
    for split in ("train", "test"):
        before, after = (ImageFolder(folder, split, View(32), mask_size=32) for folder in (category, small))
        assert before.names() == after.names()
        for one, other in zip(before, after, strict=True):
            assert one.picture.equal(other.picture)
            assert (one.mask is None and other.mask is None) or (one.mask == other.mask).all()
    assert read_full_mask(small / "ground_truth" / "crack" / "000_mask.png").shape == (32, 32)
    assert (tmp_path / "bundle" / "code" / "benchmarks" / "card.py").exists()


def test_a_bundle_that_is_too_large_is_refused(category, tmp_path):
    with pytest.raises(ValueError, match="more than the 0.1 that may travel; take a category with fewer images"):
        card_bundle.main([str(category), "--out", str(tmp_path / "bundle"), "--most", "0.1"])
