"""Stage 3 on the pictures of MVTec AD 2 without labels: maps and masks as its evaluation server takes them.

<folder>/anomaly_images/<category>/<split>/<picture>.tiff               anomaly maps, float16
<folder>/anomaly_images_thresholded/<category>/<split>/<picture>.png    0, and 255 in defects
"""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image

from config.keys import PER_IMAGE, Settings
from dataset import PRIVATE_SPLITS, ImageFolder, View, check_category
from detection.calibrate import calibrate
from detection.detector import load_detector, predict_pictures
from runtime import distributed
from runtime.device import choose_device
from runtime.errors import MissingFileError, UserError
from runtime.progress import announce, count_progress
from storage import folder_lock
from storage.atomic_file import atomic_write, ensure_writable

MAPS, MASKS = "anomaly_images", "anomaly_images_thresholded"
REMEDY = "name another folder with --submission"
LARGEST = float(np.finfo(np.float16).max)


def check_submission(settings: Settings, folder: Path) -> dict[str, ImageFolder]:
    """Return the pictures without labels by split. Raise UserError for what would stop the stage."""
    if settings.score.protocol != PER_IMAGE:
        reason = "score.protocol is published, which has no threshold"
        raise UserError(f"{reason}; set score.protocol=per_image for --submission")
    view, category_dir = View(**settings.view_arguments()), settings.category_dir
    check_category(category_dir)
    missing = [split for split in PRIVATE_SPLITS if not (category_dir / split).is_dir()]
    if missing:
        remedy = "--submission is for MVTec AD 2, as --prepare_mvtec2 writes it"
        raise MissingFileError(f"no folder {' and no '.join(missing)} in {category_dir}; {remedy}")
    if distributed.group().is_main:
        ensure_writable(folder, REMEDY)
    return {split: ImageFolder(category_dir, split, view) for split in PRIVATE_SPLITS}


def write_submission(settings: Settings, folder: Path) -> None:
    """Write the maps and masks of a category; files of the same names are replaced, others stay."""
    splits, device = check_submission(settings, folder), choose_device(settings.model.device)
    torch.manual_seed(settings.model.seed)
    detector, settings, origins = load_detector(settings, settings.checkpoint_folder, device)
    category, group, workers = settings.data.category, distributed.group(), settings.model.num_workers
    counts = ", ".join(f"{split} ({len(pictures)} pictures)" for split, pictures in splits.items())
    places = {"reads": f"{settings.category_dir}: {counts}", **origins, "writes": folder}
    announce(f"Writing the submission of {category}", device, settings.as_dict(), places)
    detector = calibrate(detector, settings)
    with folder_lock.locked(folder, REMEDY) if group.is_main else nullcontext():
        for split, pictures in splits.items():
            predictions = predict_pictures(detector, pictures, detector.picture_noise, workers, group)
            for item, prediction in count_progress(predictions, len(pictures), split):
                if group.is_main:
                    found, path = detector.decide(prediction, item.size), Path(category, item.path)
                    write_map(folder / MAPS / path.with_suffix(".tiff"), found.map)
                    write_mask(folder / MASKS / path.with_suffix(".png"), found.mask)
    print(f"submission of {category} in {folder}: {MAPS}, {MASKS}", flush=True)


def write_map(path: Path, values: NDArray[np.float32]) -> None:
    with atomic_write(path, REMEDY) as file:
        tifffile.imwrite(file, values.clip(-LARGEST, LARGEST).astype(np.float16))


def write_mask(path: Path, mask: NDArray[np.bool_]) -> None:
    with atomic_write(path, REMEDY) as file:
        Image.fromarray(mask.astype(np.uint8) * 255).save(file, format="PNG")
