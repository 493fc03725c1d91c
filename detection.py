"""Stage 3: reconstruct each test picture, map what changed, score it and say how well defects were found (sections 4.1, 4.2 and 5)."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.transforms.functional import center_crop

import calibration
import checkpoint
import metrics
import report
import runtime
from anomaly_map import combine, feature_distance, pixel_distance, smooth
from calibration import Calibration
from config import Settings
from dataset import ImageFolder, Item
from ddad import NoiseSchedule, gaussian_draws, picture_draws, reconstruct
from runtime import Progress


class Metric(NamedTuple):
    """A figure of metrics.json: of scores and labels (pictures) or of maps and masks (pixels), asked for by a key of `metrics`."""

    key: str
    name: str
    of: str
    asked_by: str
    measure: Callable[..., float]


METRICS = (
    Metric("image_auroc", "image AUROC", "pictures", "auroc", metrics.image_auroc),
    Metric("image_ap", "image AP", "pictures", "auroc", metrics.average_precision),
    Metric("image_f1_max", "image F1-max", "pictures", "auroc", metrics.f1_max),
    Metric("pixel_auroc", "pixel AUROC", "pixels", "auroc", metrics.pixel_auroc),
    Metric("pixel_ap", "pixel AP", "pixels", "auroc", metrics.average_precision),
    Metric("pixel_f1_max", "pixel F1-max", "pixels", "auroc", metrics.f1_max),
    Metric("pro", "PRO (FPR to 0.3)", "pixels", "pro", metrics.pro),
    Metric("pro_0.05", "PRO (FPR to 0.05)", "pixels", "pro", partial(metrics.pro, limit=0.05)),
)


@dataclass(frozen=True)
class Detector:
    """The trained networks and the settings that turn pictures into anomaly maps."""

    unet: nn.Module
    extractor: nn.Module
    schedule: NoiseSchedule
    w: float
    v: float
    start: int
    skip: int
    eta: float
    blur_sigma: float
    draws: int = 1
    balance: float | None = None

    @torch.no_grad()
    def compare(self, pictures: Tensor, draw: Callable[[], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstructions (B, C, S, S), started from and pulled towards the pictures, and D_f and D_p (B, 1, S, S) between the two.

        With several `draws` of noise each is the mean over them.
        """
        features, size = self.extractor(pictures), pictures.shape[-1]
        reconstructions, d_features, d_pixels = [], [], []
        for _ in range(self.draws):
            x_0 = reconstruct(
                self.unet, pictures, pictures, schedule=self.schedule, w=self.w, start=self.start, skip=self.skip, eta=self.eta, draw=draw
            )
            reconstructions.append(x_0)
            d_features.append(feature_distance(features, self.extractor(x_0), size))
            d_pixels.append(pixel_distance(x_0, pictures))
        return mean(reconstructions), mean(d_features), mean(d_pixels)

    def anomaly_map(self, d_feature: Tensor, d_pixel: Tensor) -> Tensor:
        """(B, 1, H, W); without a `balance` of D_f and D_p their maxima over the batch decide, as published."""
        return smooth(combine(d_feature, d_pixel, self.v, self.balance), self.blur_sigma)


@dataclass(frozen=True)
class Results:
    """What detection found, in the order of the pictures. Maps and masks are (N, S, S), cropped as they are scored."""

    paths: list[str]
    labels: NDArray[np.bool_]
    scores: NDArray[np.float32]
    maps: NDArray[np.float32]
    masks: NDArray[np.bool_] | None


def check(settings: Settings, output: Path | None = None) -> tuple[ImageFolder, report.Writer]:
    """The test pictures, and the writer of the results; raises what would stop the stage later."""
    data = settings.data
    pictures = ImageFolder(settings.category_dir, "test", data.image_size, data.input_channel, masks=data.mask)
    return pictures, report.Writer(output or Path("results") / settings.model.exp_name / data.category)


def run(settings: Settings, output: Path | None = None) -> None:
    """Score the test pictures and leave scores.csv, metrics.json and the figures in `output` (results/<exp_name>/<category>)."""
    data, model = settings.data, settings.model
    device = runtime.choose_device(model.device)
    torch.manual_seed(model.seed)
    pictures, writer = check(settings, output)
    detector, origins = build_detector(settings, device)
    runtime.announce(
        f"Detecting defects of {data.category}",
        device,
        settings.as_dict(),
        {"reads": f"{settings.category_dir / 'test'} ({len(pictures)} pictures)", **origins, "writes": writer.folder},
    )
    began = time.monotonic()
    if settings.score.protocol == "per_image":
        detector = replace(detector, balance=calibrated_balance(detector, settings, device))
    results, panels = detect(detector, pictures, settings, device)
    figures = evaluate(results, settings)
    write(writer, results, figures, panels, settings)
    seconds, side = time.monotonic() - began, results.maps.shape[-1]
    normal, defective = np.count_nonzero(~results.labels), np.count_nonzero(results.labels)
    print(
        f"{data.category}: {len(pictures)} pictures ({normal} normal, {defective} defective) in {seconds:.0f} s, "
        f"scored on the centre {side} of {data.image_size} pixels"
    )
    for line in metric_lines(figures, settings):
        print(line)
    print(f"results in {writer.folder}: {', '.join(writer.written)}", flush=True)


