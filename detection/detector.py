"""Stage 3's engine: reconstruct each picture, map what changed, score and judge it (sections 4.1 and 4.2 of the paper).

`evaluation.py` runs it over the test pictures of a category, `inspection.py` over pictures without labels.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from anomaly_map import MAXIMUM, Region, batch_ratio, combine, find_regions, image_score, resize_maps, smooth
from config.keys import AUTO, Settings
from config.load import build_settings
from dataset import ImageFolder, Item, View, to_unit_range
from ddad import gaussian_draws, picture_draws
from detection import reference
from detection.calibration_file import CALIBRATION, REFERENCES, load_calibration
from detection.comparison import MOST_AT_ONCE, Comparison, Networks, largest_batch, prepare_network
from detection.reference import Reference, Scale
from detection.threshold import Calibration
from images.read import as_image
from images.tiles import cut_tiles, merge_tiles
from runtime.device import choose_device, free_memory
from runtime.distributed import ALONE, Group
from runtime.errors import MissingFileError, UserError
from storage.fingerprint import as_stored
from training import checkpoint
from training.networks import build_schedule

Draws = Callable[
    [Tensor, torch.Size], Callable[[], Tensor]
]  # pictures (B, C, S, S) of one pass, of 8-bit values, and the shape of noise → draw()
Picture = Image.Image | NDArray[Any] | str | Path
Found = TypeVar("Found")


@dataclass(frozen=True, eq=False)
class Detection:
    """What is said of one picture: `p_value` is the share of normal ones that score as high; `map` holds its pixel scores and `mask` is true
    in its `regions`, both (H, W) in the picture's own size. A normal picture has no regions, an anomalous one at least one.

    The map is resized, the score and the regions' peaks are not: in a picture smaller than the network's they lie above the map.
    """

    score: float
    p_value: float
    is_anomalous: bool
    map: NDArray[np.float32]
    mask: NDArray[np.bool_]
    regions: list[Region]


class Prediction(NamedTuple):
    """What detection made of one picture, at the size at which it is shown: the reconstruction (C, H, W), D_f, D_p and the anomaly map (H, W),
    and the image score, pooled from the map within the crop."""

    reconstruction: Tensor
    d_feature: Tensor
    d_pixel: Tensor
    anomaly: Tensor
    score: float


@dataclass(frozen=True)
class Detector:
    """Finds defects in pictures. `Detector.load(folder)` reads one from a category's checkpoint folder; `detector(picture)` is a `Detection`.

    Maps are the paper's, or of `parts` (normality.py). Without a calibration the paper's are weighed by the maxima of their batch, as
    published, and there are no verdicts.
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
        """The detector that the calibration in a category's checkpoint folder describes; the folder may have been moved (but not a file of
        model.backbone_weights).

        Raises FileNotFoundError where there is no calibration, ValueError where it is of other weights than those in the folder.
        """
        folder = Path(folder)
        kept = load_calibration(folder)
        if kept is None:
            raise MissingFileError(
                f"no {CALIBRATION} of this version in {folder}, or not the {REFERENCES} that belong to it; "
                "run python main.py --detection True first"
            )
        settings = build_settings(kept.settings)
        detector, *_ = load_detector(settings, folder, choose_device(device))
        stale = kept.staleness(calibration_inputs(detector, settings))
        if stale:
            raise UserError(
                f"{folder / CALIBRATION} is stale: {stale}; run python main.py --detection True to measure it again"
            )
        return replace(detector, calibration=kept)

    def __call__(self, picture: Picture) -> Detection:
        return self.detect([picture])[0]

    def detect(self, pictures: Sequence[Picture]) -> list[Detection]:
        """One `Detection` a picture: PIL images, arrays (H, W) of 8 or 16 bits or (H, W, 3 or 4) of 8 bits, or paths. Each gets
        what it gets alone, but for the last digits.

        Raises ValueError for what is not a picture, and without a calibration.
        """
        judged = []
        for first in range(0, len(pictures), self.pictures_at_once):
            opened = [
                as_image(picture, self.view.channels) for picture in pictures[first : first + self.pictures_at_once]
            ]
            findings = self.find(
                torch.stack([to_unit_range(self.view.pixels(picture)) for picture in opened]), self.picture_noise
            )
            judged += [self.judge(finding, picture.size) for finding, picture in zip(findings, opened, strict=True)]
        return judged

    @property
    def pictures_at_once(self) -> int:
        """How many pictures make a batch: a tiled one fills some alone, and they differ in shape."""
        return self.batch_size if self.view.tiles is None else 1

    @property
    def known_normals(self) -> Calibration:
        """Its calibration. Raises ValueError where it has none."""
        if self.calibration is None:
            raise UserError(
                "the detector has no calibration, hence no threshold; load it by Detector.load(folder), or set score.protocol=per_image"
            )
        return self.calibration

    @property
    def threshold(self) -> float:
        """The image score above which a picture is anomalous."""
        return self.known_normals.threshold(self.false_positive_rate)

    @property
    def pixel_threshold(self) -> float:
        """The pixel score above which a region reaches around what exceeds `threshold`."""
        return self.known_normals.pixel_threshold(self.false_positive_rate)

    def judge(self, finding: Prediction, size: tuple[int, int]) -> Detection:
        """The verdict on a picture of `size` (width, height).

        A region is what is connected above the pixel threshold and somewhere above that of the image score.
        """
        shape, whole = size[::-1], finding.anomaly[None, None]
        scored = torch.full_like(
            whole, min(0.0, self.threshold, self.pixel_threshold)
        )  # nothing is found where nothing is scored
        self.cropped(scored).copy_(self.cropped(whole))
        verdict, p_value = finding.score > self.threshold, self.known_normals.p_value(finding.score)
        peaks = F.adaptive_max_pool2d(scored, shape)[0, 0]  # which a resize might lose
        above = (resize_maps(scored, shape)[0, 0] > self.pixel_threshold) | (peaks > self.threshold)
        mask, regions = find_regions(peaks.numpy(), above.numpy() & verdict, self.threshold)
        return Detection(finding.score, p_value, verdict, resize_maps(whole, shape)[0, 0].numpy(), mask, regions)

    def find(self, pictures: Tensor, noise: Draws) -> list[Prediction]:
        """Pictures (B, C, H, W) as the network is to be shown them, in [−1, 1]; published maxima are over all of them.

        Raises ValueError where a map is not finite.
        """
        compared, known = self.compared(pictures, noise), self.calibration
        parts = self.parts_of(compared, self.known_normals.references if self.parts else {})
        ratio = known.balance if known else batch_ratio(parts["feature"], parts["pixel"])
        alone = [{part: maps[place : place + 1] for part, maps in parts.items()} for place in range(len(pictures))]
        return [
            self.finding(*one, ratio, known.scales if known else {})
            for one in zip(compared.reconstruction, alone, strict=True)
        ]

    def compared(self, pictures: Tensor, noise: Draws) -> Comparison:
        """`pictures` as for `find` beside their reconstructions, both as small as the UNet sees them, but for tiles."""
        pictures, whole = pictures.to(self.device), (self.view.size,) * 2
        small = (self.networks.size or self.view.size,) * 2
        pieces = cut_tiles(pictures, self.view.size)
        seen = resize_maps(pieces, small)
        passes = zip(pieces.split(self.batch_size), seen.split(self.batch_size), strict=True)
        rebuilt = torch.cat(
            [self.networks.reconstructions(batch, noise(shown, batch.shape)) for shown, batch in passes], dim=1
        )
        if pictures.shape[-2:] != whole:
            enlarged = resize_maps(rebuilt.flatten(0, 1), whole).unflatten(0, rebuilt.shape[:2])
            seen, rebuilt = (merge_tiles(pieces, pictures.shape) for pieces in (resize_maps(seen, whole), enlarged))
        return self.networks.compared(pictures, pictures if small == whole else seen, rebuilt, self.parts)

    def parts_of(self, compared: Comparison, references: Mapping[str, Reference]) -> dict[str, Tensor]:
        """D_p, D_f and the other parts that are asked for, each (B, 1, h, w)."""
        learnt = {
            part: references[part].distance(compared.described[kind])
            for part, kind in reference.DESCRIBED_BY.items()
            if part in references
        }
        return compared.distances | learnt

    def finding(
        self, reconstruction: Tensor, parts: Mapping[str, Tensor], ratio: float | Tensor, scales: Mapping[str, Scale]
    ) -> Prediction:
        """Of one picture's parts (1, 1, h, w): the map is the paper's by `ratio`, or of the parts by their `scales`."""
        shape = parts["pixel"].shape[-2:]
        if self.parts:
            units = {
                part: scale.units(smooth(resize_maps(parts[part], shape), self.blur_sigma))
                for part, scale in scales.items()
            }
            anomaly = reference.fuse_parts(units, self.cropped)
        else:
            anomaly = smooth(combine(parts["feature"], parts["pixel"], self.v, ratio), self.blur_sigma)
        if not torch.isfinite(anomaly).all():
            raise UserError(
                f"the anomaly maps are not finite; lower model.w, {self.networks.w}, or model.v, {self.v}, or train again"
            )
        score = image_score(self.cropped(anomaly), self.pooling, self.pooled_share)
        d_feature, d_pixel, anomaly = (maps[0, 0].cpu() for maps in (parts["feature"], parts["pixel"], anomaly))
        return Prediction(reconstruction.cpu(), d_feature, d_pixel, anomaly, score)

    def cropped(self, maps: Tensor) -> Tensor:
        """The centre of maps (…, H, W) that is scored; a view."""
        sides = [round(self.crop * extent) for extent in maps.shape[-2:]]
        firsts = [round((extent - side) / 2) for extent, side in zip(maps.shape[-2:], sides, strict=True)]
        return maps[..., firsts[0] : firsts[0] + sides[0], firsts[1] : firsts[1] + sides[1]]

    def picture_noise(self, pictures: Tensor, shape: torch.Size) -> Callable[[], Tensor]:
        return picture_draws(pictures, self.seed, shape[1:])


