"""Stage 3's engine: reconstruct each picture, map what changed, score and judge it (sections 4.1 and 4.2 of the paper).

`evaluation.py` runs it over the test pictures of a category, `inspection.py` over pictures without labels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from skimage.measure import label, regionprops
from torch import Tensor, nn
from torchvision.transforms.functional import center_crop

import calibration
import checkpoint
import config
import runtime
import tiles
from anomaly_map import batch_ratio, combine, feature_distance, pixel_distance, smooth
from calibration import Calibration
from config import Settings
from dataset import ImageFolder, Item, View, read_picture, standardised, to_unit_range
from ddad import NoiseSchedule, gaussian_draws, picture_draws, reconstruct

EIGHT_CONNECTED = 2  # skimage's connectivity
GREY_TYPES = (np.uint8, np.uint16, np.bool_)
Draws = Callable[[Tensor], Callable[[], Tensor]]  # pictures (B, C, S, S) of one pass → draw()
Picture = Image.Image | NDArray[Any] | str | Path


class Region(NamedTuple):
    """A defect: its box (left, top, right, bottom; the latter two outside), its area and its highest pixel score, in the picture's pixels."""

    box: tuple[int, int, int, int]
    area: int
    peak: float


@dataclass(frozen=True, eq=False)
class Detection:
    """What is said of one picture: `p_value` is the chance that a normal one scores as high; `map` holds its pixel scores and `mask` is true
    in its `regions`, both (H, W) in the picture's own size. A normal picture has no regions, an anomalous one at least one."""

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
    def load(cls, folder: str | Path, device: str = config.AUTO) -> "Detector":
        """The detector that the calibration in a category's checkpoint folder describes; the folder may have been moved.

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
        if not pictures:
            return []
        opened = [as_image(picture, self.view.channels) for picture in pictures]
        findings = self.find([to_unit_range(self.view.pixels(picture)) for picture in opened], self.picture_noise)
        return [self.judge(finding, picture.size) for finding, picture in zip(findings, opened, strict=True)]

    @property
    def pictures_at_once(self) -> int:
        """How many pictures make a batch: a tiled one fills some alone."""
        return self.batch_size if self.view.tiles is None else 1

    @property
    def threshold(self) -> float:
        """The image score above which a picture is anomalous. Raises ValueError without a calibration."""
        if self.calibration is None:
            raise ValueError("the detector has no calibration, hence no threshold; load it by Detector.load(folder), or set score.protocol=per_image")
        return self.calibration.threshold(self.false_positive_rate)

    def judge(self, finding: Finding, size: tuple[int, int]) -> Detection:
        """The verdict on a picture of `size` (width, height).

        A region is what is connected above the pixel threshold and somewhere above that of the image score.
        """
        threshold, kept, shape = self.threshold, cast(Calibration, self.calibration), size[::-1]
        whole = finding.anomaly[None, None]
        scored = F.pad(self.cropped(whole), margins(whole, self.cropped(whole)))  # nothing is found where nothing is scored
        peaks = F.adaptive_max_pool2d(scored, shape)[0, 0] > threshold  # none is lost to a resize
        above = resized(scored, shape)[0, 0] > kept.pixel_threshold(self.false_positive_rate)
        enlarged = resized(whole, shape)[0, 0].numpy()
        mask, regions = regions_of(enlarged, (above | peaks).numpy(), peaks.numpy())
        return Detection(finding.score, kept.p_value(finding.score), finding.score > threshold, enlarged, mask, regions)

    def find(self, pictures: Sequence[Tensor], noise: Draws) -> list[Finding]:
        """Pictures as the network is to be shown them, each (C, H, W) in [−1, 1]; published maxima are over all of them."""
        cut = [tiles.cut(picture, self.view.size) for picture in pictures]
        passes = torch.cat(cut).to(self.device).split(self.batch_size)
        compared = [torch.cat(parts) for parts in zip(*(self.networks.compare(batch, noise(batch)) for batch in passes), strict=True)]
        counts = [len(pieces) for pieces in cut]
        merged = [[tiles.merge(piece, *picture.shape[1:]) for piece, picture in zip(part.split(counts), pictures, strict=True)] for part in compared]
        ratio = self.calibration.balance if self.calibration else batch_ratio(compared[1], compared[2])
        return [self.finding(x_0, d_feature, d_pixel, ratio) for x_0, d_feature, d_pixel in zip(*merged, strict=True)]

    def finding(self, reconstruction: Tensor, d_feature: Tensor, d_pixel: Tensor, ratio: float | Tensor) -> Finding:
        anomaly = smooth(combine(d_feature[None], d_pixel[None], self.v, ratio), self.blur_sigma)
        return Finding(reconstruction.cpu(), d_feature[0].cpu(), d_pixel[0].cpu(), anomaly[0, 0].cpu(), self.cropped(anomaly).max().item())

    def cropped(self, maps: Tensor) -> Tensor:
        """The centre of maps (…, H, W) that is scored."""
        return center_crop(maps, [round(self.crop * extent) for extent in maps.shape[-2:]])

    def picture_noise(self, pictures: Tensor) -> Callable[[], Tensor]:
        return picture_draws(pictures, self.seed)


def regions_of(scores: NDArray[np.float32], above: NDArray[np.bool_], peaks: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], list[Region]]:
    """The 8-connected regions of `above` that hold a peak, highest first, and their union; all (H, W)."""
    numbered = label(above, connectivity=EIGHT_CONNECTED)
    kept = np.unique(numbered[peaks])
    found = []
    for part in regionprops(np.where(np.isin(numbered, kept), numbered, 0), intensity_image=scores):
        top, left, bottom, right = part.bbox
        found.append(Region((left, top, right, bottom), int(part.area), float(part.intensity_max)))
    return np.isin(numbered, kept) & above, sorted(found, key=lambda region: -region.peak)


def as_image(picture: Picture, channels: int) -> Image.Image:
    if isinstance(picture, (str, Path)):
        return read_picture(Path(picture), channels)
    if not isinstance(picture, np.ndarray):
        return standardised(picture, channels)
    grey, colour = picture.ndim == 2 and picture.dtype in GREY_TYPES, picture.ndim == 3 and picture.shape[2] in (3, 4) and picture.dtype == np.uint8
    if not (grey or colour) or picture.size == 0:
        raise ValueError(f"an array {picture.shape} of {picture.dtype} is not a picture; give (H, W) of 8 or 16 bits, or (H, W, 3 or 4) of 8")
    return standardised(Image.fromarray(picture), channels)


def margins(whole: Tensor, centre: Tensor) -> list[int]:
    """(left, right, top, bottom) that `center_crop` has taken away."""
    (height, width), (inner_height, inner_width) = whole.shape[-2:], centre.shape[-2:]
    top, left = round((height - inner_height) / 2.0), round((width - inner_width) / 2.0)
    return [left, width - inner_width - left, top, height - inner_height - top]


def resized(maps: Tensor, shape: tuple[int, int]) -> Tensor:
    """(B, 1, H, W) at another size, bilinearly, antialiased where it shrinks."""
    if maps.shape[-2:] == shape:
        return maps
    return F.interpolate(maps, size=shape, mode="bilinear", align_corners=False, antialias=True)


def mean(tensors: list[Tensor]) -> Tensor:
    return torch.stack(tensors).mean(dim=0)


def build(settings: Settings, folder: Path, device: torch.device) -> tuple[Detector, Settings, dict[str, object]]:
    """The detector of a checkpoint folder, not yet calibrated; the settings with the files found in place of `auto` and `latest`; and where
    the weights come from."""
    model = settings.model
    weights = checkpoint.find(folder, model.load_chp)
    unet = checkpoint.restore_unet(weights, settings.unet_arguments())
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
    )
    detector = Detector(
        networks,
        View(**settings.view_arguments()),
        v=model.v,
        blur_sigma=model.blur_sigma,
        crop=settings.metrics.centre_crop,
        seed=model.seed,
        batch_size=settings.data.test_batch_size,
        device=device,
        false_positive_rate=settings.calibration.false_positive_rate,
    )
    return detector, replace(settings, model=model), {"unet": weights, "features": f"{extractor.name} from {origin}"}


def ready(network: nn.Module, device: torch.device) -> nn.Module:
    """The network as it runs fastest."""
    return network.to(device).to(memory_format=torch.channels_last).eval()


def fingerprint(detector: Detector, settings: Settings) -> dict[str, Any]:
    """All that a score depends on beside the picture, as a file holds it."""
    networks = detector.networks
    matters = {name: getattr(networks, name) for name in ("w", "start", "skip", "eta", "draws")}
    matters |= {name: getattr(detector, name) for name in ("v", "blur_sigma", "crop", "seed")}
    matters |= {"view": settings.view_arguments(), "schedule": settings.schedule_arguments(), "pictures": settings.calibration.pictures}
    return calibration.as_stored(matters | {"weights": calibration.weights_hash([networks.unet, networks.extractor])})


def calibrated(detector: Detector, settings: Settings) -> Detector:
    """With the calibration of the category's checkpoint folder, if it is of these networks and settings; else it is measured and kept there.

    Raises FileNotFoundError or ValueError where it has to be measured and train/good is not at hand.
    """
    folder = settings.checkpoint_folder
    kept, now = checkpoint.load_calibration(folder), fingerprint(detector, settings)
    stale = "" if kept is None else kept.staleness(now)
    if kept is None or stale:
        if stale:
            print(f"calibration is stale: {stale}")
        try:
            whole = ImageFolder(settings.category_dir, "train", detector.view)
        except FileNotFoundError as error:
            found = f"{folder / checkpoint.CALIBRATION} is stale ({stale})" if stale else f"no {checkpoint.CALIBRATION} in {folder}"
            raise FileNotFoundError(f"{found}, and without normal pictures it can't be measured: {error}") from error
        kept = measured(detector, whole, now, settings)
        if settings.model.save_model:
            try:
                checkpoint.save_calibration(folder, kept)
            except OSError as error:
                print(f"the calibration is not kept: {error}")
    print(kept.describe(detector.false_positive_rate), flush=True)
    return replace(detector, calibration=kept)


def measured(detector: Detector, whole: ImageFolder, made_with: dict[str, Any], settings: Settings) -> Calibration:
    """On the pictures that training held out; on others of train/good where it held out none, as released weights did."""
    weights = checkpoint.find(settings.checkpoint_folder, settings.model.load_chp)
    normal = whole.only(checkpoint.held_out(weights))
    held_out = len(normal) > 0
    normal = (normal if held_out else whole).drawn(settings.calibration.pictures, settings.model.seed)
    findings = [
        finding._replace(reconstruction=torch.empty(0))
        for _, finding in runtime.count(found(detector, normal, detector.picture_noise, settings.model.num_workers), len(normal), "calibrating")
    ]
    feature, pixel = calibration.mean_tops(
        [smooth(finding.d_feature[None, None], detector.blur_sigma) for finding in findings],
        [smooth(finding.d_pixel[None, None], detector.blur_sigma) for finding in findings],
    )
    balanced = [detector.finding(finding.reconstruction, finding.d_feature[None], finding.d_pixel[None], feature / pixel) for finding in findings]
    return Calibration(
        feature,
        pixel,
        scores=tuple(sorted(finding.score for finding in balanced)),
        pixels=calibration.pixel_quantiles(detector.cropped(finding.anomaly).numpy() for finding in balanced),
        held_out=held_out,
        made_with=made_with,
        settings=settings.as_dict(),
    )


def found(detector: Detector, folder: ImageFolder, noise: Draws, workers: int) -> Iterator[tuple[Item, Finding]]:
    """All pictures of a folder with what was found in them, a batch at a time."""
    for items in folder.batches(detector.pictures_at_once, workers):
        yield from zip(items, detector.find([item.picture for item in items], noise), strict=True)


def stream_noise(seed: int, device: torch.device) -> Draws:
    """One stream of noise for all pictures, as published."""
    stream = torch.Generator(device).manual_seed(seed)
    return lambda pictures: gaussian_draws(pictures.shape, stream)
