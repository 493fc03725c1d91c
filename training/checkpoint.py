"""Save and load weights: the official release's files, and our own, which describe their network.

<checkpoint_dir>/<category>/ holds
    2000                  UNet after epoch 2000 (2000.zip is the same file)
    feat3                 feature extractor after adaptation epoch 3; feat0 is not adapted
    latest, featlatest    the number of the epoch written last, as copying a folder changes file times
    calibration.json, references    the calibration, and the data that its score parts compare with
    calibration_whole.json          that of whole pictures, where the other is of their centre
    training.state        an unfinished training, for --resume; removed when it is done

An official file is a state dict, whose names may begin with `module.`. Our own has format, network, weights and notes.
"""

import errno
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from config.checks import is_decay
from config.keys import AUTO, LATEST, PATCH, SCHEDULES, STEPS, UNET, Settings
from feature_extractor import EMBEDDED, RESNETS, FeatureExtractor, load_trunk
from runtime.errors import MissingFileError, UserError
from storage import folder_lock
from storage.atomic_file import atomic_write, remove_stale
from storage.fingerprint import as_stored, describe_differences
from storage.pretrained import cached_file
from storage.weights_file import copy_into, read_state
from training.feature_space import FeatureSpace
from training.networks import Denoiser, build_unet
from training.patch_network import MEMBERS

FORMAT = "ddad-1"
FEATURES_PREFIX = "feat"
TRAINING_STATE, TRAINING_FORMAT = "training.state", "ddad-training-1"
PUBLISHED_EXTRACTOR = "wide_resnet101_2"
REMEDY = "change model.checkpoint_dir"
NOWHERE = "nowhere (model.save_model is False)"
UNWRITABLE = f"{REMEDY}, or set model.save_model=False"
PRESETS_OF = {UNET: "as preset=laptop-unet or laptop-pixels does", PATCH: "as preset=laptop does"}
WITHOUT_WEIGHTS = {"dropout"}  # parts of the architecture that do not change what a trained network computes

State = dict[str, Any]  # content of a file of weights: tensors and plain values by name
Notes = Mapping[str, object]  # plain values beside the weights


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of the folder, and remove the half-written files of killed runs."""
    with folder_lock.locked(folder, REMEDY):
        remove_stale(folder)
        yield


def save(path: str | Path, state: State, remedy: str = REMEDY) -> None:
    """Write `state` as a whole or not at all; errors name the `remedy`."""
    with atomic_write(Path(path), remedy) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch's writer hides a full disk behind it
            raise OSError(errno.ENOSPC, "the disk may be full") from error


def save_unet(
    path: str | Path,
    unet: Denoiser,
    *,
    average: nn.Module | None = None,
    space: FeatureSpace | None = None,
    **notes: object,
) -> None:
    """Write the UNet, its architecture, its moving average and space if any, and `notes`; make it the latest."""
    state = {"format": FORMAT, "network": "unet", "architecture": unet.architecture, "weights": unet.state_dict()}
    modules = {"average": average, "space": space}
    beside = {name: module.state_dict() for name, module in modules.items() if module is not None}
    save(path, {**state, **as_stored(notes), **beside})
    make_latest(Path(path))


def save_features(path: str | Path, extractor: FeatureExtractor, **notes: object) -> None:
    """Write the feature extractor and `notes`; make it the latest."""
    state = {"format": FORMAT, "network": "features", "extractor": extractor.name}
    save(path, {**state, "weights": extractor.network.state_dict(), **notes})
    make_latest(Path(path))


def save_training_state(folder: Path, state: State) -> None:
    save(folder / TRAINING_STATE, {"format": TRAINING_FORMAT, **state, "made_with": as_stored(state["made_with"])})


def check_training_state(folder: Path, made_with: Notes) -> None:
    """Raise UserError where the folder's unfinished training was not made with `made_with`."""
    path = folder / TRAINING_STATE
    if not path.exists():
        return
    notes = read_state(path, mapped=True)
    if notes.get("format") != TRAINING_FORMAT:
        raise UserError(f"{path} is not the state of a training of this version; remove it to start again")
    check_complete(path, notes, "made_with")
    if differing := changes_since(path, made_with):
        remedy = "set that again, or remove the file to start again"
        raise UserError(f"{path} belongs to another training: {differing}; {remedy}")


