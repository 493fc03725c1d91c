"""A calibrated detector as one network: 8-bit pixels of any size in, score, p-value, verdict and anomaly map out."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dataset import SQUARE, to_unit_range
from ddad import strides
from detection.detector import Detector
from detection.threshold import Calibration
from export.resize import resize_map, resize_pixels, to_grey
from runtime.errors import UserError

OUTPUTS = ("score", "p_value", "is_anomalous", "anomaly_map", "used_threshold")


class JudgeModel(nn.Module):
    """Judge a picture as the detector does: `model(picture, threshold)` → the tensors that OUTPUTS names.

    picture is (1, H, W, 3) uint8, red first; anomaly_map is (H, W), all others are ().
    """

    noise: Tensor

    def __init__(self, detector: Detector):
        super().__init__()
        networks = detector.networks
        self.unet, self.extractor = networks.unet, networks.extractor  # so that their weights have names
        self.detector, self.calibration = detector, detector.required_calibration
        self.p_value = PValue(detector.required_calibration)
        across, down = detector.view.shape(*usual_size(detector))
        self.shape = down, across
        seen = networks.seen_shape(torch.empty(0, *self.shape), detector.view)
        channels = networks.space.channels if networks.space else detector.view.channels
        self.register_buffer("noise", torch.stack(list(self.all_draws(torch.Size((1, channels, *seen))))))

    def all_draws(self, shape: torch.Size) -> Iterator[Tensor]:
        """Yield the noise of the reconstructions of a picture, in the order in which they draw it."""
        networks = self.detector.networks
        draw = self.detector.picture_noise(torch.empty(0), shape)
        for _ in range(networks.draws * (1 + len(strides(networks.start, networks.skip)))):
            yield draw()

    def forward(self, picture: Tensor, threshold: Tensor) -> tuple[Tensor, ...]:
        detector, calibration = self.detector, self.calibration
        shown = to_unit_range(self.resized(picture))[None]
        comparison = detector.compare_batch(shown, lambda *_: iter(self.noise.unbind()).__next__)
        parts = detector.measure_parts(comparison, calibration.references)
        anomaly = detector.fuse(parts, calibration.balance, calibration.scales)
        score = detector.score_of(anomaly)
        resized = resize_map(anomaly[0, 0], picture.shape[1], picture.shape[2])
        return score, self.p_value(score), score > threshold, resized, threshold.clone()

    def resized(self, picture: Tensor) -> Tensor:
        """Return the picture (C, *shape), of whole numbers in float32, as the view resizes it."""
        view, pixels = self.detector.view, picture[0].permute(2, 0, 1).float()
        return resize_pixels(to_grey(pixels) if view.channels == 1 else pixels, *self.shape)


def usual_size(detector: Detector) -> tuple[int, int]:
    """Return the (width, height) of most pictures of the category; any size where all become squares."""
    size = detector.required_calibration.picture_size
    if size is None and detector.view.fit != SQUARE:
        problem = f"the calibration does not know the pictures' size, which data.fit={detector.view.fit} needs"
        raise UserError(f"{problem}; run python main.py --detection True --force, and export again")
    return size or (1, 1)


class PValue(nn.Module):
    """The p-value of a score by a calibration: by its rank, and beyond the anchor by the tail."""

    scores: Tensor

    def __init__(self, calibration: Calibration):
        super().__init__()
        self.calibration = calibration
        self.register_buffer("scores", torch.tensor(calibration.scores))

    def forward(self, score: Tensor) -> Tensor:
        calibration = self.calibration
        as_high = (self.scores >= score).sum()
        rank = 1 + as_high * (calibration.size / len(calibration.scores))
        by_rank = (rank / (calibration.size + 1)).clamp_max(1)
        if not calibration.spread:
            return by_rank
        excess = (score - calibration.score_of_rank(calibration.anchor)).clamp_min(0) / calibration.spread
        highest = calibration.anchor / (calibration.size + 1)
        tail = highest * (1 + excess / calibration.tail_size) ** -calibration.tail_size
        return torch.where(rank > calibration.anchor, by_rank, tail)
