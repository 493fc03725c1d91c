"""Stage 3 on the test pictures of a category: metrics with intervals, and errors at the threshold (section 5)."""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import metrics
from anomaly_map import resize_maps
from config.keys import PER_IMAGE, SQUARE, Settings
from dataset import NORMAL, ImageFolder, Item, Sample, View
from detection.assessment import assess_test_pictures, warning_lines
from detection.calibrate import calibrate
from detection.calibration_file import calibration_name, stored_source
from detection.comparison import BATCH_SIZES
from detection.detector import Detector, Prediction, crop_centre, load_detector, predict_pictures, stream_noise
from reports import drawing, manifest, metric_summary
from reports.html import PAGE, write_page
from reports.metric_summary import Metric, MetricSummary
from reports.operating_table import operating_lines, read_operating_rows
from reports.writer import MISCLASSIFIED, Writer, choose_folder
from runtime import distributed
from runtime.device import choose_device, device_name
from runtime.progress import announce, count_progress
from storage.fingerprint import as_stored
from storage.safe_names import file_stems
from training.log import ADAPTATION, TRAINING, read_log_up_to, stage_seconds
from training.normal_pictures import normal_splits

METRICS_SIZES = (256, 512, 1024)  # of `auto`

Labels = NDArray[np.bool_]
Scores = NDArray[np.float64]
Shape = tuple[int, int]  # (height, width)


