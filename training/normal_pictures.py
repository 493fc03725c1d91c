"""The normal pictures that a category learns from."""

from config.checks import did_you_mean
from config.keys import Settings
from dataset import ImageFolder, View
from runtime.errors import UserError


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
