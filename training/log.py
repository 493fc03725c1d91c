"""Write and read the log of a stage: a line of JSON per epoch, and scalars for TensorBoard if wanted.

<checkpoint_dir>/<category>/training.jsonl, adaptation.jsonl    loss, learning rate, seconds, pictures per second
<checkpoint_dir>/<category>/tensorboard/training, adaptation    the same, for `tensorboard --logdir <checkpoint_dir>`
"""

import importlib.util
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from runtime.errors import UserError, UserFileError
from storage import folder_lock
from storage.atomic_file import atomic_write, write_error_text

TRAINING, ADAPTATION = "training", "adaptation"
TENSORBOARD = "tensorboard"
REMEDY = "change model.checkpoint_dir"

Entry = dict[str, Any]  # a line of a log


def check_log_kind(kind: str) -> None:
    """Raise UserError where the log is for TensorBoard and its package is missing."""
    if kind == TENSORBOARD and importlib.util.find_spec(TENSORBOARD) is None:
        remedy = "python -m pip install tensorboard, or set training.log=jsonl"
        raise UserError(f"training.log is tensorboard, whose package is missing; {remedy}")


class Log:
    """The log of a stage, one line per epoch. It keeps an earlier run's lines up to `step`."""

    def __init__(self, folder: Path, stage: str, kind: str, step: int = 0):
        self.path = log_path(folder, stage)
        self._board, self._logged_at, self._logged_step = None, time.monotonic(), step
        with atomic_write(self.path, REMEDY, "w") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in read_log(folder, stage) if entry["step"] <= step)
        if kind == TENSORBOARD:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / TENSORBOARD / stage), purge_step=step + 1)

    def add(self, step: int, epoch: int, loss: float, learning_rate: float, batch_size: int) -> None:
        """Write the line of an epoch: its mean loss, and the time and pictures since the line before."""
        pictures, now = (step - self._logged_step) * batch_size, time.monotonic()
        seconds = now - self._logged_at
        values = {"loss": loss, "learning_rate": learning_rate, "seconds": round(seconds, 3)}
        values["pictures_per_second"] = round(pictures / seconds, 3)
        try:
            folder_lock.refuse_replaced(self.path)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "epoch": epoch, **values}) + "\n")
            if self._board:
                for name, value in values.items():
                    self._board.add_scalar(name, value, step)
                self._board.flush()
        except OSError as error:
            raise UserFileError(f"can't write {self.path}: {write_error_text(error, REMEDY)}") from error
        self._logged_at, self._logged_step = now, step


def log_path(folder: Path, stage: str) -> Path:
    return folder / f"{stage}.jsonl"


def read_log(folder: Path, stage: str) -> list[Entry]:
    """Return the lines of a log that are complete and undamaged; none where there is no log."""
    path, entries = log_path(folder, stage), []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        with suppress(ValueError, TypeError, LookupError, RecursionError):
            entry = json.loads(line.decode("utf-8"))
            if isinstance(entry["step"], int):
                entries.append(entry)
    return entries


def read_log_up_to(folder: Path, stage: str, epoch: int | str) -> list[Entry]:
    """Return the lines up to this epoch; none if the run that wrote the log did not reach it."""
    entries = read_log(folder, stage)
    ends = [number for number, entry in enumerate(entries, start=1) if entry.get("epoch") == epoch]
    return entries[: ends[-1]] if ends else []


def stage_seconds(folder: Path, epochs: Mapping[str, int | str]) -> dict[str, float]:
    """Return the seconds that each stage took up to its epoch; stages without such a log are left out."""
    logs = {stage: read_log_up_to(folder, stage, epoch) for stage, epoch in epochs.items()}
    return {stage: sum(entry.get("seconds", 0.0) for entry in log) for stage, log in logs.items() if log}
