"""--reproduce at toy size: bottle and screw are copies of the tiny category, whose pictures no paper has seen."""

import csv
import json
import os
import shutil
import signal

import pytest
import torch

import train
from config.published import published_metrics
from reports import reproduction
from training import checkpoint

pytestmark = pytest.mark.usefixtures("small_features")
TOY = ("model.epochs=2", "model.DA_epochs=1", "data.batch_size=4", "data.DA_batch_size=4", "metrics.resamples=0")


@pytest.fixture
def published(category, run_main, tmp_path):
    """Return a function that runs --reproduce MVTec in <tmp>/out, on categories that are copies of nut."""
    for name in ("bottle", "screw"):
        shutil.copytree(category, category.parent / name)

    def run(*arguments: str, categories: str = "bottle"):
        folders = (f"data.data_dir={category.parent}", f"model.checkpoint_dir={tmp_path / 'weights'}")
        command = ("--reproduce", "MVTec", "--categories", categories, "--output", str(tmp_path / "out"))
        return run_main(*command, *folders, *TOY, *arguments)

    return run


def made_files(folder):
    """Return the time of change of each file that a stage or a detection leaves."""
    names = ("2", "feat1", "metrics.json", "training.jsonl", "bottle.json")
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name in names}


def test_a_table_stands_beside_the_papers_and_nothing_is_done_twice(published, tmp_path):
    code, out, err = published()
    assert (code, err) == (0, "") and out.index("  total") < out.index("Training bottle")
    assert "4 training steps, 48 images to reconstruct" in out  # 2·2; 2·2 adapted, 4·6 test, 2·10 normal
    rows = list(csv.DictReader((tmp_path / "out" / "table.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["category"], row["scores"], row["features"]) for row in rows] == [
        ("bottle", scores, features) for scores in ("batches of 4", "per image") for features in ("feat1", "feat0")
    ]
    for row in rows:
        found = json.loads((tmp_path / "out" / "bottle" / folder_of(row) / "metrics.json").read_text())
        assert found["scored"] == 224
        for name, paper in published_metrics("bottle").items():
            assert float(row[name]) == pytest.approx(100 * found[name], abs=1e-4)
            assert float(row[f"{name}_published"]) == paper
            assert float(row[f"{name}_difference"]) == pytest.approx(float(row[name]) - paper, abs=1e-3)
        assert float(row["seconds_per_image"]) > 0 and float(row["mib_per_image"]) > 1
    table = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert "| bottle     | batches of 4 | feat1" in table and "data.image_size=32" in table
    assert "model.epochs=2" in table and "score.draws" not in table and "data.batch_size=4" in table
    made = made_files(tmp_path)
    code, out, _ = published()
    assert code == 0 and "finished: " in out and "Training bottle" not in out and "timing" not in out
    assert made_files(tmp_path) == made and len(made) == 8
    (tmp_path / "weights" / "bottle" / "2").unlink()  # to save space
    assert "Training bottle" not in published()[1] and made_files(tmp_path).keys() < made.keys()


def folder_of(row):
    return f"{'per_image' if row['scores'] == 'per image' else 'published'}-{row['features']}"


def test_a_run_that_is_stopped_twice_goes_on(published, tmp_path, monkeypatch):
    """The first stop is in training, the second after the first detection."""
    steps, saved = train.follow_steps, reproduction.save_record

    def stopped(*arguments):
        for progress in steps(*arguments):
            if progress.step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            yield progress

    def killed(*arguments):
        saved(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "follow_steps", stopped)
        assert published("model.epochs=3")[0] == 143
    assert checkpoint.steps_done(tmp_path / "weights" / "bottle") == 3
    with monkeypatch.context() as patch:
        patch.setattr(reproduction, "save_record", killed)
        code, out, _ = published("model.epochs=3")
        assert code == 130 and "continuing after step" in out
    first = tmp_path / "out" / "bottle" / "published-feat1" / "metrics.json"
    made, weights = first.stat().st_mtime_ns, (tmp_path / "weights" / "bottle" / "3").stat().st_mtime_ns
    code, out, err = published("model.epochs=3")
    assert (code, err) == (0, "") and "bottle is trained" in out and "bottle is adapted" in out
    assert first.stat().st_mtime_ns == made and (tmp_path / "weights" / "bottle" / "3").stat().st_mtime_ns == weights
    assert len(json.loads((tmp_path / "out" / "bottle.json").read_text())["scores"]) == 4


def test_means_are_over_the_same_categories_and_a_broken_category_is_reported(published, category, tmp_path):
    shutil.rmtree(category.parent / "screw" / "train")
    plain = ("model.DA_epochs=0",)
    code, out, err = published(*plain, categories="screw,bottle")
    assert code == 3 and "screw failed: no" in out and "error: screw" in err and "mean of" not in out
    shutil.copytree(category / "train", category.parent / "screw" / "train")
    code, out, _ = published(*plain, categories="screw,bottle")
    assert code == 0 and "finished: " in out
    rows = json.loads((tmp_path / "out" / "table.json").read_text(encoding="utf-8"))["rows"]
    means = [row for row in rows if row["category"] == "mean of 2"]
    assert [(row["scores"], row["features"]) for row in means] == [
        (scores, features) for scores in ("batches", "per image") for features in ("adapted", "feat0")
    ]
    assert {row["image_auroc_published"] for row in means} == {(100 + 99) / 2}
    assert [row["features"] for row in rows if row["category"] == "screw"] == ["feat0", "feat0"]


def test_official_weights_are_used_and_never_replaced(published, tmp_path, category):
    published("model.DA_epochs=0")
    path = tmp_path / "weights" / "bottle" / "2"
    official = {f"module.{name}": value for name, value in torch.load(path)["weights"].items()}
    torch.save(official, path)
    before = path.read_bytes()
    code, out, err = published("model.DA_epochs=0", "--force")
    assert (code, err) == (0, "") and "Training bottle" not in out and "Detecting defects of bottle" in out
    assert path.read_bytes() == before


def test_what_no_paper_has_is_refused(run_main, tmp_path):
    assert "nothing is published for 'MTD'" in run_main("--reproduce", "MTD")[2]
    code, _, err = run_main("--reproduce", "VisA", "--categories", "magnetic_tile")
    assert code == 2 and "names 'magnetic_tile', for which the paper has no result in VisA" in err
    assert "did you mean" in run_main("--reproduce", "VisA", "--categories", "capsule")[2]
    assert "belongs to --reproduce" in run_main("--categories", "bottle", "--train")[2]
    assert (
        "remove budget_minutes" in run_main("--reproduce", "VisA", "preset=laptop-pixels", "--output", str(tmp_path))[2]
    )
    damaged = tmp_path / "candle.json"
    damaged.write_text("{}")
    code, _, err = run_main("--reproduce", "VisA", "--categories", "candle", "--output", str(tmp_path))
    assert code == 2 and f"{damaged} is not the record of a reproduction" in err
