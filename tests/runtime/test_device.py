import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from runtime.device import choose_device, computes_in_bf16, free_memory, output_bytes, resolve_dtype


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_missing_cuda_device_is_replaced_and_reported(capsys):
    device = choose_device("cuda")
    assert (
        device == choose_device("auto") and f"device cuda is not available; using {device}" in capsys.readouterr().out
    )


def test_auto_prefers_cuda_then_mps_then_cpu(monkeypatch):
    for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=cuda: available)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda available=mps: available)
        assert choose_device("auto").type == expected


@pytest.mark.parametrize(("capabilities", "dtype"), [({"avx512_bf16": True}, torch.bfloat16), ({}, torch.float32)])
def test_auto_precision_on_a_cpu_is_bf16_where_torch_reports_its_instructions(monkeypatch, capabilities, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert resolve_dtype("auto", torch.device("cpu")) == dtype
    assert resolve_dtype("fp32", torch.device("cpu")) == torch.float32


@pytest.mark.parametrize(("cpuinfo", "supported"), [("flags: avx2 avx512_bf16\n", True), ("flags: avx2\n", False)])
def test_an_older_torch_without_capabilities_asks_linux(monkeypatch, cpuinfo, supported):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: cpuinfo)
    assert computes_in_bf16(torch.device("cpu")) is supported


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="only Linux has /proc/cpuinfo")
def test_torch_and_linux_agree_on_bf16(monkeypatch):
    reported = computes_in_bf16(torch.device("cpu"))
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert computes_in_bf16(torch.device("cpu")) == reported


def test_an_unknown_device_raises():
    with pytest.raises(ValueError, match="model.device is 'gpu'; it should be auto, cuda, mps or cpu"):
        choose_device("gpu")


def test_output_bytes_adds_all_layers_without_computing():
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(nn.AvgPool2d(2), nn.ReLU()))
    assert output_bytes(layers, torch.empty(1, 3, 16, 16)) == 4 * 8 * (16 * 16 + 2 * 8 * 8)
    assert not any(parameter.is_meta for parameter in layers.parameters())


def test_free_memory_is_reported():
    assert free_memory(torch.device("cpu")) > 2**20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is configured")
def test_memory_of_freed_tensors_stays_for_the_next_ones_and_counts_as_free():
    script = """
import os, resource, torch
from runtime.device import free_memory, keep_memory
from pathlib import Path
keep_memory()
for _ in range(20):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
before = resident()
free_memory(torch.device("cpu"))
print(before - resident())
"""
    command, root = [sys.executable, "-c", script], Path(__file__).parents[2]
    printed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    faults, returned_bytes = map(int, printed.split())
    assert faults < 14 * 2**14  # 20 tensors have 2**14 pages each; about 80,000 faults belong to Python and torch
    assert returned_bytes > 2**25  # one tensor has 2**26 bytes
