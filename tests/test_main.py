"""Whole runs through main.py."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml
from golden_weights import state_dict
from PIL import Image
from test_load import OFFICIAL

import main
import metrics
import train
from anomaly_map import resize_maps
from config.load import load_settings
from detection.calibration_file import CALIBRATION
from detection.detector import Detector, Prediction
from detection.evaluate import scored_map
from reports.metric_summary import METRICS, interval_words
from training import checkpoint

ROOT = Path(__file__).parents[1]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "scores.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_all_three_stages_leave_weights_scores_metrics_and_figures(run_main, tmp_path):
    code, out, err = run_main(
        "--train", "--domain_adaptation", "--detection", "model.DA_chp=latest", "metrics.visualisation=True"
    )
    assert code == 0, err
    checkpoints, results = tmp_path / "checkpoints" / "nut", tmp_path / "results"
    assert sorted(path.name for path in checkpoints.iterdir()) == [
        *("2", "adaptation.jsonl", "calibration.json", "feat0", "feat1", "featlatest", "latest", "training.jsonl")
    ]
    assert "efficientnet_lite0 from" in out and "feat1" in out
    table = rows(results)
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
        "calibration",
        "operating_point",
        "kinds",
    } and all(0 <= figures[key] <= 1 for key in keys)
    assert all(0 <= figures["intervals"][key][0] <= figures["intervals"][key][1] <= 1 for key in keys)
    assert (
        f"image AUROC       {100 * figures['image_auroc']:5.1f} %{interval_words(figures['intervals']['image_auroc'])}"
        in out
    )
    assert "centre 224 of 256 pixels scored" in out and (figures["size"], figures["scored"]) == (256, 224)
    drawn = sorted(path.relative_to(results).as_posix() for path in results.rglob("*.png"))
    assert drawn == [f"figures/{kind}/{number:03}.png" for kind in ("crack", "good") for number in range(3)]
    assert Image.open(results / drawn[0]).size == (1578, 304)


def test_a_stage_says_what_it_will_do_before_it_does_it(run_main, tmp_path, category):
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
def test_false_does_nothing(run_main, tmp_path, value):
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
def test_flags_are_bare_or_true_beside_settings(arguments):
    options = main.parse_arguments(arguments)
    assert options.train is True and options.settings == [word for word in arguments if "=" in word]


def test_a_run_is_repeated_exactly(run_main, tmp_path):
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


def test_a_network_that_predicts_the_picture_is_used_as_it_was_trained(run_main):
    code, _, err = run_main(
        "--train", "--domain_adaptation", "--detection", "model.predicts=x0", "training.augmentation=flip"
    )
    assert code == 0, err
    code, _, err = run_main("--detection", "--force")
    assert code == 2 and "belongs to another network: predicts is x0 in the file, None in the configuration" in err


def test_training_learns(run_main, tmp_path):
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
    assert code == 0 and loss < 0.7 * 3 * 32 * 32  # a network that knows nothing has the loss C·H·W
    assert "average" in checkpoint.read_state(tmp_path / "checkpoints" / "nut" / "40")


def test_checkpoints_come_every_so_many_epochs_and_last(run_main, tmp_path):
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


def test_misclassifications_are_listed(run_main, tmp_path):
    run_main("--train", "--detection", "score.protocol=published", "metrics.misclassifications=True")
    with (tmp_path / "results" / "misclassifications.csv").open(encoding="utf-8", newline="") as file:
        listed = {row["path"]: row["error"] for row in csv.DictReader(file)}
    table = rows(tmp_path / "results")
    threshold = metrics.youden_threshold([float(row["score"]) for row in table], [int(row["label"]) for row in table])
    expected = {row["path"] for row in table if (float(row["score"]) >= threshold - 1e-9) != (row["label"] == "1")}
    assert set(listed) == expected


def test_the_calibrated_threshold_needs_no_defects(run_main, tmp_path, trained):
    """Its verdicts are those of the p-values, its counts those of metrics.json."""
    code, out, err = run_main("--detection", "metrics.misclassifications=True", "calibration.false_positive_rate=0.5")
    assert code == 0, err
    table, figures = rows(tmp_path / "results"), json.loads((tmp_path / "results" / "metrics.json").read_text())
    assert {round(3 * float(row["p_value"]), 4) for row in table} <= {1, 2, 3}
    anomalous = {row["path"] for row in table if row["anomalous"] == "1"}
    assert anomalous == {row["path"] for row in table if float(row["p_value"]) <= 0.5}
    wrong = {row["path"] for row in table if (row["path"] in anomalous) != (row["label"] == "1")}
    with (tmp_path / "results" / "misclassifications.csv").open(encoding="utf-8", newline="") as file:
        assert {row["path"] for row in csv.DictReader(file)} == wrong
    point = figures["operating_point"]
    assert point == figures["kinds"]["crack"]
    assert point["true_positives"] + point["false_positives"] == len(anomalous)
    assert point["false_negatives"] + point["false_positives"] == len(wrong)
    assert "threshold" in out and "from 2 normal pictures: 33.3 % false alarms expected" in out
    assert f"crack {point['true_positives']} of 3" in out


def test_metrics_that_the_data_do_not_allow_are_left_out_with_a_word(run_main, tmp_path, category):
    run_main("--train")
    code, out, err = run_main("--detection", "data.mask=False")
    assert code == 0, err
    figures = json.loads((tmp_path / "results" / "metrics.json").read_text())
    assert set(figures["intervals"]) == {"image_auroc", "image_ap", "image_f1_max"} <= set(figures) and not {
        "pixel_auroc",
        "pro",
    } & set(figures)
    assert "no masks: data.mask is False" in out
    for path in (category / "test" / "good").iterdir():
        path.unlink()
    (category / "test" / "good").rmdir()
    code, out, _ = run_main("--detection")
    assert code == 0 and "needs normal and defective pictures" in out and "false alarms – (none)" in out
    (category / "test" / "crack").rename(category / "test" / "good")
    code, out, _ = run_main("--detection")
    assert code == 0 and "needs normal and defective pixels" in out and "recall – (none)" in out


@pytest.mark.parametrize("network", ["ddad_s_32"])
def test_official_files_run_unchanged(tmp_path, category, golden, capsys, monkeypatch, network):
    """A released configuration, UNet and feat files: adaptation and detection; then training from the same file."""
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
    assert len(rows(Path("results/default/nut"))) == 6
    assert main.main(["--train", "True"]) == 0
    assert (folder / "1").is_file()


def test_grey_input(run_main):
    code, _, err = run_main("--train", "--domain_adaptation", "--detection", "data.input_channel=1")
    assert code == 0, err


def scores_of(run_main, tmp_path, *arguments):
    code, _, err = run_main("--detection", *arguments)
    assert code == 0, err
    return {row["path"]: float(row["score"]) for row in rows(tmp_path / "results")}


def test_a_score_belongs_to_the_picture(run_main, tmp_path, category, trained):
    """Alone, in any batch, with any number of threads, among other files: the same score."""
    scores = scores_of(run_main, tmp_path, "data.test_batch_size=6")
    spread = max(scores.values())
    for arguments in (["data.test_batch_size=1"], ["data.test_batch_size=4", "model.num_workers=0"]):
        assert scores_of(run_main, tmp_path, *arguments) == pytest.approx(scores, abs=1e-5 * spread)
    (category / "test" / "crack" / "001.png").rename(category / "test" / "good" / "000 moved.png")
    (category / "test" / "good" / "002.png").unlink()
    others = scores_of(run_main, tmp_path)
    assert others.pop("test/good/000 moved.png") == pytest.approx(scores["test/crack/001.png"], abs=1e-5 * spread)
    assert others == pytest.approx({path: scores[path] for path in others}, abs=1e-5 * spread)


def test_a_released_feat0_is_not_written_over(run_main, tmp_path, golden):
    features = {f"module.{name}": value for name, value in state_dict(golden("resnet_state_dict")["resnet50"]).items()}
    run_main("--train")
    released = tmp_path / "checkpoints" / "nut" / "feat0"
    torch.save(features, released)
    before = released.read_bytes()
    code, _, err = run_main("--domain_adaptation", "model.feature_extractor=resnet50")
    assert code == 0, err
    assert released.read_bytes() == before


def test_faults_of_a_later_stage_are_found_before_the_first(run_main, tmp_path, category):
    (category / "ground_truth" / "crack" / "001_mask.png").unlink()
    code, out, err = run_main("--train", "--detection")
    assert code == 2 and "no mask for" in err and "Training" not in out


def test_published_scores_depend_on_the_batch(run_main, tmp_path, trained):
    """Batch maxima and one stream of noise: the behaviour that users compare with."""
    alone, together = (
        scores_of(run_main, tmp_path, "score.protocol=published", f"data.test_batch_size={size}") for size in (1, 6)
    )
    assert max(abs(alone[path] - together[path]) for path in alone) > 1e-3


def test_maps_are_averaged_over_draws(run_main, tmp_path, trained):
    """The first draw is that of a single one, so that the mean of many lies nearer to another mean of many than to it."""
    one, four, five = (
        np.array(list(scores_of(run_main, tmp_path, f"score.draws={count}").values())) for count in (1, 4, 5)
    )
    assert 0 < np.abs(four - five).max() < np.abs(one - five).max()


def test_the_calibration_is_kept_and_made_again_when_something_that_matters_changes(run_main, tmp_path, category):
    run_main("--train")
    kept = tmp_path / "checkpoints" / "nut" / "calibration.json"
    out = run_main("--detection")[1]
    before = kept.read_bytes()
    assert "from 2 normal pictures" in out and json.loads(before)["held_out"]
    out = run_main("--detection", "data.test_batch_size=2", "calibration.false_positive_rate=0.4")[1]
    after = json.loads(kept.read_text())
    assert (
        "to be measured" not in out
        and "33.3 % false alarms expected" in out
        and after["scores"] == json.loads(before)["scores"]
    )
    assert Detector.load(kept.parent).false_positive_rate == 0.4
    assert (
        "calibration is to be measured: w was 3.0, is 2.0" in run_main("--detection", "model.w=2")[1]
        and kept.read_bytes() != before
    )
    run_main("--train", "model.seed=7")
    assert "to be measured: weights was" in run_main("--detection", "model.w=2")[1]
    kept.write_text("{")
    code, _, err = run_main("--detection")
    assert code == 2 and "calibration.json is damaged; remove it" in err
    kept.write_text('{"balance": 3.1, "pictures": 32, "fingerprint": "of an earlier version"}')
    assert "no calibration.json of this version" in run_main("--detection")[1]
    shutil.rmtree(category / "train")
    assert run_main("--detection")[0] == 0
    code, _, err = run_main("--detection", "model.w=4")
    assert (
        code == 2
        and "calibration.json can't be used (w was 3.0, is 4.0), nor measured again" in err
        and "put the pictures there" in err
    )


def test_no_stage_sees_the_pictures_held_out(run_main, tmp_path, category):
    """Spoiling them changes neither the networks nor the features; spoiling another one does."""

    def weights_of(name):
        code, _, err = run_main("--train", "--domain_adaptation", f"model.checkpoint_dir={tmp_path / name}")
        assert code == 0, err
        states = [checkpoint.read_state(tmp_path / name / "nut" / part) for part in ("2", "feat1")]
        return states[0]["held_out"], [state["weights"] for state in states]

    kept, weights = weights_of("one")
    assert len(kept) == 2
    for name in kept:
        Image.new("RGB", (48, 48), "red").save(category / name)
    torch.testing.assert_close(weights_of("two")[1], weights, rtol=0, atol=0)
    other = next(
        path for path in sorted((category / "train" / "good").iterdir()) if f"train/good/{path.name}" not in kept
    )
    Image.new("RGB", (48, 48), "red").save(other)
    after = weights_of("three")[1]
    assert all(any((a[key] != b[key]).any() for key in a) for a, b in zip(after, weights, strict=True))


def test_features_that_have_seen_the_pictures_held_out_are_owned_up_to(run_main):
    run_main("--train", "--domain_adaptation", "score.protocol=published")
    run_main("--train")
    assert "training has seen these pictures" in run_main("--detection", "model.DA_chp=1")[1]
    run_main("--domain_adaptation")
    assert "training has seen" not in run_main("--detection", "model.DA_chp=1")[1]


def test_weights_that_held_nothing_out_are_calibrated_with_a_word(run_main):
    run_main("--train", "score.protocol=published")
    out = run_main("--detection", "calibration.pictures=6")[1]
    assert "from 6 normal pictures" in out and "training has seen these pictures" in out


def test_a_detector_is_loaded_from_its_folder_wherever_it_lies(run_main, tmp_path, category, trained):
    run_main("--detection", "score.draws=2", "calibration.false_positive_rate=0.4")
    scores = {row["path"]: row for row in rows(tmp_path / "results")}
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "checkpoints" / "nut", moved)
    shutil.rmtree(tmp_path / "checkpoints")
    detector = Detector.load(moved, device="cpu")
    for path, row in scores.items():
        found = detector(category / path)
        assert found.score == pytest.approx(float(row["score"]), rel=1e-5) and found.p_value == pytest.approx(
            float(row["p_value"]), abs=1e-5
        )
        assert found.is_anomalous == (found.p_value <= 0.4) == bool(found.regions)
    run_main("--train", "model.seed=9", f"model.checkpoint_dir={tmp_path}", "data.category=nut")
    shutil.copy(tmp_path / "nut" / "2", moved / "20")
    with pytest.raises(ValueError, match=r"calibration\.json is stale: weights was"):
        Detector.load(moved, device="cpu")
    (moved / "calibration.json").unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"no calibration\.json of this version in .*; run python main\.py --detection True first",
    ):
        Detector.load(moved)


def test_raw_maps_on_request(run_main, tmp_path):
    run_main("--train", "--detection", "metrics.raw_maps=True")
    folder = tmp_path / "results" / "anomaly_maps" / "nut" / "test"
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.tiff")) == [
        f"{kind}/{number:03}.tiff" for kind in ("crack", "good") for number in range(3)
    ]
    assert tifffile.imread(folder / "crack" / "000.tiff").shape == (48, 48)


def test_figures_compare_across_sizes_of_pictures(tiny_config):
    """The same map at two sizes is measured alike, at metrics.size."""
    settings = load_settings(tiny_config, ["metrics.size=64", "metrics.centre_crop=0.75"])
    small = torch.nn.functional.interpolate(torch.rand(1, 1, 4, 4), 16, mode="bilinear")
    empty = torch.empty(0)
    maps = [
        scored_map(Prediction(empty, empty, empty, resize_maps(small, (size, size))[0, 0], 0.0), settings)
        for size in (16, 32, 64)
    ]
    assert all(one.shape == (48, 48) for one in maps)
    np.testing.assert_allclose(maps[0], maps[2], atol=1e-6)
    np.testing.assert_allclose(maps[1], maps[2], atol=0.1)


def test_an_interval_of_one_value_is_not_taken_for_certainty():
    assert interval_words((0.5, 0.75)) == "   [50.0, 75.0]" and interval_words(None) == ""
    assert "bound nothing" in interval_words((1.0, 1.0))


def test_defects_too_small_to_be_seen_at_the_size_measured_are_counted(run_main, category, tmp_path):
    dot = np.zeros((48, 48), np.uint8)
    dot[24, 24] = 255
    Image.fromarray(dot).save(category / "ground_truth" / "crack" / "001_mask.png")
    code, out, err = run_main("--train", "--detection", "metrics.size=8")
    assert (
        code == 0
        and "1 defective pictures count as normal for pixels: their masks hold no defect at this size and on the centre"
        in out
    ), err
    assert json.loads((tmp_path / "results" / "metrics.json").read_text())["vanished_defects"] == 1


def test_tiles_run_through_all_stages(run_main, tmp_path, category):
    """Wide pictures in their own proportions, 32 × 64 pixels at tiles = 1."""
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


def test_help_answers_without_loading_torch():
    code = "import sys, main; code = main.main(['--train', 'False']); sys.exit(9 if 'torch' in sys.modules or 'numpy' in sys.modules else code)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--domain_adaptation" in done.stdout
    done = subprocess.run([sys.executable, "main.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "--config" in done.stdout


def test_ctrl_c_ends_with_one_line_and_nothing_half_written(tiny_config, tmp_path):
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


def test_weights_that_cannot_be_written_are_noticed_before_the_work(run_main, tmp_path):
    (tmp_path / "taken").touch()
    code, out, err = run_main("--train", f"model.checkpoint_dir={tmp_path / 'taken'}")
    assert code == 2 and "can't write to" in err and "Training" not in out


def test_a_loss_that_explodes_stops_the_run(run_main, tmp_path):
    code, _, err = run_main("--train", "model.learning_rate=1e30", "model.epochs=20")
    assert code == 2 and "lower model.learning_rate" in err
    assert [path.name for path in (tmp_path / "checkpoints" / "nut").iterdir()] == ["training.jsonl"]


def test_maps_that_overflow_leave_no_results(run_main, tmp_path):
    run_main("--train")
    code, _, err = run_main("--detection", "model.w=1e300")
    assert code == 2 and "lower model.w" in err and not list((tmp_path / "results").iterdir())


def test_training_that_is_stopped_goes_on_where_it_was(tiny_config, tmp_path, run_main):
    """SIGTERM keeps the last step (for kill -9 see test_faults.py); weights are those of an unbroken run, and the log has each epoch once."""
    settings = ["model.epochs=16", "training.ema=0.9", "training.checkpoint_epochs=1000"]
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    run_main("--train", *settings, f"model.checkpoint_dir={unbroken}")
    state = broken / "nut" / checkpoint.TRAINING_STATE
    command = [
        sys.executable,
        "main.py",
        "--config",
        str(tiny_config),
        "--train",
        "--resume",
        *settings,
        f"model.checkpoint_dir={broken}",
    ]
    command.append("training.checkpoint_minutes=0.0001")
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    while process.poll() is None and not state.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate()
    assert process.returncode == 143 and "--resume continues" in output
    loads, load = [], torch.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "load", lambda path, **how: loads.append((path, how["mmap"])) or load(path, **how))
        _, said, _ = run_main("--train", "--resume", *settings, f"model.checkpoint_dir={broken}")
    assert loads.count((state, False)) == 1  # the checks read only its notes
    assert "continuing after step" in said and not state.exists()
    ours, theirs = (torch.load(folder / "nut" / "16", weights_only=True) for folder in (broken, unbroken))
    for part in ("weights", "average"):
        torch.testing.assert_close(ours[part], theirs[part], rtol=0, atol=0)
    log = [json.loads(line) for line in (broken / "nut" / "training.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in log] == list(range(1, 17)) and set(log[0]) > {
        "loss",
        "learning_rate",
        "pictures_per_second",
    }
    assert "nut is trained" in run_main("--train", "--resume", *settings, f"model.checkpoint_dir={broken}")[1]


def test_a_state_of_other_settings_is_not_gone_on_with(run_main, tiny_config):
    settings = load_settings(tiny_config)
    folder = settings.checkpoint_folder
    made_with = train.check_training(settings).made_with
    checkpoint.save_training_state(folder, {"made_with": {**made_with, "learning_rate": 0.5}})
    code, _, error = run_main("--train", "--resume")
    assert code == 2
    assert (
        "belongs to another training: learning_rate was 0.5, is 0.0003; set that again, or remove the file to start again"
        in error
    )
    assert "unfinished run" in run_main("--train")[1]


def test_weights_and_states_that_still_name_a_removed_key_are_gone_on_with(run_main, tiny_config, tmp_path):
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
    checkpoint.remove_training_state(folder)
    for path in (folder / CALIBRATION, tmp_path / "results" / "manifest.json"):
        content = json.loads(path.read_text())
        content["settings"]["training"]["min_snr"] = None
        path.write_text(json.dumps(content))
    assert "calibration is to be measured" not in run_main("--detection")[1] and Detector.load(folder).threshold > 0
    code, out, err = run_main("--rerun", str(tmp_path / "results"), "--output", str(tmp_path / "again"))
    assert code == 0 and "made with the same settings" in out and "equal to the last bit" in out, err


def test_weights_that_a_later_stage_needs_are_missed_before_training(run_main, tmp_path):
    for settings, missing in ((["model.DA_chp=1"], "no weights feat1 in"), (["model.load_chp=1"], "no weights 1 in")):
        code, out, err = run_main("--train", "--detection", *settings)
        assert code == 2 and missing in err and "Training" not in out
    assert run_main("--train", "--domain_adaptation", "--detection", "model.DA_chp=1", "model.load_chp=2")[0] == 0


def test_what_is_trained_already_is_the_latest_again(run_main):
    for epochs in (2, 3):
        assert run_main("--train", f"model.epochs={epochs}")[0] == 0
    code, out, _ = run_main("--train", "--detection", "--resume", "model.epochs=2")
    assert code == 0 and "nut is trained" in out and re.search(r"unet: .*/nut/2$", out, re.MULTILINE)
    assert re.search(
        r"weights of an earlier run in .*/nut are replaced: 2$", run_main("--train", "model.epochs=2")[1], re.MULTILINE
    )


def test_other_pictures_under_the_same_names_are_learnt(run_main, category, tiny_config):
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


def test_the_raw_weights_are_there_beside_the_average(run_main, tmp_path):
    scores = []
    run_main("--train", "training.ema=0.9")
    for averaged in (True, False):
        run_main("--detection", f"model.averaged={averaged}")
        scores.append((tmp_path / "results" / "scores.csv").read_text())
    assert scores[0] != scores[1]


def test_reduced_precision_changes_scores_little_and_is_noticed(run_main, tmp_path):
    run_main("--train", "speed.precision=bf16", "training.accumulate=2", "training.clip=1")
    scores = []
    for precision in ("fp32", "bf16"):
        _, said, _ = run_main("--detection", f"speed.detection_precision={precision}", "score.draws=1")
        scores.append([float(row["score"]) for row in rows(tmp_path / "results")])
    assert "precision was fp32, is bf16" in said and scores[0] != scores[1]
    np.testing.assert_allclose(scores[1], scores[0], rtol=0.1)
