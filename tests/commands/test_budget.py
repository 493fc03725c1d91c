import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from benchmarks import accuracy
from commands import budget
from commands.budget import TRAINING_SHARE, steps_within
from config.load import PLANNED, SPELLINGS, build_settings, load_settings
from config.presets import PRESETS
from detection import tune
from detection.calibrate import calibration_work
from detection.detector import Detector
from detection.tune import (
    COPIES,
    FAINT,
    LEAST_GAIN,
    MOST_LOST,
    SCORED,
    Quality,
    check_tuning,
    features_to_try,
    measure_quality,
    prepare_bench,
    try_settings,
    with_setting,
)
from feature_extractor import FeatureExtractor
from training import checkpoint

ROOT = Path(__file__).parents[2]
LAPTOP = (
    "preset=laptop",
    "model.unet_size=16",
    "model.channel_multipliers=[1]",
    "model.base_channels=8",
    "data.batch_size=4",
    "data.image_size=32",
)
LAPTOP += ("training.most_steps=4",)
SHORT = (*LAPTOP, "score.draws=1", "model.skip=125")


def test_training_gets_the_seconds_that_detection_leaves():
    assert steps_within(10, step=0.5, others=240) == (0.9 * 600 - 240) / 0.5
    assert (
        steps_within(1000, step=0.1, others=0) == 540_000 and steps_within(1000, step=0.1, others=0, most=4000) == 4000
    )
    assert steps_within(10, step=1, others=9999) == TRAINING_SHARE * 600
    with pytest.raises(ValueError, match="budget_minutes is 1, which leaves 54 training steps; set it to 5 or more"):
        steps_within(1, step=1, others=0)


def test_a_preset_goes_above_the_file_and_below_the_command_line():
    data = ("data.name=own", "data.data_dir=d", "data.category=c")
    plain = load_settings(ROOT / "config.yaml")
    laptop = load_settings(ROOT / "config.yaml", [*data, "preset=laptop", "model.v=2"])
    assert (plain.data.image_size, plain.model.unet_size, plain.score.parts) == (256, None, None)
    assert (laptop.model.unet_size, laptop.model.v, laptop.model.w, laptop.training.budget_minutes) == (64, 2, 5, 60)
    assert laptop.model.epochs == PLANNED
    assert (
        load_settings(ROOT / "config.yaml", [*data, "preset=laptop", "budget_minutes=10"]).training.budget_minutes == 10
    )
    published = load_settings(ROOT / "config.yaml", ["preset=published"])
    assert published == load_settings(ROOT / "config.yaml", ["score.protocol=published", "speed.precision=fp32"])
    assert (published.calibration.share, published.score.draws) == (0, 1)
    for wrong, said in (
        ("laptpo", "preset is 'laptpo'; did you mean laptop"),
        ("[laptop]", "preset is \\['laptop'\\]"),
    ):
        with pytest.raises(ValueError, match=said):
            load_settings(ROOT / "config.yaml", [*data, f"preset={wrong}"])


def test_a_budget_without_a_preset_detects_with_what_it_trained():
    planned = load_settings(ROOT / "config.yaml", ["budget_minutes=30"]).model
    assert (planned.epochs, planned.load_chp) == (PLANNED, "latest")
    assert load_settings(ROOT / "config.yaml", ["budget_minutes=30", "model.epochs=7"]).model.epochs == 7


@pytest.mark.parametrize("row", accuracy.ROWS, ids=lambda row: row.name)
def test_the_rows_of_the_accuracy_table_are_valid(row):
    load_settings(
        ROOT / "config.yaml", ["preset=laptop", "data.name=own", "data.data_dir=d", "data.category=c", *row.settings]
    )


@pytest.mark.parametrize("name", PRESETS)
def test_presets_name_keys_that_there_are(name):
    known = {
        f"{section}.{key}"
        for section, values in load_settings(ROOT / "config.yaml").as_dict().items()
        for key in values
    }
    assert {SPELLINGS.get(key, key) for key in PRESETS[name]} <= known


def test_the_laptop_preset_plans_trains_and_detects(run_main, monkeypatch, tmp_path):
    monkeypatch.setattr(budget, "FEWEST_STEPS", 1)
    code, out, err = run_main("--train", "--domain_adaptation", "--detection", *SHORT, "budget_minutes=5")
    assert (code, err) == (0, "")
    assert "to fit nut into 5 minutes" in out and "plan: 4 training steps of 4 pictures" in out and "image AUROC" in out
    code, out, _ = run_main("--train", "--resume", *SHORT, "budget_minutes=5")
    assert code == 0 and "2 epochs, as" in out and "nut is trained" in out
    code, out, _ = run_main("--train", "--resume", *SHORT, "budget_minutes=9", "training.most_steps=6")
    assert code == 0 and "plan: 6 training steps" in out and "trained nut for 3 epochs" in out
    code, _, err = run_main("--train", *SHORT, "budget_minutes=0.0001")
    assert code == 2 and "budget_minutes is 0.0001, which leaves 0 training steps; set it to 1 or more" in err


