"""Choose how pictures are fitted to the networks, where data.fit is `auto`: as squares or in their own proportions."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from config.checks import check_combinations
from config.keys import AUTO, LATEST, PROPORTIONS, SQUARE, Settings
from dataset import ImageFolder, View, choose_fit_of
from images.read import Size
from runtime.errors import MissingFileError
from storage.weights_file import read_state
from training.checkpoint import TRAINING_STATE, find_weights

SHOWN = 3  # shapes in the printed line


def choose_fit(settings: Settings, *, trains: bool = False, resume: bool = False) -> Settings:
    """Return the settings with a fit in place of `auto`; print it, unless pictures become squares.

    Weights keep the fit that they were trained with. A run that `trains` anew takes that of its pictures.
    """
    if settings.data.fit == AUTO:
        epoch = LATEST if trains else settings.model.load_chp
        stored = stored_fit(settings.checkpoint_folder, epoch) if resume or not trains else None
        settings = with_fit(settings, stored or choose_fit_of(training_pictures(settings).sizes()))
    if settings.data.fit == PROPORTIONS:
        print(describe_fit(settings), flush=True)
    return settings


def with_fit(settings: Settings, fit: str) -> Settings:
    fitted = replace(settings, data=replace(settings.data, fit=fit))
    check_combinations(fitted)
    return fitted


def stored_fit(folder: Path, epoch: int | str) -> str | None:
    """Return the fit of a folder's weights, or of its unfinished training if `epoch` is `latest`; None without any."""
    unfinished = folder / TRAINING_STATE
    try:
        path = unfinished if epoch == LATEST and unfinished.exists() else find_weights(folder, epoch)
    except MissingFileError:
        return None
    made_with = read_state(path, mapped=True).get("made_with")
    return PROPORTIONS if isinstance(made_with, dict) and made_with.get("fit") == PROPORTIONS else SQUARE


def describe_fit(settings: Settings) -> str:
    """Return a line with the most frequent forms of train/good, such as '4096×256: 11 tiles of 512×256'."""
    pictures, examples, forms = training_pictures(settings), dict[str, Size](), Counter[str]()
    for size in pictures.sizes():
        form = pictures.view.describe(*size)
        examples.setdefault(form, size)
        forms[form] += 1
    lines = [f"{'×'.join(map(str, examples[form]))}: {form} ({count})" for form, count in forms.most_common(SHOWN)]
    more = f"; and {len(forms) - SHOWN} other shapes" if len(forms) > SHOWN else ""
    return f"data.fit is {PROPORTIONS}, pictures of train/good are {'; '.join(lines)}{more}"


def training_pictures(settings: Settings) -> ImageFolder:
    return ImageFolder(settings.category_dir, "train", View(**settings.view_arguments()))
