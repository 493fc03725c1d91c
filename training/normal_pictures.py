"""The normal pictures that a category learns from, and those that are held out for calibration."""

import hashlib
from collections import Counter

from config.checks import did_you_mean
from config.keys import Settings
from dataset import ImageFolder, View, held_out_count
from runtime.errors import UserError
from training.dependence import named_groups


def normal_pictures(settings: Settings) -> ImageFolder:
    """Return the pictures of train/good without those of calibration.exclude.

    Raise MissingFileError without pictures, UserError for an excluded picture that does not exist.
    """
    pictures = ImageFolder(settings.category_dir, "train", View(**settings.view_arguments()))
    names = pictures.names()
    known = {name.rpartition("/")[2]: name for name in names} | {name: name for name in names}
    for name in settings.calibration.exclude:
        if name not in known:
            hint = did_you_mean(name, known) or "; write names as --check and detection do"
            raise UserError(f"calibration.exclude names {name!r}, which is not in {settings.category_dir}{hint}")
    return pictures.without({known[name] for name in settings.calibration.exclude})


def split_pictures(settings: Settings) -> tuple[ImageFolder, ImageFolder]:
    """Return (training set, held-out set) of the normal pictures; calibration.groups are never divided."""
    pictures, calibration = normal_pictures(settings), settings.calibration
    groups = named_groups(pictures.names(), calibration.groups)
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
