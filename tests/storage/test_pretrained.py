"""Nothing comes over the network but weights of a known name, and those only with the content that they should have."""

import hashlib
import types

import huggingface_hub
import pytest
import timm
import torch

from feature_extractor import FeatureExtractor
from storage.pretrained import hash_in, timm_files, timm_model, timm_source, torchvision_state


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch's cache, empty."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def test_cached_weights_with_another_hash_are_refused(hub):
    (hub / "resnet50-0676ba61.pth").write_bytes(b"damaged")
    digits = hashlib.sha256(b"damaged").hexdigest()[:8]
    with pytest.raises(
        OSError,
        match=rf"no ImageNet weights for resnet50: .*its SHA-256 is {digits}, not 0676ba61; remove it; set model",
    ):
        FeatureExtractor("resnet50")


def test_cached_weights_with_their_hash_are_loaded(hub):
    digits = hashlib.sha256(b"right").hexdigest()[:8]
    (hub / f"net-{digits}.pth").write_bytes(b"right")
    requests = []
    published = types.SimpleNamespace(
        url=f"https://host/net-{digits}.pth", get_state_dict=lambda **options: requests.append(options) or {"w": 1}
    )
    assert torchvision_state(published) == {"w": 1} and requests[0]["check_hash"] and requests[0]["weights_only"]


@pytest.mark.parametrize(
    "name",
    ["hf-hub:someone/model", "hf_hub:someone/model", "local-dir:/tmp/model", "someone/model", "../model", "nonsense"],
)
def test_only_names_that_timm_knows_are_requested(name, monkeypatch):
    """timm would fetch any repository of the hub, and open any folder, that a name points to."""
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("requested"))
    with pytest.raises(ValueError, match="take another of timm.list_models"):
        FeatureExtractor(f"timm/{name}")


@pytest.fixture
def created(monkeypatch):
    """Return the list of models requested from timm, which creates none."""
    requests = []
    monkeypatch.setattr(
        timm, "create_model", lambda name, **arguments: requests.append((name, arguments)) or torch.nn.Identity()
    )
    return requests


def test_hub_files_are_compared_with_the_hash_in_their_path(tmp_path, monkeypatch, created):
    right, wrong = tmp_path / hashlib.sha256(b"right").hexdigest(), tmp_path / ("0" * 64)
    for blob in (right, wrong):
        blob.write_bytes(b"right")
    cached = {"model.safetensors": tmp_path / "model.safetensors"}
    monkeypatch.setattr(
        huggingface_hub,
        "try_to_load_from_cache",
        lambda repository, name: str(cached[name]) if name in cached else None,
    )
    cached["model.safetensors"].symlink_to(right)
    timm_model("resnet18", features_only=True)
    assert created == [("resnet18", {"pretrained": True, "features_only": True})] and timm.models._builder._CHECK_HASH
    cached["model.safetensors"].unlink()
    cached["model.safetensors"].symlink_to(wrong)
    with pytest.raises(OSError, match=r"model.safetensors is damaged: its SHA-256 is .*, not 0000"):
        timm_model("resnet18")


def test_files_of_other_addresses_are_compared_with_the_hash_in_their_name(hub, created):
    name = "gcvit_base.in1k"  # which the hub has not
    assert timm_files(timm_source(name)) == []
    (hub / "gcvit_base_224_nvidia-f009139b.pth").write_bytes(b"damaged")
    with pytest.raises(OSError, match=r"is damaged: its SHA-256 is .*, not f009139b"):
        timm_model(name)


def test_an_address_without_a_hash_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="contains no hash"):
        hash_in("https://host/weights.pth")
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: types.SimpleNamespace(hf_hub_id=None, url=""))
    with pytest.raises(ValueError, match="no weights of it"):
        timm_source("resnet18")
