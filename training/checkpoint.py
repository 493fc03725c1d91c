"""Weights to and from disk: released files as they are, and our own, which also say what network they are of.

    <checkpoint_dir>/<category>/2000        UNet after epoch 2000 (2000.zip is the same file)
    <checkpoint_dir>/<category>/feat3       feature extractor after adaptation epoch 3; feat0 is the untouched one
    <checkpoint_dir>/<category>/latest, featlatest    the epochs written last, as times of files do not survive copies
    <checkpoint_dir>/<category>/calibration.json
    <checkpoint_dir>/<category>/references        what the calibration's parts compare with, where it has such parts
    <checkpoint_dir>/<category>/training.state    all that a training step changes, to go on from; gone once the training is done

A released file is a state dict whose names may stand behind `module.`. Ours is a dict with `format`, `network`, `weights` and more.
Files are read by torch's weights_only loader, which runs no code, and written under a temporary name, then renamed.
"""

import errno
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from config.keys import AUTO, LATEST, Settings
from feature_extractor import EMBEDDED, RESNETS, FeatureExtractor, cached_weights, load_trunk
from runtime.errors import MissingFileError, UserError
from storage import folder_lock
from storage.atomic_file import atomic_write, remove_stale
from storage.fingerprint import as_stored, describe_differences
from storage.weights_file import copy_into, read_state
from training.networks import build_unet
from unet import UNet

FORMAT = "ddad-1"
FEATURES_PREFIX = "feat"
TRAINING_STATE, TRAINING_FORMAT = "training.state", "ddad-training-1"
PUBLISHED_EXTRACTOR = "wide_resnet101_2"
REMEDY = "change model.checkpoint_dir"
UNWRITABLE = f"{REMEDY}, or set model.save_model=False"
WITHOUT_WEIGHTS = {"dropout"}  # parts of the architecture that do not change what a trained network computes


@contextmanager
def locked(folder: Path, wanted: bool) -> Iterator[None]:
    """Where `wanted`, keep other runs from writing into the folder, and sweep away what killed runs left half-written."""
    if not wanted:
        yield
        return
    with folder_lock.locked(folder, REMEDY):
        remove_stale(folder)
        yield


def save(path: str | Path, state: dict[str, Any]) -> None:
    """Write `state` whole or not at all."""
    with atomic_write(Path(path), REMEDY) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # what torch's writer makes of a full disk
            raise OSError(errno.ENOSPC, "the disk may be full") from error


def save_unet(path: str | Path, unet: UNet, *, average: nn.Module | None = None, **notes: Any) -> None:
    """The network with its shape; `average` is its moving average, kept beside the raw weights; `notes` are plain values."""
    state = {
        "format": FORMAT,
        "network": "unet",
        "architecture": unet.architecture,
        "weights": unet.state_dict(),
        **as_stored(notes),
    }
    make_latest(Path(path))
    save(path, state | ({"average": average.state_dict()} if average is not None else {}))


def save_features(path: str | Path, extractor: FeatureExtractor, **notes: Any) -> None:
    make_latest(Path(path))
    save(
        path,
        {
            "format": FORMAT,
            "network": "features",
            "extractor": extractor.name,
            "weights": extractor.network.state_dict(),
            **notes,
        },
    )


def save_training_state(folder: Path, state: dict[str, Any]) -> None:
    save(folder / TRAINING_STATE, {"format": TRAINING_FORMAT, **state, "made_with": as_stored(state["made_with"])})


def load_training_state(folder: Path, made_with: dict[str, Any]) -> dict[str, Any] | None:
    """What an unfinished training kept, if there is one. Raises ValueError where it is of other settings or pictures than `made_with`."""
    path = folder / TRAINING_STATE
    if not path.exists():
        return None
    state = read_state(path)
    if state.get("format") != TRAINING_FORMAT:
        raise UserError(f"{path} is not the state of a training of this version; remove it to train anew")
    check_complete(path, state, "made_with")
    differing = describe_differences(plain_values(path, state["made_with"]), as_stored(made_with))
    if differing:
        raise UserError(f"{path} is of another training: {differing}; set that again, or remove the file to train anew")
    check_complete(path, state, "trainer")
    return state


def has_training_state(folder: Path) -> bool:
    return (folder / TRAINING_STATE).exists()


def remove_training_state(folder: Path) -> None:
    (folder / TRAINING_STATE).unlink(missing_ok=True)


def is_made_with(folder: Path, epoch: int, made_with: dict[str, Any], prefix: str = "") -> bool:
    """Whether the weights of this epoch are there and of these settings and pictures; says what differs."""
    path = epochs_in(folder, prefix).get(epoch)
    theirs = read_state(path).get("made_with") if path else None
    if path is None or not isinstance(theirs, dict):
        return False
    differing = describe_differences(plain_values(path, theirs), as_stored(made_with))
    if differing:
        print(f"{path} is of other settings or pictures, and is made again: {differing}", flush=True)
    return not differing


