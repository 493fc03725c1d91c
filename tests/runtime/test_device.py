import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from runtime.device import choose_device, free_memory, output_bytes, resolve_dtype
from runtime.progress import Progress, count_progress, follow_steps


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_cuda_without_one_is_said_and_falls_to_what_there_is(capsys):
    device = choose_device("cuda")
    assert device == choose_device("auto") and f"device cuda is not available; using {device}" in capsys.readouterr().out


def test_auto_takes_cuda_then_mps_then_cpu(monkeypatch):
    for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=cuda: there)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda there=mps: there)
        assert choose_device("auto").type == expected


@pytest.mark.parametrize(("has_instructions", "taken"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_trains_a_cpu_in_bf16_where_it_has_instructions_for_it(monkeypatch, has_instructions, taken):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_instructions, raising=False)
    assert resolve_dtype("auto", torch.device("cpu")) == taken
    assert resolve_dtype("fp32", torch.device("cpu")) == torch.float32


def test_an_older_torch_that_does_not_tell_leaves_a_cpu_in_fp32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    assert resolve_dtype("auto", torch.device("cpu")) == torch.float32


def test_an_unknown_device_is_refused():
    with pytest.raises(ValueError, match="model.device is 'gpu'; it should be auto, cuda, mps or cpu"):
        choose_device("gpu")


def test_without_a_terminal_progress_is_plain_lines(monkeypatch, capsys):
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    steps = [Progress(step, 1, False, torch.tensor(2.5)) for step in range(1, 9)]
    assert list(follow_steps(steps, 8, "training")) == steps
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "training: step 2/8, epoch 1, loss 2.5, ETA 00:36" and len(lines) == 4


def test_things_are_counted_as_they_pass(monkeypatch, capsys):
    clock = iter(range(0, 1000, 30))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    assert list(count_progress("abcd", 4, "detecting")) == list("abcd")
    assert capsys.readouterr().out.splitlines()[-1] == "detecting: picture 4/4, ETA 00:00"


def test_what_layers_put_out_is_counted_without_computing():
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(nn.AvgPool2d(2), nn.ReLU()))
    assert output_bytes(layers, torch.empty(1, 3, 16, 16)) == 4 * 8 * (16 * 16 + 2 * 8 * 8)
    assert not any(parameter.is_meta for parameter in layers.parameters())


def test_free_memory_is_told_or_unknown():
    assert free_memory(torch.device("cpu")) > 2**20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_memory_that_tensors_leave_is_kept_for_the_next_ones_and_counts_as_free():
    script = """
import os, resource, torch
from runtime import device as runtime
from pathlib import Path
runtime.keep_memory()
for _ in range(20):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
kept = resident()
runtime.free_memory(torch.device("cpu"))
print(kept - resident())
"""
    printed = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    ).stdout
    faults, given_back = map(int, printed.split())
    assert (
        faults < 14 * 2**14
    )  # of 20 times the 2**14 pages of such a tensor; some 80,000 are the interpreter's and torch's
    assert given_back > 2**25  # of the 2**26 bytes of one
