"""The state of a training, and its restoration from a file that may be damaged or belong to another training."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from runtime.errors import UserError
from training.checkpoint import State
from training.feature_space import FeatureSpace
from training.networks import Denoiser
from training.pace import Pace

# errors that loading raises if the state does not fit
MISFITS = (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError)


@dataclass
class Trainer:
    """All that a step changes. After `load_state_dict` training continues bit for bit as if never stopped."""

    unet: Denoiser
    optimizer: torch.optim.Optimizer
    rate: torch.optim.lr_scheduler.LRScheduler
    generator: torch.Generator  # of order, squares, steps and noise; its device is the network's
    average: AveragedModel | None = None
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler(enabled=False))
    space: FeatureSpace | None = None  # in which the UNet works; None: pixels
    step: int = 0
    order: list[int] = field(default_factory=list)  # pictures that are left in the epoch

    def state_dict(self) -> State:
        device = self.generator.device
        state = {name: part.state_dict() for name, part in self.parts().items()}
        state |= {"step": self.step, "order": self.order, "random": self.generator.get_state()}
        state |= {"dropout": torch.get_rng_state(), "device": device.type}
        if device.type == "cuda":  # one state serves all processes, as each draws as many numbers
            state["dropout_there"] = torch.cuda.get_rng_state(device)
        elif device.type == "mps":
            state["dropout_there"] = torch.mps.get_rng_state()
        return state

    def load_state_dict(self, state: State) -> None:
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        self.step, self.order = state["step"], list(state["order"])
        self.generator.set_state(state["random"])
        torch.set_rng_state(state["dropout"])
        device = self.generator.device
        if device.type == "cuda":
            torch.cuda.set_rng_state(state["dropout_there"], device)
        elif device.type == "mps":
            torch.mps.set_rng_state(state["dropout_there"])

    def parts(self) -> dict[str, Any]:
        """Return the parts that have a state of their own."""
        parts = {"unet": self.unet, "optimizer": self.optimizer, "rate": self.rate, "scaler": self.scaler}
        return parts if self.average is None else {**parts, "average": self.average}


def restore_trainer(
    trainer: Trainer, state: State, path: Path, *, pictures: int, pace: Pace
) -> tuple[float, list[float]]:
    """Load a training state; return its lowest and its last losses. Raise UserError if it does not fit."""
    ours, theirs = trainer.state_dict(), state["trainer"]
    device = theirs.get("device", ours["device"])
    if device != ours["device"]:
        sides = f"{path} belongs to a training on {device}, this one is on {ours['device']}"
        raise UserError(f"{sides}; continue on {device}, or remove the file to start again")
    try:
        check_state(trainer, ours, theirs)
        if pace.clock:
            pace.load_state_dict(state["pace"])
        in_order = all(type(index) is int and 0 <= index < pictures for index in theirs["order"])
        if not in_order or not 0 <= theirs["step"] <= (pace.last or math.inf):
            raise ValueError("this training has no such step or picture")
        lowest, last = state["losses"]
        losses = float(lowest), [float(loss) for loss in last]
        trainer.load_state_dict(theirs)
        if math.isnan(losses[0]) or not losses[1]:
            raise ValueError("it has no losses")
    except MISFITS as error:
        raise UserError(f"{path} is damaged: {error}; remove it to start again") from error
    return losses


def check_state(trainer: Trainer, ours: State, theirs: State) -> None:
    """Raise one of MISFITS where a state differs from `ours`, the trainer's, in parts, shapes or types."""
    for part in ours.keys() - {"optimizer", "order", "device"}:
        check_same_kind(theirs[part], ours[part], part)
    check_same_kind(theirs["optimizer"]["param_groups"], ours["optimizer"]["param_groups"], "optimizer")
    weights = list(trainer.unet.parameters())
    for index, moments in theirs["optimizer"]["state"].items():
        weight = weights[index]
        for name, value in moments.items():
            check_same_kind(value, torch.zeros(()) if name == "step" else weight, f"optimizer.{index}.{name}")


def check_same_kind(theirs: object, ours: object, name: str) -> None:
    """Raise ValueError if two trees differ in keys, types or shapes; values may differ."""
    if isinstance(ours, Tensor):
        kind = ours.shape, ours.layout, False
        fits = isinstance(theirs, Tensor) and (theirs.shape, theirs.layout, theirs.device.type == "meta") == kind
    elif isinstance(ours, (int, float)):
        fits = isinstance(theirs, (int, float))
    else:
        fits = type(theirs) is type(ours)
    values, expected = children(theirs), children(ours)
    if not fits or values.keys() != expected.keys():
        raise ValueError(f"{name} has another type or shape than in this training")
    for key, value in expected.items():
        check_same_kind(values[key], value, f"{name}.{key}")


def children(tree: object) -> dict[object, object]:
    """Return the values of a dict or list by key or index; none for other values."""
    if isinstance(tree, dict):
        return tree
    return dict(enumerate(tree)) if isinstance(tree, (list, tuple)) else {}
