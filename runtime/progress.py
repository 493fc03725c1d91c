"""Split off runtime.py."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from runtime.device import device_name
from runtime.errors import UserError

PLAIN_LINE_SECONDS = 10.0  # between two lines where there is no terminal
Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Progress:
    """One step of a loop: its number from 1, its epoch from 1, whether the epoch ends with it, and its loss."""

    step: int
    epoch: int
    epoch_ends: bool
    loss: Tensor


def check_loss(progress: Progress, remedy: str) -> None:
    """Raises ValueError where the loss is not finite."""
    if not torch.isfinite(progress.loss):
        raise UserError(f"the loss is {progress.loss.item()} after epoch {progress.epoch}; {remedy}")


def announce(
    stage: str, device: torch.device, settings: Mapping[str, Mapping[str, object]], places: Mapping[str, object]
) -> None:
    """Say what a stage is about to do: settings by section, the device, where it reads and where it writes."""
    print(f"{stage} on {device_name(device)}")
    for section, values in settings.items():
        print(f"  {section + ':':13}{'  '.join(f'{name}={value}' for name, value in values.items())}")
    for label, place in places.items():
        print(f"  {label + ':':13}{place}")
    sys.stdout.flush()


def follow_steps(steps: Iterable[Progress], total: int, label: str, done: int = 0) -> Iterator[Progress]:
    """Pass the steps of a loop on, of which `done` were done by an earlier run, showing loss and remaining time."""
    with meter(total, label, "step", done) as show:
        for progress in steps:
            show(progress.step, lambda progress=progress: f"epoch {progress.epoch}, loss {progress.loss.item():.4g}")
            yield progress


def count_progress(things: Iterable[Thing], total: int, label: str, unit: str = "picture") -> Iterator[Thing]:
    """Pass `things` on, showing how many they are and the remaining time."""
    with meter(total, label, unit) as show:
        for number, thing in enumerate(things, start=1):
            show(number)
            yield thing


@contextmanager
def meter(total: int, label: str, unit: str, done: int = 0) -> Iterator[Callable[..., None]]:
    """show(step, detail): a bar on a terminal, a line every 10 s elsewhere. `detail()` is asked for only when something is shown."""
    terminal = sys.stderr.isatty()
    began = last = time.monotonic()
    with tqdm(
        total=total, initial=done, desc=label, unit=unit, disable=not terminal, dynamic_ncols=True, leave=False
    ) as bar:

        def show(step: int, detail: Callable[[], str] = str) -> None:
            nonlocal last
            bar.update(step - bar.n)
            now = time.monotonic()
            if now - last > (1.0 if terminal else PLAIN_LINE_SECONDS):
                last = now
                bar.set_postfix_str(detail(), refresh=False)
                if not terminal:
                    remaining = tqdm.format_interval((total - step) * (now - began) / (step - done))
                    print(
                        f"{label}: {unit} {step}/{total}, {', '.join(filter(None, [detail(), f'ETA {remaining}']))}",
                        flush=True,
                    )

        yield show
