import numpy as np
import pytest
import torch
from golden_weights import assert_golden, cosine_share, state_dict

from anomaly_map import combine, feature_distance, patch_mean, pixel_distance, smooth
from feature_extractor import FeatureExtractor


@pytest.fixture
def pair(golden):
    expected = golden("anomaly_map_resnet50_64")
    return torch.from_numpy(expected["recon"]), torch.from_numpy(expected["target"]), expected


@pytest.fixture
def resnet50(golden, tmp_path):
    path = tmp_path / "resnet50"
    torch.save(
        {f"module.{name}": value for name, value in state_dict(golden("resnet_state_dict")["resnet50"]).items()}, path
    )
    return FeatureExtractor("resnet50", path).eval()


def test_maps_have_the_golden_values(pair, resnet50):
    reconstruction, target, expected = pair
    with torch.no_grad():
        for layer, feature_map in enumerate(resnet50.features((target + 1) / 2), start=1):
            assert_golden(feature_map, expected[f"feature{layer}"])
        d_feature = feature_distance(resnet50(target), resnet50(reconstruction), 64)
    d_pixel = pixel_distance(reconstruction, target)
    assert_golden(d_pixel, expected["pixel_distance"])
    share = cosine_share(expected["feature_distance"])
    assert_golden(d_feature, expected["feature_distance"], share)
    for v in (1, 7):
        assert_golden(smooth(combine(d_feature, d_pixel, v), 4), expected[f"map_v{v}"], share)


def test_the_first_layer_is_ignored():
    a, b = ([torch.rand(1, 4, 8, 8), torch.rand(1, 8, 4, 4)] for _ in range(2))
    torch.testing.assert_close(feature_distance(a, b, 16), feature_distance([b[0], a[1]], b, 16))


def test_patches_average_nine_positions_including_the_padding():
    mean = patch_mean(torch.ones(1, 1, 4, 4))
    torch.testing.assert_close(mean[0, 0, 0], torch.tensor([4, 6, 6, 4]) / 9)
    assert mean[0, 0, 1, 1] == 1


def test_the_published_ratio_is_that_of_the_whole_batch():
    d_feature, d_pixel = torch.rand(3, 1, 8, 8), torch.rand(3, 1, 8, 8)
    ratio = float(d_feature.max() / d_pixel.max())
    torch.testing.assert_close(combine(d_feature, d_pixel, 2), d_feature + 2 * ratio * d_pixel)
    torch.testing.assert_close(combine(d_feature, d_pixel, 2, ratio=0.5), d_feature + d_pixel)


def test_a_perfect_reconstruction_has_no_anomaly():
    zeros = torch.zeros(2, 1, 8, 8)
    assert not combine(zeros, zeros, 1).any()


def test_smoothing_is_a_gaussian_of_33_pixels_that_preserves_constants():
    impulse = torch.zeros(1, 1, 65, 65)
    impulse[..., 32, 32] = 1
    kernel = np.exp(-0.5 * (np.arange(-32, 33) / 4.0) ** 2) * (np.abs(np.arange(-32, 33)) <= 16)
    kernel /= kernel.sum()
    torch.testing.assert_close(
        smooth(impulse, 4)[0, 0], torch.from_numpy(np.outer(kernel, kernel)).float(), rtol=1e-5, atol=1e-7
    )
    torch.testing.assert_close(smooth(torch.full((1, 1, 40, 40), 0.3), 4), torch.full((1, 1, 40, 40), 0.3))
    assert smooth(impulse, 0) is impulse
