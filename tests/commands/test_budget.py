import itertools
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from conftest import BACKBONE

import train
from benchmarks import accuracy
from commands import budget
from commands.budget import budget_warnings
from config.checks import SPELLINGS
from config.keys import PLANNED
from config.load import build_settings, load_settings
from config.presets import PRESETS
from detection.detector import Detector
from reports import manifest
from training import checkpoint
from training.pace import Clock

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("small_features")
LAPTOP = (
    "preset=laptop",
    "model.unet_size=16",
    "model.channel_multipliers=[1]",
    "model.base_channels=8",
    "data.batch_size=4",
    "data.image_size=32",
)
LAPTOP += ("training.most_steps=4", f"model.feature_extractor={BACKBONE}", "score.weights=equal")
SHORT = (*LAPTOP, "score.draws=1", "model.skip=125")
UNBOUND = (*SHORT, "training.most_steps=null", "training.ema=0.9", "data.batch_size=2")


def turn_clock(monkeypatch, seconds):
    """Let each step take `seconds` for the clock, and a step's share of the time of detection be a second's."""
    readings = itertools.count(step=seconds)
    monkeypatch.setattr(budget, "monotonic", lambda: next(readings))
    monkeypatch.setattr(budget, "time_machine", lambda plan, detects: budget.Costs(1.0, 0.1 * detects, 0.01 * detects))


def weights_in(folder):
    return checkpoint.read_state(checkpoint.find_weights(folder, "latest"))


def assert_same_weights(ours, theirs):
    for part in ("weights", "average"):
        torch.testing.assert_close(ours[part], theirs[part], rtol=0, atol=0)


def stop():
    raise KeyboardInterrupt


def stop_at(monkeypatch, step):
    """Let the run be stopped after this training step."""
    follow = train.follow_steps

    def steps(*arguments):
        for progress in follow(*arguments):
            if progress.step == step:
                signal.raise_signal(signal.SIGTERM)
            yield progress

    monkeypatch.setattr(train, "follow_steps", steps)


def test_a_budget_that_is_too_short_is_a_warning():
    clock = Clock(budget=60, began=0, step=1, detection=100)
    assert list(budget_warnings(clock, 24)) == [
        "detection takes about 2 of 1 minutes; training gets 40 % of the budget, so that the run takes longer",
        "warning: only about 24 training steps fit, too few for a network that detects defects; "
        "set budget_minutes=5 or more",
    ]
    assert not list(budget_warnings(Clock(budget=600, began=0, step=1, detection=100), 440))


def test_a_preset_goes_above_the_file_and_below_the_command_line():
    data = ("data.name=own", "data.data_dir=d", "data.category=c")
    plain = load_settings(ROOT / "config.yaml")
    laptop = load_settings(ROOT / "config.yaml", [*data, "preset=laptop", "model.v=2"])
    assert (plain.data.image_size, plain.model.unet_size, plain.score.parts) == (256, None, None)
    assert (laptop.model.unet_size, laptop.model.v, laptop.model.w, laptop.training.budget_minutes) == (64, 2, 0, 60)
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


def test_the_laptop_preset_plans_trains_and_detects(run_main, tmp_path):
    embedded = ("model.feature_extractor=efficientnet_lite0", "model.backbone_weights=null", "score.weights=measured")
    code, out, err = run_main("--train", "--domain_adaptation", "--detection", *SHORT, *embedded, "budget_minutes=5")
    assert (code, err) == (0, "")
    assert "to fit nut into 5 minutes" in out and "plan: about 4 training steps of 4 pictures" in out
    assert "about 4 steps; the clock decides" in out and "image AUROC" in out
    assert "trained nut for 2 epochs, 4 steps" in out
    made = manifest.load_manifest(tmp_path / "results")["settings"]
    assert (made["model"]["epochs"], made["training"]["decay"], made["training"]["schedule"]) == (2, [3, 4], "wsd")


def test_another_budget_trains_again(run_main):
    assert run_main("--train", *SHORT, "budget_minutes=5")[0] == 0
    code, out, _ = run_main("--train", "--resume", *SHORT, "budget_minutes=5")
    assert code == 0 and "2 epochs, as" in out and "nut is trained" in out
    code, out, _ = run_main("--train", "--resume", *SHORT, "budget_minutes=9", "training.most_steps=5")
    assert code == 0 and "plan: about 5 training steps" in out and "trained nut for 3 epochs, 5 steps" in out
    code, out, err = run_main("--train", *SHORT, "budget_minutes=0.0001")
    assert (code, err) == (0, "") and "trained nut for 1 epochs, 1 steps" in out
    assert "warning: only about 1 training steps fit" in out


def test_a_rerun_repeats_the_steps_of_the_clock_to_the_last_bit(run_main, tmp_path, monkeypatch):
    """The clock ends training within an epoch; the rerun has no clock, another budget or a slower machine."""
    turn_clock(monkeypatch, seconds=3.0)
    code, out, err = run_main("--train", "--detection", *UNBOUND, "budget_minutes=1")
    assert code == 0 and "the learning rate falls from step" in out, err
    first = weights_in(tmp_path / "checkpoints" / "nut")
    assert first["made_with"]["decay"][-1] % 4, first["made_with"]["decay"]  # an epoch has 4 steps
    turn_clock(monkeypatch, seconds=9.0)
    for number, overrides in enumerate(([], ["training.budget_minutes=null"])):
        folder = tmp_path / f"again{number}"
        code, out, err = run_main("--rerun", str(tmp_path / "results"), "--train", "--output", str(folder), *overrides)
        assert "all metrics and 6 scores are equal to the last bit" in out, err
        assert_same_weights(weights_in(folder / "checkpoints" / "nut"), first)


