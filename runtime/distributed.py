"""Let several processes, started by torchrun, share one run: the main process writes and prints."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Item = TypeVar("Item")
LONGEST_WAIT = timedelta(days=1)  # for the main process, while it evaluates and writes


@dataclass(frozen=True)
class Group:
    """The processes of the run, and the rank of this one among them."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """Return this process's part of a batch, which `size` must divide."""
        return batch[self.rank :: self.size]

    def all_gather(self, part: Tensor) -> Tensor:
        """Return the batch that `share` divided."""
        if self.size == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.size)]
        torch.distributed.all_gather(parts, part.contiguous())
        return torch.stack(parts, dim=1).flatten(0, 1)

    def own_share_of(self, items: Sequence[Item], batch: int) -> list[Item]:
        """Return every size-th batch of the items, so that batches are those of a single process."""
        return [item for number, item in enumerate(items) if number // batch % self.size == self.rank]

    def gather(self, items: list[Item]) -> list[Item]:
        """Return the items of all processes, by rank, in the main process; an empty list in the others."""
        if self.size == 1:
            return items
        parts: list[list[Item] | None] | None = [None] * self.size if self.is_main else None
        torch.distributed.gather_object(items, parts)
        return [item for part in parts or [] for item in part or []]

    def wait(self) -> None:
        if self.size > 1:
            torch.distributed.barrier()

    def broadcast(self, value: Item | None) -> Item:
        """Return the main process's value, which must be picklable; the others' are ignored."""
        values = [value]
        if self.size > 1:
            torch.distributed.broadcast_object_list(values, src=0)
        return cast(Item, values[0])

    def share_gradients(self, unet: nn.Module) -> tuple[nn.Module, Callable[[bool], AbstractContextManager[object]]]:
        """Return the network with gradients averaged over all processes, and the context for a backward pass.

        Call the context with a flag: whether processes exchange gradients in this pass, or only sum their own.
        """
        if self.size == 1:
            return unet, lambda _: nullcontext()
        shared = DistributedDataParallel(unet)
        return shared, lambda now: nullcontext() if now else shared.no_sync()

    def any(self, flag: bool, device: torch.device) -> bool:
        """Return whether the flag is set in any process."""
        if self.size == 1:
            return flag
        votes = torch.tensor(float(flag), device=device)
        torch.distributed.all_reduce(votes, torch.distributed.ReduceOp.MAX)
        return bool(votes.item())


ALONE = Group()


def group() -> Group:
    """Return the group that torchrun describes; without torchrun a process is alone."""
    return Group(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


@contextmanager
def process_group() -> Iterator[Group]:
    """Connect the processes of the run, and yield their group."""
    processes = group()
    if processes.size == 1:
        yield processes
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=LONGEST_WAIT)
    try:
        yield processes
    finally:
        torch.distributed.destroy_process_group()
