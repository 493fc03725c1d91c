"""Whole runs through main.py."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import originals
import pytest
import tifffile
import torch
import yaml
from golden_weights import state_dict
from official_config import OFFICIAL
from PIL import Image
from score_tables import read_rows

import main
import metrics
import train
from config.load import load_settings
from detection.calibration_file import CALIBRATION
from detection.detector import Detector
from reports.metric_summary import METRICS, OUTSIDE, interval_text
from training import checkpoint

ROOT = Path(__file__).parents[1]


def test_all_three_stages_leave_weights_scores_metrics_and_figures(run_main, tmp_path):
    embedded = ("model.feature_extractor=efficientnet_lite0", "model.backbone_weights=null")
    stages = ("--train", "--domain_adaptation", "--detection")
    code, out, err = run_main(*stages, *embedded, "model.DA_chp=latest", "metrics.visualisation=True")
    assert code == 0, err
    checkpoints, results = tmp_path / "checkpoints" / "nut", tmp_path / "results"
    assert sorted(path.name for path in checkpoints.iterdir()) == [
        *("2", "adaptation.jsonl", "calibration.json", "feat0", "feat1", "featlatest", "latest", "training.jsonl")
    ]
    assert "efficientnet_lite0 from" in out and "feat1" in out
    table = read_rows(results)
    assert [(row["path"], row["label"]) for row in table] == [
        (f"test/{kind}/{number:03}.png", label)
        for kind, label in (("crack", "1"), ("good", "0"))
        for number in range(3)
    ]
    figures = json.loads((results / "metrics.json").read_text())
    scores = [float(row["score"]) for row in table]
    assert figures["image_auroc"] == pytest.approx(metrics.image_auroc(scores, [1, 1, 1, 0, 0, 0]))
    keys = [metric.key for metric in METRICS]
    assert set(figures) == {
        *keys,
        "intervals",
        "size",
        "scored",
        "vanished_defects",
        *OUTSIDE,
        "segmentation",
        "calibration",
        "operating_point",
        "kinds",
        "warnings",
        "operating_points",
        "drift",
    } and all(0 <= figures[key] <= 1 for key in keys)
    assert all(0 <= figures["intervals"][key][0] <= figures["intervals"][key][1] <= 1 for key in keys)
    assert (
        f"image AUROC       {100 * figures['image_auroc']:5.1f} %{interval_text(figures['intervals']['image_auroc'])}"
        in out
    )
    assert "whole maps scored" in out and (figures["size"], figures["scored"]) == (256, 256)
    drawn = sorted(path.relative_to(results).as_posix() for path in results.rglob("*.png"))
    assert drawn == [f"figures/{kind}/{number:03}.png" for kind in ("crack", "good") for number in range(3)]
    assert Image.open(results / drawn[0]).size == (1578, 304)


def test_a_stage_prints_its_plan_before_it_starts(run_main, tmp_path, category):
    code, out, _ = run_main("--train", "model.w=4")
    before, _, after = out.partition("trained nut")
    assert code == 0 and after
    for words in (
        "w=4.0",
        "cpu",
        f"reads:       {category / 'train'} (8 pictures; 2 more are held out",
        f"writes:      {tmp_path / 'checkpoints' / 'nut'}",
    ):
        assert words in before


@pytest.mark.parametrize("value", ["False", "false", "FALSE"])
def test_false_runs_no_stage(run_main, tmp_path, value):
    code, out, _ = run_main("--train", value, "--detection", value)
    assert code == 2 and "usage:" in out and not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--train"],
        ["--train", "True"],
        ["--train", "true", "model.w=2"],
        ["--train", "model.w=2"],
        ["model.w=2", "--train"],
    ],
)
def test_stage_flags_work_bare_and_with_true(arguments):
    options = main.parse_arguments(arguments)
    assert options.train is True and options.settings == [word for word in arguments if "=" in word]


def test_two_runs_give_identical_weights_and_scores(run_main, tmp_path):
    for name in ("one", "two"):
        code, _, err = run_main(
            "--train",
            "--detection",
            f"model.checkpoint_dir={tmp_path / name}",
            "--output",
            str(tmp_path / name / "results"),
        )
        assert code == 0, err
    first, second = (checkpoint.read_state(tmp_path / name / "nut" / "2")["weights"] for name in ("one", "two"))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert (tmp_path / "one" / "results" / "scores.csv").read_bytes() == (
        tmp_path / "two" / "results" / "scores.csv"
    ).read_bytes()


def test_an_x0_network_runs_and_is_refused_as_a_noise_network(run_main):
    code, _, err = run_main(
        "--train", "--domain_adaptation", "--detection", "model.predicts=x0", "training.augmentation=flip"
    )
    assert code == 0, err
    code, _, err = run_main("--detection", "--force")
    assert code == 2 and "belongs to another network: predicts is x0 in the file, None in the configuration" in err


def test_training_lowers_the_loss(run_main, tmp_path):
    code, out, _ = run_main(
        "--train",
        "model.epochs=40",
        "model.learning_rate=2e-3",
        "training.optimizer=adamw",
        "training.schedule=cosine",
        "training.warmup_steps=5",
        "training.ema=0.9",
    )
    loss = float(re.search(r"loss ([\d.]+) \(last", out)[1])
    assert code == 0 and loss < 0.7 * 3 * 32 * 32  # an untrained network has the loss C·H·W
    assert "average" in checkpoint.read_state(tmp_path / "checkpoints" / "nut" / "40")


def test_checkpoints_are_saved_at_intervals_and_after_the_last_epoch(run_main, tmp_path):
    run_main("--train", "model.epochs=5", "training.checkpoint_epochs=2")
    assert sorted(path.name for path in (tmp_path / "checkpoints" / "nut").iterdir()) == [
        "2",
        "4",
        "5",
        "latest",
        "training.jsonl",
    ]


def test_save_model_false_saves_nothing(run_main, tmp_path):
    code, out, _ = run_main("--train", "model.save_model=False")
    assert code == 0 and "nowhere" in out and not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("network", ["ddad_s_32"])
def test_official_files_run_unchanged(tmp_path, category, golden, capsys, monkeypatch, network):
    """A released configuration, UNet and features adapt and detect; the same configuration then trains."""
    monkeypatch.chdir(tmp_path)
    content = yaml.safe_load(OFFICIAL)
    content["data"] |= {
        "data_dir": str(category.parent),
        "category": category.name,
        "image_size": 32,
        "batch_size": 4,
        "DA_batch_size": 4,
    }
    content["model"] |= {
        "DDADS": True,
        "feature_extractor": "resnet50",
        "epochs": 1,
        "load_chp": 2000,
        "DA_epochs": 1,
        "DA_chp": 3,
    }
    for picture in sorted((category / "train" / "good").iterdir())[6:]:
        picture.unlink()
    Path("config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    folder = Path("checkpoints/MVTec") / category.name
    folder.mkdir(parents=True)
    unet = {f"module.{name}": value for name, value in state_dict(golden("unet_state_dict")[network]).items()}
    features = {f"module.{name}": value for name, value in state_dict(golden("resnet_state_dict")["resnet50"]).items()}
    torch.save(unet, folder / "2000.zip")
    for name in ("feat0", "feat3"):
        torch.save(features, folder / name)
    seconds = ["score.draws=1", "calibration.pictures=2", "model.skip=125", "model.skip_DA=125"]
    assert main.main(["--domain_adaptation", "True", "--detection", "True", *seconds]) == 0
    out = capsys.readouterr().out
    assert (
        "2000.zip" in out
        and "resnet50 from checkpoints/MVTec/nut/feat3" in out
        and "checkpoint_name is accepted and has no effect" in out
    )
    assert len(read_rows(Path("results/default/nut"))) == 6
    assert main.main(["--train", "True"]) == 0
    assert (folder / "1").is_file()


def test_grey_input(run_main):
    code, _, err = run_main("--train", "--domain_adaptation", "--detection", "data.input_channel=1")
    assert code == 0, err


def test_a_released_feat0_is_not_overwritten(run_main, tmp_path, golden):
    features = {f"module.{name}": value for name, value in state_dict(golden("resnet_state_dict")["resnet50"]).items()}
    run_main("--train")
    released = tmp_path / "checkpoints" / "nut" / "feat0"
    torch.save(features, released)
    before = released.read_bytes()
    code, _, err = run_main("--domain_adaptation", "model.feature_extractor=resnet50", "model.backbone_weights=null")
    assert code == 0, err
    assert released.read_bytes() == before


def test_errors_of_a_later_stage_stop_the_run_before_the_first(run_main, tmp_path, category):
    (category / "ground_truth" / "crack" / "001_mask.png").unlink()
    code, out, err = run_main("--train", "--detection")
    assert code == 2 and "no mask for" in err and "Training" not in out


def test_no_stage_trains_on_held_out_pictures(run_main, tmp_path, category):
    """Changing them changes neither weights nor features; changing another picture changes both."""

    def weights_of(name):
        code, _, err = run_main("--train", "--domain_adaptation", f"model.checkpoint_dir={tmp_path / name}")
        assert code == 0, err
        states = [checkpoint.read_state(tmp_path / name / "nut" / part) for part in ("2", "feat1")]
        return states[0]["held_out"], [state["weights"] for state in states]

    held_out, weights = weights_of("one")
    assert len(held_out) == 2
    for name in held_out:
        Image.new("RGB", (48, 48), "red").save(category / name)
    torch.testing.assert_close(weights_of("two")[1], weights, rtol=0, atol=0)
    other = next(
        path for path in sorted((category / "train" / "good").iterdir()) if f"train/good/{path.name}" not in held_out
    )
    Image.new("RGB", (48, 48), "red").save(other)
    after = weights_of("three")[1]
    assert all(any((a[key] != b[key]).any() for key in a) for a, b in zip(after, weights, strict=True))


def test_an_interval_without_width_is_marked():
    assert interval_text((0.5, 0.75)) == "   [50.0, 75.0]" and interval_text(None) == ""
    assert "no interval" in interval_text((1.0, 1.0))


def test_tiles_run_through_all_stages(run_main, tmp_path, category):
    """Wide pictures keep their proportions: 32 × 64 pixels with tiles=1."""
    for path in category.rglob("*.png"):
        with Image.open(path) as picture:
            wide = Image.new(picture.mode, (96, 48))
            wide.paste(picture, (0, 0))
            wide.paste(picture if "_mask" not in path.name else Image.new("L", (48, 48)), (48, 0))
        wide.save(path)
    code, out, err = run_main("--train", "--domain_adaptation", "--detection", "data.tiles=1", "metrics.raw_maps=True")
    assert code == 0, err
    assert tifffile.imread(tmp_path / "results" / "anomaly_maps" / "nut" / "test" / "crack" / "000.tiff").shape == (
        48,
        96,
    )
    assert "image AUROC" in out


def test_help_does_not_load_torch():
    code = (
        "import sys, main; code = main.main(['--train', 'False']); print({'torch', 'numpy'} & {*sys.modules}); "
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--domain_adaptation" in done.stdout and done.stdout.endswith("set()\n")
    done = subprocess.run([sys.executable, "main.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "--config" in done.stdout


def test_ctrl_c_ends_with_one_line_and_complete_files(tiny_config, tmp_path):
    process = subprocess.Popen(
        [
            sys.executable,
            "-u",
            ROOT / "main.py",
            "--train",
            "--config",
            tiny_config,
            "model.epochs=100000",
            "training.checkpoint_epochs=1",
        ],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = tmp_path / "checkpoints" / "nut"
    for _ in range(600):
        if len(list(folder.glob("*"))) > 3:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.strip().splitlines()[-1].startswith("stopped") and "Traceback" not in err
    assert not list(folder.glob(".*"))
    for path in folder.iterdir():
        if path.name not in ("training.jsonl", "latest"):
            checkpoint.read_state(path)


def test_an_unwritable_checkpoint_folder_stops_the_run_before_training(run_main, tmp_path):
    (tmp_path / "taken").touch()
    code, out, err = run_main("--train", f"model.checkpoint_dir={tmp_path / 'taken'}")
    assert code == 2 and "can't write to" in err and "Training" not in out


def test_an_infinite_loss_stops_the_run(run_main, tmp_path):
    code, _, err = run_main("--train", "model.learning_rate=1e30", "model.epochs=20")
    assert code == 2 and "lower model.learning_rate" in err
    assert [path.name for path in (tmp_path / "checkpoints" / "nut").iterdir()] == ["training.jsonl"]


def test_stopped_training_resumes_where_it_was(tmp_path, run_main, monkeypatch):
    """After SIGTERM and --resume the weights equal those of an unbroken run, and the log has each epoch once.

    test_faults.py covers kill -9; the test of Ctrl-C covers a signal from another process.
    """
    settings = ["model.epochs=8", "training.ema=0.9", "training.checkpoint_epochs=1000"]
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    run_main("--train", *settings, f"model.checkpoint_dir={unbroken}")
    state = broken / "nut" / checkpoint.TRAINING_STATE
    save = checkpoint.save_training_state

    def stop_after_saving(*arguments):
        save(*arguments)
        monkeypatch.setattr(checkpoint, "save_training_state", save)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(checkpoint, "save_training_state", stop_after_saving)
    again = [*settings, f"model.checkpoint_dir={broken}", "training.checkpoint_minutes=0.0001"]
    code, out, _ = run_main("--train", "--resume", *again)
    assert code == 143 and "--resume continues" in out and state.exists()
    _, out, _ = run_main("--train", "--resume", *settings, f"model.checkpoint_dir={broken}")
    assert "continuing after step" in out and not state.exists()
    ours, theirs = (torch.load(folder / "nut" / "8", weights_only=True) for folder in (broken, unbroken))
    for part in ("weights", "average"):
        torch.testing.assert_close(ours[part], theirs[part], rtol=0, atol=0)
    log = [json.loads(line) for line in (broken / "nut" / "training.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in log] == list(range(1, 9)) and set(log[0]) > {
        "loss",
        "learning_rate",
        "pictures_per_second",
    }
    assert "nut is trained" in run_main("--train", "--resume", *settings, f"model.checkpoint_dir={broken}")[1]


def test_a_training_state_of_other_settings_is_not_resumed(run_main, tiny_config):
    settings = load_settings(tiny_config)
    folder = settings.checkpoint_folder
    made_with = train.check_training(settings).made_with
    checkpoint.save_training_state(folder, {"made_with": {**made_with, "learning_rate": 0.5}})
    code, _, error = run_main("--train", "--resume")
    assert code == 2
    remedy = "set that again, or remove the file to start again"
    assert f"belongs to another training: learning_rate was 0.5, is 0.0003; {remedy}" in error
    assert "unfinished run" in run_main("--train")[1]


def test_weights_and_states_with_a_removed_key_are_resumed(run_main, tiny_config, tmp_path):
    assert run_main("--train", "--detection")[0] == 0
    settings = load_settings(tiny_config)
    folder = settings.checkpoint_folder
    weights = checkpoint.read_state(folder / "2")
    weights["made_with"]["min_snr"] = weights["settings"]["training"]["min_snr"] = None
    checkpoint.save(folder / "2", weights)
    code, out, err = run_main("--train", "--resume", "training.min_snr=null")
    assert code == 0 and "nut is trained" in out and "training.min_snr is accepted and has no effect" in out, err
    made_with = train.check_training(settings).made_with
    checkpoint.save_training_state(folder, {"made_with": {**made_with, "min_snr": None}, "trainer": {}})
    assert checkpoint.load_training_state(folder, made_with)
    (folder / checkpoint.TRAINING_STATE).unlink()
    for path in (folder / CALIBRATION, tmp_path / "results" / "manifest.json"):
        content = json.loads(path.read_text())
        content["settings"]["training"]["min_snr"] = None
        path.write_text(json.dumps(content))
    assert "calibration is to be measured" not in run_main("--detection")[1] and Detector.load(folder).threshold > 0
    code, out, err = run_main("--rerun", str(tmp_path / "results"), "--output", str(tmp_path / "again"))
    assert code == 0 and "made with the same settings" in out and "equal to the last bit" in out, err


def test_missing_weights_of_a_later_stage_stop_the_run_before_training(run_main, tmp_path):
    for settings, missing in ((["model.DA_chp=1"], "no weights feat1 in"), (["model.load_chp=1"], "no weights 1 in")):
        code, out, err = run_main("--train", "--detection", *settings)
        assert code == 2 and missing in err and "Training" not in out
    assert run_main("--train", "--domain_adaptation", "--detection", "model.DA_chp=1", "model.load_chp=2")[0] == 0


def test_weights_that_need_no_training_become_the_latest_again(run_main):
    for epochs in (2, 3):
        assert run_main("--train", f"model.epochs={epochs}")[0] == 0
    code, out, _ = run_main("--train", "--detection", "--resume", "model.epochs=2")
    assert code == 0 and "nut is trained" in out and re.search(r"unet: .*/nut/2$", out, re.MULTILINE)
    assert re.search(
        r"weights of an earlier run in .*/nut are replaced: 2$", run_main("--train", "model.epochs=2")[1], re.MULTILINE
    )


def test_new_pictures_under_old_names_are_trained_on(run_main, category, tiny_config):
    assert run_main("--train", "--detection")[0] == 0
    held_out = sorted({path.name for path in (category / "train/good").iterdir()} - set(train_names(tiny_config)))
    (category / "train/good" / held_out[0]).unlink()
    code, out, _ = run_main("--detection")
    assert code == 0 and "calibration is to be measured: the pictures of train/good have changed" in out
    assert "calibration is to be measured" not in run_main("--detection")[1]
    picture = category / "train/good" / train_names(tiny_config)[0]
    Image.fromarray(255 - np.asarray(Image.open(picture))).save(picture)
    out = run_main("--train", "--resume")[1]
    assert "is trained" not in out and "is made again: pictures was 8, " in out


def train_names(tiny_config):
    return [name.rpartition("/")[2] for name in train.check_training(load_settings(tiny_config)).pictures.names()]


def test_averaged_false_uses_the_raw_weights(run_main, tmp_path):
    scores = []
    run_main("--train", "training.ema=0.9")
    for averaged in (True, False):
        run_main("--detection", f"model.averaged={averaged}")
        scores.append((tmp_path / "results" / "scores.csv").read_text())
    assert scores[0] != scores[1]


def test_without_a_configuration_here_the_one_beside_main_is_used_and_named(tmp_path, category, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.main(["--check", "data.data_dir=data", "data.category=nut"]) == 0
    out = capsys.readouterr().out
    assert f"settings from {ROOT / 'config.yaml'}, as there is none in {tmp_path}, where relative paths start" in out
    assert "data/nut: 16 pictures" in out
    Path("config.yaml").write_text("data: {name: own, data_dir: data, category: none}\nmodel: {}\n")
    assert main.main(["--check"]) == 2
    captured = capsys.readouterr()
    assert "no category 'none' in data" in captured.err and "settings from" not in captured.out


def test_a_data_set_that_is_prepared_elsewhere_is_trained_on_from_there(tmp_path, monkeypatch, capsys):
    originals.mvtec(originals.Maker(tmp_path / "original"))
    monkeypatch.chdir(tmp_path)
    assert main.main(["--prepare_mvtec", "original"]) == 0
    command = capsys.readouterr().out.splitlines()[-1]
    assert command.startswith(f"next: python {ROOT / 'main.py'} --train True") and "--config" not in command


def test_a_mask_of_another_size_stops_the_run_before_training(run_main, category, tmp_path):
    path = category / "ground_truth" / "crack" / "001_mask.png"
    Image.open(path).resize((24, 24)).save(path)
    code, out, err = run_main("--train", "--detection")
    assert code == 2 and "is 24×24, its picture" in err and "Training" not in out
    assert not (tmp_path / "checkpoints" / "nut" / "2").exists()
    code, _, err = run_main("--train", "--detection", "data.mask=False")
    assert code == 0, err


def test_a_turn_in_the_header_of_a_picture_is_no_other_size(run_main, category):
    exif = Image.Exif()
    exif[274] = 6  # shown after a quarter turn
    picture, mask = (category / name for name in ("test/crack/001.png", "ground_truth/crack/001_mask.png"))
    Image.open(picture).crop((0, 0, 40, 48)).save(picture, exif=exif)
    Image.open(mask).crop((0, 0, 48, 40)).save(mask)
    code, _, err = run_main("--train", "--detection")
    assert code == 0, err


def test_inverted_masks_are_a_warning_at_the_start_of_detection(run_main, category):
    for path in (category / "ground_truth" / "crack").iterdir():
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    code, out, err = run_main("--train", "--detection")
    assert code == 0, err
    warning = out.index("warning: the masks of crack cover 95% of their pictures; defects are white: invert")
    assert warning < out.index("Training nut") and out.count("the masks of crack cover") == 1
