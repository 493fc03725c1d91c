"""Detection on test pictures through `main.py --detection`."""

import csv
import json

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from score_tables import read_rows
from small_defects import add_border_defect

import metrics
from anomaly_map import resize_maps
from config.load import load_settings
from detection.detector import Prediction
from detection.evaluate import scored_map
from reports.metric_summary import OUTSIDE

pytestmark = pytest.mark.usefixtures("small_features")
STORED = ("manifest", "metrics")


def test_misclassifications_are_listed(run_main, tmp_path):
    run_main("--train", "--detection", "score.protocol=published", "metrics.misclassifications=True")
    with (tmp_path / "results" / "misclassifications.csv").open(encoding="utf-8", newline="") as file:
        listed = {row["path"]: row["error"] for row in csv.DictReader(file)}
    table = read_rows(tmp_path / "results")
    threshold = metrics.youden_threshold([float(row["score"]) for row in table], [int(row["label"]) for row in table])
    expected = {row["path"] for row in table if (float(row["score"]) >= threshold - 1e-9) != (row["label"] == "1")}
    assert set(listed) == expected


def test_the_calibrated_threshold_needs_no_defects(run_main, tmp_path, trained):
    """Verdicts agree with p-values, counts with metrics.json."""
    code, out, err = run_main("--detection", "metrics.misclassifications=True", "calibration.false_positive_rate=0.5")
    assert code == 0, err
    table, figures = read_rows(tmp_path / "results"), json.loads((tmp_path / "results" / "metrics.json").read_text())
    assert all(0 < float(row["p_value"]) <= 1 for row in table)
    anomalous = {row["path"] for row in table if row["anomalous"] == "1"}
    assert anomalous == {row["path"] for row in table if float(row["p_value"]) <= 0.5}
    wrong = {row["path"] for row in table if (row["path"] in anomalous) != (row["label"] == "1")}
    with (tmp_path / "results" / "misclassifications.csv").open(encoding="utf-8", newline="") as file:
        assert {row["path"] for row in csv.DictReader(file)} == wrong
    point = figures["operating_point"]
    assert point == figures["kinds"]["crack"]
    assert point["true_positives"] + point["false_positives"] == len(anomalous)
    assert point["false_negatives"] + point["false_positives"] == len(wrong)
    assert "threshold" in out and "from 2 normal pictures: 50.0 % false alarms expected" in out
    assert f"crack {point['true_positives']} of 3" in out


def test_metrics_that_the_data_do_not_allow_are_left_out(run_main, tmp_path, category):
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


def test_a_score_belongs_to_the_picture(run_main, tmp_path, category, trained):
    """A score does not depend on the batch, the number of threads, or other files."""
    scores = scores_of(run_main, tmp_path, "data.test_batch_size=6")
    spread = max(scores.values())
    for arguments in (["data.test_batch_size=1"], ["data.test_batch_size=4", "model.num_workers=0"]):
        assert scores_of(run_main, tmp_path, *arguments) == pytest.approx(scores, abs=1e-5 * spread)
    (category / "test" / "crack" / "001.png").rename(category / "test" / "good" / "000 moved.png")
    (category / "test" / "good" / "002.png").unlink()
    others = scores_of(run_main, tmp_path)
    assert others.pop("test/good/000 moved.png") == pytest.approx(scores["test/crack/001.png"], abs=1e-5 * spread)
    assert others == pytest.approx({path: scores[path] for path in others}, abs=1e-5 * spread)


def test_published_scores_depend_on_the_batch(run_main, tmp_path, trained):
    """As published, scores depend on batch maxima and one stream of noise."""
    alone, together = (
        scores_of(run_main, tmp_path, "score.protocol=published", f"data.test_batch_size={size}") for size in (1, 6)
    )
    assert max(abs(alone[path] - together[path]) for path in alone) > 1e-3


def test_maps_are_averaged_over_draws(run_main, tmp_path, trained):
    """A mean over many draws is nearer to another such mean than to a single draw."""
    one, four, five = (
        np.array(list(scores_of(run_main, tmp_path, f"score.draws={count}").values())) for count in (1, 4, 5)
    )
    assert 0 < np.abs(four - five).max() < np.abs(one - five).max()


def test_raw_maps_on_request(run_main, tmp_path):
    run_main("--train", "--detection", "metrics.raw_maps=True")
    folder = tmp_path / "results" / "anomaly_maps" / "nut" / "test"
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.tiff")) == [
        f"{kind}/{number:03}.tiff" for kind in ("crack", "good") for number in range(3)
    ]
    assert tifffile.imread(folder / "crack" / "000.tiff").shape == (48, 48)


def test_metrics_compare_across_sizes_of_pictures(tiny_config):
    """Maps of different sizes are measured alike, at metrics.size."""
    settings = load_settings(tiny_config, ["metrics.size=64", "metrics.centre_crop=0.75"])
    small = torch.nn.functional.interpolate(torch.rand(1, 1, 4, 4), 16, mode="bilinear")
    empty = torch.empty(0)
    maps = [
        scored_map(Prediction(empty, empty, empty, resize_maps(small, (size, size))[0, 0], 0.0), (64, 64), settings)
        for size in (16, 32, 64)
    ]
    assert all(one.shape == (48, 48) for one in maps)
    np.testing.assert_allclose(maps[0], maps[2], atol=1e-6)
    np.testing.assert_allclose(maps[1], maps[2], atol=0.1)


