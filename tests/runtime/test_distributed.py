"""Several processes, started by torchrun, on the backend gloo."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from small_training import gradients

from runtime import distributed
from training.log import ADAPTATION, read_log

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
ON_FEATURES = [
    "score.space=features",
    "score.parts=[memory, diffusion]",
    "score.weights=measured",
    "model.network=patch",
    "model.predicts=x0",
    "model.unet_size=16",
    "model.skip=null",
    "model.dropout=0",
]
PLACES = ("features2", "features1")
STAGES = ["--train", "--domain_adaptation", "--detection"]
SCRIPT = """
import contextlib, functools, json, sys, torch, main
from runtime import distributed
from small_training import do_steps, small_unet, trainer_of

def learn(group, path):  # its network is gone before the group is
    unet = small_unet()
    shared, exchanged = group.share_gradients(unet)
    do_steps(trainer_of(unet), 1, predict=shared, parts=2, share=group.share, exchanged=exchanged)
    if group.is_main:
        torch.save({name: parameter.grad for name, parameter in unet.named_parameters()}, path)

gradients, *runs = json.loads(sys.argv[1])
with contextlib.ExitStack() as stack:  # the first run connects the processes, which a start takes seconds for
    connect = functools.partial(stack.enter_context, distributed.process_group())
    distributed.process_group = functools.cache(lambda: contextlib.nullcontext(connect()))
    codes = [main.main(arguments) for arguments in runs]
    group = distributed.group()
    found = group.gather([codes])
    assert not group.is_main or [max(each) for each in zip(*found)] == [0, 3, 0], found  # 3: a picture can't be read
    learn(group, gradients)
    assert group.any(group.rank == 1, torch.device("cpu")) and not group.any(False, torch.device("cpu"))
"""


def test_two_processes_compute_the_gradients_and_results_of_one(tiny_config, tmp_path, run_main, category):
    """One of them writes and prints; what they train, adapt and find is what a single process does."""
    new = shutil.copytree(category / "test" / "crack", tmp_path / "new")
    (new / "damaged.png").write_text("no picture")
    detect = ["--detection", "--input", str(new), "model.DA_chp=1"]
    on_features = ["--train", "--detection", "model.checkpoint_dir=on_features", *ON_FEATURES]
    runs = [[*STAGES, "model.DA_chp=1", "--output", "results2"], [*detect, "--output", "found2"]]
    runs += [[*on_features, "--output", "features2"]]
    runs = [[*arguments, "--config", str(tiny_config)] for arguments in runs]
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [*TORCHRUN, "script.py", json.dumps(["gradients", *runs])]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [done.stdout.count(words) for words in ("trained nut", "results in")] == [2, 3]
    files = ["2", "adaptation.jsonl", "calibration.json", "feat0", "feat1", "featlatest", "latest", "training.jsonl"]
    assert sorted(path.name for path in (tmp_path / "checkpoints" / "nut").iterdir()) == files

    assert run_main("--detection", "--output", str(tmp_path / "results1"), "model.DA_chp=1")[0] == 0
    assert run_main(*detect, "--output", str(tmp_path / "found1"))[0] == 3
    for name in ("results{}/scores.csv", "results{}/metrics.json", "found{}/predictions.csv"):
        assert (tmp_path / name.format(2)).read_bytes() == (tmp_path / name.format(1)).read_bytes()

    learnt = f"model.checkpoint_dir={tmp_path / 'on_features'}"
    again = ["--detection", "--force", *ON_FEATURES, learnt]  # measures the calibration again
    assert run_main(*again, "--output", str(tmp_path / "features1"))[0] == 0
    both, alone = (np.genfromtxt(tmp_path / name / "scores.csv", delimiter=",")[1:, 2] for name in PLACES)
    np.testing.assert_allclose(both, alone, rtol=1e-4)

    losses = [read_log(tmp_path / "checkpoints" / "nut", ADAPTATION)[0]["loss"]]
    assert run_main("--domain_adaptation", "model.DA_chp=1")[0] == 0
    losses += [read_log(tmp_path / "checkpoints" / "nut", ADAPTATION)[0]["loss"]]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert_same_gradients(torch.load(tmp_path / "gradients", weights_only=True), gradients())


def assert_same_gradients(found, expected):
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
