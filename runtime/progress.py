"""Print what a stage is about to do, and show the progress of its loops."""

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

LINE_SECONDS = 10.0  # between two lines without a terminal
BAR_SECONDS = 1.0  # between two updates of the bar's text
Item = TypeVar("Item")
Values = Mapping[str, object]  # by name


@dataclass(frozen=True)
class Progress:
    """One step of a loop: its number from 1, its epoch from 1, whether it ends the epoch, and its loss."""

    step: int
    epoch: int
    epoch_ends: bool
    loss: Tensor


def check_loss(progress: Progress, remedy: str) -> None:
    """Raise UserError where the loss is not finite."""
    if not torch.isfinite(progress.loss):
        raise UserError(f"the loss is {progress.loss.item()} after epoch {progress.epoch}; {remedy}")


def announce(stage: str, device: torch.device, settings: Mapping[str, Values], paths: Values) -> None:
    """Print what a stage is about to do: its device, its settings by section, what it reads and writes."""
    print(f"{stage} on {device_name(device)}")
    for section, values in settings.items():
        print(f"  {section + ':':13}{'  '.join(f'{name}={value}' for name, value in values.items())}")
    for label, path in paths.items():
        print(f"  {label + ':':13}{path}", flush=True)


def follow_steps(steps: Iterable[Progress], total: Callable[[], int], label: str, done: int = 0) -> Iterator[Progress]:
    """Yield the steps of a loop, and show loss and remaining time.

    `total()` is the number of all steps, as far as it is known. An earlier run made the first `done` steps.
    """
    with progress_meter(total, label, "step", done) as show:
        for progress in steps:
            show(progress.step, lambda progress=progress: f"epoch {progress.epoch}, loss {progress.loss.item():.4g}")
            yield progress


def count_progress(items: Iterable[Item], total: int, label: str, unit: str = "picture") -> Iterator[Item]:
    """Yield the items, and show their number and the remaining time."""
    with progress_meter(lambda: total, label, unit) as show:
        for number, item in enumerate(items, start=1):
            show(number)
            yield item


@contextmanager
def progress_meter(total: Callable[[], int], label: str, unit: str, done: int = 0) -> Iterator[Callable[..., None]]:
    """Yield show(step, detail): a bar on a terminal, a line every LINE_SECONDS elsewhere.

    `detail()` is called only when its text appears, as it may wait for the device.
    """
    terminal = sys.stderr.isatty()
    began = last = time.monotonic()
    options = {"disable": not terminal, "dynamic_ncols": True, "leave": False}
    with tqdm(total=total(), initial=done, desc=label, unit=unit, **options) as bar:

        def show(step: int, detail: Callable[[], str] = str) -> None:
            nonlocal last
            bar.update(step - bar.n)
            now = time.monotonic()
            if now - last <= (BAR_SECONDS if terminal else LINE_SECONDS):
                return
            last, text, bar.total = now, detail(), total()
            bar.set_postfix_str(text, refresh=False)
            if not terminal:
                remaining = tqdm.format_interval((bar.total - step) * (now - began) / (step - done))
                parts = [f"{label}: {unit} {step}/{bar.total}", text, f"ETA {remaining}"]
                print(", ".join(filter(None, parts)), flush=True)

        yield show
