"""Compare scores of the published protocol with scores of single pictures and several draws of noise.

    python -m benchmarks.score_protocols DATA_DIR/CATEGORY CHECKPOINT_DIR [--every 1] [KEY=VALUE …]

Scores of score.protocol=published depend on the other pictures of a batch, those of per_image do not. The networks are
those that `main.py --config demo.yaml --train` leaves. The row holds image AUROC with its 95 % interval / pixel AUROC /
PRO of the published protocol in the order of files, its image AUROC in shuffled orders, the metrics of the means of 1,
2, 4 and 8 draws, each with its own calibration, and false alarms at three calibrated thresholds.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import metrics
from anomaly_map import batch_ratio
from benchmarks.shared import ROOT, Labels, add_category_arguments, every_nth, load_category_settings
from config.keys import Settings
from config.load import METRICS_SIZE
from dataset import ImageFolder, Item
from detection.calibrate import build_calibration, unseen_pictures
from detection.detector import (
    Detector,
    NoiseSource,
    Parts,
    Prediction,
    load_detector,
    map_batches,
    stack_pictures,
    stream_noise,
)
from detection.evaluate import scored_map, scored_mask
from detection.threshold import Calibration
from reports.metric_summary import PRO_LIMITS
from runtime.device import choose_device, keep_memory
from runtime.errors import UserError
from runtime.progress import count_progress

DRAWS = (1, 2, 4, 8)
DEFAULT_DRAWS = 4  # of the columns with false alarms
ORDERS = 5  # shuffled orders of the test pictures
BATCH = 16  # published
RATES = (0.01, 0.05, 0.1)  # false positive rates


class GroundTruth(NamedTuple):
    """Whether test pictures are defective (N,), and their masks as they are measured (N, S, S)."""

    labels: Labels
    masks: Labels


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.score_protocols",
        description="Compares scores of the published protocol with scores of single pictures and several draws.",
    )
    add_category_arguments(parser)
    parser.add_argument("--config", type=Path, default=ROOT / "demo.yaml")
    options = parser.parse_intermixed_args(arguments)
    keep_memory()
    changes = ["score.draws=1", "data.fit=square", *options.settings]  # as published
    settings = load_category_settings(options.config, options.category, options.checkpoint_dir, changes)
    detector, settings, _ = load_detector(settings, settings.checkpoint_folder, choose_device(settings.model.device))
    columns = ["set, seed", "published", "published, shuffled", *(f"K = {draws}" for draws in DRAWS)]
    columns += [f"false alarms, {rate:.0%} wanted" for rate in RATES]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    cells = " | ".join(table_cells(detector, settings, options.every))
    print(f"| {settings.data.category}, {settings.model.seed} | {cells} |", flush=True)


def table_cells(detector: Detector, settings: Settings, every: int) -> Iterator[str]:
    """Yield the cells of the row, but for its name."""
    normal = held_out_normals(detector, settings)
    test = ImageFolder(settings.category_dir, "test", detector.view, mask_size=METRICS_SIZE)
    test = every_nth(test, every)
    items = [item for batch in test.batches(BATCH, settings.model.num_workers) for item in batch]
    masks = np.stack([scored_mask(item, (METRICS_SIZE,) * 2, settings) for item in items])
    truth = GroundTruth(np.array([item.label for item in items], dtype=bool), masks)

    yield from published_cells(replace(detector, calibration=None, batch_size=BATCH), test, truth, settings)
    normal_parts, test_parts = (
        compare_pictures(detector, folder, detector.picture_noise, max(DRAWS), settings) for folder in (normal, test)
    )
    alarms: list[str] = []
    for draws in DRAWS:
        means = mean_of_draws(normal_parts, draws)
        calibration = build_calibration(detector, means, {})
        predictions = [detector.assemble(parts, calibration.balance, {}) for parts in mean_of_draws(test_parts, draws)]
        yield metrics_cell(predictions, truth, settings)
        if draws == DEFAULT_DRAWS:
            alarms += alarm_cells(calibration, image_scores(predictions)[~truth.labels])
    yield from alarms


def held_out_normals(detector: Detector, settings: Settings) -> ImageFolder:
    """Return the normal pictures of the calibration. Raise UserError where training has seen all of them."""
    normals = unseen_pictures(settings, ImageFolder(settings.category_dir, "train", detector.view))
    if not len(normals):
        raise UserError(
            f"training has seen all normal pictures of {settings.data.category}; train with calibration.share above 0"
        )
    return normals.sample(settings.calibration.pictures, settings.model.seed)


def published_cells(detector: Detector, test: ImageFolder, truth: GroundTruth, settings: Settings) -> Iterator[str]:
    """Yield the metrics in the order of files, and median and range of the image AUROC in shuffled orders."""
    noise = stream_noise(settings.model.seed, detector.device)
    parts = mean_of_draws(compare_pictures(detector, test, noise, 1, settings), 1)
    yield metrics_cell(predict_in_order(detector, parts, range(len(parts))), truth, settings)
    orders = [np.random.default_rng(seed).permutation(len(parts)).tolist() for seed in range(ORDERS)]
    scores = [image_scores(predict_in_order(detector, parts, order)) for order in orders]
    aurocs = [100 * metrics.image_auroc(of_order, truth.labels) for of_order in scores]
    yield f"{statistics.median(aurocs):.1f} ({min(aurocs):.1f}–{max(aurocs):.1f})"


def predict_in_order(detector: Detector, parts: Sequence[Parts], order: Sequence[int]) -> list[Prediction]:
    """Return the prediction of each picture, where batches are cut from pictures in this order."""
    predictions: dict[int, Prediction] = {}
    for first in range(0, len(order), BATCH):
        batch = order[first : first + BATCH]
        d_feature, d_pixel = (torch.cat([parts[index][part] for index in batch]) for part in ("feature", "pixel"))
        ratio = batch_ratio(d_feature, d_pixel).item()
        predictions |= {index: detector.assemble(parts[index], ratio, {}) for index in batch}
    return [predictions[index] for index in range(len(order))]


def alarm_cells(calibration: Calibration, normal_scores: np.ndarray) -> Iterator[str]:
    """Yield the false alarms at each threshold, and in brackets the rate that it promises and its upper bound, in %."""
    for rate in RATES:
        promise = calibration.promise(rate)
        alarms = np.count_nonzero(normal_scores > calibration.threshold(rate))
        yield f"{alarms} of {len(normal_scores)} ({100 * promise.rate:.1f}, {100 * promise.at_most:.1f})"


def compare_pictures(
    detector: Detector, folder: ImageFolder, noise: NoiseSource, draws: int, settings: Settings
) -> list[list[Parts]]:
    """Return D_f and D_p (1, 1, h, w) of each picture, for each draw of noise."""

    def compare(items: Sequence[Item]) -> list[list[Parts]]:
        batch = stack_pictures(items)
        streams: dict[bytes, Callable[[], Tensor]] = {}

        def continued_noise(pictures: Tensor, shape: torch.Size) -> Callable[[], Tensor]:
            key = pictures.cpu().numpy().tobytes()
            streams[key] = streams.get(key) or noise(pictures, shape)
            return streams[key]

        distances = [detector.compare_batch(batch, continued_noise).distances for _ in range(draws)]
        return [[slice_parts(maps, index) for maps in distances] for index in range(len(batch))]

    batches = map_batches(detector, folder, compare, settings.model.num_workers)
    return [parts for _, parts in count_progress(batches, len(folder), "comparing")]


def slice_parts(maps: Mapping[str, Tensor], index: int) -> Parts:
    """Return the maps (1, 1, h, w) of one picture, on the CPU."""
    return {part: values[index : index + 1].cpu() for part, values in maps.items()}


def mean_of_draws(pictures: Sequence[Sequence[Parts]], draws: int) -> list[Parts]:
    """Return the mean of the first `draws` comparisons of each picture."""
    return [
        {part: torch.stack([maps[part] for maps in comparisons[:draws]]).mean(dim=0) for part in comparisons[0]}
        for comparisons in pictures
    ]


def image_scores(predictions: Sequence[Prediction]) -> np.ndarray:
    return np.array([prediction.score for prediction in predictions])


def metrics_cell(predictions: Sequence[Prediction], truth: GroundTruth, settings: Settings) -> str:
    """Return image AUROC with its 95 % interval, pixel AUROC and PRO, in percent."""
    scores = image_scores(predictions)
    low, high = metrics.bootstrap_intervals(scores, truth.labels, seed=settings.model.seed)["auroc"]
    maps = np.stack([scored_map(found, (METRICS_SIZE,) * 2, settings) for found in predictions])
    ranking = metrics.rank_anomalies(maps, truth.masks)
    values = (metrics.image_auroc(scores, truth.labels), ranking.auroc(), ranking.pro(limit=PRO_LIMITS[0]))
    image, pixel, pro = (f"{100 * value:.1f}" for value in values)
    return f"{image} [{100 * low:.1f}, {100 * high:.1f}] / {pixel} / {pro}"


if __name__ == "__main__":
    main()
