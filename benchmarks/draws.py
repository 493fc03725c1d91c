"""python -m benchmarks.draws DATA_DIR/CATEGORY CHECKPOINT_DIR [--every 1] [KEY=VALUE …]: scores of a picture alone against scores by batch
maxima, and what K draws of noise are worth.

Of the networks that main.py --config demo.yaml --train has left: the published way with the test pictures in their order, its image AUROC over
shuffled orders, maps of 1, 2, 4 and 8 draws, each with its own calibration, and false alarms at calibrated thresholds.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import metrics
from anomaly_map import batch_ratio
from config.keys import Settings
from config.load import load_settings
from dataset import ImageFolder
from detection.calibrate import Parts, assemble, build_calibration, unseen_pictures
from detection.detector import Detector, Draws, Prediction, in_batches, load_detector, stream_noise
from detection.evaluate import scored_map, scored_mask
from reports.metric_summary import PRO_LIMITS
from runtime.device import choose_device, keep_memory
from runtime.progress import count_progress

ROOT = Path(__file__).parents[1]
DRAWS = (1, 2, 4, 8)
DEFAULT_DRAWS = 4  # those of the table of false alarms
ORDERS = 5
BATCH = 16  # published
RATES = (0.01, 0.05, 0.1)


class Pictures(NamedTuple):
    """What the test pictures are: whether defective (N,), and their masks as they are measured (N, S, S)."""

    labels: NDArray[np.bool_]
    masks: NDArray[np.bool_]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.draws", description="Batch maxima against scores per picture, and K draws of noise."
    )
    parser.add_argument("category", type=Path, metavar="DATA_DIR/CATEGORY")
    parser.add_argument("checkpoint_dir", type=Path, help="holds a folder of the category's weights")
    parser.add_argument("--config", type=Path, default=ROOT / "demo.yaml")
    parser.add_argument("--every", type=int, default=1, help="take every so-many-th test picture")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_intermixed_args(arguments)
    places = [
        f"data.data_dir={options.category.parent}",
        f"data.category={options.category.name}",
        f"model.checkpoint_dir={options.checkpoint_dir}",
    ]
    keep_memory()
    settings = load_settings(options.config, ["data.name=own", *places, "score.draws=1", *options.settings])
    detector, settings, _ = load_detector(settings, settings.checkpoint_folder, choose_device(settings.model.device))
    columns = ["set, seed", "published", "published, shuffled", *(f"K = {draws}" for draws in DRAWS)]
    columns += [f"false alarms, {rate:.0%} wanted" for rate in RATES]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    cells = " | ".join(row(detector, settings, options.every))
    print(f"| {settings.data.category}, {settings.model.seed} | {cells} |", flush=True)


def row(detector: Detector, settings: Settings, every: int) -> Iterator[str]:
    whole = ImageFolder(settings.category_dir, "train", detector.view)
    normal = whole.only(unseen_pictures(settings)).sample(settings.calibration.pictures, settings.model.seed)
    if not len(normal):
        raise ValueError(
            f"training has seen all normal pictures of {settings.data.category}; train with calibration.share above 0"
        )
    test = ImageFolder(settings.category_dir, "test", detector.view, mask_size=settings.metrics.size)
    test = test.only(test.names()[::every])
    items = [item for batch in test.batches(BATCH, settings.model.num_workers) for item in batch]
    masks = np.stack([scored_mask(item, settings) for item in items])
    pictures = Pictures(np.array([item.label for item in items]), masks)

    yield from published_cells(replace(detector, calibration=None, batch_size=BATCH), test, pictures, settings)
    of_normal, of_test = (
        drawn(detector, folder, detector.picture_noise, max(DRAWS), settings) for folder in (normal, test)
    )
    alarms: list[str] = []
    for draws in DRAWS:
        known = build_calibration(detector, averaged(of_normal, draws), {}, held_out=True, made_with={}, settings={})
        found = [assemble(detector, one, known.balance, {}) for one in averaged(of_test, draws)]
        yield cell(found, pictures, settings)
        if draws == DEFAULT_DRAWS:
            good = np.array([finding.score for finding in found])[~pictures.labels]
            for rate in RATES:
                promise = known.promise(rate)
                above = np.count_nonzero(good > known.threshold(rate))
                alarms.append(f"{above} of {len(good)} ({100 * promise.rate:.1f}, {100 * promise.at_most:.1f})")
    yield from alarms


def published_cells(detector: Detector, test: ImageFolder, pictures: Pictures, settings: Settings) -> Iterator[str]:
    """In the order of the files; and the median and range of the image AUROC of other orders."""
    parts = averaged(drawn(detector, test, stream_noise(settings.model.seed, detector.device), 1, settings), 1)

    def found(order: Sequence[int]) -> list[Prediction]:
        by_place: dict[int, Prediction] = {}
        for first in range(0, len(order), BATCH):
            batch = order[first : first + BATCH]
            ratio = batch_ratio(
                *(torch.cat([parts[place][part] for place in batch]) for part in ("feature", "pixel"))
            ).item()
            by_place |= {place: assemble(detector, parts[place], ratio, {}) for place in batch}
        return [by_place[place] for place in range(len(order))]

    yield cell(found(range(len(parts))), pictures, settings)
    orders = [np.random.default_rng(seed).permutation(len(parts)).tolist() for seed in range(ORDERS)]
    aurocs = [
        100 * metrics.image_auroc(np.array([finding.score for finding in found(order)]), pictures.labels)
        for order in orders
    ]
    yield f"{statistics.median(aurocs):.1f} ({min(aurocs):.1f}–{max(aurocs):.1f})"


def drawn(detector: Detector, folder: ImageFolder, noise: Draws, draws: int, settings: Settings) -> list[list[Parts]]:
    """D_f and D_p (1, 1, h, w) of each picture, for each draw of noise."""

    def compare(batch: Tensor) -> list[list[Parts]]:
        begun: dict[bytes, Callable[[], Tensor]] = {}

        def continued(pictures: Tensor, shape: torch.Size) -> Callable[[], Tensor]:
            key = pictures.cpu().numpy().tobytes()
            begun[key] = begun.get(key) or noise(pictures, shape)
            return begun[key]

        found = [detector.compared(batch, continued).distances for _ in range(draws)]
        return [
            [{part: maps[place : place + 1].cpu() for part, maps in one.items()} for one in found]
            for place in range(len(batch))
        ]

    batches = in_batches(detector, folder, compare, settings.model.num_workers)
    return [one for _, one in count_progress(batches, len(folder), "comparing")]


def averaged(pictures: Sequence[Sequence[Parts]], draws: int) -> list[Parts]:
    """The mean of the first `draws` of each picture."""
    return [
        {part: torch.stack([one[part] for one in found[:draws]]).mean(dim=0) for part in found[0]} for found in pictures
    ]


def cell(found: Sequence[Prediction], pictures: Pictures, settings: Settings) -> str:
    """Image AUROC with its 95 % interval, pixel AUROC and PRO, in percent."""
    scores, maps = (
        np.array([finding.score for finding in found]),
        np.stack([scored_map(finding, settings) for finding in found]),
    )
    low, high = metrics.bootstrap_intervals(scores, pictures.labels, seed=settings.model.seed)["auroc"]
    ranking = metrics.rank_anomalies(maps, pictures.masks)
    values = (metrics.image_auroc(scores, pictures.labels), ranking.auroc(), ranking.pro(limit=PRO_LIMITS[0]))
    image, pixel, pro = (f"{100 * value:.1f}" for value in values)
    return f"{image} [{100 * low:.1f}, {100 * high:.1f}] / {pixel} / {pro}"


if __name__ == "__main__":
    main()
