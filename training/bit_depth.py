"""Settle how many bits the pictures of a category use: before training those of train/good, later the weights'."""

from dataclasses import replace
from pathlib import Path

from config.keys import Settings
from dataset import ImageFolder, View, measure_bits
from images.bit_depth import DEEPEST, DEPTHS, white_of
from runtime.errors import MissingFileError, UserError
from storage.weights_file import read_state
from training import checkpoint


def settle_bit_depth(settings: Settings, measured: bool) -> Settings:
    """Return the settings with data.bit_depth, and print it; None where files of 16 bits use all of them.

    It is `measured` in train/good before training. Otherwise it is that of the weights, which earlier versions had
    not; a value in the settings must then be the same.
    """
    depth = depth_for_training(settings) if measured else depth_of_weights(settings)
    return replace(settings, data=replace(settings.data, bit_depth=depth))


def depth_for_training(settings: Settings) -> int | None:
    if settings.data.bit_depth is not None:
        return settings.data.bit_depth
    pictures = ImageFolder(settings.category_dir, "train", View(settings.data.image_size))
    highest, bits = measure_bits([sample.picture for sample in pictures.samples], settings.model.num_workers)
    if bits == DEEPEST:
        return None
    found = f"the highest value of the pictures of 16 bits in {settings.category_dir / 'train'} is {highest}"
    print(f"{found}: white is {white_of(bits)} ({bits} bits) for all of {settings.data.category}", flush=True)
    return bits


def depth_of_weights(settings: Settings) -> int | None:
    given = settings.data.bit_depth
    try:
        path = checkpoint.find_weights(settings.checkpoint_folder, settings.model.load_chp)
    except MissingFileError:  # the stage says so, after what comes before
        return given
    trained = stored_depth(path)
    if given is not None and given != (trained or DEEPEST):
        remedy = "set data.bit_depth=null, or train again"
        raise UserError(f"data.bit_depth is {given}, but {path} was trained with {trained or DEEPEST}; {remedy}")
    if trained and trained < DEEPEST:
        print(f"white of 16-bit files is {white_of(trained)} ({trained} bits), as in training {path}", flush=True)
    return given or trained


def stored_depth(path: Path) -> int | None:
    """Return data.bit_depth of the settings in a file of weights; None for official files and earlier versions."""
    value: object = read_state(path, mapped=True)
    for part in ("settings", "data", "bit_depth"):
        value = value.get(part) if isinstance(value, dict) else None
    if value is None or (isinstance(value, int) and DEPTHS[0] <= value <= DEEPEST):
        return value
    raise UserError(f"{path} is damaged: its data.bit_depth is {value!r}; replace or remove it")
