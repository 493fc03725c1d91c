"""Stage 3 on a category's test pictures: how well defects are found, with intervals, and what the threshold does (section 5 of the paper)."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.functional import center_crop

import drawing
import metrics
import runtime
from anomaly_map import resized
from calibration import Calibration
from config import PER_IMAGE, Settings
from dataset import NORMAL, ImageFolder, Item, View
from detection import Detector, Draws, Finding, build, calibrated, findings_of, stream_noise
from metrics import OperatingPoint, Ranking, operating_point
from names import file_stems
from results import Writer

Interval = tuple[float, float]


class Metric(NamedTuple):
    """A figure of metrics.json: of scores and labels (pictures) or of maps and masks (pixels), asked for by a key of `metrics`.

    `drawn` is its name among the intervals.
    """

    key: str
    name: str
    of: str
    asked_by: str
    measure: Callable[[Ranking], float]
    drawn: str


PRO_LIMITS = (0.3, 0.05)
METRICS = (
    *(
        Metric(f"{prefix}_{short}", f"{prefix} {name}", of, "auroc", measure, drawn)
        for prefix, of in (("image", "pictures"), ("pixel", "pixels"))
        for short, name, measure, drawn in (
            ("auroc", "AUROC", Ranking.auroc, "auroc"),
            ("ap", "AP", Ranking.average_precision, "average_precision"),
            ("f1_max", "F1-max", Ranking.f1_max, "f1_max"),
        )
    ),
    *(
        Metric(key, f"PRO (FPR to {limit})", "pixels", "pro", partial(Ranking.pro, limit=limit), f"pro_{limit}")
        for key, limit in zip(("pro", "pro_0.05"), PRO_LIMITS, strict=True)
    ),
)


@dataclass(frozen=True, eq=False)
class Results:
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
        return 0 if self.masks is None else sum(1 for mask, defective in zip(self.masks, self.labels, strict=True) if defective and not mask.any())


@dataclass(frozen=True)
class Figures:
    """Metrics as fractions by key, their 95 % intervals, and what the threshold does (where there is one): to all pictures, and to each kind
    of defect beside the normal ones."""

    values: dict[str, float]
    intervals: dict[str, Interval]
    operating_point: OperatingPoint | None
    kinds: dict[str, OperatingPoint]


def check(settings: Settings, output: Path | None = None) -> tuple[ImageFolder, Writer]:
    """The test pictures, and the writer of the results; raises what would stop the stage later."""
    data = settings.data
    pictures = ImageFolder(settings.category_dir, "test", View(**settings.view_arguments()), masks=data.mask, mask_size=settings.metrics.size)
    return pictures, Writer(output or Path("results") / settings.model.exp_name / data.category)


def run(settings: Settings, output: Path | None = None) -> None:
    """Score the test pictures and leave scores.csv, metrics.json and the figures in `output` (results/<exp_name>/<category>)."""
    pictures, writer = check(settings, output)
    with writer.held():
        judge(settings, pictures, writer)


def judge(settings: Settings, pictures: ImageFolder, writer: Writer) -> None:
    data, model = settings.data, settings.model
    device = runtime.choose_device(model.device)
    torch.manual_seed(model.seed)
    detector, settings, origins = build(settings, settings.checkpoint_folder, device)
    runtime.announce(
        f"Detecting defects of {data.category}",
        device,
        settings.as_dict(),
        {"reads": f"{settings.category_dir / 'test'} ({len(pictures)} pictures)", **origins, "writes": writer.folder},
    )
    began = time.monotonic()
    if settings.score.protocol == PER_IMAGE:
        detector = calibrated(detector, settings)
    noise = detector.picture_noise if detector.calibration else stream_noise(model.seed, device)
    results = scored(detector, pictures, noise, writer, settings)
    figures = evaluate(results, detector, settings)
    write(writer, results, figures, detector, settings)
    print(f"{data.category}: {counted(results)} in {time.monotonic() - began:.0f} s; {scored_part(settings)}")
    if results.vanished:
        print(f"  {results.vanished} defective pictures have no defect left in their mask at this size; for pixels they count as normal")
    for line in (*metric_lines(figures, settings), *verdict_lines(figures)):
        print(line)
    print(f"results in {writer.folder}: {', '.join(writer.written)}", flush=True)


def scored(detector: Detector, folder: ImageFolder, noise: Draws, writer: Writer, settings: Settings) -> Results:
    """Scores, maps and masks of all pictures; raw maps and figures are written as they are done.

    Figures share one scale: from the calibration, or (published) from all maps, for which they wait.
    """
    wanted, kept = settings.metrics, detector.calibration
    paths: list[str] = []
    kinds: list[str] = []
    scores: list[float] = []
    waiting: list[drawing.Panel] = []
    tops = drawing.Tops(*(drawing.HOTTEST * normal for normal in (kept.pixel, kept.feature, detector.threshold))) if kept else None
    stems = file_stems(folder.names())
    with writer.spool() as maps, writer.spool() as masks:
        findings = findings_of(detector, folder, noise, settings.model.num_workers)
        for item, finding in runtime.count(findings, len(folder), "detecting"):
            maps.add(scored_map(finding, settings))
            if settings.data.mask:
                masks.add(scored_mask(item, settings))
            if wanted.raw_maps:
                own_size = resized(finding.anomaly[None, None], item.size[::-1])[0, 0]
                writer.raw_map(stems[item.path], own_size.numpy(), settings.data.category)
            if wanted.visualisation and tops:
                writer.figure(figure_stem(stems[item.path]), panel(item, finding), tops)
            elif wanted.visualisation:
                waiting.append(panel(item, finding))
            paths.append(item.path)
            kinds.append(item.kind)
            scores.append(finding.score)
        if waiting:
            tops = drawing.Tops.reached(waiting)
            for one in waiting:
                writer.figure(figure_stem(stems[one.path]), one, tops)
        return Results(paths, np.array(kinds), np.array(scores), maps.array(), masks.array() if settings.data.mask else None)


def figure_stem(stem: str) -> str:
    return stem.removeprefix("test/")


def scored_map(finding: Finding, settings: Settings) -> NDArray[np.float32]:
    """The map at metrics.size, of the part that is scored."""
    size = settings.metrics.size
    return center_crop(resized(finding.anomaly[None, None], (size, size)), [scored_side(settings)] * 2)[0, 0].numpy()


def scored_mask(item: Item, settings: Settings) -> NDArray[np.bool_]:
    """The mask beside `scored_map`; nothing is defective where an item has none."""
    size = settings.metrics.size
    mask = torch.zeros(size, size, dtype=torch.bool) if item.mask is None else torch.from_numpy(item.mask)
    return center_crop(mask, [scored_side(settings)] * 2).numpy()


def scored_side(settings: Settings) -> int:
    return round(settings.metrics.centre_crop * settings.metrics.size)


def panel(item: Item, finding: Finding) -> drawing.Panel:
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


def evaluate(results: Results, detector: Detector, settings: Settings) -> Figures:
    """The metrics that were asked for and that the data allow, and the operating point where there is a threshold."""
    values: dict[str, float] = {}
    intervals: dict[str, Interval] = {}
    for of, measured, truth in (("pictures", results.scores, results.labels), ("pixels", results.maps, results.masks)):
        wanted = [metric for metric in asked_for(settings) if metric.of == of]
        if not wanted or truth is None or not truth.any() or truth.all():
            continue
        ranking = metrics.rank(measured, truth)
        values |= {metric.key: metric.measure(ranking) for metric in wanted}
        if settings.metrics.resamples:
            drawn = metrics.intervals(measured, truth, pro_limits=PRO_LIMITS, resamples=settings.metrics.resamples, seed=settings.model.seed)
            intervals |= {metric.key: drawn[metric.drawn] for metric in wanted}
    if detector.calibration is None:
        return Figures(values, intervals, None, {})
    labels, threshold = results.labels, detector.threshold
    beside = {str(kind): ~labels | (results.kinds == kind) for kind in np.unique(results.kinds[labels])}
    kinds = {kind: operating_point(results.scores[part], labels[part], threshold) for kind, part in beside.items()}
    return Figures(values, intervals, operating_point(results.scores, labels, threshold), kinds)


def write(writer: Writer, results: Results, figures: Figures, detector: Detector, settings: Settings) -> None:
    kept, labels, scores = detector.calibration, results.labels, results.scores
    content: dict[str, Any] = {**figures.values, "intervals": figures.intervals, "size": settings.metrics.size, "scored": scored_side(settings)}
    content["vanished_defects"] = results.vanished
    verdicts = threshold = None
    if kept and figures.operating_point:
        threshold = detector.threshold
        verdicts = scores > threshold
        writer.scores(results.paths, labels, scores, p_value=[f"{kept.p_value(score):.6g}" for score in scores], anomalous=verdicts.astype(int))
        content["calibration"] = calibration_of(kept, detector.false_positive_rate)
        content["operating_point"] = asdict(figures.operating_point)
        content["kinds"] = {kind: asdict(point) for kind, point in figures.kinds.items()}
    else:
        writer.scores(results.paths, labels, scores)
        if labels.any() and not labels.all():
            threshold = metrics.youden_threshold(scores, labels)
            verdicts = scores >= threshold
    writer.metrics(content)
    if settings.metrics.misclassifications and verdicts is not None and threshold is not None:
        writer.misclassifications(results.paths, labels, scores, verdicts, threshold)


def calibration_of(kept: Calibration, wanted: float) -> dict[str, Any]:
    """What the threshold was made from, and the rates of false alarms that were wanted and are promised."""
    promise = kept.promise(wanted)._asdict()
    return {"pictures": len(kept.scores), "held_out": kept.held_out, "balance": kept.balance, "wanted_rate": wanted, **promise}


def metric_lines(figures: Figures, settings: Settings) -> Iterator[str]:
    """One line a metric, in percent with its interval, with a word on why one is missing."""
    for metric in asked_for(settings):
        if metric.key in figures.values:
            yield f"  {metric.name:18}{100 * figures.values[metric.key]:5.1f} %{interval_words(figures.intervals.get(metric.key))}"
        elif metric.of == "pixels" and not settings.data.mask:
            yield f"  {metric.name:18}    – (no masks: data.mask is False)"
        else:
            yield f"  {metric.name:18}    – (needs normal and defective {metric.of} in test)"


def interval_words(interval: Interval | None) -> str:
    if interval is None:
        return ""
    low, high = interval
    return f"   [{100 * low:.1f}, {100 * high:.1f}]" if low < high else "   (the same in all resamples, so that they bound nothing)"


def verdict_lines(figures: Figures) -> Iterator[str]:
    """What the threshold does, with the counts behind each share; nothing without one."""
    point = figures.operating_point
    if point is None:
        return
    yield (
        f"  at the threshold {point.threshold:.4g}: false alarms {share(point.false_positives, point.true_negatives)}, "
        f"recall {share(point.true_positives, point.false_negatives)}, precision {share(point.true_positives, point.false_positives)}"
    )
    if figures.kinds:
        yield "  found by kind: " + ", ".join(f"{kind} {share(point.true_positives, point.false_negatives)}" for kind, point in figures.kinds.items())


def share(part: int, rest: int) -> str:
    return f"{part} of {part + rest} ({part / (part + rest):.1%})" if part + rest else "– (none)"


def counted(results: Results) -> str:
    normal, defective = np.count_nonzero(~results.labels), np.count_nonzero(results.labels)
    return f"{len(results.labels)} pictures ({normal} normal, {defective} defective)"


def scored_part(settings: Settings) -> str:
    side, size = scored_side(settings), settings.metrics.size
    part = "maps measured whole" if side == size else f"centre {side} of {size} pixels scored"
    within = f", 95 % intervals from {settings.metrics.resamples} resamples" if settings.metrics.resamples else ""
    return f"{part}, at {size} × {size}{within}"


def asked_for(settings: Settings) -> list[Metric]:
    return [metric for metric in METRICS if getattr(settings.metrics, metric.asked_by)]
