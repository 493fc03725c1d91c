import csv
import json
import shutil

import pytest
from conftest import BACKBONE

pytestmark = pytest.mark.usefixtures("small_features")
QUICK = ("model.epochs=1", "metrics.resamples=20")


@pytest.fixture
def three_categories(category):
    """Beside nut: <b>, a copy under a name that is markup, and hollow, which has no training pictures."""
    shutil.copytree(category, category.parent / "<b> & 螺母")
    (category.parent / "hollow" / "train" / "good").mkdir(parents=True)
    (category.parent / "notes").mkdir()
    return category.parent


def test_all_categories_are_run_and_a_broken_one_is_reported_at_the_end(run_main, three_categories, tmp_path):
    folder = tmp_path / "found"
    wanted = ("--train", "--detection", "--output", str(folder), "data.category=all", *QUICK)
    code, out, err = run_main(*wanted)
    assert (
        code == 3
        and out.rstrip().splitlines()[-2].startswith("hollow failed: no pictures in")
        and "2 of 3 categories done" in out
    )
    assert "error: hollow: no pictures in" in err and "[1 of 3] <b> & 螺母" in out and "[3 of 3] nut (about" in out
    with (folder / "summary.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["category"]: row for row in csv.DictReader(file)}
    assert (
        list(rows) == ["<b> & 螺母", "hollow", "nut", "mean"]
        and rows["hollow"]["image_auroc"] == ""
        and rows["hollow"]["error"]
    )
    figures = json.loads((folder / "nut" / "metrics.json").read_text())
    assert (
        float(rows["nut"]["pro"]) == pytest.approx(100 * figures["pro"], abs=1e-4)
        and rows["nut"]["pro_published"] == ""
    )
    assert float(rows["mean"]["image_auroc"]) == pytest.approx(
        (float(rows["nut"]["image_auroc"]) + float(rows["<b> & 螺母"]["image_auroc"])) / 2
    )
    assert "| &lt;b&gt; &amp; 螺母 |" in (folder / "summary.md").read_text(encoding="utf-8")
    assert r"\ensuremath{<}b\ensuremath{>} \& 螺母" in (folder / "summary.tex").read_text(encoding="utf-8")
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "<b> &" not in page and json.dumps("螺母").strip('"') in page
    assert json.loads((folder / "summary.json").read_text())["settings"]["nut"]["model"]["w"] == 3

    made = {path: path.stat().st_mtime_ns for path in (*tmp_path.rglob("checkpoints/*/1"), *folder.rglob("scores.csv"))}
    code, out, _ = run_main(*wanted)
    assert code == 3 and out.count("is done: ") == 2 and out.count("is trained: ") == 2 and "image AUROC" in out
    assert {path: path.stat().st_mtime_ns for path in made} == made and len(made) == 4
    code, out, _ = run_main(*wanted, "--force", "data.category=[nut]")
    assert code == 0 and "is done" not in out and "1 of 1 categories done" in out
    assert all((path.stat().st_mtime_ns > earlier) == ("nut" in path.parts) for path, earlier in made.items())


def test_adapted_features_are_not_repeated(run_main, tmp_path):
    wanted = ("--train", "--domain_adaptation", "data.category=[nut]", "model.epochs=1")
    assert run_main(*wanted)[0] == 0
    code, out, _ = run_main(*wanted)
    assert code == 0 and "nut is adapted" in out
    lines = (tmp_path / "checkpoints" / "nut" / "adaptation.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["epoch"] == 1 and json.loads(lines[0])["loss"] > 0
    assert "Adapting" in run_main(*wanted, "model.w_DA=2")[1]


def test_a_result_is_not_overwritten(run_main, tmp_path):
    folder = tmp_path / "found"
    run_main("--train", *QUICK)
    detect = ("--detection", "--output", str(folder), *QUICK)
    assert run_main(*detect)[0] == 0
    table = (folder / "scores.csv").read_bytes()
    code, out, _ = run_main(*detect)
    assert code == 0 and "nut is done" in out and "image AUROC" in out and "at the threshold" in out
    code, out, _ = run_main(*detect, "model.w=1")
    assert code == 0 and f"results in {folder}-2: " in out and (folder / "scores.csv").read_bytes() == table
    assert "nut is done" in run_main(*detect, "model.w=1")[1]
    code, out, _ = run_main(*detect, "model.w=2", "--force")
    assert code == 0 and f"results in {folder}: " in out and (folder / "scores.csv").read_bytes() != table


def test_wrong_values_of_the_category_are_refused(run_main, tmp_path):
    assert "data.category is an empty list" in run_main("--train", "data.category=[]")[2]
    assert "data.category is None" in run_main("--train", "data.category=[null]")[2]
    assert "no categories in" in run_main("--train", "data.category=all", f"data.data_dir={tmp_path}")[2]
    assert "no data at" in run_main("--train", "data.category=all", f"data.data_dir={tmp_path / 'none'}")[2]
    assert (
        "--input needs the detector of one category"
        in run_main("--detection", "--input", str(tmp_path), "data.category=all")[2]
    )


def test_errors_of_a_replaced_result_are_gone(run_main, tmp_path):
    run_main("--train", *QUICK)
    folder, wrong = (
        tmp_path / "found",
        ("--detection", "--force", "metrics.misclassifications=True", "metrics.resamples=0"),
    )
    for rate in (0.5, 0.01):
        assert run_main(*wrong, "--output", str(folder), f"calibration.false_positive_rate={rate}")[0] == 0
        drawn = {
            path.relative_to(folder / "misclassified").with_suffix("").as_posix()
            for path in folder.glob("misclassified/*/*/*.png")
        }
        with (folder / "misclassifications.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert drawn == {
            f"{row['error'].replace(' ', '_')}/{row['path'].removeprefix('test/').removesuffix('.png')}" for row in rows
        }


def test_misclassified_pictures_are_drawn(run_main, tmp_path):
    run_main("--train", "model.epochs=1")
    for protocol in ("per_image", "published"):
        code, _, _ = run_main(
            "--detection", "metrics.misclassifications=True", f"score.protocol={protocol}", "metrics.resamples=0"
        )
        with (tmp_path / "results" / "misclassifications.csv").open(encoding="utf-8", newline="") as file:
            wrong = {
                (row["error"].replace(" ", "_"), row["path"].removeprefix("test/")) for row in csv.DictReader(file)
            }
        there = {
            path.relative_to(tmp_path / "results" / "misclassified").as_posix()
            for path in (tmp_path / "results").rglob("*.png")
        }
        assert code == 0 and wrong and there == {f"{error}/{name}" for error, name in wrong}
        shutil.rmtree(tmp_path / "results")


@pytest.mark.parametrize("count", [10, 3, 2])
def test_very_few_normal_pictures_train_calibrate_and_detect(run_main, category, tmp_path, count):
    """The preset asks for 16 pictures a batch."""
    for path in sorted((category / "train" / "good").iterdir())[count:]:
        path.unlink()
    arguments = ("preset=laptop", "training.most_steps=4", "budget_minutes=5", "data.image_size=64", "model.skip=125")
    arguments += ("score.weights=equal",)
    network = ("model.unet_size=16", "model.channel_multipliers=[1]", "model.base_channels=8", "data.batch_size=16")
    network += (f"model.feature_extractor={BACKBONE}",)
    code, out, err = run_main("--train", "--detection", *arguments, *network)
    assert (code, err) == (0, ""), err
    pictures = f"{count} pictures to learn from and 0 held out"
    assert f"data.batch_size is 16, train/good has {pictures}: a batch has {count}" in out
    assert f"plan: about 4 training steps of {count} pictures" in out
    assert f"from {count} normal pictures, too few to promise 1 %" in out
    code, out, err = run_main("--detection", "--input", str(category / "test"), *arguments, *network)
    assert code == 0 and "6 pictures in" in out, err


def test_a_single_normal_picture_cannot_train_and_calibrate(run_main, category):
    for path in sorted((category / "train" / "good").iterdir())[1:]:
        path.unlink()
    code, _, err = run_main("--train", "--detection", *QUICK)
    assert code == 2 and "holds 1 picture, and none is left to calibrate on; add normal pictures" in err
    code, _, err = run_main("--train", "--detection", *QUICK, "calibration.share=0")
    assert code == 0, err
    code, _, err = run_main("--train", "--detection", *QUICK, "score.parts=[memory]")
    assert code == 2 and "none is left to calibrate on" in err
