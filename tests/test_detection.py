import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import config
import detection
from dataset import ImageFolder
from ddad import NoiseSchedule

SCHEDULE = NoiseSchedule()


class Wavy(nn.Module):
    """A noise predictor that mistakes some of the picture for noise."""

    def forward(self, x, t):
        return 0.9 * x + 0.1 * x.roll(3, dims=-1)


class Pyramid(nn.Module):
    """Three feature maps of any picture, of strides 1, 2 and 4."""

    def forward(self, x):
        features = torch.cat([x, x.square(), x.roll(1, dims=-2)], dim=1)
        return [features, F.avg_pool2d(features, 2), F.avg_pool2d(features, 4)]


@pytest.fixture
def settings(tiny_config):
    return lambda *overrides: config.load(tiny_config, overrides)


@pytest.fixture
def folder(category):
    return ImageFolder(category, "test", 32)


def detector(balance=None, draws=1):
    return detection.Detector(Wavy(), Pyramid(), SCHEDULE, w=3, v=2, start=100, skip=50, eta=1, blur_sigma=0.5, draws=draws, balance=balance)


def test_the_published_protocol_is_one_stream_and_batch_maxima(settings, folder):
    """Against the method written out: noise, two steps, distances, batch maxima, blur, crop, maximum."""
    chosen = settings("score.protocol=published", "data.test_batch_size=4", "model.seed=5")
    results, _ = detection.detect(detector(), folder, chosen, torch.device("cpu"))
    stream = torch.Generator().manual_seed(5)
    expected = []
    for first in (0, 4):
        y_0 = torch.stack([folder[i].picture for i in range(first, min(first + 4, 6))])
        draw = lambda shape=y_0.shape: torch.randn(shape, generator=stream)  # noqa: E731
        x = SCHEDULE.alpha_bar(100).sqrt().float() * y_0 + (1 - SCHEDULE.alpha_bar(100)).sqrt().float() * draw()
        for t, s in ((50, 0), (0, -1)):
            a, b = SCHEDULE.alpha_bar(t).float(), SCHEDULE.alpha_bar(s).float()
            eps = Wavy()(x, None)
            x_0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
            x_0 = x_0 + 3 * (1 - a) * (y_0 - x_0)
            eps = (x - a.sqrt() * x_0) / (1 - a).sqrt()
            c1 = ((1 - a / b) * (1 - b) / (1 - a)).sqrt()
            x = b.sqrt() * x_0 + c1 * draw() + (1 - b - c1**2).clamp_min(0).sqrt() * eps
        d_p = (x - y_0).abs().mean(dim=1, keepdim=True)
        d_f = torch.zeros_like(d_p)
        for p, q in list(zip(Pyramid()(y_0), Pyramid()(x), strict=True))[1:]:
            p, q = F.avg_pool2d(p, 3, 1, 1), F.avg_pool2d(q, 3, 1, 1)
            distance = 1 - (p * q).sum(1, keepdim=True) / (p.norm(dim=1, keepdim=True) * q.norm(dim=1, keepdim=True))
            d_f += F.interpolate(distance, size=(32, 32), mode="bilinear", align_corners=True)
        kernel = torch.exp(-0.5 * (torch.arange(-2.0, 3.0) / 0.5) ** 2)
        kernel = (kernel[:, None] * kernel[None, :] / kernel.sum() ** 2)[None, None]
        a_map = F.conv2d(F.pad(d_f + 2 * d_f.max() / d_p.max() * d_p, [2] * 4, mode="reflect"), kernel)
        expected.append(a_map[:, 0, 2:30, 2:30])
    expected = torch.cat(expected)
    torch.testing.assert_close(torch.from_numpy(results.maps), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(torch.from_numpy(results.scores), expected.amax(dim=(1, 2)), rtol=1e-3, atol=1e-4)


def test_maps_and_masks_are_cropped_alike(settings, folder):
    results, panels = detection.detect(detector(balance=1.0), folder, settings("metrics.centre_crop=0.5"), torch.device("cpu"))
    assert results.maps.shape == results.masks.shape == (6, 16, 16)
    np.testing.assert_array_equal(results.masks[0], folder[0].mask[8:24, 8:24])
    assert not results.masks[3:].any() and [panel.score for panel in panels] == pytest.approx(results.scores.tolist())
    np.testing.assert_allclose(panels[0].anomaly[8:24, 8:24], results.maps[0], rtol=1e-2)


def test_a_score_does_not_depend_on_the_batch(settings, folder):
    scores = [
        detection.detect(detector(balance=1.0), folder, settings(f"data.test_batch_size={size}"), torch.device("cpu"))[0].scores for size in (1, 2, 6)
    ]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-5)
    np.testing.assert_allclose(scores[0], scores[2], rtol=1e-5)


def test_maps_are_means_over_draws():
    pictures = torch.rand(2, 3, 32, 32)
    noise = [torch.randn(2, 3, 32, 32) for _ in range(6)]
    (_, f_1, p_1), (_, f_2, p_2) = (detector().compare(pictures, iter(noise[i : i + 3]).__next__) for i in (0, 3))
    _, d_feature, d_pixel = detector(draws=2).compare(pictures, iter(noise).__next__)
    torch.testing.assert_close(d_feature, (f_1 + f_2) / 2)
    torch.testing.assert_close(d_pixel, (p_1 + p_2) / 2)
