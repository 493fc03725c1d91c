"""Stage 3's engine: reconstruct each picture, map what changed, score and judge it (sections 4.1 and 4.2 of the paper).

`evaluation.py` runs it over the test pictures of a category, `inspection.py` over pictures without labels.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

import calibration
import checkpoint
import config
import parallel
import runtime
import tiles
from anomaly_map import Region, batch_ratio, combine, feature_distance, pixel_distance, regions_of, resized, smooth
from calibration import Calibration
from dataset import ImageFolder, Item, View, to_unit_range
from ddad import NoiseSchedule, gaussian_draws, picture_draws, reconstruct
from parallel import ALONE, Group
from pictures import as_image
from settings import AUTO, Settings

Draws = Callable[[Tensor], Callable[[], Tensor]]  # pictures (B, C, S, S) of one pass → draw()
Picture = Image.Image | NDArray[Any] | str | Path

HELD = 0.2  # share of all that a network's layers put out which is in memory at a time, without gradients; measured: 0.08 to 0.14
MOST_AT_ONCE = {"cuda": 64}  # pictures of a batch by device, 8 elsewhere: more are no faster


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


class Finding(NamedTuple):
    """What detection made of one picture, at the size at which the network was shown it: the reconstruction (C, H, W), D_f, D_p and the
    anomaly map (H, W), and the image score, the map's maximum within the crop."""

    reconstruction: Tensor
    d_feature: Tensor
    d_pixel: Tensor
    anomaly: Tensor
    score: float


@dataclass(frozen=True)
class Networks:
    """The trained networks and how a reconstruction is made with them."""

    unet: nn.Module
    extractor: nn.Module
    schedule: NoiseSchedule
    w: float
    start: int
    skip: int
    eta: float
    draws: int = 1
    precision: str = "fp32"

    def hash(self) -> str:
        """Changes with any weight of the networks."""
        return calibration.weights_hash([self.unet, self.extractor])

    @torch.no_grad()
    def reconstructions(self, pictures: Tensor, draw: Callable[[], Tensor]) -> Tensor:
        """(draws, B, C, S, S): started from and pulled towards the pictures (B, C, S, S), with different noise."""
        made: dict[str, Any] = {"schedule": self.schedule, "w": self.w, "start": self.start, "skip": self.skip, "eta": self.eta}
        unet = runtime.autocast(self.unet, self.precision, pictures.device)
        return torch.stack([reconstruct(unet, pictures, pictures, draw=draw, **made) for _ in range(self.draws)])

    @torch.no_grad()
    def distances(self, pictures: Tensor, reconstructions: Tensor) -> tuple[Tensor, Tensor]:
        """D_f and D_p (B, 1, H, W) between pictures (B, C, H, W) and their reconstructions (draws, B, C, H, W), the mean over the draws."""
        extractor = runtime.autocast(self.extractor, self.precision, pictures.device)
        features, shape = extractor(pictures), (pictures.shape[-2], pictures.shape[-1])
        d_features = [feature_distance(features, extractor(x_0), shape) for x_0 in reconstructions]
        return mean(d_features), mean([pixel_distance(x_0, pictures) for x_0 in reconstructions])