def epochs_of_training(folder: Path, made_with: dict[str, Any], planned_by: dict[str, Any]) -> int | None:
    """The epochs of the training whose state, or else whose last weights, the folder holds, if it is the one that `made_with` and what it was
    `planned_by` describe, but for its epochs."""
    last = latest_epoch(folder)
    path = (
        folder / TRAINING_STATE if has_training_state(folder) else epochs_in(folder)[last] if last is not None else None
    )
    content = read_state(path) if path else {}
    theirs = content.get("made_with")
    if (
        path is None
        or not isinstance(theirs, dict)
        or any(content.get(name, value) != value for name, value in planned_by.items())
    ):
        return None
    theirs = plain_values(path, theirs)
    epochs = theirs.get("epochs")
    return (
        epochs
        if isinstance(epochs, int)
        and epochs > 0
        and not describe_differences(theirs, {**as_stored(made_with), "epochs": epochs})
        else None
    )


def load_unet(path: str | Path, unet: UNet, averaged: bool = True) -> None:
    """Load a released or an own file; of the latter the moving average where it has one and unless `averaged` is False.

    Raises ValueError where the file is of another network, naming both sides.
    """
    content = read_state(path)
    weights = content
    if content.get("format") == FORMAT:
        if content.get("network") != "unet":
            raise UserError(
                f"{path} holds feature weights; the UNet's are named after their epoch alone, so rename it to {FEATURES_PREFIX}…"
            )
        check_complete(path, content, "architecture", "weights")
        compare_architectures(path, content["architecture"], unet.architecture)
        part = "average" if averaged and "average" in content else "weights"
        check_complete(path, content, part)
        weights = content[part]
    elif unet.architecture["predicts"]:
        raise UserError(f"{path} is a released file, of a network that predicts the noise; set model.predicts=null")
    load_strictly(path, unet, {name.removeprefix("module."): value for name, value in weights.items()})


def load_feature_state(path: str | Path, content: dict[str, Any], extractor: FeatureExtractor) -> None:
    """Load the content of a released `feat{n}` (a full ResNet state dict, layer4 and fc unused) or an own one. Raises ValueError as `load_unet`."""
    if content.get("format") == FORMAT:
        if content.get("network") != "features":
            raise UserError(f"{path} holds a UNet, not feature weights; rename it to its epoch, or adapt again")
        found = content.get("extractor")
        if found != extractor.name:
            raise UserError(
                f"{path} is of {found}, the configuration asks for {extractor.name}; set model.feature_extractor={found} or adapt again"
            )
        check_complete(path, content, "weights")
        content = content["weights"]
    load_trunk(extractor.network, content, extractor.name, path)


def restore_unet(path: Path, settings: Settings) -> UNet:
    """Return the settings' network with the weights of a file."""
    unet = build_unet(settings)
    load_unet(path, unet, settings.model.averaged)
    return unet


def held_out_names(path: Path) -> list[str]:
    """The pictures of train/good that the network of this file has not seen; a released file names none."""
    names = read_state(path).get("held_out", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path} is damaged: its held_out is no list of names; replace or remove it")
    return names


def extractor_name(path: Path) -> str | None:
    """The name of the network whose features a file holds; released ones do not tell."""
    return read_state(path).get("extractor")


def restore_features(
    folder: Path, epoch: int | str, name: str, weights: Path | None = None
) -> tuple[FeatureExtractor, Path | str]:
    """The extractor after adaptation epoch `epoch` ('latest': written last), and where its weights come from: a file here, or words.

    It is read from feat{epoch}. Epoch 0 is the pretrained network: of the file `weights`, of feat0, or else its ImageNet weights; a feat0
    of another network is passed over. The name 'auto' takes what feat{epoch} is of; without one wide_resnet101_2 where its weights are at
    hand, else the embedded efficientnet_lite0.
    """
    there = epochs_in(folder, FEATURES_PREFIX)
    if epoch == LATEST:
        epoch = latest_epoch(folder, FEATURES_PREFIX) or 0
    if epoch != 0 or (0 in there and weights is None):
        path = find_weights(folder, epoch, FEATURES_PREFIX)
        content = read_state(path)
        found = content.get("extractor", name if name in RESNETS else PUBLISHED_EXTRACTOR)
        wanted = found if name == AUTO else name
        if epoch != 0 or found == wanted:
            extractor = FeatureExtractor(wanted, "random")
            load_feature_state(path, content, extractor)
            return extractor, path
    if name == AUTO and weights is None and cached_weights(PUBLISHED_EXTRACTOR) is None:
        return FeatureExtractor(EMBEDDED), f"its package (no weights of {PUBLISHED_EXTRACTOR} are at hand)"
    return FeatureExtractor(PUBLISHED_EXTRACTOR if name == AUTO else name, weights), str(
        weights or "its ImageNet weights"
    )


