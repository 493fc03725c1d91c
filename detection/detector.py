"""The detector: it reconstructs pictures, maps the differences, scores them and decides (sections 4.1 and 4.2)."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import center_crop

from anomaly_map import MAXIMUM, Region, batch_ratio, combine, find_regions, image_score, resize_maps, smooth
from config.keys import AUTO, Settings
from config.load import build_settings
from dataset import SQUARE, ImageFolder, Item, View, to_unit_range
from ddad import gaussian_draws, picture_draws
from detection import reference
from detection.calibration_file import CALIBRATION, REFERENCES, load_calibration
from detection.comparison import Comparison, Networks, largest_batch, prepare_features, prepare_network
from detection.reference import Reference, Scale
from detection.threshold import Calibration
from feature_extractor import FeatureExtractor
from images.read import as_image
from images.tiles import cut_tiles, merge_tiles
from runtime.device import choose_device, free_memory
from runtime.distributed import ALONE, Group
from runtime.errors import MissingFileError, UserError
from storage.fingerprint import as_stored
from training import checkpoint
from training.fit import stored_fit, with_fit
from training.networks import build_schedule

LARGEST_BATCH = {"cuda": 64, "cpu": 8, "mps": 8}  # pictures; more are no faster
SLACK = 1.1  # of the pixels of a batch: pictures in proportions have up to 7 % more pixels than squares
NO_RECONSTRUCTION = torch.empty(0)

Draw = Callable[[], Tensor]
Parts = dict[str, Tensor]  # D_f, D_p and distances of memory parts, by name
NoiseSource = Callable[[Tensor, torch.Size], Draw]  # (pictures (B, C, H, W), shape of the noise) → draw()
Origins = dict[str, object]
Picture = Image.Image | np.ndarray | str | Path
Thing = TypeVar("Thing")
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Detection:
    """The verdict on one picture; `map` and `mask` are (H, W) in its own size.

    The map is resized after scoring: the score and the regions' peaks may exceed the map's maximum in a small picture.
    """

    score: float
    p_value: float  # share of normal pictures that score at least as high
    is_anomalous: bool
    map: NDArray[np.float32]  # pixel scores
    mask: NDArray[np.bool_]  # true in the regions
    regions: list[Region]  # none in a normal picture, at least one in an anomalous one


class Prediction(NamedTuple):
    """The reconstruction (C, H, W) and maps (H, W) of one picture, and the image score, pooled within the crop."""

    reconstruction: Tensor
    d_feature: Tensor
    d_pixel: Tensor
    anomaly: Tensor
    score: float


@dataclass(frozen=True)
class Detector:
    """Detects defects: `Detector.load(folder)` reads a checkpoint folder, `detector(picture)` returns a `Detection`.

    The anomaly map is the paper's, or fuses the `parts` (reference.py). Without a calibration, the maxima of a batch
    balance D_f and D_p, as published, and `detect` raises UserError.
    """

    networks: Networks
    view: View
    v: float
    blur_sigma: float
    crop: float
    seed: int
    batch_size: int
    device: torch.device
    parts: tuple[str, ...] = ()
    pooling: str = MAXIMUM
    pooled_share: float = 0.01
    calibration: Calibration | None = None
    false_positive_rate: float = 0.01

    @classmethod
    def load(cls, folder: str | Path, device: str = AUTO) -> "Detector":
        """Return the calibrated detector of a category's checkpoint folder.

        The folder may be moved. A file named in model.backbone_weights must stay where it was.
        Raise MissingFileError where there is no calibration, UserError where it belongs to other weights.
        """
        folder, remedy = Path(folder), "run python main.py --detection True"
        calibration = load_calibration(folder)
        if calibration is None:
            missing = f"no {CALIBRATION} of this version in {folder}, or not the {REFERENCES} that belong to it"
            raise MissingFileError(f"{missing}; {remedy} first")
        settings = build_settings(calibration.settings)
        detector, *_ = load_detector(settings, folder, choose_device(device))
        if stale := calibration.staleness(calibration_inputs(detector, settings)):
            raise UserError(f"{folder / CALIBRATION} is stale: {stale}; {remedy} to measure it again")
        return replace(detector, calibration=calibration)

    def __call__(self, picture: Picture) -> Detection:
        """Return the verdict on one picture."""
        return self.detect([picture])[0]

    def detect(self, pictures: Sequence[Picture]) -> list[Detection]:
        """Return a verdict on each picture. Only the last digits of a score depend on the batch.

        Pictures are PIL images, arrays (H, W) of 8 or 16 bits or (H, W, 3 or 4) of 8 bits, or paths.
        Raise UserError for anything else, and without a calibration.
        """
        detections, size, noise = [], self.pictures_per_batch, self.picture_noise
        for first in range(0, len(pictures), size):
            images = [as_image(picture, self.view.channels) for picture in pictures[first : first + size]]
            batch = [to_unit_range(self.view.pixels(image)) for image in images]
            shapes = [picture.shape for picture in batch]
            predictions = self.by_shape(batch, lambda part: self.predict_batch(torch.stack(part), noise), shapes)
            pairs = zip(predictions, images, strict=True)
            detections += [self.decide(prediction, image.size) for prediction, image in pairs]
        return detections

    @property
    def pictures_per_batch(self) -> int:
        """Return the number of pictures in a batch: one if pictures are tiled, as their shapes differ."""
        return self.batch_size if self.view.tiles is None else 1

    def by_shape(
        self, things: Sequence[Thing], work: Callable[[list[Thing]], list[Result]], shapes: Sequence[torch.Size]
    ) -> list[Result]:
        """Return the results of `work` on those of one shape (C, H, W) at a time, in the order of the things.

        They have as many pixels as a batch of squares, at most SLACK more, or are a single picture.
        """
        results: dict[int, Result] = {}
        for shape in dict.fromkeys(shapes):
            places = [place for place, other in enumerate(shapes) if other == shape]
            most = max(1, int(SLACK * self.batch_size * self.view.size**2 / math.prod(shape[-2:])))
            for first in range(0, len(places), most):
                part = places[first : first + most]
                results.update(zip(part, work([things[place] for place in part]), strict=True))
        return [results[place] for place in range(len(things))]

    @property
    def required_calibration(self) -> Calibration:
        """Return the calibration. Raise UserError where there is none."""
        if self.calibration is None:
            remedy = "load it by Detector.load(folder), or set score.protocol=per_image"
            raise UserError(f"the detector has no calibration, hence no threshold; {remedy}")
        return self.calibration

    @property
    def threshold(self) -> float:
        """Return the image score above which a picture is anomalous."""
        return self.required_calibration.threshold(self.false_positive_rate)

    @property
    def pixel_threshold(self) -> float:
        """Return the pixel score above which pixels belong to a region, if the region's peak exceeds `threshold`."""
        return self.required_calibration.pixel_threshold(self.false_positive_rate)

    def decide(self, prediction: Prediction, size: tuple[int, int]) -> Detection:
        """Return the verdict on a picture of `size` (width, height)."""
        calibration, shape, anomaly = self.required_calibration, size[::-1], prediction.anomaly[None, None]
        outside = min(0.0, self.threshold, self.pixel_threshold)  # no defects outside the scored area
        scored = torch.full_like(anomaly, outside)
        self.crop_maps(scored).copy_(self.crop_maps(anomaly))
        is_anomalous = prediction.score > self.threshold
        peaks = F.adaptive_max_pool2d(scored, shape)[0, 0]  # a resize might lose them
        above = (resize_maps(scored, shape)[0, 0] > self.pixel_threshold) | (peaks > self.threshold)
        mask, regions = find_regions(peaks.numpy(), above.numpy() & is_anomalous, self.threshold)
        p_value, resized = calibration.p_value(prediction.score), resize_maps(anomaly, shape)[0, 0].numpy()
        return Detection(prediction.score, p_value, is_anomalous, resized, mask, regions)

    def predict_batch(self, pictures: Tensor, noise: NoiseSource) -> list[Prediction]:
        """Return predictions for pictures (B, C, H, W) in [−1, 1]; uncalibrated D_f and D_p use batch maxima."""
        comparison, calibration = self.compare_batch(pictures, noise), self.calibration
        parts = self.measure_parts(comparison, self.required_calibration.references if self.parts else {})
        ratio = calibration.balance if calibration else batch_ratio(parts["feature"], parts["pixel"])
        scales = calibration.scales if calibration else {}
        pairs = zip(split_parts(parts), comparison.reconstruction, strict=True)
        return [self.assemble(of_picture, ratio, scales, rebuilt) for of_picture, rebuilt in pairs]

    def compare_batch(self, pictures: Tensor, noise: NoiseSource) -> Comparison:
        """Compare pictures (B, C, H, W) with reconstructions, which are made at the UNet's size, tile by tile."""
        pictures = pictures.to(self.device)
        seen, rebuilt = (self.rebuild if self.view.tiles is None else self.rebuild_squares)(pictures, noise)
        return self.networks.compare(pictures, seen, rebuilt, self.parts)

    def rebuild(self, pictures: Tensor, noise: NoiseSource) -> tuple[Tensor, Tensor]:
        """Return the pictures at the UNet's scale (B, C, h, w), and reconstructions (draws, B, C, h, w)."""
        extent = pictures.shape[-2:]
        tile = self.view.tile(*extent)
        small = self.networks.unet_shape(tile, self.view)
        seen = resize_maps(
            pictures, [round(side * less / more) for side, less, more in zip(extent, small, tile, strict=True)]
        )
        draw = noise(pictures, seen.shape)  # tiles that overlap share it
        rebuilt = self.networks.reconstruct(cut_tiles(seen, small), lambda: cut_tiles(draw(), small))
        return seen, merge_tiles(rebuilt, seen.shape)

    def rebuild_squares(self, pictures: Tensor, noise: NoiseSource) -> tuple[Tensor, Tensor]:
        """Return what `rebuild` does for data.tiles: square tiles, each with its own noise, merged in full size."""
        tile = self.view.tile(*pictures.shape[-2:])
        small = self.networks.unet_shape(tile, self.view)
        tiles = cut_tiles(pictures, tile)
        seen = resize_maps(tiles, small)
        passes = zip(tiles.split(self.batch_size), seen.split(self.batch_size), strict=True)
        rebuilt = torch.cat([self.networks.reconstruct(x, noise(part, x.shape)) for part, x in passes], dim=1)
        if pictures.shape[-2:] == tile:
            return pictures if small == tile else seen, rebuilt
        enlarged = resize_maps(rebuilt.flatten(0, 1), tile).unflatten(0, rebuilt.shape[:2])
        merged = merge_tiles(resize_maps(seen, tile), pictures.shape)
        return pictures if small == tile else merged, merge_tiles(enlarged, pictures.shape)

    def measure_parts(self, comparison: Comparison, references: Mapping[str, Reference]) -> Parts:
        """Return D_f, D_p and the memory parts that have a reference, each (B, 1, h, w)."""
        kinds = {part: kind for part, kind in reference.DESCRIBED_BY.items() if part in references}
        memory = {part: references[part].distance(comparison.descriptors[kind]) for part, kind in kinds.items()}
        return comparison.distances | memory

    def assemble(
        self, parts: Parts, ratio: float | Tensor, scales: dict[str, Scale], reconstruction: Tensor = NO_RECONSTRUCTION
    ) -> Prediction:
        """Return a picture's prediction: D_f and D_p combined by `ratio`, or parts (1, 1, h, w) fused by `scales`."""
        shape = parts["pixel"].shape[-2:]
        if self.parts:
            smoothed = {part: smooth(resize_maps(parts[part], shape), self.blur_sigma) for part in scales}
            units = {part: scale.units(smoothed[part]) for part, scale in scales.items()}
            anomaly = reference.fuse_parts(units, self.crop_maps)
        else:
            anomaly = smooth(combine(parts["feature"], parts["pixel"], self.v, ratio), self.blur_sigma)
        if not torch.isfinite(anomaly).all():
            remedy = f"lower model.w, {self.networks.w}, or model.v, {self.v}, or train again"
            raise UserError(f"the anomaly maps are not finite; {remedy}")
        score = image_score(self.crop_maps(anomaly), self.pooling, self.pooled_share)
        d_feature, d_pixel, anomaly = (maps[0, 0].cpu() for maps in (parts["feature"], parts["pixel"], anomaly))
        return Prediction(reconstruction.cpu(), d_feature, d_pixel, anomaly, score)

    def crop_maps(self, maps: Tensor) -> Tensor:
        """Return a view of the centre of maps (…, H, W), the scored area."""
        return center_crop(maps, [round(self.crop * extent) for extent in maps.shape[-2:]])

    def picture_noise(self, pictures: Tensor, shape: torch.Size) -> Draw:
        """Return draw(), whose noise depends only on each picture and the seed."""
        return picture_draws(pictures, self.seed, shape[1:])