@dataclass(frozen=True)
class Detector:
    """Finds defects in pictures. `Detector.load(folder)` reads one from a category's checkpoint folder; `detector(picture)` is a `Detection`.

    Without a calibration maps are weighed by the maxima of their batch, as published, and there are no verdicts.
    """

    networks: Networks
    view: View
    v: float
    blur_sigma: float
    crop: float
    seed: int
    batch_size: int
    device: torch.device
    calibration: Calibration | None = None
    false_positive_rate: float = 0.01

    @classmethod
    def load(cls, folder: str | Path, device: str = AUTO) -> "Detector":
        """The detector that the calibration in a category's checkpoint folder describes; the folder may have been moved (but not a file of
        model.backbone_weights).

        Raises FileNotFoundError where there is no calibration, ValueError where it is of other weights than those in the folder.
        """
        folder = Path(folder)
        kept = checkpoint.load_calibration(folder)
        if kept is None:
            raise FileNotFoundError(f"no {checkpoint.CALIBRATION} in {folder}; run python main.py --detection True first")
        settings = config.build(kept.settings)
        detector, *_ = build(settings, folder, runtime.choose_device(device))
        stale = kept.staleness(fingerprint(detector, settings))
        if stale:
            raise ValueError(f"{folder / checkpoint.CALIBRATION} is stale: {stale}; run python main.py --detection True to measure it again")
        return replace(detector, calibration=kept)

    def __call__(self, picture: Picture) -> Detection:
        return self.detect([picture])[0]

    def detect(self, pictures: Sequence[Picture]) -> list[Detection]:
        """One `Detection` a picture: PIL images, arrays (H, W) of 8 or 16 bits or (H, W, 3 or 4) of 8 bits, or paths. Each gets what it gets alone.

        Raises ValueError for what is not a picture, and without a calibration.
        """
        judged = []
        for first in range(0, len(pictures), self.pictures_at_once):
            opened = [as_image(picture, self.view.channels) for picture in pictures[first : first + self.pictures_at_once]]
            findings = self.find(torch.stack([to_unit_range(self.view.pixels(picture)) for picture in opened]), self.picture_noise)
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
            raise ValueError("the detector has no calibration, hence no threshold; load it by Detector.load(folder), or set score.protocol=per_image")
        return self.calibration

    @property
    def threshold(self) -> float:
        """The image score above which a picture is anomalous."""
        return self.known_normals.threshold(self.false_positive_rate)

    @property
    def pixel_threshold(self) -> float:
        """The pixel score above which a region reaches around what exceeds `threshold`."""
        return self.known_normals.pixel_threshold(self.false_positive_rate)

    def judge(self, finding: Finding, size: tuple[int, int]) -> Detection:
        """The verdict on a picture of `size` (width, height).

        A region is what is connected above the pixel threshold and somewhere above that of the image score.
        """
        shape, whole = size[::-1], finding.anomaly[None, None]
        scored = torch.zeros_like(whole)  # nothing is found where nothing is scored
        self.cropped(scored).copy_(self.cropped(whole))
        peaks = F.adaptive_max_pool2d(scored, shape)[0, 0]  # which a resize might lose
        above = (resized(scored, shape)[0, 0] > self.pixel_threshold) | (peaks > self.threshold)
        mask, regions = regions_of(peaks.numpy(), above.numpy(), self.threshold)
        verdict, p_value = finding.score > self.threshold, self.known_normals.p_value(finding.score)
        return Detection(finding.score, p_value, verdict, resized(whole, shape)[0, 0].numpy(), mask, regions)

    def find(self, pictures: Tensor, noise: Draws) -> list[Finding]:
        """Pictures (B, C, H, W) as the network is to be shown them, in [−1, 1]; published maxima are over all of them.

        Raises ValueError where a map is not finite.
        """
        passes = tiles.cut(pictures, self.view.size).to(self.device).split(self.batch_size)
        rebuilt = torch.cat([self.networks.reconstructions(batch, noise(batch)) for batch in passes], dim=1)
        whole = tiles.merge(rebuilt, pictures.shape)
        d_feature, d_pixel = self.networks.distances(pictures.to(self.device), whole)
        ratio = self.calibration.balance if self.calibration else batch_ratio(d_feature, d_pixel)
        return [self.finding(*parts, ratio) for parts in zip(whole.mean(dim=0), d_feature, d_pixel, strict=True)]

    def finding(self, reconstruction: Tensor, d_feature: Tensor, d_pixel: Tensor, ratio: float | Tensor) -> Finding:
        anomaly = smooth(combine(d_feature[None], d_pixel[None], self.v, ratio), self.blur_sigma)
        if not torch.isfinite(anomaly).all():
            raise ValueError(f"the anomaly maps are not finite; lower model.w, {self.networks.w}, or model.v, {self.v}, or train again")
        return Finding(reconstruction.cpu(), d_feature[0].cpu(), d_pixel[0].cpu(), anomaly[0, 0].cpu(), self.cropped(anomaly).max().item())

    def cropped(self, maps: Tensor) -> Tensor:
        """The centre of maps (…, H, W) that is scored; a view."""
        sides = [round(self.crop * extent) for extent in maps.shape[-2:]]
        firsts = [round((extent - side) / 2) for extent, side in zip(maps.shape[-2:], sides, strict=True)]
        return maps[..., firsts[0] : firsts[0] + sides[0], firsts[1] : firsts[1] + sides[1]]

    def picture_noise(self, pictures: Tensor) -> Callable[[], Tensor]:
        return picture_draws(pictures, self.seed)


