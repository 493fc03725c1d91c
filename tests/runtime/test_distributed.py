"""Several processes, started by torchrun, on the backend gloo."""

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from small_training import gradients

from runtime import distributed
from training.log import ADAPTATION, read_log

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
SCRIPT = """
import contextlib, sys, torch, main
from runtime import distributed
from small_training import do_steps, small_unet, trainer_of

def learn(group, path):  # its network is gone before the group is
    unet = small_unet()
    shared, exchanged = group.share_gradients(unet)
    do_steps(trainer_of(unet), 1, predict=shared, parts=2, share=group.share, exchanged=exchanged)
    if group.is_main:
        torch.save({name: parameter.grad for name, parameter in unet.named_parameters()}, path)

with distributed.process_group() as group:
    learn(group, sys.argv[1])
    assert group.any(group.rank == 1, torch.device("cpu")) and not group.any(False, torch.device("cpu"))
    distributed.process_group = lambda: contextlib.nullcontext(group)  # the processes are connected already
    codes = group.gather([main.main(sys.argv[2:])])
    assert not group.is_main or 3 in codes, codes  # 3: a picture can't be read
"""


def test_two_processes_compute_the_gradients_and_verdicts_of_one(tmp_path, run_main, tiny_config, trained, category):
    (category / "test" / "crack" / "damaged.png").write_text("no picture")
    detect = ["--detection", "--input", str(category / "test" / "crack")]
    assert run_main(*detect, "--output", str(tmp_path / "found1"))[0] == 3
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [
        *TORCHRUN,
        tmp_path / "script.py",
        tmp_path / "gradients",
        *detect,
        "--output",
        tmp_path / "found2",
        "--config",
        tiny_config,
    ]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "found2" / "predictions.csv").read_bytes() == (
        tmp_path / "found1" / "predictions.csv"
    ).read_bytes()
    expected, found = gradients(), torch.load(tmp_path / "gradients", weights_only=True)
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-6 * largest, msg=name)


def test_two_processes_train_adapt_and_detect_like_one(tiny_config, tmp_path, run_main):
    """One of them writes and prints; files and scores are those of a single process."""
    options = ["--config", str(tiny_config), "model.DA_chp=1"]
    command = [
        *TORCHRUN,
        "main.py",
        *options,
        "--train",
        "--domain_adaptation",
        "--detection",
        "--output",
        tmp_path / "results2",
    ]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("trained nut") == done.stdout.count("results in") == 1, (
        done.stderr
    )
    files = ["2", "adaptation.jsonl", "calibration.json", "feat0", "feat1", "featlatest", "latest", "training.jsonl"]
    assert sorted(path.name for path in (tmp_path / "checkpoints" / "nut").iterdir()) == files

    assert run_main("--detection", "--output", str(tmp_path / "results1"), *options[2:])[0] == 0
    for name in ("scores.csv", "metrics.json"):
        assert (tmp_path / "results2" / name).read_bytes() == (tmp_path / "results1" / name).read_bytes()

    losses = [read_log(tmp_path / "checkpoints" / "nut", ADAPTATION)[0]["loss"]]
    assert run_main("--domain_adaptation", *options[2:])[0] == 0
    losses += [read_log(tmp_path / "checkpoints" / "nut", ADAPTATION)[0]["loss"]]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(
    ("stage", "setting"), [("--train", "data.batch_size=5"), ("--domain_adaptation", "data.DA_batch_size=6")]
)
def test_processes_must_divide_the_batch(run_main, monkeypatch, stage, setting):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "process_group", lambda: nullcontext(distributed.ALONE))
    code, _, err = run_main(stage, setting)
    assert code == 2 and setting.replace("=", " is ") in err and "not a multiple of the 2 processes" in err
