"""Read files of weights, which may be damaged or come from strangers."""

import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from runtime.errors import MissingFileError, UserError, UserFileError

DAMAGED = (  # what torch.load raises for a file that is damaged or holds more than weights
    pickle.UnpicklingError, struct.error, RuntimeError, EOFError,
    ValueError, LookupError, AssertionError, TypeError, AttributeError,
)  # fmt: skip


def copy_into(network: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
    """Load a state of the right names and shapes. Raise UserError where its tensors hold no plain numbers."""
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{source} holds tensors that are no weights: {error}; replace or remove it") from error


def read_state(path: str | Path, mapped: bool = False) -> dict[str, Any]:
    """Return the content of a file of weights; with `mapped` its tensors stay on disk until they are used.

    Raise UserError where it is damaged or holds more than tensors.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")  # the error below says it better
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and zipfile.is_zipfile(path))
    except FileNotFoundError:
        raise MissingFileError(f"no weights at {path}; check model.backbone_weights") from None
    except OSError as error:
        raise UserFileError(f"can't read {path}: {error.strerror}; give a file of weights") from error
    except DAMAGED as error:
        reason = "it is damaged, or holds more than tensors"
        raise UserError(f"{path} is not a file of weights: {reason}; replace or remove it") from error
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise UserError(f"{path} holds a {type(state).__name__}, not a state dict of tensors; replace or remove it")
    return state