def load_training_state(folder: Path, made_with: Notes) -> State | None:
    """Return the unfinished training, None where there is none. Raise UserError if `made_with` differs."""
    path = folder / TRAINING_STATE
    if not path.exists():
        return None
    check_training_state(folder, made_with)
    state = read_state(path)
    check_complete(path, state, "trainer")
    return state


def steps_done(folder: Path) -> int:
    """Return how many steps the folder's unfinished training has done; 0 where there is none."""
    path = folder / TRAINING_STATE
    trainer = read_state(path, mapped=True).get("trainer") if path.exists() else None
    step = trainer.get("step") if isinstance(trainer, dict) else None
    return step if isinstance(step, int) else 0


def changes_since(path: Path, made_with: Notes) -> str | None:
    """Return how `made_with` differs from a file's settings and pictures; None if the file names none."""
    theirs = read_state(path, mapped=True).get("made_with")
    return describe_differences(plain_values(path, theirs), as_stored(made_with)) if isinstance(theirs, dict) else None


def is_made_with(folder: Path, epoch: int, made_with: Notes, prefix: str = "") -> bool:
    """Return whether this epoch's weights exist and were made with `made_with`; print what differs."""
    path = epochs_in(folder, prefix).get(epoch)
    differing = changes_since(path, made_with) if path else None
    if differing:
        print(f"{path} has other settings or pictures and is made again: {differing}", flush=True)
    return differing == ""


def steps_of_training(folder: Path, made_with: Notes, planned_by: Notes) -> State | None:
    """Return STEPS of the folder's training; None unless `made_with`, apart from them, and `planned_by` agree."""
    unfinished = folder / TRAINING_STATE
    path = unfinished if unfinished.exists() else epochs_in(folder).get(latest_epoch(folder) or 0)
    steps = recorded_steps(path) if path else None
    if path is None or steps is None:
        return None
    notes = read_state(path, mapped=True)
    planned_otherwise = any(notes.get(name, value) != value for name, value in planned_by.items())
    return None if planned_otherwise or changes_since(path, {**made_with, **steps}) else steps


def recorded_steps(path: Path) -> State | None:
    """Return STEPS of the training that wrote a file; None if it names none, or if a clock has not decided them."""
    made_with = read_state(path, mapped=True).get("made_with")
    if not isinstance(made_with, dict):
        return None
    epochs, schedule, decay = values = [made_with.get(name) for name in STEPS]
    valid = type(epochs) is int and epochs > 0 and schedule in SCHEDULES and (decay is None or is_decay(decay))
    return dict(zip(STEPS, values, strict=True)) if valid else None


def load_unet(path: str | Path, unet: Denoiser, averaged: bool = True) -> None:
    """Load an official file or our own; from our own the moving average, if it has one and `averaged` is true.

    Raise UserError, which names both sides, where the file belongs to another network.
    """
    weights = content = read_state(path)
    if content.get("format") == FORMAT:
        if content.get("network") != "unet":
            raise UserError(f"{path} holds feature weights, but its name is a UNet's; rename it to {FEATURES_PREFIX}…")
        check_complete(path, content, "architecture", "weights")
        theirs, ours = plain_values(path, content["architecture"]), as_stored(unet.architecture)
        if (stored := network_kind(theirs)) != (asked := network_kind(ours)):
            remedy = f"set model.network={stored} and the rest of its shape, {PRESETS_OF[stored]}, or train again"
            raise UserError(f"{path} belongs to another network: it is a {stored}, model.network is {asked}; {remedy}")
        differing = [name for name in ours if name not in WITHOUT_WEIGHTS and theirs.get(name) != ours[name]]
        refuse_differing(path, differing, theirs, ours, "change the configuration or train again")
        part = "average" if averaged and "average" in content else "weights"
        check_complete(path, content, part)
        weights = content[part]
    elif unet.architecture["predicts"]:
        raise UserError(f"{path} is an official file, whose network predicts the noise; set model.predicts=null")
    weights = {name.removeprefix("module."): value for name, value in weights.items()}
    refuse_differing(
        path, *differing_shapes(weights, unet), "check model.DDADS, data.image_size and the network's shape"
    )
    copy_into(unet, weights, path)


def network_kind(architecture: Mapping[str, object]) -> str:
    """Return the value of model.network for a network of this architecture."""
    return UNET if "channel_multipliers" in architecture else PATCH


