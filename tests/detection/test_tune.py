"""--tune: settings chosen by synthetic anomalies."""

from dataclasses import replace

import torch
import yaml
from conftest import BACKBONE

from config.load import load_settings
from detection import tune
from detection.detector import calibration_inputs, load_detector
from detection.tune import (
    COPIES,
    FAINT,
    LEAST_GAIN,
    MOST_LOST,
    SCORE_SETTINGS,
    Quality,
    check_tuning,
    features_to_try,
    measure_quality,
    prepare_bench,
    try_detector,
    with_features,
    with_setting,
    with_settings,
)
from feature_extractor import FeatureExtractor
from training import checkpoint


def test_tuning_writes_a_configuration_that_runs(run_main, monkeypatch, tmp_path):
    monkeypatch.setattr(tune, "RECONSTRUCTION_SETTINGS", {"model.w": (1.0,)})
    assert run_main("--train")[0] == 0
    code, out, _ = run_main("--tune", "--output", str(tmp_path / "tuned"))
    assert code == 0 and "present settings" in out and "model.w = 1.0" in out and "use it with --config" in out
    content = yaml.safe_load((tmp_path / "tuned" / "tuned.yaml").read_text())
    assert content["model"]["v"] in (1.0, *SCORE_SETTINGS["model.v"])
    assert (tmp_path / "tuned" / "tuning.jsonl").read_text().count("objective") >= 3
    assert run_main("--detection", config=tmp_path / "tuned" / "tuned.yaml")[0] == 0
    code, out, _ = run_main("--tune", "--output", str(tmp_path / "alone"), "score.parts=[memory]")
    assert (
        code == 0 and "score.pooling" in out and "model.w =" not in out and "model.v =" not in out
    )  # which do not change the map


def test_a_gain_on_some_kinds_does_not_pay_for_a_loss_on_another():
    before = Quality({"pit": 0.9, "worn": 0.5}, pro=0.8)
    assert Quality({"pit": 0.9, "worn": 0.5 + 5 * LEAST_GAIN}, pro=0.8).replaces(before)
    assert not Quality({"pit": 0.9, "worn": 0.5 + 3 * LEAST_GAIN}, pro=0.8).replaces(before)
    assert Quality({"pit": 0.9 - 0.9 * MOST_LOST, "worn": 0.9}, pro=0.8).replaces(before)
    assert not Quality({"pit": 0.9 - 1.1 * MOST_LOST, "worn": 0.9}, pro=0.9).replaces(before)


def prepare(config, *overrides):
    """Return the detector, its settings, all normal pictures, and the bench."""
    settings = load_settings(config, overrides)
    detector, settings, _ = load_detector(settings, settings.checkpoint_folder, torch.device("cpu"))
    _, pictures, unseen = check_tuning(settings, config.parent / "tuned")
    return detector, settings, pictures, prepare_bench(pictures, unseen, settings)


def test_every_synthetic_anomaly_is_tried_in_full_and_faint(run_main, tiny_config):
    assert run_main("--train")[0] == 0
    *_, bench = prepare(tiny_config)
    made = len(bench.anomalous) // 2
    assert len(bench.kinds) == len(bench.masks) == 2 * made == 2 * COPIES * len(bench.clean)
    for number in range(made):
        clean = bench.clean[number % len(bench.clean)]
        torch.testing.assert_close(
            bench.anomalous[made + number] - clean, FAINT * (bench.anomalous[number] - clean), rtol=0, atol=1e-6
        )
        assert (
            bench.kinds[made + number] == f"{bench.kinds[number]}, faint"
            and bench.masks[made + number] is bench.masks[number]
        )
        assert not torch.equal(bench.anomalous[number], clean)


def test_false_alarms_on_normal_pictures_lower_pro(run_main, tiny_config):
    assert run_main("--train")[0] == 0
    detector, settings, _, bench = prepare(tiny_config)
    trial = try_detector(detector, bench, settings)
    alarming = replace(trial, clean=[{part: 100 * maps for part, maps in parts.items()} for parts in trial.clean])
    assert measure_quality(alarming, bench).pro < measure_quality(trial, bench).pro - 0.05


def test_a_trial_with_the_memory_parts_of_another_is_equal_to_a_whole_one(run_main, tiny_config):
    """The networks of the first one stay in memory; the whole trial reads them again."""
    parts = ("score.parts=[memory, wide_memory, pixel]", "model.unet_size=16")
    assert run_main("--train", *parts)[0] == 0
    detector, settings, pictures, bench = prepare(tiny_config, *parts)
    assert sorted(bench.learnt_from.names() + bench.unseen) == sorted(pictures.names())  # as in detection
    before, other = try_detector(detector, bench, settings), with_setting(settings, "model.w", 1.0)
    whole = try_detector(load_detector(other, other.checkpoint_folder, detector.device)[0], bench, other)
    short = try_detector(with_settings(detector, other), bench, other, before)
    assert measure_quality(whole, bench) == measure_quality(short, bench)
    for of_whole, of_short, earlier in zip(whole.anomalous, short.anomalous, before.anomalous, strict=True):
        assert all(of_short[part] is earlier[part] for part in ("memory", "wide_memory"))
        assert not torch.equal(of_short["pixel"], earlier["pixel"])
        torch.testing.assert_close(of_whole, of_short, rtol=1e-5, atol=1e-5)


def test_a_candidate_is_the_detector_that_its_settings_build(run_main, tiny_config):
    assert run_main("--train", "--domain_adaptation", "model.save_model=True")[0] == 0
    detector, settings, *_ = prepare(tiny_config)
    for name, value in (("model.w", 1.0), ("model.skip", 25), ("model.v", 4.0), ("model.DA_chp", 1)):
        candidate = with_setting(settings, name, value)
        changed = with_settings(detector, candidate)
        changed = with_features(changed, candidate) if name == "model.DA_chp" else changed
        rebuilt = load_detector(candidate, candidate.checkpoint_folder, detector.device)[0]
        assert calibration_inputs(changed, candidate) == calibration_inputs(rebuilt, candidate)
        assert calibration_inputs(changed, candidate) != calibration_inputs(detector, settings)


def test_tuning_tries_features_of_the_same_network_that_have_not_seen_its_pictures(run_main, tiny_config):
    assert run_main("--train")[0] == 0
    settings = load_settings(tiny_config)
    unseen = check_tuning(settings, tiny_config.parent / "tuned")[2].names()
    own, other = (FeatureExtractor(name, "random") for name in (BACKBONE, "resnet50"))
    for epoch, (extractor, held_out) in enumerate(((own, []), (own, unseen), (own, unseen[1:]), (other, unseen))):
        checkpoint.save_features(settings.checkpoint_folder / f"feat{epoch}", extractor, held_out=held_out)
    torch.save(other.network.state_dict(), settings.checkpoint_folder / "feat4")  # as released
    assert features_to_try(settings, unseen) == [1]  # and feat0 is what it has


def test_tuning_without_unseen_pictures_says_what_it_needs(run_main):
    assert run_main("--train", "calibration.share=0")[0] == 0
    code, _, err = run_main("--tune")
    assert code == 2 and "--tune needs some: train with calibration.share above 0" in err