def build_detector(settings: Settings, device: torch.device) -> tuple[Detector, dict[str, object]]:
    """The detector of the category's checkpoint folder, not yet balanced, and where its weights come from."""
    model, folder = settings.model, settings.checkpoint_folder
    weights = checkpoint.find(folder, model.load_chp)
    unet = checkpoint.restore_unet(weights, settings.unet_arguments())
    extractor, origin = checkpoint.restore_features(folder, model.DA_chp, model.feature_extractor, model.backbone_weights)
    detector = Detector(
        unet.to(device).eval(),
        extractor.to(device).eval(),
        NoiseSchedule(**settings.schedule_arguments()),
        w=model.w,
        v=model.v,
        start=model.test_trajectoy_steps,
        skip=model.skip,
        eta=model.eta,
        blur_sigma=model.blur_sigma,
        draws=settings.score.draws,
    )
    return detector, {"unet": weights, "features": f"{extractor.name} from {origin}"}


def write(writer: report.Writer, results: Results, figures: dict[str, float], panels: list[report.Panel], settings: Settings) -> None:
    writer.scores(results.paths, results.labels, results.scores)
    writer.metrics(figures)
    if settings.metrics.misclassifications and results.labels.any() and not results.labels.all():
        writer.misclassifications(results.paths, results.labels, results.scores, metrics.youden_threshold(results.scores, results.labels))
    if settings.metrics.visualisation:
        writer.figures(panels)


@dataclass(frozen=True)
class Mapped:
    """A batch of items on its way: pictures and reconstructions (B, C, S, S), D_f and D_p (B, 1, S, S)."""

    items: list[Item]
    pictures: Tensor
    reconstructions: Tensor
    d_feature: Tensor
    d_pixel: Tensor


DrawsFor = Callable[[Tensor], Callable[[], Tensor]]  # pictures of a batch → draw()


def draws_for(settings: Settings, device: torch.device) -> DrawsFor:
    """Noise that follows from each picture, or (published) one stream for all."""
    seed = settings.model.seed
    if settings.score.protocol == "per_image":
        return lambda pictures: picture_draws(pictures, seed)
    stream = torch.Generator(device).manual_seed(seed)
    return lambda pictures: gaussian_draws(pictures.shape, stream)


def mapped_batches(detector: Detector, folder: ImageFolder, noise: DrawsFor, device: torch.device, size: int, workers: int) -> Iterator[Mapped]:
    """Distances of all pictures, `size` at a time."""
    for items in folder.batches(size, workers):
        pictures = torch.stack([item.picture for item in items]).to(device)
        yield Mapped(items, pictures, *detector.compare(pictures, noise(pictures)))


def calibrated_balance(detector: Detector, settings: Settings, device: torch.device) -> float:
    """The balance kept in the category's checkpoint folder, if it is of these networks, settings and normal pictures; else it is measured."""
    data, model, folder = settings.data, settings.model, settings.checkpoint_folder
    normal = ImageFolder(settings.category_dir, "train", data.image_size, data.input_channel).thinned(settings.score.normal_pictures)
    matters = {name: getattr(detector, name) for name in ("w", "start", "skip", "eta", "blur_sigma", "draws")}
    matters |= {"image_size": data.image_size, "seed": model.seed, "schedule": settings.schedule_arguments()}
    matters |= {"pictures": [(sample.picture.name, sample.picture.stat().st_size) for sample in normal.samples]}
    fingerprint = calibration.fingerprint([detector.unet, detector.extractor], matters)
    kept = checkpoint.load_calibration(folder)
    if kept is not None and kept.fingerprint == fingerprint:
        print(f"balance of D_f and D_p: {kept.balance:.4g}, from {folder / checkpoint.CALIBRATION}", flush=True)
        return kept.balance
    batches = mapped_batches(detector, normal, draws_for(settings, device), device, data.test_batch_size, model.num_workers)
    balance = measured_balance(batches, len(normal), detector.blur_sigma)
    print(f"balance of D_f and D_p: {balance:.4g}, measured on {len(normal)} pictures of train/good", flush=True)
    if model.save_model:
        try:
            checkpoint.save_calibration(folder, Calibration(balance, len(normal), fingerprint))
        except OSError as error:
            print(f"the balance is not kept: {error}")
    return balance