def mean(tensors: list[Tensor]) -> Tensor:
    return torch.stack(tensors).mean(dim=0)


def build(settings: Settings, folder: Path, device: torch.device) -> tuple[Detector, Settings, dict[str, object]]:
    """The detector of a checkpoint folder, not yet calibrated; the settings with the files found in place of `auto` and `latest`; and where
    the weights come from."""
    model = settings.model
    weights = checkpoint.find(folder, model.load_chp)
    unet = checkpoint.restore_unet(weights, settings.unet_arguments(), model.averaged)
    extractor, origin = checkpoint.restore_features(folder, model.DA_chp, model.feature_extractor, model.backbone_weights)
    model = replace(
        model,
        load_chp=checkpoint.epoch_of(weights),
        DA_chp=checkpoint.epoch_of(origin) if isinstance(origin, Path) else 0,
        feature_extractor=extractor.name,
        backbone_weights=model.backbone_weights and model.backbone_weights.resolve(),
    )
    networks = Networks(
        ready(unet, device),
        ready(extractor, device),
        NoiseSchedule(**settings.schedule_arguments()),
        w=model.w,
        start=model.test_trajectoy_steps,
        skip=model.skip,
        eta=model.eta,
        draws=settings.score.draws,
        precision=settings.speed.detection_precision,
    )
    view = View(**settings.view_arguments())
    detector = Detector(
        networks,
        view,
        v=model.v,
        blur_sigma=model.blur_sigma,
        crop=settings.metrics.centre_crop,
        seed=model.seed,
        batch_size=settings.data.test_batch_size or pictures_that_fit(networks, view, runtime.free_memory(device), MOST_AT_ONCE.get(device.type, 8)),
        device=device,
        false_positive_rate=settings.calibration.false_positive_rate,
    )
    return detector, replace(settings, model=model), {"unet": weights, "features": f"{extractor.name} from {origin}"}


def pictures_that_fit(networks: Networks, view: View, free: float, most: int) -> int:
    """How many pictures half of `free` bytes hold on their way through the networks: a power of two, as scores of other batches may differ in
    their last digits, and `most` at most."""
    picture, t = torch.empty(1, view.channels, view.size, view.size), torch.zeros(1)
    layers = max(runtime.output_bytes(networks.unet, picture, t), runtime.output_bytes(networks.extractor, picture))
    return 2 ** int(math.log2(min(max(1, free / 2 / (HELD * layers)), most)))


def ready(network: nn.Module, device: torch.device) -> nn.Module:
    """The network as it runs fastest."""
    return network.to(device).to(memory_format=torch.channels_last).eval()


def fingerprint(detector: Detector, settings: Settings) -> dict[str, Any]:
    """All that a score depends on beside the picture, as a file holds it."""
    networks = detector.networks
    matters = {name: getattr(networks, name) for name in ("w", "start", "skip", "eta", "draws", "precision")}
    matters |= {name: getattr(detector, name) for name in ("v", "blur_sigma", "crop", "seed")}
    matters |= {"view": settings.view_arguments(), "schedule": settings.schedule_arguments(), "pictures": settings.calibration.pictures}
    return calibration.as_stored(matters | {"weights": networks.hash()})


