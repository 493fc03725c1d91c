import shutil
from pathlib import Path

import pytest

from benchmarks import accuracy
from commands import budget
from commands.budget import TRAINING_SHARE, steps_within
from config.checks import SPELLINGS
from config.keys import PLANNED
from config.load import build_settings, load_settings
from config.presets import PRESETS
from detection.detector import Detector

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


def test_a_budget_counts_the_pictures_to_judge_where_there_are_no_test_pictures(
    run_main, monkeypatch, category, tmp_path
):
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
    assert code == 0 and "16 pictures to compare" in out and "6 pictures in" in out, err


def test_a_budget_does_not_count_pictures_that_an_earlier_run_left(run_main, monkeypatch, category):
    monkeypatch.setattr(budget, "FEWEST_STEPS", 1)
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


def test_training_alone_times_no_detection(run_main, monkeypatch):
    monkeypatch.setattr(budget, "FEWEST_STEPS", 1)
    code, out, err = run_main("--train", *SHORT, "budget_minutes=5", "model.feature_extractor=timm/none")
    assert code == 0 and "0 pictures to compare" in out, err