def split_parts(parts: Parts) -> list[Parts]:
    """Return each picture's parts (1, 1, h, w), from those of a batch (B, 1, h, w)."""
    return [{part: maps[i : i + 1] for part, maps in parts.items()} for i in range(len(parts["pixel"]))]


def load_detector(settings: Settings, folder: Path, device: torch.device) -> tuple[Detector, Settings, Origins]:
    """Return a folder's uncalibrated detector, the settings without `auto` and `latest`, and the weights' origins."""
    model = settings.model
    weights = checkpoint.find_weights(folder, model.load_chp)
    if settings.data.fit == AUTO:
        settings = with_fit(settings, stored_fit(folder, checkpoint.epoch_of(weights)) or SQUARE)
    unet = checkpoint.restore_unet(weights, settings)
    name, backbone = model.feature_extractor, model.backbone_weights
    extractor, origin = checkpoint.restore_features(folder, model.DA_chp, name, backbone)
    epochs = [checkpoint.epoch_of(path) if isinstance(path, Path) else 0 for path in (weights, origin)]
    model = replace(model, load_chp=epochs[0], DA_chp=epochs[1], feature_extractor=extractor.name)
    settings = replace(settings, model=replace(model, backbone_weights=backbone and backbone.resolve()))
    origins: Origins = {"unet": weights, "features": f"{extractor.name} from {origin}"}
    return build_detector(settings, unet, extractor, device), settings, origins


