"""The names and signatures that code outside this project uses: a change here breaks that code."""

import inspect
import pkgutil

import pytest

REQUIRED = inspect.Parameter.empty


def build_unet(
    image_size,
    base_channels=64,
    *,
    channel_multipliers=None,
    blocks_per_level=2,
    attention_sizes=(32, 16, 8),
    heads=4,
    dropout=0.0,
    in_channels=3,
): ...


SIGNATURES = {
    "unet:UNet": build_unet,
    "unet:UNet.forward": lambda self, x, t: ...,
    "ddad:NoiseSchedule": lambda steps=1000, beta_start=1e-4, beta_end=0.02: ...,
    "ddad:NoiseSchedule.alpha_bar": lambda self, t: ...,
    "ddad:NoiseSchedule.add_noise": lambda self, x_0, t, noise: ...,
    "ddad:noise_loss": lambda unet, x_0, t, noise, schedule: ...,
    "ddad:reconstruct": lambda unet, x, target, *, schedule, w, start=250, skip=25, eta=1.0, draw: ...,
    "feature_extractor:FeatureExtractor": lambda name, weights=None: ...,
    "anomaly_map:pixel_distance": lambda reconstruction, target: ...,
    "anomaly_map:feature_distance": lambda features_a, features_b, size: ...,
    "anomaly_map:combine": lambda d_feature, d_pixel, v, ratio=None: ...,
    "anomaly_map:smooth": lambda maps, sigma: ...,
    "domain_adaptation:adaptation_loss": (
        lambda tuned_reconstruction, tuned_target, frozen_target, frozen_reconstruction, distillation: ...
    ),
    "metrics:image_auroc": lambda scores, labels: ...,
    "metrics:pixel_auroc": lambda maps, masks: ...,
    "metrics:pro": lambda maps, masks, limit=0.3: ...,
    "training.checkpoint:load_unet": lambda path, unet: ...,
    "training.checkpoint:load_features": lambda path, extractor: ...,
    "training.checkpoint:save": lambda path, state: ...,
    "detection:Detector.load": lambda folder: ...,
    "detection:Detector.__call__": lambda self, picture: ...,
}


@pytest.mark.parametrize("path", SIGNATURES)
def test_signatures_stay(path):
    """Names, order, kinds and defaults of arguments are these. Others may follow if they have defaults."""
    expected = list(inspect.signature(SIGNATURES[path]).parameters.values())
    parameters = inspect.signature(pkgutil.resolve_name(path)).parameters.values()
    actual = [parameter.replace(annotation=REQUIRED) for parameter in parameters]
    assert actual[: len(expected)] == expected
    assert all(parameter.default is not REQUIRED for parameter in actual[len(expected) :])


def test_a_detector_returns_a_detection():
    call, detection = map(pkgutil.resolve_name, ("detection:Detector.__call__", "detection:Detection"))
    assert inspect.signature(call).return_annotation is detection