def measured_balance(batches: Iterator[Mapped], total: int, blur_sigma: float) -> float:
    tops: list[Tensor] = []

    def steps() -> Iterator[Progress]:
        done = 0
        for batch in batches:
            distances = torch.cat([batch.d_feature, batch.d_pixel], dim=1)
            tops.append(smooth(distances, blur_sigma).amax(dim=(2, 3)).cpu())
            done += len(batch.items)
            yield Progress(done)

    for _ in runtime.follow(steps(), total, "calibrating", "picture"):
        pass
    top_feature, top_pixel = torch.cat(tops).unbind(dim=1)
    return calibration.normal_balance(top_feature, top_pixel)


def detect(detector: Detector, folder: ImageFolder, settings: Settings, device: torch.device) -> tuple[Results, list[report.Panel]]:
    """Anomaly maps and scores of all pictures."""
    data, size = settings.data, round(settings.metrics.centre_crop * settings.data.image_size)
    paths: list[str] = []
    labels: list[bool] = []
    maps: list[Tensor] = []
    masks: list[Tensor] = []
    panels: list[report.Panel] = []

    def steps() -> Iterator[Progress]:
        batches = mapped_batches(detector, folder, draws_for(settings, device), device, data.test_batch_size, settings.model.num_workers)
        for batch in batches:
            anomaly = detector.anomaly_map(batch.d_feature, batch.d_pixel)
            maps.append(center_crop(anomaly, [size, size]).squeeze(1).cpu())
            paths.extend(item.path for item in batch.items)
            labels.extend(item.label for item in batch.items)
            if data.mask:
                masks.append(center_crop(masks_of(batch.items, data.image_size), [size, size]))
            if settings.metrics.visualisation:
                panels.extend(panels_of(batch, anomaly, maps[-1].amax(dim=(1, 2))))
            yield Progress(len(paths))

    for _ in runtime.follow(steps(), len(folder), "detecting", "picture"):
        pass
    stacked = torch.cat(maps).numpy()
    if not np.isfinite(stacked).all():
        raise ValueError(f"the anomaly maps are not finite; lower model.w, {detector.w}, or model.v, {detector.v}, or train again")
    return Results(paths, np.array(labels), stacked.max(axis=(1, 2)), stacked, torch.cat(masks).numpy() if masks else None), panels


def masks_of(items: list[Item], size: int) -> Tensor:
    """(B, size, size); nothing is defective where an item has no mask."""
    return torch.stack([torch.zeros(size, size, dtype=torch.bool) if item.mask is None else torch.from_numpy(item.mask) for item in items])


def mean(tensors: list[Tensor]) -> Tensor:
    return torch.stack(tensors).mean(dim=0)


def panels_of(batch: Mapped, anomaly: Tensor, scores: Tensor) -> Iterator[report.Panel]:
    maps = torch.cat([batch.d_pixel, batch.d_feature, anomaly], dim=1).half().cpu().numpy()
    pictures, reconstructions = batch.pictures.cpu(), batch.reconstructions.cpu()
    for item, score, x, x_0, (d_pixel, d_feature, a) in zip(batch.items, scores, pictures, reconstructions, maps, strict=True):
        yield report.Panel(item.path, score.item(), report.as_pixels(x), report.as_pixels(x_0), d_pixel, d_feature, a, item.mask)


def evaluate(results: Results, settings: Settings) -> dict[str, float]:
    """The metrics that were asked for and that the data allow, as fractions."""
    figures = {}
    for metric in asked_for(settings):
        values, truth = (results.scores, results.labels) if metric.of == "pictures" else (results.maps, results.masks)
        if truth is not None and truth.any() and not truth.all():
            figures[metric.key] = metric.measure(values, truth)
    return figures


def metric_lines(figures: dict[str, float], settings: Settings) -> Iterator[str]:
    """One line a metric, in percent, with a word on why one is missing."""
    for metric in asked_for(settings):
        if metric.key in figures:
            yield f"  {metric.name:18}{100 * figures[metric.key]:5.1f} %"
        elif metric.of == "pixels" and not settings.data.mask:
            yield f"  {metric.name:18}    – (no masks: data.mask is False)"
        else:
            yield f"  {metric.name:18}    – (needs normal and defective {metric.of} in test)"


def asked_for(settings: Settings) -> list[Metric]:
    return [metric for metric in METRICS if getattr(settings.metrics, metric.asked_by)]
