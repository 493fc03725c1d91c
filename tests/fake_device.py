"""A stand-in for a GPU on a machine without one: which tensors meet, and where the host waits for the device.

Tensors on the stand-in device have shapes, types and a device, but no values (torch's FakeTensorMode). Tensors on the
CPU are real, so that whole runs through main.py read, write and measure. A tensor that comes back to the CPU gets made-up
values. FakeTensorMode raises where tensors of two devices meet. `FakeDevice.waits` counts, for each line of our code, what
makes the host wait: copies in both directions, values and shapes that Python reads. A copy from pinned memory that may
run in the background is no wait.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

ROOT = Path(__file__).parents[1]
aten = torch.ops.aten
FREE_BYTES = 2**30


class FakeDevice(TorchDispatchMode):
    """Keeps tensors of a device `kind` without values, and counts waits by (file, function, operation)."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.waits = kind, Counter()
        self._fake, self._pinned = FakeTensorMode(allow_non_fake_inputs=True), torch.utils.weak.WeakTensorKeyDictionary()
        self._values = torch.Generator().manual_seed(0)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in PINNING:
            return self.pin(function, args[0])
        leaves = tree_leaves((args, kwargs))
        ours = [leaf for leaf in leaves if isinstance(leaf, FakeTensor)]
        target = kwargs.get("device")
        if not ours and getattr(target, "type", None) != self.kind:
            return function(*args, **kwargs)
        self.note_waits(function, args, kwargs, leaves)
        if function is aten._local_scalar_dense.default:
            return {torch.bool: True}.get(args[0].dtype, 0.5 if args[0].is_floating_point() else 0)
        if function is aten._fused_sdp_choice.default:
            return 0  # the plain form, which every device has
        if function is aten.copy_.default and not isinstance(args[0], FakeTensor):
            return args[0].copy_(self.made_up(args[0]))
        if function is aten.nonzero.default:
            return self.empty(args[0].numel(), args[0].ndim)
        with self._fake:
            results = function(*args, **kwargs)
        self._fake.fake_tensor_converter.meta_converter.tensor_memo.clear()  # its references forbid Module.to
        check_types(function, results, self.kind)
        return tree_map_only(FakeTensor, lambda x: self.made_up(x) if x.device.type == "cpu" else x, results)

    def empty(self, *shape: int) -> Tensor:
        with self._fake:
            return torch.empty(shape, dtype=torch.int64, device=self.kind)

    def made_up(self, like: Tensor) -> Tensor:
        """Return a real tensor on the CPU: numbers of 0 to 1, or 0, 1, 2 …, which may be an order or indices."""
        if like.is_floating_point():
            return torch.rand(like.shape, generator=self._values).to(like.dtype)
        return torch.arange(like.numel()).view(like.shape).to(like.dtype)

    def pin(self, function: object, tensor: Tensor) -> bool | Tensor:
        """Answer for pinned memory, which a machine without a GPU cannot allocate."""
        if function is aten.is_pinned.default:
            return tensor in self._pinned
        copy = tensor.clone()
        self._pinned[copy] = True
        return copy

    def note_waits(self, function, args, kwargs, leaves) -> None:
        source, target = args[0] if args else None, kwargs.get("device")
        copies = function in (aten._to_copy.default, aten.copy_.default)
        if copies and isinstance(source, Tensor):
            source, target = (args[1], args[0].device) if function is aten.copy_.default else (source, target or source.device)
            background = kwargs.get("non_blocking") or (function is aten.copy_.default and args[2:3] == (True,))
            if target.type != source.device.type and not (background and source in self._pinned):
                self.waits[*place(), "copy"] += 1
        elif function in READS:
            self.waits[*place(), "read"] += 1
        elif any(type(leaf) is Tensor and leaf.ndim and leaf.device.type == "cpu" for leaf in leaves):
            self.waits[*place(), "hidden copy"] += 1
        elif any(isinstance(leaf, FakeTensor) and leaf.dtype in (torch.bool, torch.uint8) for leaf in tree_leaves(args[1:2])):
            if function in (aten.index.Tensor, aten.index_put_.default):
                self.waits[*place(), "boolean index"] += 1


