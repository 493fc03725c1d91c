"""--recalibrate through main.py: thresholds of new normal pictures, used until they hold no longer."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import write_picture
from PIL import Image

from detection.detector import Detector


@pytest.fixture
def darker(category, tmp_path) -> Path:
    """Return a folder of six normal pictures in another light, a broken one, and a copy of a training picture."""
    folder, rng = tmp_path / "darker", np.random.default_rng(1)
    shape = (48, 48, 1)
    normal = np.asarray(Image.open(category / "test" / "good" / "000.png")).astype(int)
    for number in range(6):
        write_picture(
            folder / f"{number}.png", (normal - 60 + rng.integers(0, 20, shape)).clip(0, 255).astype(np.uint8)
        )
    (folder / "broken.png").write_bytes(b"\x89PNG")
    shutil.copy(category / "train" / "good" / "000.png", folder / "copy.png")
    return folder


def test_the_thresholds_are_those_of_the_folder_until_train_good_is_named(
    run_main, trained, category, darker, tmp_path
):
    stored, results = trained / "nut" / "calibration.json", tmp_path / "results"
    assert run_main("--detection")[0] == 0
    before = json.loads(stored.read_text())

    code, out, err = run_main("--recalibrate", str(darker))
    assert code == 3 and err == "" and "broken.png can't be read" in out and "copies of other pictures" in out
    assert "6 pictures can't promise 1 %; that takes 99" in out and "to go back: --recalibrate" in out
    now = json.loads(stored.read_text())
    assert len(now["scores"]) == 6 and now["scores"] != before["scores"]
    assert now["source"]["folder"] == str(darker) and now["source"]["pictures"] == 6
    kept = before.keys() - {"scores", "pixels", "source", "held_out", "pictures", "independent"}
    assert {name: now[name] for name in kept} == {name: before[name] for name in kept}
    threshold = Detector.load(stored.parent, device="cpu").threshold
    assert threshold > now["scores"][-1]

    code, out, _ = run_main("--detection")
    said = f"the thresholds come from 6 normal pictures in {darker} (--recalibrate), not from train/good"
    assert code == 0 and said in out and "to be measured" not in out
    figures = json.loads((results / "metrics.json").read_text())
    assert figures["operating_point"]["threshold"] == threshold
    assert figures["calibration"]["source"] == now["source"]
    assert json.loads((results / "manifest.json").read_text())["thresholds_from"] == now["source"]
    code, out, _ = run_main("--detection", "--input", str(darker / "0.png"), "--output", str(tmp_path / "new"))
    (row,) = map(json.loads, (tmp_path / "new" / "predictions.jsonl").read_text().splitlines())
    assert code == 0 and said in out and any(row["score"] == pytest.approx(score, rel=1e-4) for score in now["scores"])
    assert json.loads((tmp_path / "new" / "summary.json").read_text())["calibration"]["source"] == now["source"]

    code, out, _ = run_main("--recalibrate", str(category / "train" / "good"))
    assert code == 0 and json.loads(stored.read_text()) == before


def test_thresholds_of_a_folder_are_never_replaced_unasked(run_main, trained, category, darker, tmp_path):
    assert run_main("--recalibrate", str(darker))[0] == 3  # without an earlier detection
    stored = (trained / "nut" / "calibration.json").read_bytes()
    code, _, err = run_main("--detection", "model.w=2")
    assert code == 2 and "w was 3.0, is 2.0" in err and f"run --recalibrate {darker} again" in err
    code, _, err = run_main("--train", "--detection")
    assert code == 2 and "holds thresholds of --recalibrate, which new weights make invalid" in err
    (category / "train" / "good" / "003.png").unlink()
    code, _, err = run_main("--detection", "--input", str(darker), "--output", str(tmp_path / "new"))
    assert code == 2 and "the pictures of train/good have changed" in err
    assert (trained / "nut" / "calibration.json").read_bytes() == stored
    assert run_main("--recalibrate", str(darker))[0] == 3 and run_main("--detection")[0] == 0


def test_a_result_of_other_thresholds_is_another_result(run_main, trained, darker, tmp_path):
    output = ("--output", str(tmp_path / "found"))
    assert run_main("--detection", *output)[0] == 0 and "is done" in run_main("--detection", *output)[1]
    run_main("--recalibrate", str(darker))
    assert f"results in {tmp_path / 'found-2'}" in run_main("--detection", *output)[1]


def test_one_picture_is_enough_and_says_what_it_promises(run_main, trained, darker, tmp_path):
    assert run_main("--recalibrate", str(darker))[0] == 3
    for path in list(darker.iterdir())[1:]:
        path.unlink()
    (only,) = darker.iterdir()
    write_picture(only.with_name("only.png"), np.full((48, 48, 3), 90, np.uint8))
    only.unlink()
    code, out, err = run_main("--recalibrate", str(darker))
    assert code == 0 and "from 1 normal pictures" in out and "50.0 % false alarms expected" in out, err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "no folder nowhere"),
        (["{empty}"], "no pictures in"),
        (["{broken}"], "none of the 1 pictures in"),
        (["{copies}"], "copies of train/good; --recalibrate needs new normal pictures"),
        (["{darker}", "score.protocol=published"], "set score.protocol=per_image for --recalibrate"),
        (["{darker}", "data.category=all"], "--recalibrate takes one category"),
        (["{darker}", "--detection"], "--recalibrate and --detection are two runs"),
        (["{darker}", "--output", "there"], "--recalibrate does not use --output there"),
    ],
)
def test_mistakes_are_explained(arguments, words, run_main, trained, darker, category, tmp_path):
    folders = {name: tmp_path / name for name in ("empty", "broken", "copies")}
    for folder in folders.values():
        folder.mkdir()
    shutil.copy(darker / "broken.png", folders["broken"])
    shutil.copy(category / "train" / "good" / "001.png", folders["copies"])
    named = [argument.format(darker=darker, **folders) for argument in arguments]
    code, _, err = run_main("--recalibrate", *named)
    assert code == 2 and words in err


def test_pictures_of_the_folder_keep_the_promise(run_main, trained, darker, tmp_path):
    """The threshold stands at the highest of the folder's scores, so that none of them is anomalous."""
    run_main("--recalibrate", str(darker))
    code, _, err = run_main("--detection", "--input", str(darker), "--output", str(tmp_path / "new"))
    summary = json.loads((tmp_path / "new" / "summary.json").read_text())
    assert code == 3 and summary["unreadable"] == 1 and summary["pictures"] == 8, err
    assert summary["warnings"] == [] and set(summary["drift"]) == {"share", "level", "order"}


