"""Stage 3 on the test pictures of a category: metrics with intervals, and what the threshold does (section 5)."""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.functional import center_crop

import metrics
from anomaly_map import resize_maps
from config.keys import PER_IMAGE, Settings
from dataset import NORMAL, ImageFolder, Item, View
from detection.calibrate import calibrate
from detection.comparison import BATCH_SIZES
from detection.detector import Detector, Prediction, load_detector, predict_pictures, stream_noise
from reports import drawing, manifest, metric_summary
from reports.html import PAGE, write_page
from reports.metric_summary import Metric, MetricSummary
from reports.writer import MISCLASSIFIED, Writer, choose_folder
from runtime import distributed
from runtime.device import choose_device, device_name
from runtime.progress import announce, count_progress
from storage.fingerprint import as_stored
from storage.safe_names import file_stems
from training.log import ADAPTATION, TRAINING, read_log_up_to, stage_seconds

Labels = NDArray[np.bool_]
Scores = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ScoredPictures:
    """Scores, maps and masks of the test pictures, in their order; maps and masks are (N, S, S), the scored area."""

    paths: list[str]
    kinds: NDArray[np.str_]
    scores: Scores
    maps: NDArray[np.float32]
    masks: NDArray[np.bool_] | None

    @property
    def labels(self) -> Labels:
        return self.kinds != NORMAL

    @property
    def vanished(self) -> int:
        """Return how many defective pictures have an empty mask, at this size and in the scored area."""
        if self.masks is None:
            return 0
        return sum(bool(label) and not mask.any() for mask, label in zip(self.masks, self.labels, strict=True))


class PictureWriter:
    """Writes each picture's raw map and figures, as far as the settings ask for them.

    All figures share one colour scale, from the calibration, or without one from all maps; then they wait for the last.
    """

    def __init__(self, writer: Writer, detector: Detector, pictures: ImageFolder, settings: Settings):
        self._writer, self._detector, self._settings = writer, detector, settings
        self._stems = file_stems(pictures.names())
        self._waiting: list[tuple[drawing.Panel, bool]] = []
        calibration = detector.calibration
        tops = (calibration.pixel, calibration.feature, detector.threshold) if calibration else ()
        self._scale = drawing.ColourScale(*(drawing.HOTTEST * top for top in tops)) if calibration else None

    def add(self, item: Item, prediction: Prediction) -> None:
        """Write a picture's raw map; draw its figures, or keep them until `finish`."""
        wanted = self._settings.metrics
        if wanted.raw_maps:
            own_size = resize_maps(prediction.anomaly[None, None], item.size[::-1])[0, 0]
            self._writer.raw_map(self._stems[item.path], own_size.numpy(), self._settings.data.category)
        if not (wanted.visualisation or wanted.misclassifications):
            return
        panel = make_panel(item, prediction)
        if self._scale:
            self._draw(panel, self._scale, error_kind(item.label, prediction.score > self._detector.threshold))
        else:
            self._waiting.append((panel, item.label))

    def finish(self) -> None:
        """Draw the figures that wait."""
        if not self._waiting:
            return
        panels, labels = zip(*self._waiting, strict=True)
        scale = drawing.ColourScale.of_panels(panels)
        _, verdicts = apply_threshold(np.array([panel.score for panel in panels]), np.array(labels), None)
        for panel, label, verdict in zip(panels, labels, labels if verdicts is None else verdicts, strict=True):
            self._draw(panel, scale, error_kind(label, verdict))

    def _draw(self, panel: drawing.Panel, scale: drawing.ColourScale, error: str) -> None:
        stem = self._stems[panel.path]
        name = stem.removeprefix("test/")
        if self._settings.metrics.visualisation:
            self._writer.figure(name, panel, scale)
            self._writer.gallery(name, panel, scale)
        if self._settings.metrics.misclassifications and error:
            self._writer.figure(f"{error}/{name}", panel, scale, MISCLASSIFIED)