def test_epochs_of_another_training_are_not_taken_over(run_main, monkeypatch):
    monkeypatch.setattr(budget, "FEWEST_STEPS", 1)
    assert run_main("--train", *LAPTOP, "model.epochs=3", "budget_minutes=5")[0] == 0
    assert (
        "3 epochs, as" in run_main("--train", "--resume", *LAPTOP, "budget_minutes=5")[1]
    )  # of this budget, these settings and pictures
    assert (
        "plan: 4 training steps"
        in run_main("--train", "--resume", *LAPTOP, "budget_minutes=5", "model.learning_rate=1e-3")[1]
    )
    assert run_main("--train", *LAPTOP, "model.epochs=3", "training.budget_minutes=null")[0] == 0
    assert "plan: 4 training steps" in run_main("--train", "--resume", *LAPTOP, "budget_minutes=5")[1]


def test_a_budget_counts_the_pictures_of_input(run_main, monkeypatch, category, tmp_path):
    monkeypatch.setattr(budget, "FEWEST_STEPS", 1)
    shutil.move(category / "test", tmp_path / "new")
    code, out, err = run_main(
        "--train",
        "--detection",
        "--input",
        str(tmp_path / "new"),
        "--output",
        str(tmp_path / "found"),
        *SHORT,
        "budget_minutes=5",
    )
    assert code == 0 and "8 pictures to compare" in out and "6 pictures in" in out, err


def test_a_budget_does_not_count_pictures_that_an_earlier_run_left(run_main, monkeypatch, category):
    monkeypatch.setattr(budget, "FEWEST_STEPS", 1)
    source = category / "test"
    arguments = ("--train", "--detection", "--input", str(source), "--output", str(source / "found"), "--force")
    for _ in range(2):
        code, out, err = run_main(*arguments, *SHORT, "budget_minutes=5", "metrics.visualisation=True")
        assert code == 0 and "8 pictures to compare" in out and "6 pictures in" in out, err
    assert len(list(source.rglob("heatmaps/**/*.png"))) == 6


def test_settings_whose_epochs_are_not_planned_are_read_back(run_main, tiny_config, tmp_path):
    """As --tune, calibrations and manifests keep them."""
    planned = load_settings(tiny_config, ["model.epochs=auto", "budget_minutes=5"])
    again = build_settings(planned.as_dict())
    assert again == planned and planned.as_dict()["model"]["epochs"] == "auto"
    budget = ("preset=laptop", *LAPTOP[1:])
    assert run_main("--train", *budget, "model.epochs=2")[0] == 0
    code, _, err = run_main("--detection", *budget)
    assert code == 0, err
    assert Detector.load(tmp_path / "checkpoints" / "nut").threshold > 0
    code, out, err = run_main(
        "--rerun", str(tmp_path / "results" / "manifest.json"), "--train", "--output", str(tmp_path / "again")
    )
    assert code == 0 and "equal to the last bit" in out, err


def test_tuning_writes_a_configuration_that_runs(run_main, monkeypatch, tmp_path):

    monkeypatch.setattr(tune, "REBUILT", {"model.w": (1.0,)})
    assert run_main("--train")[0] == 0
    code, out, _ = run_main("--tune", "--output", str(tmp_path / "tuned"))
    assert code == 0 and "present settings" in out and "model.w = 1.0" in out and "use it with --config" in out
    content = yaml.safe_load((tmp_path / "tuned" / "tuned.yaml").read_text())
    assert content["model"]["v"] in (1.0, *SCORED["model.v"])
    assert (tmp_path / "tuned" / "tuning.jsonl").read_text().count("objective") >= 3
    assert run_main("--detection", config=tmp_path / "tuned" / "tuned.yaml")[0] == 0
    code, out, _ = run_main("--tune", "--output", str(tmp_path / "alone"), "score.parts=[memory]")
    assert (
        code == 0 and "score.pooling" in out and "model.w =" not in out and "model.v =" not in out
    )  # which do not change the map


def test_no_kind_of_defect_pays_for_what_others_gain():

    before = Quality({"pit": 0.9, "worn": 0.5}, pro=0.8)
    assert Quality({"pit": 0.9, "worn": 0.5 + 5 * LEAST_GAIN}, pro=0.8).replaces(before)
    assert not Quality({"pit": 0.9, "worn": 0.5 + 3 * LEAST_GAIN}, pro=0.8).replaces(before)
    assert Quality({"pit": 0.9 - 0.9 * MOST_LOST, "worn": 0.9}, pro=0.8).replaces(before)
    assert not Quality({"pit": 0.9 - 1.1 * MOST_LOST, "worn": 0.9}, pro=0.9).replaces(before)