def calibrated(detector: Detector, settings: Settings) -> Detector:
    """With the calibration of the category's checkpoint folder, if it is of these networks and settings; else it is measured and kept there.

    Raises FileNotFoundError where it has to be measured and train/good is not at hand.
    """
    folder, now = settings.checkpoint_folder, fingerprint(detector, settings)
    there = parallel.group().told(checkpoint.load_calibration(folder))
    stale = there.staleness(now) if there else f"no {checkpoint.CALIBRATION} of this version in {folder}"
    if there and not stale:
        kept = replace(there, settings=settings.as_dict())  # what does not matter to it may be new
    else:
        print(f"calibration is to be measured: {stale}", flush=True)
        try:
            whole = ImageFolder(settings.category_dir, "train", detector.view)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{folder / checkpoint.CALIBRATION} can't be used ({stale}), nor measured again: {error}") from error
        kept = measured(detector, whole, now, settings)
    if settings.model.save_model and kept != there:
        try:
            checkpoint.save_calibration(folder, kept)
        except OSError as error:
            print(f"the calibration is not kept: {error}")
    print(kept.describe(detector.false_positive_rate), flush=True)
    return replace(detector, calibration=kept)


def measured(detector: Detector, whole: ImageFolder, made_with: dict[str, Any], settings: Settings) -> Calibration:
    """On the pictures that no stage has seen; on others of train/good where there are none, as with released weights."""
    unseen = whole.only(unseen_pictures(settings))
    normal = (unseen or whole).drawn(settings.calibration.pictures, settings.model.seed)
    processes = parallel.group()
    findings = findings_of(detector, normal, detector.picture_noise, settings.model.num_workers, processes)
    distances = [(found.d_feature[None], found.d_pixel[None]) for _, found in runtime.count(findings, len(normal), "calibrating")]
    if not processes.leads:
        return processes.told(None)
    tops = [[detector.cropped(smooth(distance[None], detector.blur_sigma)).max() for distance in pair] for pair in distances]
    feature, pixel = calibration.mean_tops(torch.tensor(tops))
    balanced = [detector.finding(torch.empty(0), d_feature, d_pixel, feature / pixel) for d_feature, d_pixel in distances]
    return processes.told(
        Calibration(
            feature,
            pixel,
            scores=tuple(sorted(finding.score for finding in balanced)),
            pixels=calibration.pixel_quantiles(detector.cropped(finding.anomaly).numpy() for finding in balanced),
            held_out=len(unseen) > 0,
            made_with=made_with,
            settings=settings.as_dict(),
        )
    )


def unseen_pictures(settings: Settings) -> set[str]:
    """The pictures of train/good that neither the UNet nor the adapted features were trained on, as far as their files say."""
    folder, model = settings.checkpoint_folder, settings.model
    unseen = set(checkpoint.held_out(checkpoint.find(folder, model.load_chp)))
    return unseen & set(checkpoint.held_out(checkpoint.find(folder, model.DA_chp, checkpoint.FEATURES_PREFIX))) if model.DA_chp else unseen


def findings_of(detector: Detector, folder: ImageFolder, noise: Draws, workers: int, group: Group = ALONE) -> Iterator[tuple[Item, Finding]]:
    """All pictures of a folder with what was found in them, a batch at a time; the processes of a group do
    every so-many-th batch each, and the first one yields all."""
    at_once = group.told(detector.pictures_at_once)
    batches = folder.only(group.in_turn(folder.names(), at_once)).batches(at_once, workers)
    for _ in range(math.ceil(len(folder) / (group.size * at_once))):
        items = next(batches, [])  # the last processes may have a batch less
        found = detector.find(torch.stack([item.picture for item in items]), noise) if items else []
        yield from group.gathered(list(zip(items, found, strict=True)))


def stream_noise(seed: int, device: torch.device) -> Draws:
    """One stream of noise for all pictures, as published."""
    stream = torch.Generator(device).manual_seed(seed)
    return lambda pictures: gaussian_draws(pictures.shape, stream)
