"""Pictures without labels through `main.py --detection --input`."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from small_defects import add_border_defect

from detection import predict
from detection.detector import Detector

ROOT = Path(__file__).parents[2]


@pytest.fixture
def pictures(category, tmp_path) -> Path:
    """Return <tmp>/new pictures: two of the test set, a larger one with the stem of another, and a broken one."""
    folder = tmp_path / "new pictures"
    (folder / "sub").mkdir(parents=True)
    shutil.copy(category / "test" / "good" / "000.png", folder / "a.png")
    shutil.copy(category / "test" / "crack" / "000.png", folder / "sub" / "b.png")
    Image.open(category / "test" / "crack" / "001.png").resize((130, 70)).save(folder / "sub" / "b.jpg", quality=98)
    (folder / "broken.png").write_bytes(b"\x89PNG")
    return folder


def predictions(folder: Path) -> dict[str, dict]:
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len({row["path"] for row in rows}) == len(rows)
    return {row["path"]: row for row in rows}


@pytest.fixture(scope="module")
def detected_once(tmp_path_factory) -> Path:
    """Return a folder for what the first test's detection leaves."""
    return tmp_path_factory.mktemp("judged")


@pytest.fixture
def inspect(run_main, pictures, trained, detected_once, tmp_path):
    """Return inspect(*arguments) → (code, out, err), which runs a trained network over `pictures` into <tmp>/found."""
    if not list(detected_once.iterdir()):
        assert run_main("--detection")[0] == 0
        for name in ("checkpoints", "results"):
            shutil.copytree(tmp_path / name, detected_once / name)
    shutil.copytree(detected_once, tmp_path, dirs_exist_ok=True)
    return lambda *arguments: run_main(
        "--detection",
        "--input",
        str(pictures),
        "--output",
        str(tmp_path / "found"),
        "metrics.visualisation=True",
        *arguments,
    )


def test_each_picture_gets_a_verdict_and_its_maps(inspect, tmp_path):
    code, out, err = inspect("calibration.false_positive_rate=0.5")
    found = tmp_path / "found"
    assert code == 3 and err == "" and "1 unreadable" in out
    rows = predictions(found)
    assert list(rows) == ["a.png", "broken.png", "sub/b.jpg", "sub/b.png"]
    assert rows["broken.png"]["verdict"] == "unreadable" and "broken.png can't be read" in rows["broken.png"]["error"]
    with (found / "predictions.csv").open(newline="") as file:
        table = {row["path"]: row for row in csv.DictReader(file)}
    assert list(table) == list(rows)
    for name in ("a.png", "sub/b.jpg", "sub/b.png"):
        row = rows[name]
        assert row["verdict"] == ("anomalous" if row["p_value"] <= 0.5 else "normal") == table[name]["verdict"]
        assert bool(row["regions"]) == (row["verdict"] == "anomalous") and table[name]["regions"] == str(
            len(row["regions"])
        )
        assert table[name]["score"] == f"{row['score']:.8g}"
    maps = found / "anomaly_maps" / "nut" / "test"
    sizes = {path.relative_to(maps).as_posix(): tifffile.imread(path).shape for path in maps.rglob("*.tiff")}
    assert sizes == {"a.tiff": (48, 48), "sub/b.jpg.tiff": (70, 130), "sub/b.png.tiff": (48, 48)}
    for kind in ("heatmaps", "outlines"):
        shown = {
            path.relative_to(found / kind).as_posix(): Image.open(path).size for path in (found / kind).rglob("*.png")
        }
        assert shown == {"a.png": (48, 48), "sub/b.jpg.png": (130, 70), "sub/b.png.png": (48, 48)}


def test_a_picture_gets_the_score_it_has_in_the_test_set(inspect, tmp_path, run_main):
    inspect()
    with (tmp_path / "results" / "scores.csv").open(newline="") as file:
        scores = {row["path"]: float(row["score"]) for row in csv.DictReader(file)}
    rows = predictions(tmp_path / "found")
    assert rows["a.png"]["score"] == pytest.approx(scores["test/good/000.png"], rel=1e-5)
    assert rows["sub/b.png"]["score"] == pytest.approx(scores["test/crack/000.png"], rel=1e-5)


def test_one_picture_alone(inspect, run_main, pictures, tmp_path):
    code, _, err = run_main(
        "--detection", "--input", str(pictures / "a.png"), "--output", str(tmp_path / "one"), "metrics.raw_maps=False"
    )
    assert code == 0, err
    assert list(predictions(tmp_path / "one")) == ["a.png"] and not (tmp_path / "one" / "anomaly_maps").exists()


