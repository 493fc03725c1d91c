"""Choose how pictures are fitted to the networks, where data.fit is `auto`: as squares or in their own proportions."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from config.checks import check_combinations
from config.keys import AUTO, LATEST, PROPORTIONS, SQUARE, Settings
from dataset import ImageFolder, View, choose_fit_of, usual_ratio
from images.read import Size
from runtime.errors import MissingFileError, UserError
from storage.weights_file import read_state
from training.checkpoint import TRAINING_STATE, find_weights

SHOWN = 3  # shapes in the printed line


class Fit(NamedTuple):
    """How pictures are fitted: data.fit and data.ratio."""

    fit: str
    ratio: float | None = None  # None for weights of earlier versions: each picture has its own proportions


def choose_fit(settings: Settings, *, trains: bool = False, resume: bool = False) -> Settings:
    """Return the settings with a fit in place of `auto`, and its ratio; print it, unless pictures become squares.

    Weights keep the fit that they were trained with. A run that `trains` anew takes that of its pictures.
    """
    if settings.data.fit != SQUARE:
        epoch = LATEST if trains else settings.model.load_chp
        stored = stored_fit(settings.checkpoint_folder, epoch) if resume or not trains else None
        settings = with_fit(settings, stored or measure_fit(training_pictures(settings).sizes()))
    if settings.data.fit == PROPORTIONS:
        print(describe_fit(settings), flush=True)
    return settings


def measure_fit(sizes: Sequence[Size]) -> Fit:
    return Fit(choose_fit_of(sizes), usual_ratio(sizes))


def with_fit(settings: Settings, fit: Fit) -> Settings:
    """Return the settings with this fit where they name none; squares have no ratio."""
    chosen = fit.fit if settings.data.fit == AUTO else settings.data.fit
    ratio = (settings.data.ratio or fit.ratio) if chosen == PROPORTIONS else None
    fitted = replace(settings, data=replace(settings.data, fit=chosen, ratio=ratio))
    check_combinations(fitted)
    return fitted


def stored_fit(folder: Path, epoch: int | str) -> Fit | None:
    """Return the fit of a folder's weights, or of its unfinished training if `epoch` is `latest`; None without any."""
    unfinished = folder / TRAINING_STATE
    try:
        path = unfinished if epoch == LATEST and unfinished.exists() else find_weights(folder, epoch)
    except MissingFileError:
        return None
    made_with = read_state(path, mapped=True).get("made_with")
    if not isinstance(made_with, dict) or made_with.get("fit") != PROPORTIONS:
        return Fit(SQUARE)
    ratio = made_with.get("ratio")
    if ratio is None or (isinstance(ratio, float) and 0 < ratio < math.inf):
        return Fit(PROPORTIONS, ratio)
    raise UserError(f"{path} is damaged: its data.ratio is {ratio!r}; replace or remove it")


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
