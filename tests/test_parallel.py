"""Several processes by torchrun, on gloo."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from test_train import gradients

ROOT = Path(__file__).parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
SCRIPT = """
import sys, torch, parallel
from test_train import LOOP, PIXELS, small_unet, trainer_of
from train import training_steps

with parallel.joined() as group:
    unet = small_unet()
    shared, exchanged = group.together(unet)
    list(training_steps(trainer_of(unet), PIXELS, predict=shared, steps=1, window=16, highest_step=1000, parts=2,
                        share=group.share, exchanged=exchanged, **LOOP))
    assert group.any(group.rank == 1, torch.device("cpu")) and not group.any(False, torch.device("cpu"))
    if group.leads:
        torch.save({name: parameter.grad for name, parameter in unet.named_parameters()}, sys.argv[1])
"""


def test_two_processes_have_the_gradients_of_one(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([*TORCHRUN, tmp_path / "script.py", tmp_path / "gradients"], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected, found = gradients(), torch.load(tmp_path / "gradients", weights_only=True)
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-6 * largest, msg=name)


def test_two_processes_make_one_run(tiny_config, tmp_path):
    """One of them writes, speaks and detects."""
    command = [*TORCHRUN, "main.py", "--config", str(tiny_config), "--train", "--detection", "--output", str(tmp_path / "results")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0 and done.stdout.count("trained nut") == done.stdout.count("results in") == 1, done.stderr
    assert sorted(path.name for path in (tmp_path / "checkpoints" / "nut").iterdir()) == ["2", "calibration.json", "training.jsonl"]


def test_processes_must_divide_the_batch(tiny_config):
    command = [*TORCHRUN, "main.py", "--config", str(tiny_config), "--train", "data.batch_size=5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode != 0 and "data.batch_size is 5, which 2 processes do not divide" in done.stderr
