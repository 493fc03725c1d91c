"""Whether what a training kept fits the training that is to go on with it: a damaged or foreign file is refused before it is used."""

import math
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from runtime.errors import UserError

MISFITS = (
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    RuntimeError,
    OverflowError,
)  # what loading a state of another shape raises


class Resumable(Protocol):
    """What a training state is loaded into."""

    @property
    def unet(self) -> nn.Module: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def restore_trainer(
    trainer: Resumable, state: dict[str, Any], path: Path, *, pictures: int, most_steps: int
) -> tuple[float, list[float]]:
    """Load a training state; returns its lowest and its last losses. Raises ValueError where it does not fit."""
    ours = trainer.state_dict()
    there = state["trainer"].get("device", ours["device"])
    if there != ours["device"]:
        raise UserError(
            f"{path} is of a training on {there}, this one is on {ours['device']}; go on there, or remove it to train anew"
        )
    try:
        check_state(ours, list(trainer.unet.parameters()), state["trainer"], pictures, most_steps)
        lowest, last = state["losses"]
        losses = float(lowest), [float(loss) for loss in last]
        trainer.load_state_dict(state["trainer"])
    except MISFITS as error:
        raise UserError(f"{path} is damaged: {error}; remove it to train anew") from error
    if math.isnan(losses[0]) or not losses[1]:
        raise UserError(f"{path} is damaged: its losses are none; remove it to train anew")
    return losses


def check_state(
    ours: dict[str, Any], weights: list[nn.Parameter], state: dict[str, Any], pictures: int, most_steps: int
) -> None:
    """Raises one of MISFITS where the state has other parts, shapes or kinds of values than the trainer's own, or impossible places."""
    for part in ours.keys() - {"optimizer", "order", "device"}:
        check_same_kind(state[part], ours[part], part)
    check_same_kind(state["optimizer"]["param_groups"], ours["optimizer"]["param_groups"], "optimizer")
    for index, kept in state["optimizer"]["state"].items():
        weight = weights[index]
        for name, value in kept.items():
            check_same_kind(value, torch.zeros(()) if name == "step" else weight, f"optimizer.{index}.{name}")
    if not 0 <= state["step"] <= most_steps or not all(
        type(index) is int and 0 <= index < pictures for index in state["order"]
    ):
        raise UserError("its place is none in this training")


def check_same_kind(found: Any, wanted: Any, name: str) -> None:
    """Raises ValueError where two trees differ in more than the values of their numbers, texts and tensors."""
    fits = type(found) is type(wanted) or (isinstance(found, (int, float)) and isinstance(wanted, (int, float)))
    if isinstance(wanted, Tensor):
        fits = (
            isinstance(found, Tensor)
            and found.shape == wanted.shape
            and found.layout == wanted.layout
            and found.device.type != "meta"
        )
    if (
        not fits
        or (isinstance(wanted, dict) and found.keys() != wanted.keys())
        or (isinstance(wanted, (list, tuple)) and len(found) != len(wanted))
    ):
        raise UserError(f"{name} is of another kind than in this training")
    if isinstance(wanted, (dict, list, tuple)):
        for key in wanted if isinstance(wanted, dict) else range(len(wanted)):
            check_same_kind(found[key], wanted[key], f"{name}.{key}")
