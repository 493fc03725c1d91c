"""Several processes, started by torchrun, as one run: each takes its share of every batch, the first one writes and speaks.

torchrun names the processes by the environment (RANK, WORLD_SIZE) and restarts them together when one dies.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

LOST = ("Connection closed", "Connection reset", "Broken pipe", "Timed out", "NCCL")  # what backends say when a process is gone


@dataclass(frozen=True)
class Group:
    """This process's place among those of the run; alone it is the only one."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """This process's part of a batch, which `size` divides."""
        return batch[self.rank :: self.size]

    def together(self, unet: nn.Module) -> tuple[nn.Module, Callable[[bool], AbstractContextManager[Any]]]:
        """The network whose gradients are the mean over all processes, and exchanged(now): whether the backward pass within waits for them."""
        if self.size == 1:
            return unet, lambda _: nullcontext()
        shared = DistributedDataParallel(unet)
        return shared, lambda now: nullcontext() if now else shared.no_sync()

    def any(self, said: bool, device: torch.device) -> bool:
        """Whether any process says so."""
        if self.size == 1:
            return said
        votes = torch.tensor(float(said), device=device)
        torch.distributed.all_reduce(votes, torch.distributed.ReduceOp.MAX)
        return bool(votes.item())


def group() -> Group:
    """As torchrun says; without it a process is alone."""
    return Group(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


@contextmanager
def joined() -> Iterator[Group]:
    """The run's processes, which can exchange tensors within."""
    here = group()
    if here.size == 1:
        yield here
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield here
    finally:
        torch.distributed.destroy_process_group()


def lost(error: BaseException) -> bool:
    """Whether the error says that another process of the run is gone."""
    return group().size > 1 and isinstance(error, RuntimeError) and any(words in str(error) for words in LOST)