def test_a_broken_promise_is_said_at_the_top(run_main, trained, category, tmp_path):
    """With two low calibration scores, 25 false alarms of 25 have a probability of 2 / (26 · 27) at most."""
    assert run_main("--detection")[0] == 0
    stored = trained / "nut" / "calibration.json"
    stored.write_text(json.dumps({**json.loads(stored.read_text()), "scores": [1e-6, 2e-6]}))
    normal = np.array(Image.open(category / "test" / "good" / "000.png"))
    for number in range(25):
        normal[0, number] = 0
        write_picture(category / "test" / "good" / f"{number:03}.png", normal)
    code, out, err = run_main("--detection")
    figures = json.loads((tmp_path / "results" / "metrics.json").read_text())
    (line,) = figures["warnings"]
    assert code == 0 and next(iter(figures)) == "warnings" and out.count(f"warning: {line}\n") == 1, err
    assert line.startswith("25 of 25 normal test pictures are called anomalous, where 33.3 % were promised (p = 0.003)")
    assert "--recalibrate" in line and json.dumps(line)[1:-1] in (tmp_path / "results" / "report.html").read_text()
    (in_use,) = (row for row in figures["operating_points"] if row["in_use"])
    assert in_use["wanted_rate"] == 0.01 and in_use["false_alarms"]["part"] == in_use["false_alarms"]["total"] == 25
    assert in_use["recall"]["part"] == figures["operating_point"]["true_positives"]

    source = str(category / "test" / "good")
    code, out, _ = run_main("--detection", "--input", source, "--output", str(tmp_path / "new"))
    summary = json.loads((tmp_path / "new" / "summary.json").read_text())
    (line,) = summary["warnings"]
    assert code == 0 and line.startswith("25 of 25 pictures are called anomalous (p = 0.003): either many of them are")
    assert f"warning: {line}\n" in out and (summary["anomalous"], summary["normal"]) == (25, 0)
