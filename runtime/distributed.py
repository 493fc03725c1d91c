"""Several processes, started by torchrun, as one run: each takes its share of the pictures, the first one writes and speaks.

torchrun names the processes by the environment (RANK, WORLD_SIZE) and restarts them together when one dies.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Thing = TypeVar("Thing")
LONGEST_WAIT = timedelta(days=1)  # of the other processes while the first one measures and writes


@dataclass(frozen=True)
class Group:
    """This process's place among those of the run; alone it is the only one."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """This process's part of a batch, which `size` divides."""
        return batch[self.rank :: self.size]

    def all_gather(self, part: Tensor) -> Tensor:
        """The batch of which each process has its share."""
        if self.size == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.size)]
        torch.distributed.all_gather(parts, part.contiguous())
        return torch.stack(parts, dim=1).flatten(0, 1)

    def own_share_of(self, things: Sequence[Thing], batch: int) -> list[Thing]:
        """This process's of `things`, which are dealt out in batches, so that each is in the batch in which one process has it."""
        return [thing for number, thing in enumerate(things) if number // batch % self.size == self.rank]

    def gather(self, things: list[Thing]) -> list[Thing]:
        """On the first process the things of all, one process's after the other's; nothing on the others."""
        if self.size == 1:
            return things
        parts: list[Any] | None = [None] * self.size if self.is_main else None
        torch.distributed.gather_object(things, parts)
        return [thing for part in parts or [] for thing in part]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            torch.distributed.barrier()

    def broadcast(self, thing: Thing | None) -> Thing:
        """What the first process says, plain values; the others wait for it, whatever they say."""
        said = [thing]
        if self.size > 1:
            torch.distributed.broadcast_object_list(said, src=0)
        return cast(Thing, said[0])

    def share_gradients(self, unet: nn.Module) -> tuple[nn.Module, Callable[[bool], AbstractContextManager[Any]]]:
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


ALONE = Group()


def group() -> Group:
    """As torchrun says; without it a process is alone."""
    return Group(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


@contextmanager
def process_group() -> Iterator[Group]:
    """The run's processes, which can exchange tensors within."""
    here = group()
    if here.size == 1:
        yield here
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=LONGEST_WAIT)
    try:
        yield here
    finally:
        torch.distributed.destroy_process_group()
