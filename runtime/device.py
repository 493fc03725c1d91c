"""What the three stages share as they run: device, seed, the lines they print first, and progress. Mathematics and files live elsewhere."""

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

ON_GLIBC = platform.libc_ver()[0] == "glibc"
KEPT_BY_GLIBC = (
    (-4, 0),
    (-1, -1),
)  # mallopt: M_MMAP_MAX, no block is mapped on its own; M_TRIM_THRESHOLD, no memory goes back


def resolve_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What `speed.precision` stands for on a device: `auto` is bf16 where that has instructions of its own, else fp32."""
    if precision == "auto":
        return torch.bfloat16 if computes_in_bf16(device) else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def computes_in_bf16(device: torch.device) -> bool:
    """Whether a CUDA card, or a CPU (AVX-512 BF16, which those with AMX have too), has instructions for it; without them it is slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()


def autocast(network: nn.Module, precision: str, device: torch.device) -> Callable[..., Any]:
    """The network with its convolutions and matrix products in reduced precision (norms stay in fp32)."""
    reduced = resolve_dtype(precision, device)
    if reduced == torch.float32:
        return network

    def call(*inputs: Tensor) -> Any:
        with torch.autocast(device.type, reduced):
            return network(*inputs)

    return call


def compile_network(call: Callable[..., Any], wanted: bool | str, device: torch.device) -> Callable[..., Any]:
    """The network compiled by torch; `auto` compiles on CUDA alone, as on a CPU compiling takes minutes."""
    return torch.compile(call) if (device.type == "cuda" if wanted == "auto" else wanted) else call


def keep_memory() -> None:
    """From now on memory that tensors leave stays with the process, for the next ones. By itself glibc gives large blocks back, and each time the
    system clears the pages anew, which takes a quarter of a training step at 256 pixels on a CPU. Elsewhere nothing is done."""
    if ON_GLIBC:
        for parameter, value in KEPT_BY_GLIBC:
            ctypes.CDLL(None).mallopt(parameter, value)


def free_memory(device: torch.device) -> float:
    """Bytes that may still be taken there, after what the process keeps without need (`keep_memory`) is given back; infinity where the system
    does not tell."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    if ON_GLIBC:
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError, KeyError):  # not Linux
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
        return 1024 * int(lines["MemAvailable"].split()[0])
    return math.inf


def output_bytes(network: nn.Module, *inputs: Tensor) -> int:
    """Bytes of all that the layers of a network put out for these inputs; nothing is computed."""
    sizes: list[int] = []
    shapes_alone = copy.deepcopy(network).to("meta")
    for module in shapes_alone.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda _, __, output: sizes.append(getattr(output, "nbytes", 0)))
    with torch.no_grad():
        shapes_alone(*(tensor.to("meta") for tensor in inputs))
    return sum(sizes)


def choose_device(wanted: str) -> torch.device:
    """The device asked for; `auto`, and (said aloud) one that is not there, take the first of cuda, mps and cpu that is."""
    there = [name for name, module in (("cuda", torch.cuda), ("mps", torch.backends.mps)) if module.is_available()] + [
        "cpu"
    ]
    if wanted == "auto":
        return torch.device(there[0])
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise UserError(f"model.device is {wanted!r}; it should be auto, cuda, mps or cpu") from None
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if device.type in there and (device.index or 0) < count:
        return device
    print(f"device {wanted} is not here; taking {there[0]}")
    return torch.device(there[0])


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)
