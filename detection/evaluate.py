"""Stage 3 on a category's test pictures: how well defects are found, with intervals, and what the threshold does (section 5 of the paper)."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.functional import center_crop

import metrics
from anomaly_map import resize_maps
from config.keys import PER_IMAGE, Settings
from dataset import NORMAL, ImageFolder, Item, View
from detection.calibrate import calibrate
from detection.detector import Detector, Prediction, load_detector, predict_pictures, stream_noise
from detection.threshold import Calibration
from reports import drawing, manifest
from reports.html import PAGE, write_page
from reports.metric_summary import (
    METRICS,
    Metric,
    MetricSummary,
    metric_lines,
    summarise_metrics,
    threshold_lines,
    training_curve,
)
from reports.writer import MISCLASSIFIED, Writer, choose_folder
from runtime import distributed
from runtime.device import choose_device, device_name
from runtime.progress import announce, count_progress
from storage.safe_names import file_stems
from training.log import ADAPTATION, TRAINING, read_log_up_to, stage_seconds


@dataclass(frozen=True, eq=False)
class ScoredPictures:
    """What detection found, in the order of the pictures. Maps and masks are (N, S, S), of the part that is scored."""

    paths: list[str]
    kinds: NDArray[np.str_]
    scores: NDArray[np.float64]
    maps: NDArray[np.float32]
    masks: NDArray[np.bool_] | None

    @property
    def labels(self) -> NDArray[np.bool_]:
        return self.kinds != NORMAL

    @property
    def vanished(self) -> int:
        """How many defective pictures have no defect in their mask, at this size and in this part."""
        return (
            0
            if self.masks is None
            else sum(1 for mask, defective in zip(self.masks, self.labels, strict=True) if defective and not mask.any())
        )


def check_evaluation(settings: Settings, output: Path | None = None) -> tuple[ImageFolder, Path]:
    """The test pictures, and the folder of the results; raises what would stop the stage later."""
    pictures = ImageFolder(
        settings.category_dir,
        "test",
        View(**settings.view_arguments()),
        masks=settings.data.mask,
        mask_size=settings.metrics.size,
    )
    writer = Writer(output or settings.results_folder)
    if distributed.group().is_main:
        writer.refuse_locked()
    return pictures, writer.folder


def evaluate_category(settings: Settings, output: Path | None = None, force: bool = False) -> Path:
    """Score the test pictures; leave scores.csv, metrics.json, figures and manifest.json in a results folder, which is returned.

    That is `output` (results/<exp_name>/<category>). Where it holds this very result nothing is done, and where it holds another one the
    next numbered folder is taken; `force` does it again and replaces what is there. Of several processes the first one writes.
    """
    device = choose_device(settings.model.device)
    torch.manual_seed(settings.model.seed)
    pictures, folder = check_evaluation(settings, output)
    detector, settings, origins = load_detector(settings, settings.checkpoint_folder, device)
    made = evaluation_inputs(detector, settings, pictures)
    folder, finished = (folder, False) if force else distributed.group().broadcast(choose_folder(folder, made))
    if finished:
        print(
            f"{settings.data.category} is done: {folder} is of these weights, settings and pictures; --force does it again"
        )
        print_metrics(MetricSummary.from_stored(manifest.load_manifest(folder)["metrics"]), settings)
        if distributed.group().is_main:
            finish_report(Writer(folder))
        return folder
    announce(
        f"Detecting defects of {settings.data.category}",
        device,
        settings.as_dict(),
        {"reads": f"{settings.category_dir / 'test'} ({len(pictures)} pictures)", **origins, "writes": folder},
    )
    if distributed.group().is_main:
        writer = Writer(folder)
        with writer.locked():
            evaluate_pictures(detector, pictures, writer, made, settings)
    elif settings.score.protocol == PER_IMAGE:
        deque(predictions_in(calibrate(detector, settings), pictures, settings), maxlen=0)
    return folder


def finish_report(writer: Writer) -> None:
    """What a run leaves undone that is killed behind its last figures: the page, and its lock."""
    with writer.locked():
        if not (writer.folder / PAGE).exists():
            write_page(writer.folder / PAGE, [writer.folder])


def evaluate_pictures(
    detector: Detector, pictures: ImageFolder, writer: Writer, made: dict[str, Any], settings: Settings
) -> None:
    """Score the pictures, and write and say what comes of it."""
    data, model = settings.data, settings.model
    began = time.monotonic()
    writer.discard_result()
    if settings.score.protocol == PER_IMAGE:
        detector = calibrate(detector, settings)
    results = score_pictures(detector, pictures, predictions_in(detector, pictures, settings), writer, settings)
    figures = summarise_metrics(
        results.scores,
        results.kinds,
        NORMAL,
        results.maps,
        results.masks,
        selected=wanted_metrics(settings),
        resamples=settings.metrics.resamples,
        seed=model.seed,
        threshold=detector.threshold if detector.calibration else None,
    )
    content = write_tables(writer, results, figures, detector, settings)
    learnt = stage_seconds(settings.checkpoint_folder, {TRAINING: model.load_chp, ADAPTATION: model.DA_chp})
    seconds = {**learnt, "detection": time.monotonic() - began}
    writer.manifest(made, seconds, content)
    writer.metrics(content)
    print(f"{data.category}: {count_text(results)} in {seconds['detection']:.0f} s; {scored_area_text(settings)}")
    if results.vanished:
        part = (
            " and on the centre that is scored; metrics.centre_crop=1 takes the whole picture"
            if settings.metrics.centre_crop < 1
            else ""
        )
        print(
            f"  {results.vanished} defective pictures count as normal for pixels: their masks hold no defect at this size{part}"
        )
    print_metrics(figures, settings)
    write_page(writer.folder / PAGE, [writer.folder])  # last, as it shows what the folder holds
    print(f"page for a browser: {writer.folder / PAGE}")
    print(f"results in {writer.folder}: {', '.join(writer.written)}", flush=True)


def predictions_in(detector: Detector, pictures: ImageFolder, settings: Settings) -> Iterator[tuple[Item, Prediction]]:
    """What is found in all pictures, by all processes where scores are per picture; published ones need one stream and the batches in order."""
    workers = settings.model.num_workers
    if detector.calibration:
        return predict_pictures(detector, pictures, detector.picture_noise, workers, distributed.group())
    return predict_pictures(detector, pictures, stream_noise(settings.model.seed, detector.device), workers)


def evaluation_inputs(detector: Detector, settings: Settings, pictures: ImageFolder) -> dict[str, Any]:
    """All that the figures depend on, for the manifest."""
    splits = {"test": pictures.samples}
    with suppress(FileNotFoundError):  # weights can be tested where their train/good is not
        splits["train"] = ImageFolder(settings.category_dir, "train", pictures.view).samples
    return manifest.result_inputs(settings.as_dict(), splits, detector.networks.hash(), device_name(detector.device))


def print_metrics(figures: MetricSummary, settings: Settings) -> None:
    for line in (*metric_lines(figures, wanted_metrics(settings), settings.data.mask), *threshold_lines(figures)):
        print(line, flush=True)


def score_pictures(
    detector: Detector,
    folder: ImageFolder,
    findings: Iterable[tuple[Item, Prediction]],
    writer: Writer,
    settings: Settings,
) -> ScoredPictures:
    """Scores, maps and masks of all pictures; raw maps and figures are written as they are done.

    Figures share one scale: from the calibration, or (published) from all maps, for which they wait.
    """
    wanted, kept = settings.metrics, detector.calibration
    drawn = wanted.visualisation or wanted.misclassifications
    paths: list[str] = []
    kinds: list[str] = []
    scores: list[float] = []
    waiting: list[drawing.Panel] = []
    tops = (
        drawing.ColourScale(*(drawing.HOTTEST * normal for normal in (kept.pixel, kept.feature, detector.threshold)))
        if kept
        else None
    )
    stems = file_stems(folder.names())
    with writer.spool() as maps, writer.spool() as masks:
        for item, finding in count_progress(findings, len(folder), "detecting"):
            maps.add(scored_map(finding, settings))
            if settings.data.mask:
                masks.add(scored_mask(item, settings))
            if wanted.raw_maps:
                own_size = resize_maps(finding.anomaly[None, None], item.size[::-1])[0, 0]
                writer.raw_map(stems[item.path], own_size.numpy(), settings.data.category)
            if drawn and tops:
                draw_panel(
                    writer,
                    stems[item.path],
                    make_panel(item, finding),
                    tops,
                    error_kind(item.label, finding.score > detector.threshold),
                    settings,
                )
            elif drawn:
                waiting.append(make_panel(item, finding))
            paths.append(item.path)
            kinds.append(item.kind)
            scores.append(finding.score)
        if waiting:
            tops, labels = drawing.ColourScale.of_panels(waiting), np.array(kinds) != NORMAL
            limit = youden(np.array(scores), labels)
            for one, label in zip(waiting, labels, strict=True):
                draw_panel(
                    writer,
                    stems[one.path],
                    one,
                    tops,
                    error_kind(label, label if limit is None else one.score >= limit),
                    settings,
                )
        return ScoredPictures(
            paths, np.array(kinds), np.array(scores), maps.array(), masks.array() if settings.data.mask else None
        )


def draw_panel(
    writer: Writer, stem: str, one: drawing.Panel, tops: drawing.ColourScale, error: str, settings: Settings
) -> None:
    """The figure of a picture, among all figures and among those of its error, as far as they are wanted."""
    name = stem.removeprefix("test/")
    if settings.metrics.visualisation:
        writer.figure(name, one, tops)
        writer.gallery(name, one, tops)
    if settings.metrics.misclassifications and error:
        writer.figure(f"{error}/{name}", one, tops, MISCLASSIFIED)


def error_kind(label: bool, anomalous: bool) -> str:
    return "" if label == anomalous else "missed" if label else "false_alarm"


def youden(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> float | None:
    """The published threshold, from the test labels; none where they are all the same."""
    return metrics.youden_threshold(scores, labels) if labels.any() and not labels.all() else None


def scored_map(finding: Prediction, settings: Settings) -> NDArray[np.float32]:
    """The map at metrics.size, of the part that is scored."""
    size = settings.metrics.size
    return center_crop(resize_maps(finding.anomaly[None, None], (size, size)), [scored_side(settings)] * 2)[
        0, 0
    ].numpy()


def scored_mask(item: Item, settings: Settings) -> NDArray[np.bool_]:
    """The mask beside `scored_map`; nothing is defective where an item has none."""
    size = settings.metrics.size
    mask = torch.zeros(size, size, dtype=torch.bool) if item.mask is None else torch.from_numpy(item.mask)
    return center_crop(mask, [scored_side(settings)] * 2).numpy()


def scored_side(settings: Settings) -> int:
    return round(settings.metrics.centre_crop * settings.metrics.size)


def make_panel(item: Item, finding: Prediction) -> drawing.Panel:
    return drawing.Panel(
        item.path,
        finding.score,
        drawing.as_pixels(item.picture),
        drawing.as_pixels(finding.reconstruction),
        finding.d_pixel.numpy(),
        finding.d_feature.numpy(),
        finding.anomaly.numpy(),
        item.mask,
        item.size,
    )


def write_tables(
    writer: Writer, results: ScoredPictures, figures: MetricSummary, detector: Detector, settings: Settings
) -> dict[str, Any]:
    """Tables and curves; returns what metrics.json is to hold."""
    kept, labels, scores = detector.calibration, results.labels, results.scores
    content = {
        **figures.as_stored(),
        "size": settings.metrics.size,
        "scored": scored_side(settings),
        "vanished_defects": results.vanished,
    }
    verdicts = threshold = None
    if kept:
        threshold = detector.threshold
        verdicts = scores > threshold
        writer.scores(
            results.paths,
            labels,
            scores,
            p_value=[f"{kept.p_value(score):.6g}" for score in scores],
            anomalous=verdicts.astype(int),
        )
        content["calibration"] = calibration_entry(kept, detector.false_positive_rate)
    else:
        writer.scores(results.paths, labels, scores)
        threshold = youden(scores, labels)
        verdicts = None if threshold is None else scores >= threshold
    writer.curves(
        {
            **figures.curves,
            "training": training_curve(read_log_up_to(settings.checkpoint_folder, TRAINING, settings.model.load_chp)),
        }
    )
    if settings.metrics.misclassifications and verdicts is not None and threshold is not None:
        errors = [error_kind(label, verdict) for label, verdict in zip(labels, verdicts, strict=True)]
        writer.misclassifications(results.paths, errors, scores, threshold)
    return content


def calibration_entry(kept: Calibration, wanted: float) -> dict[str, Any]:
    """What the threshold was made from, and the rates of false alarms that were wanted and are promised."""
    promise = kept.promise(wanted)._asdict()
    return {
        "pictures": len(kept.scores),
        "held_out": kept.held_out,
        "balance": kept.balance,
        "wanted_rate": wanted,
        **promise,
    }


def count_text(results: ScoredPictures) -> str:
    normal, defective = np.count_nonzero(~results.labels), np.count_nonzero(results.labels)
    return f"{len(results.labels)} pictures ({normal} normal, {defective} defective)"


def scored_area_text(settings: Settings) -> str:
    side, size = scored_side(settings), settings.metrics.size
    part = "maps measured whole" if side == size else f"centre {side} of {size} pixels scored"
    within = f", 95 % intervals from {settings.metrics.resamples} resamples" if settings.metrics.resamples else ""
    return f"{part}, at {size} × {size}{within}"


def wanted_metrics(settings: Settings) -> list[Metric]:
    return [metric for metric in METRICS if getattr(settings.metrics, metric.setting)]