def build_detector(settings: Settings, unet: nn.Module, extractor: FeatureExtractor, device: torch.device) -> Detector:
    """Return the detector of these networks and settings, not calibrated yet."""
    model, score, view = settings.model, settings.score, View(**settings.view_arguments())
    unet, features = prepare_network(unet, device), prepare_features(extractor, view, device)
    sampling = (model.w, model.test_trajectoy_steps, model.skip, model.eta, score.draws)
    precision, size = settings.speed.detection_precision, settings.unet_size
    networks = Networks(unet, features, build_schedule(settings), *sampling, precision, size, model.predicts)
    most = largest_batch(networks, view, free_memory(device), LARGEST_BATCH[device.type])
    batch_size, crop = settings.data.test_batch_size or most, settings.metrics.centre_crop
    scoring = (score.parts or (), score.pooling, score.pooled_share)
    detector = Detector(networks, view, model.v, model.blur_sigma, crop, model.seed, batch_size, device, *scoring)
    return replace(detector, false_positive_rate=settings.calibration.false_positive_rate)


def calibration_inputs(detector: Detector, settings: Settings) -> dict[str, object]:
    """Return what a score depends on, except the picture and the batch size, in the form that files store."""
    of_networks = ("w", "start", "skip", "eta", "draws", "precision", "size", "predicts")
    of_detector = ("v", "blur_sigma", "crop", "seed", "parts", "pooling", "pooled_share")
    inputs = {name: getattr(detector.networks, name) for name in of_networks}
    inputs |= {name: getattr(detector, name) for name in of_detector}
    inputs |= {"view": settings.view_arguments(), "schedule": settings.schedule_arguments()}
    inputs |= {"pictures": settings.calibration.pictures, "weights": detector.networks.hash()}
    return as_stored(inputs)