def check_evaluation(settings: Settings, output: Path | None = None) -> tuple[ImageFolder, Path]:
    """Return the test pictures and the results folder. Raise UserError for what would stop the stage later."""
    view, size = View(**settings.view_arguments()), settings.metrics.size
    pictures = ImageFolder(settings.category_dir, "test", view, masks=settings.data.mask, mask_size=size)
    writer = Writer(output or settings.results_folder)
    if distributed.group().is_main:
        writer.refuse_locked()
    return pictures, writer.folder


def evaluate_category(settings: Settings, output: Path | None = None, force: bool = False) -> Path:
    """Score the test pictures; write scores, metrics, figures and a manifest to a results folder, and return it.

    The folder is `output` or results/<exp_name>/<category>; if it holds another result, the next numbered one. A result
    that is there already is kept. `force` replaces either. Only the first process writes.
    """
    device = choose_device(settings.model.device)
    torch.manual_seed(settings.model.seed)
    pictures, folder = check_evaluation(settings, output)
    any_batch_size = settings.data.test_batch_size is None
    detector, settings, origins = load_detector(settings, settings.checkpoint_folder, device)
    inputs = evaluation_inputs(detector, settings, pictures)
    main, finished = distributed.group().is_main, False
    if not force:
        folder, finished = distributed.group().broadcast(choose_result_folder(folder, inputs, settings, any_batch_size))
    if finished:
        print_finished(folder, settings)
        return folder
    places = {"reads": f"{settings.category_dir / 'test'} ({len(pictures)} pictures)", **origins, "writes": folder}
    announce(f"Detecting defects of {settings.data.category}", device, settings.as_dict(), places)
    if main:
        writer = Writer(folder)
        with writer.locked():
            evaluate_pictures(detector, pictures, writer, inputs, settings)
    elif settings.score.protocol == PER_IMAGE:
        deque(predict_all(calibrate(detector, settings), pictures, settings), maxlen=0)
    return folder


def evaluation_inputs(detector: Detector, settings: Settings, pictures: ImageFolder) -> dict[str, object]:
    """Return all that the metrics depend on, for the manifest; the settings name the batch size that is used."""
    splits = {"test": pictures.samples}
    with suppress(FileNotFoundError):  # weights can be tested without train/good
        splits["train"] = ImageFolder(settings.category_dir, "train", pictures.view).samples
    values = with_batch_size(settings, detector.batch_size).as_dict()
    return manifest.result_inputs(values, splits, detector.networks.hash(), device_name(detector.device))


def choose_result_folder(
    folder: Path, inputs: dict[str, object], settings: Settings, any_batch_size: bool
) -> tuple[Path, bool]:
    """Return the folder of the result, and whether it holds this result already.

    A batch size that follows the free memory makes no other result: scores differ in their last digits alone.
    """
    choice = choose_folder(folder, inputs)
    if choice[1] or not any_batch_size:
        return choice
    stored = (as_stored(with_batch_size(settings, size).as_dict()) for size in BATCH_SIZES)
    others = (choose_folder(folder, {**inputs, "settings": values}) for values in stored)
    return next((other for other in others if other[1]), choice)


def with_batch_size(settings: Settings, size: int) -> Settings:
    return replace(settings, data=replace(settings.data, test_batch_size=size))


def print_finished(folder: Path, settings: Settings) -> None:
    """Print the metrics of a finished result; write its page where a run was killed before that."""
    print(f"{settings.data.category} is done: {folder} is of these weights, settings and pictures; --force repeats it")
    print_metrics(MetricSummary.from_stored(manifest.load_manifest(folder)["metrics"]), settings)
    if distributed.group().is_main:
        with Writer(folder).locked():
            if not (folder / PAGE).exists():
                write_page(folder / PAGE, [folder])