def load_features(path: str | Path, extractor: FeatureExtractor) -> None:
    """Load an official `feat{n}` (the state dict of a whole ResNet; layer4 and fc are ignored) or our own.

    Raise UserError, which names both sides, where the file belongs to another network.
    """
    weights = content = read_state(path)
    if content.get("format") == FORMAT:
        if content.get("network") != "features":
            raise UserError(f"{path} holds a UNet, not feature weights; rename it to its epoch, or adapt again")
        theirs, ours = content.get("extractor"), extractor.name
        if theirs != ours:
            remedy = f"set model.feature_extractor={theirs}, or adapt again"
            raise UserError(f"{path} holds features of {theirs}, the configuration asks for {ours}; {remedy}")
        check_complete(path, content, "weights")
        weights = content["weights"]
    load_trunk(extractor.network, weights, extractor.name, path)


def restore_unet(path: Path, settings: Settings) -> Denoiser:
    unet = build_unet(settings)
    load_unet(path, unet, settings.model.averaged)
    return unet


def restore_space(path: Path) -> FeatureSpace:
    """Return the space of features in which a file's UNet works."""
    content = read_state(path)
    check_complete(path, content, "space")
    state = content["space"]
    shape = shapes_of(state).get("directions")
    channels, width = shape if isinstance(shape, tuple) and len(shape) == 2 else (0, 0)
    space = FeatureSpace(width, channels)
    refuse_differing(path, *differing_shapes(state, space), "replace or remove it")
    copy_into(space, state, path)
    return space


def held_out_names(path: Path) -> list[str]:
    """Return the names of the pictures held out of this file's training; official files have none."""
    names = read_state(path, mapped=True).get("held_out", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path} is damaged: its held_out is not a list of names; replace or remove it")
    return names


def unseen_by_member(path: Path) -> dict[str, int]:
    """Return the member of a file's network that has not learnt a picture, by its name; none where all have."""
    lists = read_state(path, mapped=True).get("unseen", [])
    is_whole = (
        isinstance(lists, list) and len(lists) in (0, MEMBERS) and all(isinstance(names, list) for names in lists)
    )
    if not is_whole or not all(isinstance(name, str) for names in lists for name in names):
        raise UserError(f"{path} is damaged: its unseen is not a list of names for each member; replace or remove it")
    return {name: member for member, names in enumerate(lists) for name in names}


def extractor_name(path: Path) -> str | None:
    """Return the name of the network whose features a file holds; None for an official file."""
    name = read_state(path, mapped=True).get("extractor")
    return name if isinstance(name, str) else None


def restore_features(
    folder: Path, epoch: int | str, name: str, weights: Path | None = None
) -> tuple[FeatureExtractor, Path | str]:
    """Return the feature extractor of adaptation epoch `epoch` ('latest': written last) and its origin.

    Epochs above 0 come from feat{epoch}. Epoch 0 is the pretrained network: from the file `weights`, else from feat0 if
    that holds the same network, else with ImageNet weights. The name 'auto' is the network of that feat{epoch}, else
    wide_resnet101_2 if its weights are given or on this machine, else efficientnet_lite0 from its package.
    """
    if epoch == LATEST:
        epoch = latest_epoch(folder, FEATURES_PREFIX) or 0
    if epoch != 0 or (weights is None and 0 in epochs_in(folder, FEATURES_PREFIX)):
        path = find_weights(folder, epoch, FEATURES_PREFIX)
        stored = extractor_name(path) or (name if name in RESNETS else PUBLISHED_EXTRACTOR)
        wanted = stored if name == AUTO else name
        if epoch != 0 or stored == wanted:
            extractor = FeatureExtractor(wanted, "random")
            load_features(path, extractor)
            return extractor, path
    if name == AUTO and weights is None and cached_file(RESNETS[PUBLISHED_EXTRACTOR].url) is None:
        return FeatureExtractor(EMBEDDED), f"its package (this machine has no weights of {PUBLISHED_EXTRACTOR})"
    extractor = FeatureExtractor(PUBLISHED_EXTRACTOR if name == AUTO else name, weights)
    return extractor, str(weights or "its ImageNet weights")