def predict_pictures(
    detector: Detector, folder: ImageFolder, noise: NoiseSource, workers: int, group: Group = ALONE
) -> Iterator[tuple[Item, Prediction]]:
    """Yield all pictures of a folder with their predictions."""
    return map_batches(detector, folder, lambda pictures: detector.predict_batch(pictures, noise), workers, group)


def map_batches(
    detector: Detector, folder: ImageFolder, work: Callable[[Tensor], list[Result]], workers: int, group: Group = ALONE
) -> Iterator[tuple[Item, Result]]:
    """Yield all pictures with the results of `work` on batches (B, C, H, W), which the processes share."""
    size = group.broadcast(detector.pictures_per_batch)
    batches = folder.only(group.own_share_of(folder.names(), size)).batches(size, workers)
    for _ in range(math.ceil(len(folder) / (group.size * size))):
        items = next(batches, [])  # the last processes may have a batch less
        shapes = [item.picture.shape for item in items]
        results = detector.by_shape(items, lambda part: work(torch.stack([item.picture for item in part])), shapes)
        yield from group.gather(list(zip(items, results, strict=True)))


def stream_noise(seed: int, device: torch.device) -> NoiseSource:
    """Return one stream of noise for all pictures, as published."""
    stream = torch.Generator(device).manual_seed(seed)
    return lambda _, shape: gaussian_draws(shape, stream)