def test_a_second_run_continues_only_when_asked_and_tries_unreadable_pictures_again(inspect, pictures, tmp_path):
    inspect()
    before = predictions(tmp_path / "found")
    code, _, err = inspect()
    assert code == 2 and "holds predictions of 4 pictures; continue them with --resume" in err
    shutil.copy(pictures / "a.png", pictures / "broken.png")
    shutil.copy(pictures / "a.png", pictures / "new.png")
    code, out, err = inspect("--resume")
    assert code == 0 and "3 of 5 pictures are done already" in out and "2 pictures in" in out, err
    after = predictions(tmp_path / "found")
    assert len(after) == 5 and after["broken.png"]["error"] == "" and after["a.png"] == before["a.png"]
    assert after["broken.png"]["score"] == pytest.approx(before["a.png"]["score"], rel=1e-5)
    code, out, _ = inspect("--resume")
    assert code == 0 and "0 pictures in" in out
    for change in ("model.w=2", "calibration.false_positive_rate=0.4"):
        code, _, err = inspect("--resume", change)
        assert code == 2 and "of another detector, threshold or input" in err


def test_a_forced_run_removes_earlier_maps_and_takes_large_pictures_one_by_one(
    inspect, pictures, tmp_path, monkeypatch
):
    inspect()
    before = predictions(tmp_path / "found")
    (pictures / "sub" / "b.jpg").unlink()
    monkeypatch.setattr(predict, "PIXELS_PER_BATCH", 1)
    inspect("--force")
    after = predictions(tmp_path / "found")
    assert set(before) - set(after) == {"sub/b.jpg"} and after["a.png"]["score"] == pytest.approx(
        before["a.png"]["score"], rel=1e-5
    )
    assert len(list((tmp_path / "found" / "heatmaps").rglob("*.png"))) == sum(
        1 for row in after.values() if not row["error"]
    )


@pytest.mark.parametrize("output", ["new pictures", ".", "new pictures/found"])
def test_the_output_may_lie_anywhere(inspect, run_main, pictures, tmp_path, output):
    (pictures / "a.png").rename(pictures / "a.PNG")
    for arguments in ([], ["--resume"]):
        code, _, err = run_main(
            "--detection",
            "--input",
            str(pictures),
            "--output",
            str(tmp_path / output),
            "metrics.visualisation=True",
            *arguments,
        )
        assert code == 3 and err == ""
        assert sorted(predictions(tmp_path / output)) == ["a.PNG", "broken.png", "sub/b.jpg", "sub/b.png"]
    assert (tmp_path / output / "heatmaps" / "a.png").is_file()


def test_a_defect_at_the_border_is_found_and_outlined(run_main, category, trained, tmp_path):
    path, found = add_border_defect(category), tmp_path / "found"
    arguments = ("--detection", "--input", str(path), "--output", str(found), "score.parts=[memory]")
    code, out, err = run_main(*arguments, "metrics.visualisation=True")
    assert code == 0 and "centre_crop=1.0" in out and "1 anomalous" in out, err
    (row,) = predictions(found).values()
    left, top, right, _ = row["regions"][0]["box"]
    assert top == 0 and left < 24 < right and row["regions"][0]["peak"] == pytest.approx(row["score"])
    outline, shown = (np.asarray(Image.open(file).convert("RGB")) for file in (found / "outlines" / "000.png", path))
    assert (outline != shown).any()
    code, out, _ = run_main(*arguments, "metrics.centre_crop=0.75", "--force")
    assert "defects outside the centre are not detected: metrics.centre_crop is 0.75; 1 takes all" in out


def test_a_published_table_and_new_pictures_each_keep_their_calibration(run_main, pictures, trained, tmp_path):
    """The table counts the centre of a picture, --input the whole; neither measures the other's thresholds again."""
    settings, folder = ("data.name=MVTec", "--detection"), trained / "nut"
    inspect = (*settings, "--input", str(pictures), "--output", str(tmp_path / "found"), "--force")
    assert "no calibration.json" in run_main(*settings)[1] and Detector.load(folder).crop == 0.875
    assert "calibration is to be measured: crop was 0.875, is 1.0" in run_main(*inspect)[1]
    for arguments in (settings, inspect):
        assert "to be measured" not in run_main(*arguments)[1]
    assert Detector.load(folder).crop == 1
    assert "w was 3.0, is 2.0" in run_main(*settings, "model.w=2")[1]
    assert Detector.load(folder).crop == 0.875  # the whole picture was calibrated for another w


def test_without_normal_pictures_the_stored_crop_is_named(run_main, category, pictures, trained, tmp_path):
    assert run_main("--detection", "data.name=MVTec")[0] == 0
    shutil.rmtree(category / "train")
    code, _, err = run_main("--detection", "--input", str(pictures), "data.name=MVTec")
    assert code == 2 and "crop was 0.875, is 1.0" in err and "or set metrics.centre_crop=0.875" in err
    assert run_main("--detection", "--input", str(pictures), "data.name=MVTec", "metrics.centre_crop=0.875")[0] == 3
