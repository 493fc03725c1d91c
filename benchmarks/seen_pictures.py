"""Measure how much smaller the pixel distance is on pictures that the UNet has seen than on held-out ones.

    python -m benchmarks.seen_pictures DATA_DIR/CATEGORY CHECKPOINT_DIR [section.key=value …]

The weights in CHECKPOINT_DIR/CATEGORY were trained with calibration.method=split, so that they name the held-out
pictures. The table has the ratio of held-out to seen pictures for the mean of D_p and for its smoothed maximum, and the
p-value of a rank test of the maxima (Mann and Whitney 1947).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu
from torch import Tensor

from anomaly_map import smooth
from benchmarks.shared import CONFIG, add_category_arguments, load_category_settings
from dataset import ImageFolder, Item
from detection.calibrate import unseen_pictures
from detection.detector import Detector, load_detector, map_batches, stack_pictures
from runtime.device import choose_device, keep_memory
from runtime.errors import UserError
from training.normal_pictures import normal_pictures

PICTURES = 80  # of each kind, at most


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.seen_pictures",
        description="Compares the pixel distance of held-out pictures with that of pictures that the UNet has seen.",
    )
    add_category_arguments(parser)
    parser.add_argument("--config", type=Path, default=CONFIG)
    options = parser.parse_intermixed_args(arguments)
    keep_memory()
    settings = load_category_settings(options.config, options.category, options.checkpoint_dir, options.settings)
    detector, settings, _ = load_detector(settings, settings.checkpoint_folder, choose_device(settings.model.device))
    pictures, seed = normal_pictures(settings), settings.model.seed
    unseen = unseen_pictures(settings, pictures)
    if not len(unseen):
        raise UserError(f"training has seen all of {settings.category_dir}; train with calibration.method=split")
    held_out = measure_distances(detector, unseen.sample(PICTURES, seed))
    seen = measure_distances(detector, pictures.without(unseen.names()).sample(PICTURES, seed))
    mean, highest = held_out.mean(axis=0) / seen.mean(axis=0)
    p_value = mannwhitneyu(held_out[:, 1], seen[:, 1]).pvalue
    print("| category | epochs | held out, seen | mean of D_p | maximum | p |\n|---|---|---|---|---|---|")
    counts = f"{len(held_out)}, {len(seen)}"
    epochs = settings.model.load_chp
    print(f"| {settings.data.category} | {epochs} | {counts} | {mean:.3f} | {highest:.3f} | {p_value:.2g} |")


def measure_distances(detector: Detector, pictures: ImageFolder) -> NDArray[np.float64]:
    """Return the mean and the smoothed maximum of D_p of each picture, (N, 2)."""

    def measure(items: Sequence[Item]) -> list[Tensor]:
        batch = stack_pictures(items)
        return list(detector.compare_batch(batch, detector.picture_noise).distances["pixel"].cpu())

    maps = [smooth(values[None], detector.blur_sigma) for _, values in map_batches(detector, pictures, measure, 1)]
    return np.array([[values.mean(), values.max()] for values in maps], np.float64)


if __name__ == "__main__":
    main()
