"""The normal pictures that a category learns from, and those that are held out for calibration."""

import hashlib
from collections import Counter

from config.checks import did_you_mean
from config.keys import TRAIN, Settings
from dataset import ImageFolder, View, held_out_count
from runtime.errors import UserError
from training.dependence import dividing_groups


def normal_pictures(settings: Settings) -> ImageFolder:
    """Return the pictures of train/good; see `normal_splits`."""
    return normal_splits(settings)[TRAIN]


def normal_splits(settings: Settings) -> dict[str, ImageFolder]:
    """Return the pictures of train/good and of calibration.folder, by split, without those of calibration.exclude.

    Raise MissingFileError for a split without pictures, UserError for an excluded picture that does not exist.
    """
    view, chosen = View(**settings.view_arguments()), dict.fromkeys((TRAIN, settings.calibration.folder))
    splits = {split: ImageFolder(settings.category_dir, split, view) for split in chosen}
    names = [name for pictures in reversed(splits.values()) for name in pictures.names()]
    known = {name.rpartition("/")[2]: name for name in names} | {name: name for name in names}
    for name in settings.calibration.exclude:
        if name not in known:
            hint = did_you_mean(name, known) or "; write names as --check and detection do"
            raise UserError(f"calibration.exclude names {name!r}, which is not in {settings.category_dir}{hint}")
    excluded = {known[name] for name in settings.calibration.exclude}
    return {split: pictures.without(excluded) for split, pictures in splits.items()}


def split_pictures(settings: Settings) -> tuple[ImageFolder, ImageFolder]:
    """Return (training set, held-out set) of the normal pictures; calibration.groups are never divided."""
    pictures, calibration = normal_pictures(settings), settings.calibration
    groups = dividing_groups(pictures.names(), calibration.groups)
    wanted = held_out_count(len(pictures), calibration.share, calibration.pictures)
    if not groups or not wanted:
        return pictures.split(**settings.split_arguments())
    sizes, chosen = Counter(groups), set[str]()
    seed = settings.model.seed
    for group in sorted(sizes, key=lambda group: hashlib.sha256(f"{seed} {group}".encode()).digest())[:-1]:
        if sum(sizes[one] for one in chosen) < wanted:
            chosen.add(group)
    held_out = pictures.only({name for name, group in zip(pictures.names(), groups, strict=True) if group in chosen})
    return pictures.without(held_out.names()), held_out
