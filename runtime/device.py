"""Choose device and precision, and manage the memory that tensors use."""

import copy
import ctypes
import math
import platform
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from runtime.errors import UserError

Network = Callable[..., Any]  # tensors in; a tensor or a list of tensors out
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ON_GLIBC = platform.libc_ver()[0] == "glibc"
KIBI, MEBI = 2**10, 2**20
CPU_BF16 = "avx512_bf16"  # CPUs with AMX have it too


def resolve_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the type of `speed.precision`; `auto` is bf16 where the device has instructions for it, else fp32."""
    if precision == "auto":
        return torch.bfloat16 if computes_in_bf16(device) else torch.float32
    return DTYPES[precision]


def computes_in_bf16(device: torch.device) -> bool:
    """Return whether the device has instructions for bf16; without them bf16 is slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        return bool(torch.cpu.get_capabilities().get(CPU_BF16))
    if device.type == "cpu":  # Linux answers for an older torch
        with suppress(OSError):
            return CPU_BF16 in Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    return False


def autocast(network: nn.Module, precision: str, device: torch.device) -> Network:
    """Return the network with convolutions and matrix products in reduced precision; norms stay in fp32."""
    reduced = resolve_dtype(precision, device)
    if reduced == torch.float32:
        return network

    def call(*inputs: Tensor, **others: Tensor) -> object:
        with torch.autocast(device.type, reduced):
            return network(*inputs, **others)

    return call


def compile_network(network: Network, wanted: bool | str, device: torch.device) -> Network:
    """Return the network compiled by torch. `auto` compiles on CUDA only: on a CPU compiling takes minutes."""
    return torch.compile(network) if (device.type == "cuda" if wanted == "auto" else wanted) else network


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a copy of a CPU tensor on the device. For CUDA the host does not wait until the device has it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def keep_memory() -> None:
    """Keep the memory of freed tensors in the process: returning it costs a quarter of a training step on a CPU."""
    if ON_GLIBC:
        for parameter, value in ((-4, 0), (-1, -1)):  # M_MMAP_MAX: map no block alone; M_TRIM_THRESHOLD: return none
            ctypes.CDLL(None).mallopt(parameter, value)


def free_memory(device: torch.device) -> float:
    """Return the free bytes of the device, after unused ones are released; infinity where the system does not say."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    if ON_GLIBC:
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError, KeyError):  # not Linux
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
        return 1024 * int(lines["MemAvailable"].split()[0])
    return math.inf


def measure_peak_memory(call: Callable[[], object], device: torch.device) -> float:
    """Return MiB: of tensors on CUDA, else of the process; nan where the system does not say."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) / MEBI
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        call()
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmHWM"].split()[0]) / KIBI
    return float("nan")


def output_bytes(network: nn.Module, *inputs: Tensor) -> int:
    """Return the bytes of all layers' outputs for inputs of these shapes, without computing them."""
    sizes: list[int] = []
    shapes_only = copy.deepcopy(network).to("meta")
    for module in shapes_only.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda _, __, output: sizes.append(getattr(output, "nbytes", 0)))
    with torch.no_grad():
        shapes_only(*(tensor.to("meta") for tensor in inputs))
    return sum(sizes)


def choose_device(name: str) -> torch.device:
    """Return the named device. `auto`, or one that is absent, gives the first present one of cuda, mps and cpu."""
    modules = (("cuda", torch.cuda), ("mps", torch.backends.mps))
    present = [*(kind for kind, module in modules if module.is_available()), "cpu"]
    try:
        device = torch.device(present[0] if name == "auto" else name)
    except RuntimeError:
        raise UserError(f"model.device is {name!r}; it should be auto, cuda, mps or cpu") from None
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if device.type in present and (device.index or 0) < count:
        return device
    print(f"device {name} is not available; using {present[0]}")
    return torch.device(present[0])


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)
