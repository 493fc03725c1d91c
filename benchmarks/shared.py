"""What benchmarks share: arguments, the settings of a category, every n-th picture, image scores."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from config.keys import Settings
from config.load import CENTRE, load_settings
from dataset import ImageFolder
from detection.detector import Detector, predict_pictures
from runtime.progress import count_progress
from training.fit import choose_fit

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "config.yaml"
CENTRE_CROP = f"metrics.centre_crop={CENTRE}"  # of all tables here, so that they compare with the paper's
WORKERS = 1  # threads that decode pictures

Scores = NDArray[np.float64]
Labels = NDArray[np.bool_]


def add_every_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take every N-th test picture")


def add_category_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of benchmarks that take one category, its weights and changed settings."""
    parser.add_argument("category", type=Path, metavar="DATA_DIR/CATEGORY")
    parser.add_argument("checkpoint_dir", type=Path, help="folder that holds the category's folder of weights")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    add_every_option(parser)


def add_detector_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of benchmarks that take a calibrated detector and its category's pictures."""
    parser.add_argument("checkpoint_folder", type=Path, help="folder of the category that holds its calibration.json")
    parser.add_argument("data_dir", type=Path, help="folder that holds the category's pictures")
    parser.add_argument("--device", default="auto")
    add_every_option(parser)


def load_category_settings(config: Path, category: Path, checkpoint_dir: Path, changes: Sequence[str]) -> Settings:
    """Return the settings of `config` for a category in the MVTec AD layout, with `changes` (KEY=VALUE).

    The centre of a picture counts, as in the published tables.
    """
    paths = {"data.data_dir": category.parent, "data.category": category.name, "model.checkpoint_dir": checkpoint_dir}
    named = [f"{key}={path}" for key, path in paths.items()]
    return choose_fit(load_settings(config, ["data.name=own", CENTRE_CROP, *named, *changes]))


def every_nth(pictures: ImageFolder, n: int) -> ImageFolder:
    """Return every n-th picture, in the order of names."""
    return pictures.only(pictures.names()[::n])


def score_pictures(detector: Detector, pictures: ImageFolder, label: str) -> tuple[Scores, Labels]:
    """Return the image scores of pictures and whether they are defective, both (N,)."""
    predictions = predict_pictures(detector, pictures, detector.picture_noise, WORKERS)
    results = [(found.score, item.label) for item, found in count_progress(predictions, len(pictures), label)]
    scores, labels = zip(*results, strict=True)
    return np.array(scores), np.array(labels, dtype=bool)
