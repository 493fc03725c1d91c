import os

import pytest
import torch
from golden_weights import published_unet, state_dict

from feature_extractor import FeatureExtractor
from training import checkpoint
from unet import UNet

SMALL = {
    "image_size": 32,
    "base_channels": 8,
    "channel_multipliers": (1, 2),
    "blocks_per_level": 1,
    "attention_sizes": (16,),
    "heads": 2,
}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints" / "nut"


def test_a_released_unet_loads_unchanged(golden, tmp_path):
    weights = state_dict(golden("unet_state_dict")["ddad_s_32"])
    torch.save({f"module.{name}": value for name, value in weights.items()}, tmp_path / "2000")
    unet = published_unet("ddad_s_32")
    checkpoint.load_unet(tmp_path / "2000", unet)
    torch.testing.assert_close(dict(unet.state_dict()), weights)


def test_released_features_load_though_they_are_a_whole_resnet(golden, tmp_path):
    weights = state_dict(golden("resnet_state_dict")["resnet50"])
    torch.save({f"module.{name}": value for name, value in weights.items()}, tmp_path / "feat3")
    extractor, origin = checkpoint.restore_features(tmp_path, 3, "resnet50")
    assert origin == tmp_path / "feat3"
    for name, value in extractor.network.state_dict().items():
        torch.testing.assert_close(value, weights[name])


def test_saved_weights_rebuild_their_network(folder):
    unet = UNet(**SMALL)
    checkpoint.save_unet(folder / "7", unet, epoch=7)
    content = checkpoint.read_state(folder / "7")
    again = UNet(**content["architecture"])
    checkpoint.load_unet(folder / "7", again)
    torch.testing.assert_close(again.state_dict(), unet.state_dict())


def test_the_moving_average_is_kept_beside_the_raw_weights_and_preferred(folder):
    unet, average, loaded = UNet(**SMALL), UNet(**SMALL), UNet(**SMALL)
    checkpoint.save_unet(folder / "1", unet, average=average)
    checkpoint.load_unet(folder / "1", loaded)
    torch.testing.assert_close(loaded.state_dict(), average.state_dict())
    torch.testing.assert_close(checkpoint.read_state(folder / "1")["weights"], unet.state_dict())


def test_an_official_file_is_refused_for_a_network_that_predicts_x_0(folder):
    folder.mkdir(parents=True)
    torch.save(UNet(**SMALL).state_dict(), folder / "2")
    with pytest.raises(
        ValueError, match="2 is an official file, whose network predicts the noise; set model.predicts=null"
    ):
        checkpoint.load_unet(folder / "2", UNet(**SMALL, predicts="x0"))


def test_a_mismatch_names_both_sides(folder):
    checkpoint.save_unet(folder / "1", UNet(**SMALL))
    with pytest.raises(ValueError, match="base_channels is 8 in the file, 16 in the configuration"):
        checkpoint.load_unet(folder / "1", UNet(**SMALL | {"base_channels": 16}))
    with pytest.raises(ValueError, match="image_size is 32 in the file, 64 in the configuration"):
        checkpoint.load_unet(folder / "1", UNet(**SMALL | {"image_size": 64}))
    torch.save(UNet(**SMALL).state_dict(), folder / "2")
    with pytest.raises(
        ValueError, match=r"time_embedding.1.weight is \(32, 8\) in the file, \(64, 16\) in the configuration"
    ):
        checkpoint.load_unet(folder / "2", UNet(**SMALL | {"base_channels": 16}))


def test_weights_are_found_with_or_without_zip(folder):
    checkpoint.save(folder / "500.zip", {})
    checkpoint.save(folder / "feat4", {})
    assert checkpoint.find_weights(folder, 500).name == "500.zip"
    assert checkpoint.find_weights(folder, 4, "feat").name == "feat4"
    with pytest.raises(FileNotFoundError, match="no weights 1000 in .*; it has 500; run --train True first"):
        checkpoint.find_weights(folder, 1000)


def test_latest_is_the_one_written_last(folder):
    for age, epoch in ((30, 100), (20, 200), (10, 50)):
        checkpoint.save(folder / str(epoch), {})
        os.utime(folder / str(epoch), (1_700_000_000 - age, 1_700_000_000 - age))
    assert checkpoint.find_weights(folder, "latest").name == "50"