def load_detector(
    settings: Settings, folder: Path, device: torch.device
) -> tuple[Detector, Settings, dict[str, object]]:
    """The detector of a checkpoint folder, not yet calibrated; the settings with the files found in place of `auto` and `latest`; and where
    the weights come from."""
    model = settings.model
    weights = checkpoint.find_weights(folder, model.load_chp)
    unet = checkpoint.restore_unet(weights, settings)
    extractor, origin = checkpoint.restore_features(
        folder, model.DA_chp, model.feature_extractor, model.backbone_weights
    )
    model = replace(
        model,
        load_chp=checkpoint.epoch_of(weights),
        DA_chp=checkpoint.epoch_of(origin) if isinstance(origin, Path) else 0,
        feature_extractor=extractor.name,
        backbone_weights=model.backbone_weights and model.backbone_weights.resolve(),
    )
    detector = assemble_detector(replace(settings, model=model), unet, extractor, device)
    return detector, replace(settings, model=model), {"unet": weights, "features": f"{extractor.name} from {origin}"}


def assemble_detector(settings: Settings, unet: nn.Module, extractor: nn.Module, device: torch.device) -> Detector:
    """The detector of these networks, as the settings want it."""
    model = settings.model
    networks = Networks(
        prepare_network(unet, device),
        prepare_network(extractor, device),
        build_schedule(settings),
        w=model.w,
        start=model.test_trajectoy_steps,
        skip=model.skip,
        eta=model.eta,
        draws=settings.score.draws,
        precision=settings.speed.detection_precision,
        size=settings.unet_size,
        predicts=model.predicts,
    )
    view = View(**settings.view_arguments())
    return Detector(
        networks,
        view,
        v=model.v,
        blur_sigma=model.blur_sigma,
        crop=settings.metrics.centre_crop,
        seed=model.seed,
        batch_size=settings.data.test_batch_size
        or largest_batch(networks, view, free_memory(device), MOST_AT_ONCE.get(device.type, 8)),
        device=device,
        parts=settings.score.parts or (),
        pooling=settings.score.pooling,
        pooled_share=settings.score.pooled_share,
        false_positive_rate=settings.calibration.false_positive_rate,
    )


