"""A stand-in for a GPU on a machine without one: which tensors meet, and where the host waits for the device.

A tensor on the stand-in has a shape, a type and a device, but no values (FakeTensorMode of torch, which raises where
tensors of two devices meet). Tensors on the CPU are real, so that whole runs through main.py read, write and measure.
A tensor that comes back to the CPU gets made-up values. Only CUDA can be stood in for: torch needs a guard for the
device, which it has for MPS on a Mac only. That nothing is computed in float64, which MPS lacks, is asserted for CUDA.
"""

import sys
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

ROOT = Path(__file__).parents[1]
FREE_BYTES = 2**30
aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
READS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default}
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default}
PRODUCTS = {  # the plain attention's are left out, which have fp32 inside
    aten.convolution.default, aten.convolution_backward.default, aten.mm.default, aten.addmm.default,
    aten._fused_sdp_choice.default,
}  # fmt: skip
CUDA = {  # what torch.cuda answers
    "is_available": True,
    "device_count": 1,
    "current_device": 0,
    "get_device_name": "stand-in",
    "is_bf16_supported": True,
    "is_current_stream_capturing": False,
    "mem_get_info": (FREE_BYTES, FREE_BYTES),
    "max_memory_allocated": FREE_BYTES,
    "get_device_properties": SimpleNamespace(total_memory=FREE_BYTES, multi_processor_count=1, major=9, minor=0),
    "get_rng_state": torch.zeros(16, dtype=torch.uint8),
    **dict.fromkeys(("_lazy_init", "empty_cache", "synchronize", "set_rng_state", "manual_seed_all"), None),
    "reset_peak_memory_stats": None,
}


class FakeDevice(TorchDispatchMode):
    """Keeps the tensors of CUDA without values, and counts what a run does with them.

    `waits` counts, by (file, function, kind) of our code, what makes the host wait: a copy between CPU and device, a
    value that Python reads, a tensor of the CPU as an index, an index of truth values. A copy from pinned memory with
    non_blocking=True is no wait. `products` counts convolutions, matrix products and attentions by the type of their
    input.
    """

    def __init__(self):
        super().__init__()
        self.waits, self.products = Counter(), Counter()
        self._fake, self._pinned = FakeTensorMode(allow_non_fake_inputs=True), WeakTensorKeyDictionary()
        self._values = torch.Generator().manual_seed(0)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if operation is aten.is_pinned.default:
            return args[0] in self._pinned
        if operation is aten._pin_memory.default:  # a machine without a GPU has no pinned memory
            self._pinned[pinned := args[0].clone()] = True
            return pinned
        tensors = [*tensors_in(args), *tensors_in(kwargs.values())]
        if not any(isinstance(x, FakeTensor) for x in tensors) and getattr(kwargs.get("device"), "type", "") != "cuda":
            return operation(*args, **kwargs)
        if kind := kind_of_wait(operation, tensors, kwargs, args, self._pinned):
            self.waits[(*place_in_our_code(), kind)] += 1
        if operation in PRODUCTS:
            self.products[tensors[0].dtype] += 1
        return self.run_without_values(operation, args, kwargs)

    def run_without_values(self, operation, args, kwargs):
        if operation is aten._local_scalar_dense.default:
            return True if args[0].dtype == torch.bool else 0.5 if args[0].is_floating_point() else 0
        if operation is aten._fused_sdp_choice.default:
            return 0  # plain attention, which every device has
        if operation is aten.copy_.default and not isinstance(args[0], FakeTensor):
            return args[0].copy_(self.made_up(args[0]))
        with self._fake:
            results = operation(*args, **kwargs)
        found = [x for x in tensors_in((results,)) if isinstance(x, FakeTensor)]
        wide = [x for x in found if x.dtype == torch.float64 and x.ndim]
        assert all(x.device.type == "cpu" for x in wide), f"{operation} computes in float64 in {place_in_our_code()}"
        if all(x.device.type != "cpu" for x in found):
            return results
        return tree_map_only(FakeTensor, lambda x: self.made_up(x) if x.device.type == "cpu" else x, results)

    def made_up(self, like: Tensor) -> Tensor:
        """Return a real tensor on the CPU: numbers from 0 to 1, or the integers 0, 1, 2 …, which may be an order."""
        if like.is_floating_point():
            return torch.rand(like.shape, generator=self._values).to(like.dtype)
        return torch.arange(like.numel()).view(like.shape).to(like.dtype)


