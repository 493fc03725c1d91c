"""Several processes, started by torchrun, on the backend gloo."""

import json
import os
import shutil
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
import contextlib, json, os, sys, torch, main
from runtime import distributed
from small_training import do_steps, small_unet, trainer_of

def learn(group, path):  # its network is gone before the group is
    unet = small_unet()
    shared, exchanged = group.share_gradients(unet)
    do_steps(trainer_of(unet), 1, predict=shared, parts=2, share=group.share, exchanged=exchanged)
    if group.is_main:
        torch.save({name: parameter.grad for name, parameter in unet.named_parameters()}, path)

stages, detection = map(json.loads, sys.argv[2:])
assert main.main(stages) == 0
os.environ["TORCHELASTIC_RESTART_COUNT"] = "1"  # as after a restart: a new group, whose addresses are new
with distributed.process_group() as group:
    learn(group, sys.argv[1])
    assert group.any(group.rank == 1, torch.device("cpu")) and not group.any(False, torch.device("cpu"))
    distributed.process_group = lambda: contextlib.nullcontext(group)  # the processes are connected already
    codes = group.gather([main.main(detection)])
    assert not group.is_main or 3 in codes, codes  # 3: a picture can't be read
"""


def test_two_processes_do_what_one_does(tiny_config, tmp_path, run_main, category):
    """One of them writes and prints; gradients, files and scores are those of a single process. Starts them once."""
    new, adapted = shutil.copytree(category / "test" / "crack", tmp_path / "new"), "model.DA_chp=1"
    (new / "damaged.png").write_text("no picture")
    config, detect = ["--config", str(tiny_config), adapted], ["--detection", "--input", str(new), "--output"]
    stages = ["--train", "--domain_adaptation", "--detection", "--output", str(tmp_path / "results2")]
    runs = [json.dumps([*arguments, *config]) for arguments in (stages, [*detect, str(tmp_path / "found2")])]
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [*TORCHRUN, tmp_path / "script.py", tmp_path / "gradients", *runs]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained nut") == done.stdout.count("image AUROC") == 1, done.stdout
    folder = tmp_path / "checkpoints" / "nut"
    files = ["2", "adaptation.jsonl", "calibration.json", "feat0", "feat1", "featlatest", "latest", "training.jsonl"]
    assert sorted(path.name for path in folder.iterdir()) == files

    assert run_main("--detection", adapted, "--output", str(tmp_path / "results1"))[0] == 0
    assert run_main(*detect, str(tmp_path / "found1"), adapted)[0] == 3
    for name in ("results{}/scores.csv", "results{}/metrics.json", "found{}/predictions.csv"):
        one, two = (tmp_path / name.format(processes) for processes in (1, 2))
        assert one.read_bytes() == two.read_bytes()

    losses = [read_log(folder, ADAPTATION)[0]["loss"]]
    assert run_main("--domain_adaptation", adapted)[0] == 0
    losses += [read_log(folder, ADAPTATION)[0]["loss"]]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    expected, found = gradients(), torch.load(tmp_path / "gradients", weights_only=True)
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-6 * largest, msg=name)


@pytest.mark.parametrize(
    ("stage", "setting"), [("--train", "data.batch_size=5"), ("--domain_adaptation", "data.DA_batch_size=6")]
)
def test_processes_must_divide_the_batch(run_main, monkeypatch, stage, setting):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "process_group", lambda: nullcontext(distributed.ALONE))
    code, _, err = run_main(stage, setting)
    assert code == 2 and setting.replace("=", " is ") in err and "not a multiple of the 2 processes" in err