def test_a_copied_folder_keeps_its_latest(folder):
    """Copies have times of their own."""
    for epoch in (750, 1000):
        checkpoint.save_unet(folder / str(epoch), UNet(**SMALL))
    os.utime(folder / "1000", (0, 0))
    assert checkpoint.find_weights(folder, "latest").name == "1000"
    for noted in (b"\xff", b"", b"12", b"9" * 9999):
        (folder / "latest").write_bytes(noted)
        assert checkpoint.find_weights(folder, "latest").name == "750"


def test_weights_whose_writing_is_killed_are_not_the_latest(folder, monkeypatch):
    """The earlier run's latest stays, not its older file of the epoch that was to be written."""
    for epoch in (50, 100):
        checkpoint.save_unet(folder / str(epoch), UNet(**SMALL))

    def killed(path, state):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save_unet(folder / "50", UNet(**SMALL))
    assert checkpoint.find_weights(folder, "latest").name == "100"


@pytest.mark.parametrize("is_zip", [True, False])
def test_notes_are_read_without_the_weights_where_the_format_allows_it(folder, is_zip, monkeypatch):
    folder.mkdir(parents=True)
    content = {"held_out": ["train/good/1.png"], "weights": {"w": torch.ones(9)}}
    torch.save(content, folder / "1", _use_new_zipfile_serialization=is_zip)
    mapped, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *a, mmap, **rest: mapped.append(mmap) or load(*a, mmap=mmap, **rest))
    assert checkpoint.held_out_names(folder / "1") == ["train/good/1.png"] and mapped == [is_zip]


def test_features_are_loaded_by_their_path(folder):
    ours, loaded, other = (FeatureExtractor(name, "random") for name in ("resnet50", "resnet50", "efficientnet_lite0"))
    checkpoint.save_features(folder / "feat1", ours)
    checkpoint.load_features(folder / "feat1", loaded)
    torch.testing.assert_close(loaded.network.state_dict(), ours.network.state_dict())
    with pytest.raises(
        ValueError, match="feat1 holds features of resnet50, the configuration asks for efficientnet_lite0"
    ):
        checkpoint.load_features(folder / "feat1", other)


def test_a_write_that_fails_leaves_the_earlier_file(folder, monkeypatch):
    checkpoint.save(folder / "1", {"weights": torch.ones(3)})
    before = (folder / "1").read_bytes()

    def full_disk(file_number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="can't write .*No space left on device; free some space"):
        checkpoint.save(folder / "1", {"weights": torch.zeros(3)})
    assert (folder / "1").read_bytes() == before and [path.name for path in folder.iterdir()] == ["1"]


def test_feat0_of_another_network_is_ignored(folder):
    checkpoint.save_features(folder / "feat0", FeatureExtractor("resnet50", "random"))
    assert checkpoint.restore_features(folder, 0, "efficientnet_lite0")[0].name == "efficientnet_lite0"
    assert checkpoint.restore_features(folder, 0, "auto")[0].name == "resnet50"


def test_without_weights_on_this_machine_auto_takes_the_embedded_network(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    extractor, origin = checkpoint.restore_features(folder, 0, "auto")
    assert extractor.name == "efficientnet_lite0" and "no weights of wide_resnet101_2" in origin


def test_a_file_of_weights_takes_precedence_over_feat0(folder, tmp_path):
    source = FeatureExtractor("resnet50", "random")
    torch.save(source.network.state_dict(), tmp_path / "weights")
    checkpoint.save_features(folder / "feat0", FeatureExtractor("resnet50", "random"))
    extractor, origin = checkpoint.restore_features(folder, 0, "resnet50", tmp_path / "weights")
    assert origin == str(tmp_path / "weights")
    torch.testing.assert_close(extractor.network.state_dict(), source.network.state_dict())


@pytest.mark.parametrize("strange", [torch.zeros(2, 2), (torch.zeros(2),), "8", None])
def test_an_architecture_of_strange_values_is_refused(folder, strange):
    unet = UNet(**SMALL)
    content = {"format": checkpoint.FORMAT, "network": "unet", "weights": unet.state_dict()}
    checkpoint.save(folder / "1", content | {"architecture": unet.architecture | {"base_channels": strange}})
    with pytest.raises(ValueError, match="(?s)base_channels is .* in the file, 8 in the configuration"):
        checkpoint.load_unet(folder / "1", unet)
    checkpoint.save(folder / "1", content | {"architecture": unet.architecture | {"base_channels": {(1, 2): 3}}})
    with pytest.raises(ValueError, match="is damaged: it has no plain values"):
        checkpoint.load_unet(folder / "1", unet)