@pytest.mark.parametrize("stopped", [3, 21])
def test_a_run_that_a_clock_ends_is_resumed_within_each_phase(run_main, tmp_path, monkeypatch, stopped):
    """The steps taken by both runs, in one run without a clock, give the same weights."""
    turn_clock(monkeypatch, seconds=2.0)
    arguments = ("--train", *UNBOUND, "budget_minutes=1")
    with monkeypatch.context() as patch:
        stop_at(patch, stopped)
        assert run_main(*arguments)[0] == 143
    turn_clock(monkeypatch, seconds=1.0)
    code, out, err = run_main(*arguments, "--resume")
    assert code == 0 and f"continuing after step {stopped}" in out, err
    resumed = weights_in(tmp_path / "checkpoints" / "nut")
    decay = resumed["made_with"]["decay"]
    assert (stopped > decay[0]) == (stopped == 21) and decay[-1] > 16, decay  # the clock runs slower
    assert "nut is trained" in run_main(*arguments, "--resume")[1]
    code, _, err = run_main("--train", *UNBOUND, f"training.decay={decay}", f"model.checkpoint_dir={tmp_path / 'one'}")
    assert code == 0, err
    assert_same_weights(weights_in(tmp_path / "one" / "nut"), resumed)


def test_an_unfinished_run_may_get_more_minutes(run_main, monkeypatch):
    turn_clock(monkeypatch, seconds=3.0)
    with monkeypatch.context() as patch:
        save = checkpoint.save_training_state
        patch.setattr(checkpoint, "save_training_state", lambda *state: save(*state) or stop())
        assert run_main("--train", *UNBOUND, "budget_minutes=1", "training.checkpoint_minutes=1e-9")[0] == 130
    code, out, err = run_main("--train", "--resume", *UNBOUND, "budget_minutes=2")
    assert code == 0 and int(re.search(r"epochs, (\d+) steps", out)[1]) > 25, err


def test_weights_and_states_of_planned_epochs_are_taken_over(run_main, tmp_path, monkeypatch):
    """Earlier versions planned the epochs of a budget, and the laptop preset had a cosine schedule."""
    arguments = ("--train", *LAPTOP, "training.schedule=cosine", "model.epochs=3", "budget_minutes=5")
    assert run_main(*arguments)[0] == 0
    code, out, err = run_main("--train", "--detection", "--resume", *LAPTOP, "budget_minutes=5")
    assert code == 0 and "3 epochs, as" in out and "nut is trained" in out, err
    made = manifest.load_manifest(tmp_path / "results")["settings"]
    assert (made["model"]["epochs"], made["training"]["decay"], made["training"]["schedule"]) == (3, None, "cosine")
    whole, new_folder = weights_in(tmp_path / "checkpoints" / "nut"), f"model.checkpoint_dir={tmp_path / 'stopped'}"
    with monkeypatch.context() as patch:
        save = checkpoint.save_training_state
        patch.setattr(checkpoint, "save_training_state", lambda *state: save(*state) or stop())
        assert run_main(*arguments, "training.checkpoint_minutes=1e-9", new_folder)[0] == 130
    code, out, err = run_main("--train", "--resume", *LAPTOP, "budget_minutes=5", new_folder)
    assert code == 0 and "continuing after step 1" in out and "trained nut for 3 epochs, 6 steps" in out, err
    assert_same_weights(weights_in(tmp_path / "stopped" / "nut"), whole)


def test_epochs_of_another_training_are_not_taken_over(run_main):
    assert run_main("--train", *LAPTOP, "model.epochs=3", "budget_minutes=5")[0] == 0
    assert (
        "3 epochs, as" in run_main("--train", "--resume", *LAPTOP, "budget_minutes=5")[1]
    )  # of this budget, these settings and pictures
    assert (
        "plan: about 4 training steps"
        in run_main("--train", "--resume", *LAPTOP, "budget_minutes=5", "model.learning_rate=2e-3")[1]
    )
    assert run_main("--train", *LAPTOP, "model.epochs=3", "training.budget_minutes=null")[0] == 0
    assert "plan: about 4 training steps" in run_main("--train", "--resume", *LAPTOP, "budget_minutes=5")[1]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["training.decay=[3, 4]"], "training.decay is [3, 4], but training.schedule is constant; set training.sche"),
        (["training.decay=[4, 3]", "training.schedule=wsd"], "training.decay is [4, 3]; it should be two or more"),
        (["training.decay=[4]", "training.schedule=wsd"], "training.decay is [4]; it should be two or more rising"),
    ],
)
def test_a_decay_that_no_training_has_is_refused(run_main, settings, said):
    code, _, err = run_main("--train", *settings)
    assert code == 2 and said in err


def test_a_budget_counts_the_pictures_to_judge_where_there_are_no_test_pictures(run_main, category, tmp_path):
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
    assert code == 0 and "16 pictures to compare" in out and "6 pictures in" in out, err


def test_a_budget_does_not_count_pictures_that_an_earlier_run_left(run_main, category):
    source = category / "test"
    arguments = ("--train", "--detection", "--input", str(source), "--output", str(source / "found"), "--force")
    for _ in range(2):
        code, out, err = run_main(*arguments, *SHORT, "budget_minutes=5", "metrics.visualisation=True")
        assert code == 0 and "16 pictures to compare" in out and "6 pictures in" in out, err
    assert len(list(source.rglob("heatmaps/**/*.png"))) == 6


def test_settings_of_a_budget_that_did_not_train_are_read_back(run_main, tiny_config, tmp_path):
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


def test_training_alone_times_no_detection(run_main):
    on_pixels = ("preset=laptop-pixels", *SHORT[1:])
    code, out, err = run_main("--train", *on_pixels, "budget_minutes=5", "model.feature_extractor=timm/none")
    assert code == 0 and "0 pictures to compare" in out, err
