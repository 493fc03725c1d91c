"""The detector: it reconstructs pictures, maps the differences, scores them and decides (sections 4.1 and 4.2)."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
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
from config.keys import AUTO, MEASURED, PLANNED, SEED, TRAIN, Settings
from config.load import build_settings
from dataset import SQUARE, ImageFolder, Item, View, to_unit_range
from ddad import gaussian_draws, picture_draws, seeded_draws
from detection import bundle, reference
from detection.calibration_file import CALIBRATION, REFERENCES, REGION, load_widest_calibration
from detection.comparison import Comparison, Networks, largest_batch
from detection.operating_points import operating_rows
from detection.reference import Reference, Scale
from detection.threshold import Calibration
from feature_extractor import FeatureExtractor
from images.read import RGB, as_image
from images.region import JudgedRegion, read_region
from images.tiles import cut_tiles, merge_tiles
from reports.operating_table import OperatingRow
from runtime.device import choose_device, free_memory
from runtime.distributed import ALONE, Group
from runtime.errors import MissingFileError, UserError
from storage.fingerprint import as_stored
from training import checkpoint
from training.feature_space import FeatureSpace
from training.fit import Fit, stored_fit, with_fit
from training.networks import build_schedule, prepare_features, prepare_network

LARGEST_BATCH = {"cuda": 64, "cpu": 8, "mps": 8}  # pictures; more are no faster
SLACK = 1.1  # of the pixels of a batch: pictures in proportions have up to 7 % more pixels than squares
DETECT = "run python main.py --detection True"
NO_RECONSTRUCTION = torch.empty(0)

Draw = Callable[[], Tensor]
Parts = dict[str, Tensor]  # D_f, D_p and distances of memory parts, by name
NoiseSource = Callable[[Tensor, torch.Size], Draw]  # (pictures (B, C, H, W), shape of the noise) → draw()
Origins = dict[str, object]
Picture = Image.Image | np.ndarray | Tensor | str | Path
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
    """The reconstruction (C, H, W) and maps (H, W) of one picture, and the image score, pooled in the scored area."""

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
    region: JudgedRegion | None = None
    noise: str | None = None  # SEED: `seed` alone decides the noise; None: a picture's content does too

    @classmethod
    def load(cls, folder: str | Path, device: str = AUTO) -> "Detector":
        """Return the calibrated detector of a category's checkpoint folder, or of a file that --export wrote.

        The folder may be moved: it holds a copy of data.region. A file named in model.backbone_weights must stay.
        Raise MissingFileError where there is no calibration, UserError where it belongs to other weights.
        """
        path, chosen = Path(folder), choose_device(device)
        is_file = path.is_file()
        detector, settings, calibration = load_file(path, chosen) if is_file else load_folder(path, chosen)
        if stale := calibration.staleness(calibration_inputs(detector, settings)):
            place, remedy = (path, bundle.REMEDY) if is_file else (path / CALIBRATION, f"{DETECT} to measure it again")
            raise UserError(f"{place} is stale: {stale}; {remedy}")
        return replace(detector, calibration=calibration)

    def save(self, path: str | Path) -> None:
        """Write the calibrated detector into one file, which `load` reads on any machine."""
        networks = self.networks
        bundle.write_bundle(Path(path), networks, self.required_calibration, self.region)

    def __call__(self, picture: Picture, channels: str = RGB) -> Detection:
        """Return the verdict on one picture, which may be anything that `detect` takes."""
        return self.detect([picture], channels)[0]

    def detect(self, pictures: Sequence[Picture], channels: str = RGB) -> list[Detection]:
        """Return a verdict on each picture. Only the last digits of a score depend on the batch.

        A picture is a path, a PIL image, or an array or tensor: (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels.
        Its values are whole numbers of 8 or 16 bits, or floats, whose white is the smallest of 1, 255 and 65535 that
        holds them. `channels` is the order of an array's colours, "rgb" or, as OpenCV has it, "bgr".
        Where EXIF data turn a file or PIL image, map, mask and boxes fit the turned picture.
        Raise UserError for anything else, and without a calibration.
        """
        detections, size = [], self.pictures_per_batch
        for first in range(0, len(pictures), size):
            chosen, view = pictures[first : first + size], self.view
            images = [as_image(picture, view.channels, view.bits, order=channels) for picture in chosen]
            predictions = self.predict([to_unit_range(view.pixels(image)) for image in images])
            pairs = zip(predictions, images, strict=True)
            detections += [self.decide(prediction, image.size) for prediction, image in pairs]
        return detections

    def with_member(self, member: int) -> "Detector":
        """Return this detector with one member of its network."""
        unet = self.networks.unet.get_submodule(f"members.{member}")
        return replace(self, networks=replace(self.networks, unet=unet))

    @property
    def pictures_per_batch(self) -> int:
        """Return the number of pictures in a batch: one if pictures are tiled, as their shapes differ."""
        return self.batch_size if self.view.tiles is None else 1

    def by_shape(
        self, things: Sequence[Thing], work: Callable[[list[Thing]], list[Result]], shapes: Sequence[torch.Size]
    ) -> list[Result]:
        """Return the results of `work` on those of one shape (C, H, W) at a time, in the order of the things.

        They have as many pixels as a batch of squares, at most SLACK more, or are a single picture. Of several shapes,
        their number is a power of 2: a process that keeps memory reuses it for few sizes only.
        """
        results, kinds = dict[int, Result](), dict.fromkeys(shapes)
        for shape in kinds:
            places = [place for place, other in enumerate(shapes) if other == shape]
            most = max(1, int(SLACK * self.batch_size * self.view.size**2 / math.prod(shape[-2:])))
            while places:
                count = min(most, len(places))
                count = count if len(kinds) == 1 else 1 << (count.bit_length() - 1)
                part, places = places[:count], places[count:]
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
    def operating_points(self) -> list[OperatingRow]:
        """Return threshold and promise of the usual false-alarm rates and of the one in use."""
        return operating_rows(self.required_calibration, self.false_positive_rate)

    def at_rate(self, false_positive_rate: float) -> "Detector":
        """Return this detector with the thresholds of another false-alarm rate, above 0 and at most 0.5."""
        if not 0 < false_positive_rate <= 0.5:
            raise UserError(f"the rate is {false_positive_rate}; choose one above 0 and at most 0.5, such as 0.05")
        return replace(self, false_positive_rate=false_positive_rate)

    @property
    def pixel_threshold(self) -> float:
        """Return the pixel score above which pixels belong to a region, if the region's peak exceeds `threshold`."""
        return self.required_calibration.pixel_threshold(self.false_positive_rate)

    def decide(self, prediction: Prediction, size: tuple[int, int]) -> Detection:
        """Return the verdict on a picture of `size` (width, height)."""
        self.check_size(size)
        shape, is_anomalous = size[::-1], prediction.score > self.threshold
        mask, regions = self.find_defects(prediction, shape)
        p_value = self.required_calibration.p_value(prediction.score)
        resized = resize_maps(prediction.anomaly[None, None], shape)[0, 0].numpy()
        return Detection(prediction.score, p_value, is_anomalous, resized, mask, regions)

    def find_defects(self, prediction: Prediction, shape: tuple[int, int]) -> tuple[NDArray[np.bool_], list[Region]]:
        """Return the mask (H, W) of a picture's defects at this shape, and their list; none in a normal picture."""
        anomaly = prediction.anomaly[None, None]
        outside = min(0.0, self.threshold, self.pixel_threshold)  # no defects outside the scored area
        scored = torch.where(self.scored_area(anomaly.shape[-2:]), anomaly, outside)
        peaks = F.adaptive_max_pool2d(scored, shape)[0, 0]  # a resize might lose them
        above = (resize_maps(scored, shape)[0, 0] > self.pixel_threshold) | (peaks > self.threshold)
        if self.region:
            above &= self.region.resized(*shape)
        return find_regions(peaks.numpy(), above.numpy() & (prediction.score > self.threshold), self.threshold)

    def predict(self, pictures: Sequence[Tensor]) -> list[Prediction]:
        """Return predictions for pictures, each (C, H, W) in [−1, 1], as a calibrated detector makes them."""
        shapes = [picture.shape for picture in pictures]
        return self.by_shape(pictures, lambda batch: self.predict_batch(torch.stack(batch), self.picture_noise), shapes)

    def predict_batch(self, pictures: Tensor, noise: NoiseSource) -> list[Prediction]:
        """Return predictions for pictures (B, C, H, W) in [−1, 1]; uncalibrated D_f and D_p use batch maxima."""
        comparison, calibration = self.compare_batch(pictures, noise), self.calibration
        measured = self.measure_parts(comparison, self.required_calibration.references if self.parts else {})
        # on the CPU, as in the calibration; a copy of each batch, not of each picture, waits for the device
        parts, reconstructions = {part: maps.cpu() for part, maps in measured.items()}, comparison.reconstruction.cpu()
        ratio = calibration.balance if calibration else batch_ratio(parts["feature"], parts["pixel"])
        scales = calibration.scales if calibration else {}
        pairs = zip(split_parts(parts), reconstructions, strict=True)
        return [self.assemble(of_picture, ratio, scales, rebuilt) for of_picture, rebuilt in pairs]

    def compare_batch(self, pictures: Tensor, noise: NoiseSource) -> Comparison:
        """Compare pictures (B, C, H, W) with reconstructions, which are made at the UNet's size, tile by tile."""
        pictures = pictures.to(self.device)
        if self.view.tiles:
            return self.networks.compare(pictures, *self.rebuild_squares(pictures, noise), self.parts, self.region)
        shape = self.networks.seen_shape(pictures, self.view)
        if self.networks.space:
            rebuild = partial(self.rebuild, pictures, noise=noise)
            return self.networks.compare_features(pictures, rebuild, shape, self.parts, self.region)
        seen = resize_maps(pictures, shape)
        rebuilt = self.rebuild(pictures, seen, noise)
        return self.networks.compare(pictures, seen, rebuilt, self.parts, self.region)

    def rebuild(self, pictures: Tensor, seen: Tensor, noise: NoiseSource) -> Tensor:
        """Return reconstructions (draws, B, C, h, w) of pictures that the UNet has `seen` as (B, C, h, w)."""
        small = self.networks.unet_shape(self.view.tile(*pictures.shape[-2:]), self.view)
        if self.networks.works_by_position:
            small = seen.shape[-2], seen.shape[-1]
        draw = noise(pictures, seen.shape)  # tiles that overlap share it
        rebuilt = self.networks.reconstruct(cut_tiles(seen, small), lambda: cut_tiles(draw(), small))
        return merge_tiles(rebuilt, seen.shape)

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
        """Return D_f, D_p and the parts that have a reference, each (B, 1, h, w)."""
        kinds = {part: kind for part, kind in reference.COMPARED.items() if part in references}
        memory = {part: references[part].distance(comparison.descriptors[kind]) for part, kind in kinds.items()}
        return comparison.distances | memory

    def assemble(
        self, parts: Parts, ratio: float | Tensor, scales: dict[str, Scale], reconstruction: Tensor = NO_RECONSTRUCTION
    ) -> Prediction:
        """Return a picture's prediction from its parts (1, 1, h, w) and its reconstruction."""
        anomaly = self.fuse(parts, ratio, scales)
        if not torch.isfinite(anomaly).all():
            remedy = f"lower model.w, {self.networks.w}, or model.v, {self.v}, or train again"
            raise UserError(f"the anomaly maps are not finite; {remedy}")
        score = self.score_of(anomaly).item()
        d_feature, d_pixel, anomaly = (maps[0, 0] for maps in (parts["feature"], parts["pixel"], anomaly))
        return Prediction(reconstruction, d_feature, d_pixel, anomaly, score)

    def fuse(self, parts: Parts, ratio: float | Tensor, scales: dict[str, Scale]) -> Tensor:
        """Return the anomaly map (1, 1, h, w): D_f and D_p combined by `ratio`, or the parts fused by `scales`."""
        if not self.parts:
            return smooth(combine(parts["feature"], parts["pixel"], self.v, ratio), self.blur_sigma)
        shape = parts["pixel"].shape[-2:]
        smoothed = {part: smooth(resize_maps(parts[part], shape), self.blur_sigma) for part in scales}
        units = {part: scale.units(smoothed[part]) for part, scale in scales.items()}
        return reference.fuse_parts(units, self.crop_maps)

    def score_of(self, anomaly: Tensor) -> Tensor:
        """Return the image score () of an anomaly map, pooled in the scored area."""
        return image_score(self.crop_maps(anomaly), self.pooling, self.pooled_share)

    def crop_maps(self, maps: Tensor) -> Tensor:
        """Return the scored values of maps (…, H, W): a view of their centre, or, with a region, a vector (…, P)."""
        centre, judged = crop_centre(maps, self.crop), self.judged_area(maps.shape[-2:])
        return centre if judged is None else centre[..., judged.to(maps.device)]

    def judged_area(self, shape: Sequence[int]) -> Tensor | None:
        """Return the region within the centre (h, w) of maps of `shape` (H, W); None without a region."""
        return crop_centre(self.region.resized(*shape), self.crop) if self.region else None

    def scored_area(self, shape: Sequence[int]) -> Tensor:
        """Return (H, W) for maps of `shape`, true where they are scored."""
        area, judged = torch.zeros(*shape, dtype=torch.bool), self.judged_area(shape)
        crop_centre(area, self.crop).copy_(torch.tensor(True) if judged is None else judged)
        return area

    def check_size(self, size: tuple[int, int]) -> None:
        """Raise UserError for a picture whose size (width, height) is not the region's."""
        if self.region:
            self.region.check_size(size, "the picture")

    def picture_noise(self, pictures: Tensor, shape: torch.Size) -> Draw:
        """Return draw(), whose noise depends on the seed alone, or also on each picture, but never on its batch."""
        if self.noise == SEED:
            return seeded_draws(shape, self.seed, pictures.device)
        return picture_draws(pictures, self.seed, shape[1:])


def crop_centre(maps: Tensor, share: float) -> Tensor:
    """Return a view of the centre of maps (…, H, W), `share` of their width and height."""
    return center_crop(maps, [round(share * extent) for extent in maps.shape[-2:]])


def split_parts(parts: Parts) -> list[Parts]:
    """Return each picture's parts (1, 1, h, w), from those of a batch (B, 1, h, w)."""
    return [{part: maps[i : i + 1] for part, maps in parts.items()} for i in range(len(parts["pixel"]))]


def load_folder(folder: Path, device: torch.device) -> tuple[Detector, Settings, Calibration]:
    """Return a checkpoint folder's detector, its settings and its calibration, which it has not got yet."""
    calibration = load_widest_calibration(folder)
    if calibration is None:
        missing = f"no {CALIBRATION} of this version in {folder}, or not the {REFERENCES} that belong to it"
        raise MissingFileError(f"{missing}; {DETECT} first")
    settings = build_settings(calibration.settings)
    if settings.data.region is not None:
        settings = replace(settings, data=replace(settings.data, region=folder / REGION))
    detector, *_ = load_detector(settings, folder, device)
    return detector, settings, calibration


def load_file(path: Path, device: torch.device) -> tuple[Detector, Settings, Calibration]:
    """Return the detector, the settings and the calibration of a file of one detector, as `load_folder` does."""
    stored = bundle.read_bundle(path)
    detector = build_detector(stored.settings, stored.unet, stored.extractor, device, stored.space)
    return replace(detector, region=stored.region), stored.settings, stored.calibration


def load_detector(settings: Settings, folder: Path, device: torch.device) -> tuple[Detector, Settings, Origins]:
    """Return a folder's uncalibrated detector, the settings without `auto` and `latest`, and the weights' origins."""
    model = settings.model
    weights = checkpoint.find_weights(folder, model.load_chp)
    if settings.data.fit != SQUARE:
        settings = with_fit(settings, stored_fit(folder, checkpoint.epoch_of(weights)) or Fit(SQUARE))
    unet = checkpoint.restore_unet(weights, settings)
    name, backbone = model.feature_extractor, model.backbone_weights
    extractor, origin = checkpoint.restore_features(folder, model.DA_chp, name, backbone)
    epochs = [checkpoint.epoch_of(path) if isinstance(path, Path) else 0 for path in (weights, origin)]
    model = replace(model, load_chp=epochs[0], DA_chp=epochs[1], feature_extractor=extractor.name)
    settings = replace(settings, model=replace(model, backbone_weights=backbone and backbone.resolve()))
    if model.epochs == PLANNED and (steps := checkpoint.recorded_steps(weights)):
        settings = settings.with_steps(**steps)
    origins: Origins = {"unet": weights, "features": f"{extractor.name} from {origin}"}
    space = checkpoint.restore_space(weights) if settings.learns_features else None
    return build_detector(settings, unet, extractor, device, space), settings, origins


def build_detector(
    settings: Settings,
    unet: nn.Module,
    extractor: FeatureExtractor,
    device: torch.device,
    space: FeatureSpace | None = None,
) -> Detector:
    """Return the detector of these networks and settings, not calibrated yet."""
    model, score, view = settings.model, settings.score, View(**settings.view_arguments())
    unet, features = prepare_network(unet, device), prepare_features(extractor, view, device)
    space = space and space.to(device)
    sampling = (model.w, model.test_trajectoy_steps, model.skip, model.eta, score.draws)
    precision, size = settings.speed.detection_precision, settings.unet_size
    networks = Networks(unet, features, build_schedule(settings), *sampling, precision, size, model.predicts, space)
    batch_size, crop = settings.data.test_batch_size, settings.metrics.centre_crop
    if not batch_size:
        batch_size = largest_batch(networks, view, free_memory(device), LARGEST_BATCH[device.type])
    scoring = (score.parts or (), score.pooling, score.pooled_share)
    detector = Detector(networks, view, model.v, model.blur_sigma, crop, model.seed, batch_size, device, *scoring)
    region = read_region(settings.data.region) if settings.data.region else None
    rate = settings.calibration.false_positive_rate
    return replace(detector, false_positive_rate=rate, region=region, noise=score.noise)


def calibration_inputs(detector: Detector, settings: Settings) -> dict[str, object]:
    """Return what a score depends on, except the picture and the batch size, in the form that files store."""
    of_networks = ("w", "start", "skip", "eta", "draws", "precision", "size", "predicts")
    of_detector = ("v", "blur_sigma", "crop", "seed", "parts", "pooling", "pooled_share")
    inputs = {name: getattr(detector.networks, name) for name in of_networks}
    inputs |= {name: getattr(detector, name) for name in of_detector}
    inputs |= {"view": settings.view_arguments(), "schedule": settings.schedule_arguments()}
    calibration = settings.calibration
    inputs |= {"method": calibration.method, "pictures": calibration.pictures, "groups": calibration.groups}
    inputs |= {"weights": detector.networks.hash(), "region": detector.region and detector.region.hash}
    inputs |= {"parts_weigh": settings.score.weights} if settings.score.weights == MEASURED else {}
    inputs |= {"folder": None if calibration.folder == TRAIN else calibration.folder}  # earlier calibrations have none
    noise = {"noise": detector.noise} if detector.noise else {}  # nor have they this
    return as_stored(inputs | noise)


def predict_pictures(
    detector: Detector, folder: ImageFolder, noise: NoiseSource, workers: int, group: Group = ALONE
) -> Iterator[tuple[Item, Prediction]]:
    """Yield all pictures of a folder with their predictions."""
    return map_batches(
        detector, folder, lambda items: detector.predict_batch(stack_pictures(items), noise), workers, group
    )


def map_batches(
    detector: Detector,
    folder: ImageFolder,
    work: Callable[[Sequence[Item]], list[Result]],
    workers: int,
    group: Group = ALONE,
) -> Iterator[tuple[Item, Result]]:
    """Yield all pictures with the results of `work` on batches, which the processes share."""
    size = group.broadcast(detector.pictures_per_batch)
    batches = folder.only(group.own_share_of(folder.names(), size)).batches(size, workers)
    for _ in range(math.ceil(len(folder) / (group.size * size))):
        items = next(batches, [])  # the last processes may have a batch less
        shapes = [item.picture.shape for item in items]
        results = detector.by_shape(items, work, shapes)
        yield from group.gather(list(zip(items, results, strict=True)))


def stack_pictures(items: Sequence[Item]) -> Tensor:
    """Return the pictures of a batch as (B, C, H, W)."""
    return torch.stack([item.picture for item in items])


def stream_noise(seed: int, device: torch.device) -> NoiseSource:
    """Return one stream of noise for all pictures, as published."""
    stream = torch.Generator(device).manual_seed(seed)
    return lambda _, shape: gaussian_draws(shape, stream)
