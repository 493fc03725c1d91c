"""Check that the state of an unfinished training fits the one that continues it, and load it."""

import math
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from runtime.errors import UserError
from training.checkpoint import State

# what loading a state that does not fit raises
MISFITS = (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError)


class Resumable(Protocol):
    """An object that a training state is loaded into."""

    @property
    def unet(self) -> nn.Module: ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


def restore_trainer(
    trainer: Resumable, state: State, path: Path, *, pictures: int, most_steps: int
) -> tuple[float, list[float]]:
    """Load a training state; return its lowest and its last losses. Raise UserError where it misfits."""
    ours = trainer.state_dict()
    device = state["trainer"].get("device", ours["device"])
    if device != ours["device"]:
        raise UserError(
            f"{path} belongs to a training on {device}, this one is on {ours['device']}; "
            f"continue on {device}, or remove the file to start again"
        )
    try:
        check_state(ours, list(trainer.unet.parameters()), state["trainer"], pictures, most_steps)
        lowest, last = state["losses"]
        losses = float(lowest), [float(loss) for loss in last]
        trainer.load_state_dict(state["trainer"])
        if math.isnan(losses[0]) or not losses[1]:
            raise ValueError("it has no losses")
    except MISFITS as error:
        raise UserError(f"{path} is damaged: {error}; remove it to start again") from error
    return losses


def check_state(ours: State, weights: list[nn.Parameter], theirs: State, pictures: int, most_steps: int) -> None:
    """Raise one of MISFITS where a state differs from `ours` in parts, shapes or types, or in its range."""
    for part in ours.keys() - {"optimizer", "order", "device"}:
        check_same_kind(theirs[part], ours[part], part)
    check_same_kind(theirs["optimizer"]["param_groups"], ours["optimizer"]["param_groups"], "optimizer")
    for index, moments in theirs["optimizer"]["state"].items():
        weight = weights[index]
        for name, value in moments.items():
            check_same_kind(value, torch.zeros(()) if name == "step" else weight, f"optimizer.{index}.{name}")
    in_order = all(type(index) is int and 0 <= index < pictures for index in theirs["order"])
    if not in_order or not 0 <= theirs["step"] <= most_steps:
        raise ValueError("this training has no such step or picture")


def check_same_kind(theirs: object, ours: object, name: str) -> None:
    """Raise ValueError where two trees differ in more than the values of their numbers, texts and tensors."""
    if not is_same_kind(theirs, ours):
        raise ValueError(f"{name} has another type or shape than in this training")
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key, value in ours.items():
            check_same_kind(theirs[key], value, f"{name}.{key}")
    elif isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)):
        for index, (value, expected) in enumerate(zip(theirs, ours, strict=True)):
            check_same_kind(value, expected, f"{name}.{index}")


def is_same_kind(theirs: object, ours: object) -> bool:
    """Return whether two values have the same type and the same shape, keys or length."""
    if isinstance(ours, Tensor):
        return (
            isinstance(theirs, Tensor)
            and (theirs.shape, theirs.layout) == (ours.shape, ours.layout)
            and theirs.device.type != "meta"
        )
    if isinstance(ours, (int, float)):
        return isinstance(theirs, (int, float))
    if isinstance(ours, dict):
        return isinstance(theirs, dict) and type(theirs) is type(ours) and theirs.keys() == ours.keys()
    if isinstance(ours, (list, tuple)):
        return isinstance(theirs, (list, tuple)) and type(theirs) is type(ours) and len(theirs) == len(ours)
    return type(theirs) is type(ours)
