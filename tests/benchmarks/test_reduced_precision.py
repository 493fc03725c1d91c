import torch
from torch import nn

from benchmarks import reduced_precision
from dataset import ImageFolder, View
from ddad import NoiseSchedule
from detection.comparison import Networks
from detection.detector import Detector
from detection.threshold import PIXEL_RATES, Calibration
from unet import UNet


class ThreeLayers(nn.Module):
    """A small feature extractor."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1) for channels in (3, 6, 12)
        )

    def forward(self, x):
        return [x := layer(x) for layer in self.layers]


def test_fewer_bits_change_scores_more(category):
    torch.manual_seed(0)
    unet = UNet(16, 8, channel_multipliers=[1, 2], blocks_per_level=1, attention_sizes=(8,), heads=2).eval()
    for parameter in unet.parameters():
        nn.init.normal_(parameter, std=0.1)
    networks = Networks(unet, ThreeLayers().eval(), NoiseSchedule(), w=3, start=100, skip=50, eta=1)
    known = Calibration(1.0, 1.0, (0.5, 0.6, 0.7), (0.3,) * len(PIXEL_RATES), True, {}, {})
    options = {"v": 1, "blur_sigma": 0.5, "crop": 1, "seed": 0, "batch_size": 4, "device": torch.device("cpu")}
    detector = Detector(networks, View(16), **options, calibration=known)
    pictures = ImageFolder(category, "test", detector.view, masks=False)
    rows = [line.strip("| ").split(" | ") for line in reduced_precision.table_rows(detector, pictures)]
    changes = {name: float(normal) for name, normal, *_ in rows}
    assert 0 < changes["fp16"] < changes["bf16"] < changes["another seed"]
    assert all(cells[-1].endswith("of 6") for cells in rows)