@dataclass
class Segmentation:
    """Counts of pixels of all pictures: defects that detection outlines (tp, fp), and those that it misses (fn)."""

    tp: int = 0
    fp: int = 0
    fn: int = 0

    def add(self, found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> None:
        """Add the pixels of a picture: masks of what is found, and of the ground truth."""
        self.tp += int(np.count_nonzero(found & truth))
        self.fp += int(np.count_nonzero(found & ~truth))
        self.fn += int(np.count_nonzero(~found & truth))

    def shares(self) -> dict[str, float]:
        """Return SegF1, precision and recall, as far as they exist."""
        pairs = {
            "seg_f1": (2 * self.tp, 2 * self.tp + self.fp + self.fn),
            "seg_precision": (self.tp, self.tp + self.fp),
            "seg_recall": (self.tp, self.tp + self.fn),
        }
        return {name: part / total for name, (part, total) in pairs.items() if total}


@dataclass(frozen=True, eq=False)
class ScoredPictures:
    """Scores of the test pictures, in their order; maps and masks (N, H, W) of the centre, a stack for each shape."""

    size: int  # maps and masks of whole pictures have its square as their number of pixels
    paths: list[str]
    kinds: NDArray[np.str_]
    scores: Scores
    maps: metrics.Stacks
    masks: metrics.Stacks | None  # false outside data.region
    judged: metrics.Counted  # where data.region counts, in the one shape that its pictures have; None: everywhere
    outside: dict[str, int]  # defects outside the scored area, by the names of metrics.json
    segmented: dict[str, float]  # SegF1, precision and recall, as far as they exist
    vanished: int  # defective pictures with an empty mask, at this size and in the scored area

    @property
    def labels(self) -> Labels:
        return self.kinds != NORMAL

    @property
    def shapes(self) -> dict[str, int]:
        """Return the number of pictures by the shape of their scored area, such as 256×256."""
        return {"×".join(map(str, stack.shape[:0:-1])): len(stack) for stack in self.maps}


class PictureWriter:
    """Writes the raw maps and figures that the settings ask for; without a calibration, figures after the last map."""

    def __init__(self, writer: Writer, detector: Detector, pictures: ImageFolder, settings: Settings):
        self._writer, self._settings, self._stems = writer, settings, file_stems(pictures.names())
        self._waiting: list[tuple[drawing.Panel, bool]] = []
        self._threshold, self._scale, self._region = None, None, detector.region
        if calibration := detector.calibration:
            self._threshold = detector.threshold
            tops = (calibration.pixel, calibration.feature, self._threshold)
            self._scale = drawing.ColourScale(*(drawing.HOTTEST * top for top in tops))

    def add(self, item: Item, prediction: Prediction) -> None:
        """Write a picture's raw map. Draw its figures, or keep them for `finish` without a calibration."""
        files = self._settings.metrics
        if files.raw_maps:
            own_size = resize_maps(prediction.anomaly[None, None], item.size[::-1])[0, 0]
            self._writer.raw_map(self._stems[item.path], own_size.numpy(), self._settings.data.category)
        if not (files.visualisation or files.misclassifications):
            return
        picture, rebuilt = drawing.as_pixels(item.picture), drawing.as_pixels(prediction.reconstruction)
        maps = (prediction.d_pixel, prediction.d_feature, prediction.anomaly)
        d_pixel, d_feature, anomaly = (values.numpy() for values in maps)
        drawn = (picture, rebuilt, d_pixel, d_feature, anomaly, item.mask, item.size, self._region)
        panel = drawing.Panel(item.path, prediction.score, *drawn)
        self._waiting.append((panel, item.label))
        if self._scale:
            self.finish()

    def finish(self) -> None:
        """Draw the figures that `add` has kept, all with one colour scale."""
        if not self._waiting:
            return
        panels, labels = zip(*self._waiting, strict=True)
        self._waiting = []
        scale = self._scale or drawing.ColourScale.of_panels(panels)
        _, verdicts = apply_threshold(np.array([panel.score for panel in panels]), np.array(labels), self._threshold)
        for panel, label, verdict in zip(panels, labels, labels if verdicts is None else verdicts, strict=True):
            name, error = self._stems[panel.path].removeprefix("test/"), error_kind(label, verdict)
            if self._settings.metrics.visualisation:
                self._writer.figure(name, panel, scale)
                self._writer.gallery(name, panel, scale)
            if self._settings.metrics.misclassifications and error:
                self._writer.figure(f"{error}/{name}", panel, scale, MISCLASSIFIED)


def check_evaluation(settings: Settings, output: Path | None = None) -> tuple[ImageFolder, Path]:
    """Return the test pictures and the results folder. Raise UserError for a mistake that would stop the stage."""
    view, size = View(**settings.view_arguments()), settings.metrics.size
    pictures = ImageFolder(settings.category_dir, "test", view, masks=settings.data.mask, mask_size=size)
    writer = Writer(output or settings.results_folder)
    if distributed.group().is_main:
        writer.refuse_locked()
    return pictures, writer.folder


def evaluate_category(settings: Settings, output: Path | None = None, force: bool = False) -> Path:
    """Score the test pictures, write the results to a folder and return it; `force` replaces an earlier result."""
    device = choose_device(settings.model.device)
    torch.manual_seed(settings.model.seed)
    pictures, folder = check_evaluation(settings, output)
    detector, settings, origins = load_detector(settings, settings.checkpoint_folder, device)
    pictures.mask_size = distributed.group().broadcast(choose_metrics_size(pictures, settings))
    inputs = evaluation_inputs(detector, settings, pictures)
    group, finished, category = distributed.group(), False, settings.data.category
    if not force:
        folder, finished = group.broadcast(choose_result_folder(folder, inputs, settings))
    if finished:
        print(f"{category} is done: {folder} is of these weights, settings and pictures; --force repeats it")
        print_metrics(manifest.load_manifest(folder)["metrics"], settings)
        if group.is_main and not (folder / PAGE).exists():  # the run was killed before its last step
            with Writer(folder).locked():
                write_page(folder / PAGE, [folder])
        return folder
    places = {"reads": f"{settings.category_dir / 'test'} ({len(pictures)} pictures)", **origins, "writes": folder}
    announce(f"Detecting defects of {category}", device, settings.as_dict(), places)
    if group.is_main:
        writer = Writer(folder)
        with writer.locked():
            evaluate_pictures(detector, pictures, writer, inputs, settings)
    elif settings.score.protocol == PER_IMAGE:
        deque(predict_all(calibrate(detector, settings), pictures, settings), maxlen=0)
    return folder


def choose_metrics_size(pictures: ImageFolder, settings: Settings) -> int:
    """Return metrics.size; for `auto` the smallest of METRICS_SIZES at which no mask vanishes, else the largest."""
    if settings.metrics.size is not None:
        return settings.metrics.size
    sizes = pictures.least_mask_sizes(METRICS_SIZES, settings.model.num_workers)
    size = max(sizes, default=METRICS_SIZES[0])
    if count := sum(other > METRICS_SIZES[0] for other in sizes):
        smaller = f"at {METRICS_SIZES[0]}² the masks of {count} defective pictures would be empty"
        print(f"metrics are measured at {size}² pixels: {smaller} (metrics.size: auto)", flush=True)
    return size


def evaluation_inputs(detector: Detector, settings: Settings, pictures: ImageFolder) -> dict[str, object]:
    """Return all that the metrics depend on, for the manifest; the settings name the batch size in use."""
    splits = {"test": pictures.samples}
    with suppress(FileNotFoundError):  # weights can be tested without train/good
        splits |= {split: normal.samples for split, normal in normal_splits(settings).items()}
    if settings.data.region:
        splits["region"] = [Sample(settings.data.region, NORMAL)]
    used = replace(settings, data=replace(settings.data, test_batch_size=detector.batch_size))
    inputs = manifest.result_inputs(used.as_dict(), splits, detector.networks.hash(), device_name(detector.device))
    source = (
        stored_source(settings.checkpoint_folder / calibration_name(settings))
        if settings.score.protocol == PER_IMAGE
        else None
    )
    return inputs | ({"thresholds_from": source} if source else {})


def choose_result_folder(folder: Path, inputs: dict[str, object], settings: Settings) -> tuple[Path, bool]:
    """Return the folder of the result, and whether it holds this result already."""
    choice = choose_folder(folder, inputs)
    if choice[1] or settings.data.test_batch_size is not None:
        return choice
    # with `auto`, a result of another batch size counts as this one: only the last digits of scores differ
    sizes = (replace(settings.data, test_batch_size=size) for size in BATCH_SIZES)
    stored = (as_stored(replace(settings, data=data).as_dict()) for data in sizes)
    others = (choose_folder(folder, {**inputs, "settings": values}) for values in stored)
    return next((other for other in others if other[1]), choice)


def evaluate_pictures(
    detector: Detector, pictures: ImageFolder, writer: Writer, inputs: Mapping[str, object], settings: Settings
) -> None:
    began, model, resamples = time.monotonic(), settings.model, settings.metrics.resamples
    writer.discard_result()
    if settings.score.protocol == PER_IMAGE:
        detector = calibrate(detector, settings)
    results = score_pictures(detector, pictures, writer, settings)
    threshold, selected = detector.threshold if detector.calibration else None, wanted_metrics(settings)
    scores, kinds, measured = results.scores, results.kinds, (results.maps, results.masks, results.judged)
    summary = metric_summary.summarise_metrics(
        scores, kinds, NORMAL, *measured, selected=selected, resamples=resamples, seed=model.seed, threshold=threshold
    )
    write_tables(writer, results, detector, settings)
    log = read_log_up_to(settings.checkpoint_folder, TRAINING, model.load_chp)
    writer.curves({**summary.curves, "training": metric_summary.training_curve(log)})
    content = {**summary.as_stored(), "size": results.size, "scored": round(detector.crop * results.size)}
    if settings.data.fit != SQUARE:
        content["shapes"] = results.shapes
    content |= {"vanished_defects": results.vanished} | (results.outside if settings.data.mask else {})
    if results.judged is not None:
        content["judged"] = float(results.judged.mean())
    if results.segmented:
        content["segmentation"] = results.segmented
    if detector.calibration:
        assessed = assess_test_pictures(detector, scores, results.labels)
        content = {"warnings": assessed["warnings"], **content, **assessed}
    learnt = stage_seconds(settings.checkpoint_folder, {TRAINING: model.load_chp, ADAPTATION: model.DA_chp})
    seconds = {**learnt, "detection": time.monotonic() - began}
    writer.manifest(inputs, seconds, content)
    writer.metrics(content)
    print_results(results, seconds["detection"], settings)
    print_metrics(content, settings)
    write_page(writer.folder / PAGE, [writer.folder])  # last, as it shows what the folder holds
    print(f"page for a browser: {writer.folder / PAGE}")
    print(f"results in {writer.folder}: {', '.join(writer.written)}", flush=True)


def predict_all(detector: Detector, pictures: ImageFolder, settings: Settings) -> Iterator[tuple[Item, Prediction]]:
    """Yield all pictures with their predictions. Published ones share one stream of noise, in one process."""
    workers = settings.model.num_workers
    if detector.calibration:
        return predict_pictures(detector, pictures, detector.picture_noise, workers, distributed.group())
    return predict_pictures(detector, pictures, stream_noise(settings.model.seed, detector.device), workers)


def score_pictures(detector: Detector, pictures: ImageFolder, writer: Writer, settings: Settings) -> ScoredPictures:
    """Return scores, maps and masks of all pictures; raw maps and figures are written on the way."""
    predictions = predict_all(detector, pictures, settings)
    picture_writer = PictureWriter(writer, detector, pictures, settings)
    paths, kinds, scores = [], [], []
    segmented, outside, vanished, judged = Segmentation(), np.zeros(len(metric_summary.OUTSIDE), np.int64), 0, None
    with writer.spool() as maps, writer.spool() as masks:
        for item, prediction in count_progress(predictions, len(pictures), "detecting"):
            shape = pictures.view.measured_shape(*item.size, pictures.mask_size)[::-1]
            maps.add(scored_map(prediction, shape, settings))
            area = detector.scored_area(shape)
            judged = crop_centre(area, detector.crop).numpy()
            if settings.data.mask:
                mask = scored_mask(item, shape, settings) & judged
                vanished += item.label and not mask.any()
                masks.add(mask)
                if detector.calibration:
                    segmented.add(found_mask(detector, prediction, shape), mask)
            if item.mask is not None:
                outside += metrics.defects_outside(item.mask, area.numpy())
            picture_writer.add(item, prediction)
            paths.append(item.path)
            kinds.append(item.kind)
            scores.append(prediction.score)
        picture_writer.finish()
        all_masks = masks.stacks() if settings.data.mask else None
        counts = dict(zip(metric_summary.OUTSIDE, outside.tolist(), strict=True))
        measured = (maps.stacks(), all_masks, judged if detector.region else None)
        found = (counts, segmented.shares(), vanished)
        return ScoredPictures(pictures.mask_size, paths, np.array(kinds), np.array(scores), *measured, *found)


def scored_map(prediction: Prediction, shape: Shape, settings: Settings) -> NDArray[np.float32]:
    """Return the centre of the map, resized to `shape` (height, width)."""
    return crop_centre(resize_maps(prediction.anomaly[None, None], shape), settings.metrics.centre_crop)[0, 0].numpy()


def scored_mask(item: Item, shape: Shape, settings: Settings) -> NDArray[np.bool_]:
    """Return the centre of the mask, which has this shape; without a mask nothing is defective."""
    mask = torch.zeros(shape, dtype=torch.bool) if item.mask is None else torch.from_numpy(item.mask)
    return crop_centre(mask, settings.metrics.centre_crop).numpy()


def found_mask(detector: Detector, prediction: Prediction, shape: Shape) -> NDArray[np.bool_]:
    """Return the centre of the mask, in this shape, that detection outlines with its thresholds."""
    mask, _ = detector.find_defects(prediction, shape)
    return crop_centre(torch.from_numpy(mask), detector.crop).numpy()


def apply_threshold(scores: Scores, labels: Labels, threshold: float | None) -> tuple[float | None, Labels | None]:
    """Return the threshold and the verdicts; without a threshold, Youden's, as published, where both labels occur."""
    if threshold is not None:
        return threshold, scores > threshold
    if not labels.any() or labels.all():
        return None, None
    threshold = metrics.youden_threshold(scores, labels)
    return threshold, scores >= threshold


def error_kind(label: bool, anomalous: bool) -> str:
    return "" if label == anomalous else "missed" if label else "false_alarm"


def write_tables(writer: Writer, results: ScoredPictures, detector: Detector, settings: Settings) -> None:
    """Write the scores, and the misclassified pictures if the settings ask for them."""
    labels, scores, calibration = results.labels, results.scores, detector.calibration
    threshold, verdicts = apply_threshold(scores, labels, detector.threshold if calibration else None)
    columns: dict[str, list[object]] = {}
    if calibration and verdicts is not None:
        columns["p_value"] = [f"{calibration.p_value(score):.6g}" for score in scores]
        columns["anomalous"] = list(verdicts.astype(int))
    writer.scores(results.paths, labels, scores, **columns)
    if settings.metrics.misclassifications and threshold is not None and verdicts is not None:
        errors = [error_kind(label, verdict) for label, verdict in zip(labels, verdicts, strict=True)]
        writer.misclassifications(results.paths, errors, scores, threshold)


def print_results(results: ScoredPictures, seconds: float, settings: Settings) -> None:
    size, resamples = results.size, settings.metrics.resamples
    side = round(settings.metrics.centre_crop * size)
    normal, defective = np.count_nonzero(~results.labels), np.count_nonzero(results.labels)
    area = "whole maps scored" if side == size else f"centre {side} of {size} pixels scored"
    intervals = f", 95 % intervals from {resamples} resamples" if resamples else ""
    measured = f"{size} × {size}" if settings.data.fit == SQUARE else f"{', '.join(results.shapes)} pixels"
    counts = f"{len(results.labels)} pictures ({normal} normal, {defective} defective)"
    if results.judged is not None:
        area += f", {results.judged.mean():.0%} of them in data.region"
    print(f"{settings.data.category}: {counts} in {seconds:.0f} s; {area}, at {measured}{intervals}")
    if settings.data.mask and (side < size or results.judged is not None):
        remedy = "; metrics.centre_crop=1 takes the whole picture" if side < size else ""
        print(f"  {metric_summary.outside_text(results.outside)}{remedy}")
    if results.vanished:
        reason = "their masks hold no defect at this size and in the scored area"
        reason += f"; metrics.size={2 * size} keeps smaller ones"
        print(f"  {results.vanished} defective pictures count as normal for pixels: {reason}")


def print_metrics(content: Mapping[str, object], settings: Settings) -> None:
    """Print the content of a metrics.json, warnings first."""
    summary = MetricSummary.from_stored(content)
    lines = metric_summary.metric_lines(summary, wanted_metrics(settings), settings.data.mask)
    pixels, pictures = metric_summary.segmentation_lines(content), metric_summary.threshold_lines(summary)
    table = operating_lines(read_operating_rows(content.get("operating_points")))
    for line in (*warning_lines(content), *lines, *pixels, *pictures, *table):
        print(line, flush=True)


def wanted_metrics(settings: Settings) -> list[Metric]:
    return [metric for metric in metric_summary.METRICS if getattr(settings.metrics, metric.setting)]