def tensors_in(values: Iterable[object]) -> Iterator[Tensor]:
    """Yield the tensors among the arguments of an operation, which are in lists at most."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)


def kind_of_wait(operation, tensors: list[Tensor], kwargs, args, pinned) -> str | None:
    """Return in which way an operation makes the host wait for the device, None if it does not."""
    if operation in COPIES:
        in_place = operation is aten.copy_.default
        source, target = (args[1], args[0].device) if in_place else (args[0], kwargs.get("device", args[0].device))
        in_background = kwargs.get("non_blocking", in_place and args[2:] == (True,)) and source in pinned
        between = {source.device.type, target.type} == {"cpu", "cuda"}
        return "copy" if between and not in_background else None
    if operation in READS:
        return "read"
    if any(not isinstance(x, FakeTensor) and x.ndim and x.device.type == "cpu" for x in tensors):
        return "tensor of the CPU"
    by_truth = operation in INDEXING and any(x is not None and x.dtype == torch.bool for x in args[1])
    return "index of truth values" if by_truth else None


def place_in_our_code() -> tuple[str, str]:
    """Return the file and the function of our code that runs now; comprehensions and lambdas are part of another."""
    frame = sys._getframe(2)
    while frame:
        path, name = Path(frame.f_code.co_filename), frame.f_code.co_name
        is_ours = path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] not in ("tests", ".venv")
        if is_ours and not name.startswith("<"):
            return path.relative_to(ROOT).as_posix(), name
        frame = frame.f_back
    return "no code of ours", ""


class FakeGenerator(torch.Generator):
    """A generator that calls itself one of any device; operations without values never ask it for numbers."""

    def __new__(cls, device="cpu"):
        generator = super().__new__(cls)
        generator.named = torch.device(device)
        return generator

    @property
    def device(self):
        return self.named


@torch.no_grad()
def run_backward(loss: Tensor, *_: object, **__: object) -> None:
    """Call the backward functions of a loss in order, as torch's engine, which asks for the driver, does."""
    gradients: dict[Node, list[Any]] = {loss.grad_fn: [torch.ones_like(loss)]}
    for node in backward_order(loss.grad_fn):
        pairs = zip(gradients.pop(node), node._input_metadata, strict=True)
        found = node(*(x if x is None else x.sum_to_size(like.shape).to(like.dtype) for x, like in pairs))
        found = found if isinstance(found, tuple) else (found,)
        for (following, slot), gradient in zip(node.next_functions, found, strict=True):
            if following is not None and gradient is not None:
                sums = gradients.setdefault(following, [None] * len(following._input_metadata))
                sums[slot] = gradient if sums[slot] is None else sums[slot] + gradient


def backward_order(last: Node) -> list[Node]:
    """Return all backward functions, from that of the loss on, each before those that it passes gradients to."""
    order, seen, stack = [], set(), [(last, False)]
    while stack:
        node, is_complete = stack.pop()
        if is_complete:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(following, False) for following, _ in node.next_functions if following is not None]
    return order[::-1]


@contextmanager
def fake_cuda() -> Iterator[FakeDevice]:
    """Give this machine a CUDA device without values."""
    device = FakeDevice()

    def answer(value: object) -> Callable[..., object]:
        return lambda *_, **__: value

    def replace(owner: object, name: str, value: object) -> None:
        stack.enter_context(patch.object(owner, name, value, create=True))

    with ExitStack() as stack:
        for name, value in CUDA.items():
            replace(torch.cuda, name, answer(value))
        replace(torch, "Generator", FakeGenerator)
        replace(torch.autograd, "backward", run_backward)
        replace(torch._C, "_current_graph_task_id", answer(0))  # else checkpointing computes a layer for each tensor
        replace(fake_tensor, "init_gpu_context", answer(None))
        replace(FakeTensorMode, "avoid_device_init", True)
        replace(FakeTensor, "tolist", lambda x: x.cpu().tolist())
        replace(FakeTensor, "__reduce_ex__", lambda x, protocol: device.made_up(x).__reduce_ex__(protocol))
        replace(weakref, "getweakrefs", answer([]))  # FakeTensorMode holds some, which forbid Module.to
        torch._C._ensureCUDADeviceGuardSet()  # a guard that does nothing
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device="cuda") makes a tensor on the CPU first
        stack.callback(torch._C._set_only_lift_cpu_tensors, False)
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")  # by copy.deepcopy
        stack.enter_context(device)
        yield device