def find_weights(folder: Path, epoch: int | str, prefix: str = "") -> Path:
    """The weights of `epoch` ('latest': the last) in a category's checkpoint folder, with or without .zip."""
    there = epochs_in(folder, prefix)
    wanted = latest_epoch(folder, prefix) if epoch == LATEST else epoch
    if wanted in there:
        return there[wanted]
    remedy = "run --domain_adaptation True first" if prefix else "run --train True first"
    raise MissingFileError(
        f"no weights {prefix}{epoch} in {folder}; it has {', '.join(f'{prefix}{number}' for number in sorted(there)) or 'none'}; "
        f"{remedy}, or set model.{'DA_chp' if prefix else 'load_chp'} to one it has"
    )


def epoch_of(path: Path) -> int:
    """2000, 2000.zip → 2000; feat3 → 3."""
    return int(path.stem.removeprefix(FEATURES_PREFIX))


def epochs_in(folder: Path, prefix: str = "") -> dict[int, Path]:
    """Weights by epoch."""
    pattern = re.compile(rf"{prefix}(\d+)(\.zip)?")
    found = (
        ((pattern.fullmatch(path.name), path) for path in sorted(folder.iterdir(), reverse=True))
        if folder.is_dir()
        else ()
    )
    return {int(match[1]): path for match, path in found if match}


def latest_epoch(folder: Path, prefix: str = "") -> int | None:
    """The epoch written last, as the folder notes it, or by the times of the files: of two runs in one folder, the later run's."""
    there = epochs_in(folder, prefix)
    with suppress(OSError, ValueError):
        noted = int((folder / f"{prefix}{LATEST}").read_text(encoding="ascii"))
        if noted in there:
            return noted
    return max(there, key=lambda epoch: (there[epoch].stat().st_mtime, epoch), default=None)


def make_latest(path: Path) -> None:
    """Note that these weights are the latest. Done before they are written: where that does not happen, what was latest still is."""
    prefix = FEATURES_PREFIX if path.name.startswith(FEATURES_PREFIX) else ""
    with atomic_write(path.with_name(f"{prefix}{LATEST}"), REMEDY, "w") as file:
        file.write(f"{epoch_of(path)}\n")


def print_replaced(folder: Path, epochs: Iterable[int], prefix: str = "") -> None:
    """Say which weights of an earlier run will be written anew."""
    replaced = sorted(epochs_in(folder, prefix).keys() & set(epochs))
    if replaced:
        print(
            f"weights of an earlier run in {folder} are replaced: {', '.join(f'{prefix}{epoch}' for epoch in replaced)}",
            flush=True,
        )


def check_complete(path: str | Path, content: dict[str, Any], *parts: str) -> None:
    missing = [
        part
        for part in parts
        if not isinstance(content.get(part), dict) or not all(isinstance(name, str) for name in content[part])
    ]
    if missing:
        raise UserError(f"{path} is incomplete: it holds no {missing[0]}; replace or remove it")


def plain_values(path: str | Path, part: dict[str, Any]) -> dict[str, Any]:
    """A part of a file to compare with ours: numbers, texts and lists, and words for tensors. Raises ValueError where it is nested without end."""
    try:
        return as_stored(part)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: it holds no plain values where it should; replace or remove it") from error


def compare_architectures(path: str | Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    theirs, ours = plain_values(path, theirs), as_stored(ours)
    differing = [name for name in ours if name not in WITHOUT_WEIGHTS and theirs.get(name) != ours[name]]
    if differing:
        sides = "; ".join(
            f"{name} is {theirs.get(name)} in the file, {ours[name]} in the configuration" for name in differing
        )
        raise UserError(f"{path} is of another network: {sides}; change the configuration or train again")


def load_strictly(path: str | Path, network: nn.Module, weights: dict[str, Tensor]) -> None:
    wanted = network.state_dict()
    shapes = {
        name: tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        for name, value in weights.items()
    }
    for name in [*wanted, *(name for name in weights if name not in wanted)]:
        ours, theirs = tuple(wanted[name].shape) if name in wanted else None, shapes.get(name)
        if ours != theirs:
            raise UserError(
                f"{path} is of another network: {name} is {theirs or 'absent'} in the file, {ours or 'absent'} in the configuration; "
                "check model.DDADS, data.image_size and the network's shape"
            )
    copy_into(network, weights, path)
