"""Stage 3: reconstruct each test picture, map what changed, score it and say how well defects were found (sections 4.1, 4.2 and 5)."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

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
from dataset import ImageFolder, Item, masks_or_empty
from ddad import NoiseSchedule, gaussian_draws, picture_draws, reconstruct
from runtime import Progress


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
    balance: float | None = None

    def reconstruct(self, pictures: Tensor, draw: Callable[[], Tensor]) -> Tensor:
        """The pictures (B, C, H, W) as they would be without defects: started from and pulled towards themselves."""
        return reconstruct(self.unet, pictures, pictures, schedule=self.schedule, w=self.w, start=self.start, skip=self.skip, eta=self.eta, draw=draw)

    @torch.no_grad()
    def distances(self, pictures: Tensor, reconstructions: Tensor) -> tuple[Tensor, Tensor]:
        """D_f and D_p, each (B, 1, H, W)."""
        d_feature = feature_distance(self.extractor(pictures), self.extractor(reconstructions), pictures.shape[-1])
        return d_feature, pixel_distance(reconstructions, pictures)

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


def run(settings: Settings, output: Path | None = None) -> None:
    """Score the test pictures and leave scores.csv, metrics.json and the figures in `output` (results/<exp_name>/<category>)."""
    data, model = settings.data, settings.model
    output = output or Path("results") / model.exp_name / data.category
    device = runtime.choose_device(model.device)
    torch.manual_seed(model.seed)
    folder = Path(model.checkpoint_dir) / data.category
    pictures = ImageFolder(data.data_dir / data.category, "test", data.image_size, data.input_channel, masks=data.mask)
    weights = checkpoint.find(folder, model.load_chp)
    unet = checkpoint.restore_unet(weights, settings.unet_arguments())
    extractor, origin = checkpoint.restore_features(folder, model.DA_chp, model.feature_extractor, model.backbone_weights)
    writer = report.Writer(output)
    runtime.announce(
        f"Detecting defects of {data.category}",
        device,
        settings.as_dict(),
        {
            "reads": f"{data.data_dir / data.category / 'test'} ({len(pictures)} pictures)",
            "unet": weights,
            "features": origin,
            "writes": output,
        },
    )
    detector = Detector(
        unet.to(device).eval(),
        extractor.to(device).eval(),
        NoiseSchedule(model.trajectory_steps, model.beta_start, model.beta_end),
        w=model.w,
        v=model.v,
        start=model.test_trajectoy_steps,
        skip=model.skip,
        eta=model.eta,
        blur_sigma=model.blur_sigma,
    )
    began = time.monotonic()
    if settings.score.protocol == "per_image":
        detector = replace(detector, balance=calibrated_balance(detector, settings, folder, device))
    results, panels = detect(detector, pictures, settings, device)
    writer.scores(results.paths, results.labels, results.scores)
    figures = evaluate(results, settings)
    writer.metrics(figures)
    if settings.metrics.misclassifications and "image_auroc" in figures:
        writer.misclassifications(results.paths, results.labels, results.scores, metrics.youden_threshold(results.scores, results.labels))
    if settings.metrics.visualisation:
        writer.figures(panels)
    seconds = time.monotonic() - began
    side = results.maps.shape[-1]
    print(
        f"{data.category}: {len(pictures)} pictures ({np.count_nonzero(~results.labels)} normal, {np.count_nonzero(results.labels)} defective) "
        f"in {seconds:.0f} s, scored on the centre {side} of {data.image_size} pixels"
    )
    for line in metric_lines(figures, settings):
        print(line)
    print(f"results in {output}: {', '.join(writer.written)}", flush=True)


@dataclass(frozen=True)
class Mapped:
    """A batch of items on its way: pictures and reconstructions (B, C, S, S), D_f and D_p (B, 1, S, S)."""

    items: list[Item]
    pictures: Tensor
    reconstructions: Tensor
    d_feature: Tensor
    d_pixel: Tensor


def mapped_batches(detector: Detector, folder: ImageFolder, settings: Settings, device: torch.device) -> Iterator[Mapped]:
    """Distances of all pictures, batch by batch. The noise follows from each picture, or (published) is one stream for all."""
    stream = torch.Generator(device).manual_seed(settings.model.seed)
    for items in folder.batches(settings.data.test_batch_size, settings.model.num_workers):
        pictures = torch.stack([item.picture for item in items]).to(device)
        published = settings.score.protocol == "published"
        draw = gaussian_draws(pictures.shape, stream) if published else picture_draws(pictures, settings.model.seed)
        reconstructions = detector.reconstruct(pictures, draw)
        yield Mapped(items, pictures, reconstructions, *detector.distances(pictures, reconstructions))


def calibrated_balance(detector: Detector, settings: Settings, folder: Path, device: torch.device) -> float:
    """The balance kept in the category's checkpoint folder, if it is of these networks and settings; else measured on train/good and kept."""
    data, model, count = settings.data, settings.model, settings.score.normal_pictures
    matters = {name: getattr(detector, name) for name in ("w", "start", "skip", "eta", "blur_sigma")}
    matters |= {"image_size": data.image_size, "seed": model.seed, "normal_pictures": count}
    matters |= {"schedule": [model.trajectory_steps, model.beta_start, model.beta_end]}
    fingerprint = calibration.fingerprint([detector.unet, detector.extractor], matters)
    kept = checkpoint.load_calibration(folder)
    if kept is not None and kept.fingerprint == fingerprint:
        print(f"balance of D_f and D_p: {kept.balance:.4g}, from {folder / checkpoint.CALIBRATION}", flush=True)
        return kept.balance
    normal = ImageFolder(data.data_dir / data.category, "train", data.image_size, data.input_channel).thinned(count)
    top_feature: list[Tensor] = []
    top_pixel: list[Tensor] = []

    def steps() -> Iterator[Progress]:
        for batch in mapped_batches(detector, normal, settings, device):
            top_feature.append(smooth(batch.d_feature, detector.blur_sigma).amax(dim=(1, 2, 3)).cpu())
            top_pixel.append(smooth(batch.d_pixel, detector.blur_sigma).amax(dim=(1, 2, 3)).cpu())
            yield Progress(sum(len(tops) for tops in top_pixel))

    for _ in runtime.follow(steps(), len(normal), "calibrating", "picture"):
        pass
    balance = calibration.normal_balance(torch.cat(top_feature), torch.cat(top_pixel))
    try:
        checkpoint.save_calibration(folder, Calibration(balance, len(normal), fingerprint))
    except OSError as error:
        print(f"the balance is not kept: {error}")
    print(f"balance of D_f and D_p: {balance:.4g}, measured on {len(normal)} pictures of train/good", flush=True)
    return balance