def test_defects_that_vanish_at_the_size_of_the_metrics_are_counted(run_main, category, tmp_path):
    dot = np.zeros((48, 48), np.uint8)
    dot[24, 24] = 255
    Image.fromarray(dot).save(category / "ground_truth" / "crack" / "001_mask.png")
    code, out, err = run_main("--train", "--detection", "metrics.size=8")
    assert (
        code == 0 and "1 defective pictures count as normal for pixels: their masks hold no defect at this size" in out
    ), err
    assert json.loads((tmp_path / "results" / "metrics.json").read_text())["vanished_defects"] == 1


def test_maps_that_overflow_leave_no_results(run_main, tmp_path):
    run_main("--train")
    code, _, err = run_main("--detection", "model.w=1e300")
    assert code == 2 and "lower model.w" in err and not list((tmp_path / "results").iterdir())


def test_reduced_precision_changes_scores_little_and_makes_the_calibration_stale(run_main, tmp_path):
    run_main("--train", "speed.precision=bf16", "training.accumulate=2", "training.clip=1")
    scores = []
    for precision in ("fp32", "bf16"):
        _, said, _ = run_main("--detection", f"speed.detection_precision={precision}", "score.draws=1")
        scores.append([float(row["score"]) for row in read_rows(tmp_path / "results")])
    assert "precision was fp32, is bf16" in said and scores[0] != scores[1]
    np.testing.assert_allclose(scores[1], scores[0], rtol=0.1)


def scores_of(run_main, tmp_path, *arguments):
    code, _, err = run_main("--detection", *arguments)
    assert code == 0, err
    return {row["path"]: float(row["score"]) for row in read_rows(tmp_path / "results")}


def test_a_rerun_uses_the_batch_size_of_the_result_whatever_memory_is_free(run_main, tmp_path, trained, monkeypatch):
    """Scores of other batch sizes differ in their last digits, so that the manifest records the one chosen."""
    result, stored = tmp_path / "results", trained / "nut" / "calibration.json"
    monkeypatch.setattr("detection.detector.free_memory", lambda device: 1e12)
    assert run_main("--detection", "data.test_batch_size=auto")[0] == 0
    calibration = json.loads(stored.read_text())
    assert batch_size_of(result) == calibration["batch_size"] == 8
    assert calibration["settings"]["data"]["test_batch_size"] is None  # Detector.load chooses anew for its machine
    stored.unlink()  # measured again, in the same batches
    monkeypatch.setattr("detection.detector.free_memory", lambda device: 0.0)
    code, out, err = run_main("--rerun", str(result))
    assert code == 0 and "equal to the last bit" in out and "made with the same settings" in out, out + err
    assert batch_size_of(tmp_path / "results-rerun") == 8
    assert (tmp_path / "results-rerun" / "scores.csv").read_bytes() == (result / "scores.csv").read_bytes()


def batch_size_of(folder):
    return json.loads((folder / "manifest.json").read_text())["settings"]["data"]["test_batch_size"]


def test_another_batch_size_makes_no_new_calibration_or_result(run_main, tmp_path, trained, monkeypatch):
    arguments = ("--detection", "--output", str(tmp_path / "out"), "data.test_batch_size=auto")
    for free, size in ((1e12, 8), (0.0, 1)):
        monkeypatch.setattr("detection.detector.free_memory", lambda device, free=free: free)
        code, out, err = run_main(*arguments, *(["calibration.false_positive_rate=0.4"] if size == 1 else []))
        assert code == 0 and ("to be measured" in out) == (size == 8), err
        assert json.loads((trained / "nut" / "calibration.json").read_text())["batch_size"] == 8
    code, out, _ = run_main(*arguments)
    assert code == 0 and "is done: " in out and not (tmp_path / "out-3").exists()


def test_a_defect_at_the_border_is_found(run_main, category, trained, tmp_path):
    add_border_defect(category)
    code, out, err = run_main("--detection", "score.parts=[memory]")
    assert code == 0 and "centre_crop=1.0" in out and "found by kind: crack 3 of 3 (100.0%), edge 1 of 1" in out, err
    scores = {row["path"]: float(row["score"]) for row in read_rows(tmp_path / "results")}
    assert scores["test/edge/000.png"] > 10 * max(scores[f"test/good/00{number}.png"] for number in range(3))
    manifest, figures = (json.loads((tmp_path / "results" / f"{name}.json").read_text()) for name in STORED)
    assert manifest["settings"]["metrics"]["centre_crop"] == 1 and figures["pixel_auroc"] > 0.9
    assert figures["defects_outside"] == figures["defects_partly_outside"] == 0 and "outside" not in out


def test_defects_that_the_crop_leaves_out_are_counted(run_main, category, trained, tmp_path):
    """The border of 3 of 48 pixels is left out: one defect lies in it, another reaches into it."""
    add_border_defect(category)
    add_border_defect(category, "001", (slice(0, 3), slice(8, 20)), (slice(0, 6), slice(30, 40)))
    code, out, err = run_main("--detection", "score.parts=[memory]", "metrics.centre_crop=0.875")
    counted = "outside the scored area lie 2 defects wholly, 1 partly; the masks of 1 pictures wholly, of 1 partly"
    assert code == 0 and f"{counted}; metrics.centre_crop=1 takes the whole picture" in out, err
    _, figures = (json.loads((tmp_path / "results" / f"{name}.json").read_text()) for name in STORED)
    assert [figures[name] for name in OUTSIDE] == [2, 1, 1, 1] and figures["vanished_defects"] == 1
    assert counted in (tmp_path / "results" / "report.html").read_text(encoding="utf-8")
