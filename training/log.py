"""What a stage learnt, epoch by epoch: a line of JSON each, and scalars for TensorBoard where they are asked for.

<checkpoint_dir>/<category>/training.jsonl, adaptation.jsonl    loss, learning rate, seconds, pictures a second
<checkpoint_dir>/<category>/tensorboard/training, adaptation    the same for `tensorboard --logdir <checkpoint_dir>`
"""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.errors import UserError, UserFileError
from storage import folder_lock
from storage.atomic_file import atomic_write, write_error_text

TRAINING, ADAPTATION = "training", "adaptation"
TENSORBOARD = "tensorboard"
REMEDY = "change model.checkpoint_dir"


def check_log_kind(kind: str) -> None:
    """Raises ValueError where TensorBoard's files are wanted and its package is missing."""
    if kind == TENSORBOARD and importlib.util.find_spec(TENSORBOARD) is None:
        raise UserError(
            "training.log is tensorboard, whose package is missing; python -m pip install tensorboard, or take training.log=jsonl"
        )


class Log:
    """The log of a stage, written as it goes. The lines of an earlier run are kept up to the step that this one goes on from."""

    def __init__(self, folder: Path, stage: str, kind: str, step: int = 0):
        self.path = log_path(folder, stage)
        self._board: Any = None
        with atomic_write(self.path, REMEDY, "w") as file:
            file.writelines(json.dumps(line) + "\n" for line in read_log(folder, stage) if line["step"] <= step)
        if kind == TENSORBOARD:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / TENSORBOARD / stage), purge_step=step + 1)

    def add(self, step: int, epoch: int, loss: float, learning_rate: float, pictures: int, seconds: float) -> None:
        """An epoch's end: the mean loss of its last steps, and the pictures shown and seconds spent since the line before."""
        values = {
            "loss": loss,
            "learning_rate": learning_rate,
            "seconds": round(seconds, 3),
            "pictures_per_second": round(pictures / seconds, 3),
        }
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


def log_path(folder: Path, stage: str) -> Path:
    return folder / f"{stage}.jsonl"


def read_log(folder: Path, stage: str) -> list[dict[str, Any]]:
    """The whole lines of a log; none where there is no log."""
    path = log_path(folder, stage)
    if not path.is_file():
        return []
    entries = (read_entry(line) for line in path.read_bytes().splitlines())
    return [entry for entry in entries if entry is not None]


def read_entry(line: bytes) -> dict[str, Any] | None:
    """A line; None where it is cut short or damaged."""
    try:
        entry = json.loads(line.decode("utf-8"))
        return entry if isinstance(entry["step"], int) else None
    except (ValueError, TypeError, LookupError, RecursionError):
        return None


def read_log_up_to(folder: Path, stage: str, epoch: int | str) -> list[dict[str, Any]]:
    """The lines up to this epoch's; none where the log, which is of the last run, has not got there."""
    there = read_log(folder, stage)
    ends = [place for place, line in enumerate(there, start=1) if line.get("epoch") == epoch]
    return there[: ends[-1]] if ends else []


def stage_seconds(folder: Path, epochs: Mapping[str, int | str]) -> dict[str, float]:
    """How long each stage took to come to its epoch, as far as its log says."""
    there = {stage: read_log_up_to(folder, stage, epoch) for stage, epoch in epochs.items()}
    return {stage: sum(line.get("seconds", 0.0) for line in found) for stage, found in there.items() if found}