def detect(detector: Detector, folder: ImageFolder, settings: Settings, device: torch.device) -> tuple[Results, list[report.Panel]]:
    """Anomaly maps and scores of all pictures."""
    size = round(settings.metrics.centre_crop * settings.data.image_size)
    items: list[Item] = []
    maps: list[NDArray[np.float32]] = []
    panels: list[report.Panel] = []

    def steps() -> Iterator[Progress]:
        for batch in mapped_batches(detector, folder, settings, device):
            anomaly = detector.anomaly_map(batch.d_feature, batch.d_pixel)
            maps.append(center_crop(anomaly, [size, size]).squeeze(1).cpu().numpy())
            if settings.metrics.visualisation:
                panels.extend(panels_of(batch, anomaly))
            items.extend(item._replace(picture=item.picture[:0]) for item in batch.items)  # pictures would fill the memory
            yield Progress(len(items))

    for _ in runtime.follow(steps(), len(folder), "detecting", "picture"):
        pass
    stacked = np.concatenate(maps)
    if not np.isfinite(stacked).all():
        raise ValueError(f"the anomaly maps are not finite; lower model.w, {detector.w}, or model.v, {detector.v}, or train again")
    masks = None
    if settings.data.mask:
        masks = center_crop(torch.from_numpy(masks_or_empty(items, settings.data.image_size)), [size, size]).numpy()
    labels = np.array([item.label for item in items])
    return Results([item.path for item in items], labels, stacked.max(axis=(1, 2)), stacked, masks), panels


def panels_of(batch: Mapped, anomaly: Tensor) -> Iterator[report.Panel]:
    maps = torch.cat([batch.d_pixel, batch.d_feature, anomaly], dim=1).half().cpu().numpy()
    for item, picture, reconstruction, (d_pixel, d_feature, a) in zip(
        batch.items, batch.pictures.cpu(), batch.reconstructions.cpu(), maps, strict=True
    ):
        yield report.Panel(item.path, report.as_pixels(picture), report.as_pixels(reconstruction), d_pixel, d_feature, a, item.mask)


def evaluate(results: Results, settings: Settings) -> dict[str, float]:
    """The metrics that were asked for and that the labels allow, as fractions."""
    figures = {}
    if settings.metrics.auroc and 0 < results.labels.sum() < len(results.labels):
        figures["image_auroc"] = metrics.image_auroc(results.scores, results.labels)
    if results.masks is not None and results.masks.any() and not results.masks.all():
        if settings.metrics.auroc:
            figures["pixel_auroc"] = metrics.pixel_auroc(results.maps, results.masks)
        if settings.metrics.pro:
            figures["pro"] = metrics.pro(results.maps, results.masks)
    return figures


def metric_lines(figures: dict[str, float], settings: Settings) -> Iterator[str]:
    """One line a metric, in percent, with a word on why one is missing."""
    asked = {"image_auroc": settings.metrics.auroc, "pixel_auroc": settings.metrics.auroc, "pro": settings.metrics.pro}
    names = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "pro": "PRO"}
    for metric in (metric for metric, wanted in asked.items() if wanted):
        if metric in figures:
            yield f"  {names[metric]:12} {100 * figures[metric]:5.1f} %"
        elif metric != "image_auroc" and not settings.data.mask:
            yield f"  {names[metric]:12}     – (no masks: data.mask is False)"
        else:
            yield f"  {names[metric]:12}     – (needs normal and defective {'pictures' if metric == 'image_auroc' else 'pixels'} in test)"