def test_every_made_defect_is_tried_in_full_and_faint(run_main, tiny_config):

    assert run_main("--train")[0] == 0
    settings = load_settings(tiny_config)
    _, pictures, unseen = check_tuning(settings)
    bench = prepare_bench(pictures, unseen, settings)
    made = len(bench.spoilt) // 2
    assert len(bench.kinds) == len(bench.masks) == 2 * made == 2 * COPIES * len(unseen)
    for number in range(made):
        clean = bench.clean[number % len(unseen)]
        torch.testing.assert_close(
            bench.spoilt[made + number] - clean, FAINT * (bench.spoilt[number] - clean), rtol=0, atol=1e-6
        )
        assert (
            bench.kinds[made + number] == f"{bench.kinds[number]}, faint"
            and bench.masks[made + number] is bench.masks[number]
        )
        assert not torch.equal(bench.spoilt[number], clean)


def test_false_alarms_on_normal_pictures_lower_the_outlines_of_tuning(run_main, tiny_config):

    assert run_main("--train")[0] == 0
    settings = load_settings(tiny_config)
    _, pictures, unseen = check_tuning(settings)
    bench = prepare_bench(pictures, unseen, settings)
    trial = try_settings(settings, bench, torch.device("cpu"))
    alarming = replace(trial, clean=[{part: 100 * maps for part, maps in parts.items()} for parts in trial.clean])
    assert measure_quality(alarming, bench).pro < measure_quality(trial, bench).pro - 0.05


def test_a_trial_that_takes_over_what_no_reconstruction_changes_is_a_whole_one(run_main, tiny_config):

    parts = ("score.parts=[memory, wide_memory, pixel]", "model.unet_size=16")
    assert run_main("--train", *parts)[0] == 0
    settings, device = load_settings(tiny_config, parts), torch.device("cpu")
    _, pictures, unseen = check_tuning(settings)
    bench = prepare_bench(pictures, unseen, settings)
    assert sorted(bench.learnt_from.names() + bench.unseen) == sorted(pictures.names())  # as detection does
    before, other = try_settings(settings, bench, device), with_setting(settings, "model.w", 1.0)
    whole, short = try_settings(other, bench, device), try_settings(other, bench, device, before)
    assert measure_quality(whole, bench) == measure_quality(short, bench)
    for one, two, old in zip(whole.spoilt, short.spoilt, before.spoilt, strict=True):
        assert all(two[part] is old[part] for part in ("memory", "wide_memory")) and not torch.equal(
            two["pixel"], old["pixel"]
        )
        torch.testing.assert_close(dict(one), dict(two), rtol=1e-5, atol=1e-5)


def test_tuning_tries_features_of_the_same_network_that_have_not_seen_its_pictures(run_main, tiny_config):

    assert run_main("--train")[0] == 0
    settings = load_settings(tiny_config)
    unseen = check_tuning(settings)[2].names()
    own, other = (FeatureExtractor(name, "random") for name in ("efficientnet_lite0", "resnet50"))
    for epoch, (extractor, held_out) in enumerate(((own, []), (own, unseen), (own, unseen[1:]), (other, unseen))):
        checkpoint.save_features(settings.checkpoint_folder / f"feat{epoch}", extractor, held_out=held_out)
    torch.save(other.network.state_dict(), settings.checkpoint_folder / "feat4")  # as released
    assert features_to_try(settings, unseen) == [1]  # and feat0 is what it has


def test_training_alone_times_no_detection(run_main, monkeypatch):
    monkeypatch.setattr(budget, "FEWEST_STEPS", 1)
    code, out, err = run_main("--train", *SHORT, "budget_minutes=5", "model.feature_extractor=timm/none")
    assert code == 0 and "0 pictures to compare" in out, err


def test_tuning_without_unseen_pictures_says_what_it_needs(run_main):
    assert run_main("--train", "calibration.share=0")[0] == 0
    code, _, err = run_main("--tune")
    assert code == 2 and "--tune needs some: train with calibration.share above 0" in err


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ((), (60, 0)),
        (("memory",), (60, 500)),
        (("wide_memory",), (60, 500)),
        (("pixel",), (60, 0)),
        (("memory", "pixel"), (60, 500)),
    ],
)
def test_the_plan_counts_what_normal_pictures_take(parts, expected):
    assert calibration_work(parts, learnt=500, held_out=60, most=100) == expected
    judged, looked_at = calibration_work(parts, learnt=40, held_out=0, most=100)  # half of them where there are parts
    assert (judged, looked_at) == (20 if parts else 40, 20 if expected[1] else 0)