def evaluate_pictures(
    detector: Detector, pictures: ImageFolder, writer: Writer, inputs: Mapping[str, object], settings: Settings
) -> None:
    """Score the pictures, and write and print the results."""
    began, model = time.monotonic(), settings.model
    writer.discard_result()
    if settings.score.protocol == PER_IMAGE:
        detector = calibrate(detector, settings)
    picture_writer = PictureWriter(writer, detector, pictures, settings)
    predictions = count_progress(predict_all(detector, pictures, settings), len(pictures), "detecting")
    results = score_pictures(predictions, picture_writer, writer, settings)
    threshold = detector.threshold if detector.calibration else None
    summary = metric_summary.summarise_metrics(
        results.scores,
        results.kinds,
        NORMAL,
        results.maps,
        results.masks,
        selected=wanted_metrics(settings),
        resamples=settings.metrics.resamples,
        seed=model.seed,
        threshold=threshold,
    )
    write_tables(writer, results, summary, detector, settings)
    content = stored_metrics(results, summary, detector, settings)
    learnt = stage_seconds(settings.checkpoint_folder, {TRAINING: model.load_chp, ADAPTATION: model.DA_chp})
    seconds = {**learnt, "detection": time.monotonic() - began}
    writer.manifest(inputs, seconds, content)
    writer.metrics(content)
    print_results(results, seconds["detection"], settings)
    print_metrics(summary, settings)
    write_page(writer.folder / PAGE, [writer.folder])  # last, as it shows what the folder holds
    print(f"page for a browser: {writer.folder / PAGE}")
    print(f"results in {writer.folder}: {', '.join(writer.written)}", flush=True)


def predict_all(detector: Detector, pictures: ImageFolder, settings: Settings) -> Iterator[tuple[Item, Prediction]]:
    """Yield all pictures with their predictions; published ones need one process, for one stream of noise."""
    workers = settings.model.num_workers
    if detector.calibration:
        return predict_pictures(detector, pictures, detector.picture_noise, workers, distributed.group())
    return predict_pictures(detector, pictures, stream_noise(settings.model.seed, detector.device), workers)


def score_pictures(
    predictions: Iterable[tuple[Item, Prediction]], picture_writer: PictureWriter, writer: Writer, settings: Settings
) -> ScoredPictures:
    """Return scores, maps and masks of all pictures; raw maps and figures are written on the way."""
    paths, kinds, scores = [], [], []
    with writer.spool() as maps, writer.spool() as masks:
        for item, prediction in predictions:
            maps.add(scored_map(prediction, settings))
            if settings.data.mask:
                masks.add(scored_mask(item, settings))
            picture_writer.add(item, prediction)
            paths.append(item.path)
            kinds.append(item.kind)
            scores.append(prediction.score)
        picture_writer.finish()
        all_masks = masks.array() if settings.data.mask else None
        return ScoredPictures(paths, np.array(kinds), np.array(scores), maps.array(), all_masks)


def scored_map(prediction: Prediction, settings: Settings) -> NDArray[np.float32]:
    """Return the scored area of the map at metrics.size."""
    maps = resize_maps(prediction.anomaly[None, None], (settings.metrics.size,) * 2)
    return center_crop(maps, [scored_side(settings)] * 2)[0, 0].numpy()


def scored_mask(item: Item, settings: Settings) -> NDArray[np.bool_]:
    """Return the scored area of the mask at metrics.size; without a mask nothing is defective."""
    size = settings.metrics.size
    mask = torch.zeros(size, size, dtype=torch.bool) if item.mask is None else torch.from_numpy(item.mask)
    return center_crop(mask, [scored_side(settings)] * 2).numpy()


def scored_side(settings: Settings) -> int:
    return round(settings.metrics.centre_crop * settings.metrics.size)