def find_weights(folder: Path, epoch: int | str, prefix: str = "") -> Path:
    """Return the file of `epoch` ('latest': written last), with or without .zip, or raise MissingFileError."""
    available = epochs_in(folder, prefix)
    wanted = latest_epoch(folder, prefix) if epoch == LATEST else epoch
    if wanted in available:
        return available[wanted]
    stage, key = ("domain_adaptation", "DA_chp") if prefix else ("train", "load_chp")
    names = ", ".join(f"{prefix}{number}" for number in sorted(available)) or "none"
    remedy = f"run --{stage} True first, or set model.{key} to one it has"
    raise MissingFileError(f"no weights {prefix}{epoch} in {folder}; it has {names}; {remedy}")


def epoch_of(path: Path) -> int:
    """Return the epoch of a file of weights: 2000, 2000.zip → 2000; feat3 → 3."""
    return int(path.stem.removeprefix(FEATURES_PREFIX))


def epochs_in(folder: Path, prefix: str = "") -> dict[int, Path]:
    """Return the files of weights in a folder by epoch; if both 2000 and 2000.zip exist, the former."""
    pattern = re.compile(rf"{prefix}(\d+)(\.zip)?")
    paths = sorted(folder.iterdir(), reverse=True) if folder.is_dir() else []
    return {int(match[1]): path for path in paths if (match := pattern.fullmatch(path.name))}


def latest_epoch(folder: Path, prefix: str = "") -> int | None:
    """Return the epoch noted as written last, or else that of the newest file; None without files."""
    available = epochs_in(folder, prefix)
    with suppress(OSError, ValueError):
        noted = int((folder / f"{prefix}{LATEST}").read_text(encoding="ascii"))
        if noted in available:
            return noted
    return max(available, key=lambda epoch: (available[epoch].stat().st_mtime, epoch), default=None)


def make_latest(path: Path) -> None:
    """Note that these weights, which are written already, are the latest."""
    prefix = FEATURES_PREFIX if path.name.startswith(FEATURES_PREFIX) else ""
    with atomic_write(path.with_name(f"{prefix}{LATEST}"), REMEDY, "w") as file:
        file.write(f"{epoch_of(path)}\n")


def print_replaced(folder: Path, epochs: Iterable[int], prefix: str = "") -> None:
    replaced = sorted(epochs_in(folder, prefix).keys() & set(epochs))
    if replaced:
        names = ", ".join(f"{prefix}{epoch}" for epoch in replaced)
        print(f"weights of an earlier run in {folder} are replaced: {names}", flush=True)


def check_complete(path: str | Path, content: Notes, *parts: str) -> None:
    """Raise UserError where a part is missing or is not a dict with names as keys."""
    for name in parts:
        part = content.get(name)
        if not isinstance(part, dict) or not all(isinstance(key, str) for key in part):
            raise UserError(f"{path} is incomplete: it has no {name}; replace or remove it")


def plain_values(path: str | Path, part: Notes) -> dict[str, object]:
    """Return a part of a file, to compare with ours. Raise UserError where its values are not plain."""
    try:
        return as_stored(part)
    except (TypeError, ValueError, RecursionError) as error:  # RecursionError: it contains itself
        raise UserError(f"{path} is damaged: it has no plain values inside; replace or remove it") from error


def shapes_of(state: Mapping[str, object]) -> dict[str, object]:
    """Return the shape of each tensor, and the type's name of other values."""
    sizes = {name: tuple(value.shape) for name, value in state.items() if isinstance(value, Tensor)}
    return {name: sizes.get(name, type(value).__name__) for name, value in state.items()}


def differing_shapes(state: Mapping[str, object], network: nn.Module) -> tuple[list[str], Notes, Notes]:
    """Return the name of a tensor whose shape differs, if any, and the shapes of `state` and of the network."""
    theirs, ours = shapes_of(state), shapes_of(network.state_dict())
    return [name for name in ours | theirs if ours.get(name) != theirs.get(name)][:1], theirs, ours


def refuse_differing(path: str | Path, names: list[str], theirs: Notes, ours: Notes, remedy: str) -> None:
    """Raise UserError, which names both sides, if `names`, those of differing values, is not empty."""
    stored, own = ({name: side.get(name, "absent") for name in names} for side in (theirs, ours))
    sides = [f"{name} is {stored[name]} in the file, {own[name]} in the configuration" for name in names]
    if sides:
        raise UserError(f"{path} belongs to another network: {'; '.join(sides)}; {remedy}")