def calibration_inputs(detector: Detector, settings: Settings) -> dict[str, Any]:
    """All that a score depends on beside the picture, as a file holds it."""
    networks = detector.networks
    matters = {
        name: getattr(networks, name)
        for name in ("w", "start", "skip", "eta", "draws", "precision", "size", "predicts")
    }
    matters |= {
        name: getattr(detector, name)
        for name in ("v", "blur_sigma", "crop", "seed", "parts", "pooling", "pooled_share")
    }
    matters |= {
        "view": settings.view_arguments(),
        "schedule": settings.schedule_arguments(),
        "pictures": settings.calibration.pictures,
    }
    return as_stored(matters | {"weights": networks.hash()})


def predict_pictures(
    detector: Detector, folder: ImageFolder, noise: Draws, workers: int, group: Group = ALONE
) -> Iterator[tuple[Item, Prediction]]:
    """All pictures of a folder with what was found in them."""
    return in_batches(detector, folder, lambda pictures: detector.find(pictures, noise), workers, group)


def in_batches(
    detector: Detector, folder: ImageFolder, work: Callable[[Tensor], list[Found]], workers: int, group: Group = ALONE
) -> Iterator[tuple[Item, Found]]:
    """All pictures of a folder with what `work` makes of each, a batch (B, C, H, W) at a time; the processes of a group do every so-many-th
    batch each, and the first one yields all."""
    at_once = group.broadcast(detector.pictures_at_once)
    batches = folder.only(group.own_share_of(folder.names(), at_once)).batches(at_once, workers)
    for _ in range(math.ceil(len(folder) / (group.size * at_once))):
        items = next(batches, [])  # the last processes may have a batch less
        found = work(torch.stack([item.picture for item in items])) if items else []
        yield from group.gather(list(zip(items, found, strict=True)))


def stream_noise(seed: int, device: torch.device) -> Draws:
    """One stream of noise for all pictures, as published."""
    stream = torch.Generator(device).manual_seed(seed)
    return lambda _, shape: gaussian_draws(shape, stream)