def make_panel(item: Item, prediction: Prediction) -> drawing.Panel:
    return drawing.Panel(
        item.path,
        prediction.score,
        drawing.as_pixels(item.picture),
        drawing.as_pixels(prediction.reconstruction),
        prediction.d_pixel.numpy(),
        prediction.d_feature.numpy(),
        prediction.anomaly.numpy(),
        item.mask,
        item.size,
    )


def apply_threshold(scores: Scores, labels: Labels, threshold: float | None) -> tuple[float | None, Labels | None]:
    """Return the threshold, or the published one from the labels if these differ, and the anomalous pictures."""
    if threshold is not None:
        return threshold, scores > threshold
    if not labels.any() or labels.all():
        return None, None
    threshold = metrics.youden_threshold(scores, labels)
    return threshold, scores >= threshold


def error_kind(label: bool, anomalous: bool) -> str:
    return "" if label == anomalous else "missed" if label else "false_alarm"


def write_tables(
    writer: Writer, results: ScoredPictures, summary: MetricSummary, detector: Detector, settings: Settings
) -> None:
    """Write scores, curves and misclassifications."""
    labels, scores, calibration = results.labels, results.scores, detector.calibration
    threshold, verdicts = apply_threshold(scores, labels, detector.threshold if calibration else None)
    columns: dict[str, list[object]] = {}
    if calibration and verdicts is not None:
        columns["p_value"] = [f"{calibration.p_value(score):.6g}" for score in scores]
        columns["anomalous"] = list(verdicts.astype(int))
    writer.scores(results.paths, labels, scores, **columns)
    log = read_log_up_to(settings.checkpoint_folder, TRAINING, settings.model.load_chp)
    writer.curves({**summary.curves, "training": metric_summary.training_curve(log)})
    if settings.metrics.misclassifications and threshold is not None and verdicts is not None:
        errors = [error_kind(label, verdict) for label, verdict in zip(labels, verdicts, strict=True)]
        writer.misclassifications(results.paths, errors, scores, threshold)


def stored_metrics(
    results: ScoredPictures, summary: MetricSummary, detector: Detector, settings: Settings
) -> dict[str, object]:
    """Return the content of metrics.json."""
    content = {**summary.as_stored(), "size": settings.metrics.size, "scored": scored_side(settings)}
    content["vanished_defects"] = results.vanished
    if calibration := detector.calibration:
        source = {"pictures": len(calibration.scores), "held_out": calibration.held_out, "balance": calibration.balance}
        rate = detector.false_positive_rate
        content["calibration"] = {**source, "wanted_rate": rate, **calibration.promise(rate)._asdict()}
    return content


def print_results(results: ScoredPictures, seconds: float, settings: Settings) -> None:
    """Print how many pictures were scored, at which size, and how many masks are empty there."""
    side, size, resamples = scored_side(settings), settings.metrics.size, settings.metrics.resamples
    normal, defective = np.count_nonzero(~results.labels), np.count_nonzero(results.labels)
    area = "whole maps scored" if side == size else f"centre {side} of {size} pixels scored"
    intervals = f", 95 % intervals from {resamples} resamples" if resamples else ""
    counts = f"{len(results.labels)} pictures ({normal} normal, {defective} defective)"
    print(f"{settings.data.category}: {counts} in {seconds:.0f} s; {area}, at {size} × {size}{intervals}")
    if results.vanished:
        crop = " and on the centre that is scored; metrics.centre_crop=1 takes the whole picture" if side < size else ""
        reason = f"their masks hold no defect at this size{crop}"
        print(f"  {results.vanished} defective pictures count as normal for pixels: {reason}")


def print_metrics(summary: MetricSummary, settings: Settings) -> None:
    lines = metric_summary.metric_lines(summary, wanted_metrics(settings), settings.data.mask)
    for line in (*lines, *metric_summary.threshold_lines(summary)):
        print(line, flush=True)


def wanted_metrics(settings: Settings) -> list[Metric]:
    return [metric for metric in metric_summary.METRICS if getattr(settings.metrics, metric.setting)]