PINNING = {aten.is_pinned.default, aten._pin_memory.default}
READS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default, aten.masked_select.default}


def check_types(function: object, results: object, kind: str) -> None:
    """Assert that no tensor of MPS, which has no float64, is of that type."""
    wide = [x for x in tree_leaves(results) if isinstance(x, FakeTensor) and x.dtype == torch.float64]
    assert not (kind == "mps" and any(x.device.type == kind for x in wide)), f"{function} makes float64 on {kind}"


def place() -> tuple[str, str]:
    """Return the file and function of our code that runs now; tests and torch are none of ours."""
    frame = sys._getframe(2)
    while frame:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and not {"tests", ".venv"} & set(path.relative_to(ROOT).parts[:1]):
            return path.relative_to(ROOT).as_posix(), frame.f_code.co_qualname if sys.version_info >= (3, 11) else frame.f_code.co_name
        frame = frame.f_back
    return "elsewhere", ""


class FakeGenerator(torch.Generator):
    """A generator that says that it is on the stand-in device; operations without values never use it."""

    kind = "cuda"

    def __new__(cls, device="cpu"):
        generator = super().__new__(cls)
        generator.device_named = torch.device(device)
        return generator

    @property
    def device(self):
        named = self.device_named
        return torch.device(named.type, named.index or 0) if named.type != "cpu" else named


CUDA = {
    "is_available": True,
    "device_count": 1,
    "current_device": 0,
    "get_device_name": "stand-in",
    "is_bf16_supported": True,
    "is_current_stream_capturing": False,
    "mem_get_info": (FREE_BYTES, FREE_BYTES),
    "get_rng_state": torch.zeros(16, dtype=torch.uint8),
    **dict.fromkeys(("_lazy_init", "empty_cache", "synchronize", "set_rng_state", "manual_seed_all"), None),
}


@torch.no_grad()
def run_backward(loss: Tensor, *_: object, **__: object) -> None:
    """Call the backward functions of a loss in order; torch's engine asks the driver for the streams of the device."""
    gradients = {loss.grad_fn: [torch.ones_like(loss)]}
    for node in backward_order(loss.grad_fn):
        expected = node._input_metadata
        received = gradients.pop(node)
        found = node(*(x if x is None else x.sum_to_size(each.shape).to(each.dtype) for x, each in zip(received, expected, strict=True)))
        for (following, place), gradient in zip(node.next_functions, found if isinstance(found, tuple) else (found,), strict=True):
            if following is not None and gradient is not None:
                sums = gradients.setdefault(following, [None] * len(following._input_metadata))
                sums[place] = gradient if sums[place] is None else sums[place] + gradient


def backward_order(last) -> list:
    """Return all backward functions that lead to `last`, each before those that it passes gradients to."""
    order, seen, stack = [], set(), [(last, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(following, False) for following, _ in node.next_functions if following is not None]
    return order[::-1]


@contextmanager
def fake_device(kind: str) -> Iterator[FakeDevice]:
    """Make `kind` ("cuda" or "mps") the machine's device, whose tensors have no values."""
    with ExitStack() as stack:
        for name, value in CUDA.items():
            stack.enter_context(patch.object(torch.cuda, name, lambda *_, answer=value, **__: answer))
        stack.enter_context(patch.object(fake_tensor, "init_gpu_context", lambda *_: None))
        stack.enter_context(patch.object(FakeTensorMode, "avoid_device_init", True))
        stack.enter_context(patch.object(torch.autograd, "backward", run_backward))
        torch._C._ensureCUDADeviceGuardSet()
        stack.enter_context(patch.object(torch, "Generator", FakeGenerator))
        device = FakeDevice(kind)
        tolist = lambda x: x.cpu().tolist()
        stack.enter_context(patch.object(FakeTensor, "tolist", tolist, create=True))
        stack.enter_context(patch.object(FakeTensor, "__reduce_ex__", lambda x, protocol: device.made_up(x).__reduce_ex__(protocol)))
        stack.enter_context(device)
        yield device
