"""Whole runs of diffusion on features, and the weights of parts."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_networks import make_detector

from detection import Detector, reference
from detection.calibrate import UnseenJudges, build_calibration
from storage.weights_file import read_state
from training import checkpoint
from training.patch_network import PatchNetwork

ON_FEATURES = (
    "model.unet_size=16",
    "model.attention_sizes=[8]",
    "model.predicts=x0",
    "score.space=features",
    "score.parts=[memory, diffusion]",
    "calibration.pictures=4",
)


def scores_of(folder) -> dict[str, float]:
    lines = (folder / "scores.csv").read_text().splitlines()
    place = lines[0].split(",").index("score")
    return {line.split(",")[0]: float(line.split(",")[place]) for line in lines[1:]}


@pytest.mark.parametrize(("network", "channels"), [("unet", 48), ("patch", 20)])
def test_a_network_on_features_is_trained_detects_and_is_loaded(run_main, tmp_path, category, network, channels):
    shape = (f"model.network={network}", f"model.feature_channels={channels}")
    code, _, err = run_main("--train", "--detection", *ON_FEATURES, *shape, "score.weights=measured")
    assert code == 0, err
    folder = tmp_path / "checkpoints" / "nut"
    content = read_state(folder / "2")
    assert content["architecture"]["in_channels"] == channels
    assert set(content["space"]) == {"mean", "directions"}
    calibration = json.loads((folder / "calibration.json").read_text())
    weights = [weight for _, _, weight in calibration["scales"].values()]
    assert max(weights) == 1 and min(weights) >= 0
    detector, scores = Detector.load(folder, "cpu"), scores_of(tmp_path / "results")
    for name, score in list(scores.items())[:3]:
        assert detector(category / name).score == pytest.approx(score, rel=1e-4)


def test_a_normal_picture_is_judged_by_the_member_that_has_not_learnt_it(run_main, tmp_path, category):
    assert run_main("--train", *ON_FEATURES, "model.network=patch", "calibration.method=cross")[0] == 0
    unseen = checkpoint.unseen_by_member(tmp_path / "checkpoints" / "nut" / "2")
    names = sorted(f"train/good/{file.name}" for file in (category / "train" / "good").iterdir())
    assert sorted(unseen) == names and set(unseen.values()) == {0, 1}
    plain = make_detector()
    detector = replace(plain, networks=replace(plain.networks, unet=PatchNetwork(3, 4)))
    items = [SimpleNamespace(path=name) for name in ("new", *names)]
    judged = UnseenJudges(detector, unseen).judge(
        lambda group, judge: [(item.path, judge.networks.unet) for item in group], items
    )
    assert judged[0] == ("new", detector.networks.unet)
    assert judged[1:] == [(name, detector.networks.unet.members[unseen[name]]) for name in names]


@pytest.mark.parametrize("network", ["unet", "patch"])
def test_trainings_on_computed_and_on_cached_features_give_the_same_weights(run_main, tmp_path, network):
    whole = (*ON_FEATURES, "model.epochs=4", f"model.network={network}")
    assert run_main("--train", *whole)[0] == 0
    first = read_state(tmp_path / "checkpoints" / "nut" / "4")
    cached = (f"model.checkpoint_dir={tmp_path / 'again'}", f"speed.cache={tmp_path / 'cache'}")
    assert run_main("--train", *whole, *cached, "model.epochs=1")[0] == 0
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".pixels", ".features"}
    assert run_main("--train", *whole, *cached)[0] == 0
    again = read_state(tmp_path / "again" / "nut" / "4")
    for part in ("weights", "space"):
        assert all(torch.equal(value, again[part][name]) for name, value in first[part].items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("score.parts=null",), "score.space is features, but score.parts is null"),
        (("score.parts=[pixel]",), "it takes diffusion and memories in place of pixel and feature"),
        (("model.feature_extractor=auto",), "needs another model.feature_extractor than auto; name one"),
        (("training.augmentation=flip",), "needs another training.augmentation than flip; set it to null"),
        (("model.DA_chp=1",), "needs another model.DA_chp than 1; set it to 0"),
        (("score.space=pixels", "model.network=patch"), "model.network is patch, which learns features; set"),
        (("score.space=pixels",), "score.parts has diffusion, which compares features, but score.space is pixels"),
    ],
)
def test_settings_that_do_not_go_with_features_stop_the_run(run_main, settings, message):
    code, _, err = run_main("--train", *ON_FEATURES, *settings)
    assert code == 2 and message in err and err.count("\n") == 1


def test_weights_of_pixels_are_refused(run_main, trained):
    code, _, err = run_main("--detection", *ON_FEATURES)
    assert code == 2 and "belongs to another network" in err


def test_a_part_that_knows_nothing_weighs_nothing():
    rng = np.random.default_rng(0)
    normal = {"good": rng.normal(size=50), "useless": rng.normal(size=50), "worse": rng.normal(size=50)}
    anomalous = {"good": rng.normal(3, size=60), "useless": normal["useless"][:40], "worse": rng.normal(-3, size=60)}
    weights = reference.measure_weights(normal, anomalous)
    assert weights["good"] == 1 and weights["worse"] == 0 and weights["useless"] < 0.2


def test_equal_parts_weigh_alike_and_none_weighs_where_all_know_nothing():
    assert reference.measure_weights({"a": [0, 1], "b": [0, 1]}, {"a": [2], "b": [2]}) == {"a": 1, "b": 1}
    assert reference.measure_weights({"a": [2, 3], "b": [2, 3]}, {"a": [1], "b": [1]}) == {"a": 1, "b": 1}


def test_a_weight_of_0_takes_a_part_out_of_the_map():
    detector = make_detector(parts=("feature", "pixel"))
    maps = torch.rand(3, 1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    normal = [{"feature": one, "pixel": one.flip(3)} for one in maps]
    anomalous = [{"feature": one + 5, "pixel": one.flip(3) - 5} for one in maps]
    weighed = build_calibration(detector, normal, {}, anomalous=anomalous)
    assert [weighed.scales[part].weight for part in ("feature", "pixel")] == [1, 0]
    changed = [one | {"pixel": 3 * one["pixel"]} for one in normal]
    predictions = [detector.assemble(parts, 1.0, weighed.scales).anomaly.clamp_min(0) for parts in normal + changed]
    for before, after in zip(predictions[:3], predictions[3:], strict=True):
        assert torch.equal(before, after)


def test_the_length_of_residuals_counts_deviations_from_normal_ones():
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([1.0, 2.0, 4.0])
    length = reference.ResidualLength.learn(torch.randn(5000, 3, generator=generator) * spread)
    found = length.reference.distance(torch.diag(spread).T[None, :, :, None])[0, 0, :, 0]  # one deviation each
    assert (found[1:] > found[:-1]).all()  # half whitened: strong channels count more, but less than before
    assert found[2] / found[0] == pytest.approx(2, rel=0.1)
    assert length.without(torch.tensor([1])) is length.reference
