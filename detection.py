"""Stage 3: reconstruct each test picture, map what changed, score it and say how well defects were found (sections 4.1, 4.2 and 5)."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.transforms.functional import center_crop

import checkpoint
import metrics
import report
import runtime
from anomaly_map import combine, feature_distance, pixel_distance, smooth
from config import Settings
from dataset import ImageFolder, masks_or_empty
from ddad import NoiseSchedule, gaussian_draws, reconstruct
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

    def reconstruct(self, pictures: Tensor, draw: Callable[[], Tensor]) -> Tensor:
        """The pictures (B, C, H, W) as they would be without defects: started from and pulled towards themselves."""
        return reconstruct(self.unet, pictures, pictures, schedule=self.schedule, w=self.w, start=self.start, skip=self.skip, eta=self.eta, draw=draw)

    @torch.no_grad()
    def distances(self, pictures: Tensor, reconstructions: Tensor) -> tuple[Tensor, Tensor]:
        """D_f and D_p, each (B, 1, H, W)."""
        d_feature = feature_distance(self.extractor(pictures), self.extractor(reconstructions), pictures.shape[-1])
        return d_feature, pixel_distance(reconstructions, pictures)

    def anomaly_map(self, d_feature: Tensor, d_pixel: Tensor) -> Tensor:
        """(B, 1, H, W); D_f and D_p balanced by their maxima over the batch, as published."""
        return smooth(combine(d_feature, d_pixel, self.v), self.blur_sigma)


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


def detect(detector: Detector, pictures: ImageFolder, settings: Settings, device: torch.device) -> tuple[Results, list[report.Panel]]:
    """Anomaly maps and scores of all pictures, batch by batch; one stream of noise for all, as published."""
    generator = torch.Generator(device).manual_seed(settings.model.seed)
    size = round(settings.metrics.centre_crop * settings.data.image_size)
    paths: list[str] = []
    labels: list[bool] = []
    maps, masks = [], []
    panels: list[report.Panel] = []

    def steps() -> Iterator[Progress]:
        for items in pictures.batches(settings.data.test_batch_size, settings.model.num_workers):
            batch = torch.stack([item.picture for item in items]).to(device)
            reconstructions = detector.reconstruct(batch, gaussian_draws(batch.shape, generator))
            d_feature, d_pixel = detector.distances(batch, reconstructions)
            anomaly = detector.anomaly_map(d_feature, d_pixel)
            paths.extend(item.path for item in items)
            labels.extend(item.label for item in items)
            maps.append(center_crop(anomaly, [size, size]).squeeze(1).cpu().numpy())
            if settings.data.mask:
                whole = masks_or_empty(items, settings.data.image_size)
                masks.append(center_crop(torch.from_numpy(whole), [size, size]).numpy())
            if settings.metrics.visualisation:
                stack = torch.cat([d_pixel, d_feature, anomaly], dim=1).half().cpu().numpy()
                panels.extend(
                    report.Panel(item.path, report.as_pixels(x), report.as_pixels(x_0), d_p, d_f, a, item.mask)
                    for item, x, x_0, (d_p, d_f, a) in zip(items, batch.cpu(), reconstructions.cpu(), stack, strict=True)
                )
            yield Progress(len(paths))

    for _ in runtime.follow(steps(), len(pictures), "detecting", "picture"):
        pass
    stacked = np.concatenate(maps)
    return Results(paths, np.array(labels), stacked.max(axis=(1, 2)), stacked, np.concatenate(masks) if masks else None), panels


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
