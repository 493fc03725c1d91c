"""Tiny networks in place of trained ones, and a detector of them."""

import torch
import torch.nn.functional as F
from torch import nn

from dataset import View
from ddad import NoiseSchedule
from detection.comparison import Networks
from detection.detector import Detector
from detection.threshold import PIXEL_RATES, Calibration

SCHEDULE = NoiseSchedule()
CALIBRATION = Calibration(1.0, 1.0, (0.5, 0.6, 0.7), (0.3,) * len(PIXEL_RATES), True, {}, {})


class Wavy(nn.Module):
    """A noise predictor that mistakes some of the picture for noise."""

    def forward(self, x, t):
        return 0.9 * x + 0.1 * x.roll(3, dims=-1)


class Pyramid(nn.Module):
    """Three feature maps of any picture, of strides 1, 2 and 4."""

    def forward(self, x):
        features = torch.cat([x, x.square(), x.roll(1, dims=-2)], dim=1)
        return [features, F.avg_pool2d(features, 2), F.avg_pool2d(features, 4)]


def make_detector(calibration=CALIBRATION, draws=1, **changes):
    """Return a detector of Wavy and Pyramid for pictures of 32 pixels, with these changes."""
    networks = Networks(Wavy(), Pyramid(), SCHEDULE, w=3, start=100, skip=50, eta=1, draws=draws)
    values = {"view": View(32), "v": 2, "blur_sigma": 0.5, "crop": 0.875, "seed": 5, "batch_size": 4} | changes
    return Detector(networks, **values, device=torch.device("cpu"), calibration=calibration)
