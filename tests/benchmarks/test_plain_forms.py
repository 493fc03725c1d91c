import pytest
import torch

from benchmarks.plain_forms import PlainSchedule, plain_alpha_bar, plain_pro, plain_unet
from ddad import NoiseSchedule
from unet import UNet


def test_plain_forms_compute_the_same():
    torch.manual_seed(0)
    unet = UNet(16, 8, channel_multipliers=[1, 2], blocks_per_level=1, attention_sizes=(8,), heads=2).eval()
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, t = torch.randn(3, 3, 16, 16), torch.tensor([0, 10, 999])
    torch.testing.assert_close(plain_unet(unet)(x, t), unet(x, t), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain_alpha_bar(t, torch.device("cpu")), NoiseSchedule().alpha_bar(t))
    noise = torch.randn_like(x)
    torch.testing.assert_close(PlainSchedule().add_noise(x, t, noise), NoiseSchedule().add_noise(x, t, noise))


def test_plain_pro_is_the_published_one(golden):
    expected = golden("metrics")
    pro = plain_pro(expected["maps"], expected["masks"] > 0)
    assert pro == pytest.approx(float(expected["pro_200_thresholds"]), rel=1e-4)
