"""Pictures as squares, in their own proportions, and in tiles, from training to the report."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import BACKBONE, make_category, make_config
from PIL import Image
from score_tables import read_rows
from shaped_pictures import MEMORY, shaped_category

from config.keys import PROPORTIONS, SQUARE
from config.load import load_settings
from dataset import ImageFolder, View, usual_ratio
from detection import Detector
from training import checkpoint
from training.fit import Fit, choose_fit, stored_fit


def read_metrics(tmp_path):
    return json.loads((tmp_path / "results" / "metrics.json").read_text())


def test_pictures_keep_their_proportions_in_all_stages(run_main, tmp_path):
    category = shaped_category(tmp_path, [(96, 40), (94, 40)])
    arguments = ("--train", "--domain_adaptation", "--detection", "metrics.centre_crop=1", "metrics.raw_maps=True")
    code, out, err = run_main(*arguments, "metrics.visualisation=True")
    assert code == 0, err
    assert "data.fit is proportions, pictures of train/good are 96×40: resized to 50×20 (12)" in out
    assert "at 405×162 pixels" in out
    assert read_metrics(tmp_path)["shapes"] == {"405×162": 8}
    results = tmp_path / "results"
    assert Image.open(results / "anomaly_maps" / "nut" / "test" / "spot" / "000.tiff").size == (96, 40)
    assert Image.open(results / "gallery" / "map" / "spot" / "001.webp").size[0] > 256
    assert "in the pictures' proportions: 405" in (results / "report.html").read_text(encoding="utf-8")
    code, out, err = run_main(
        "--detection", "--input", str(category / "test" / "spot"), "--output", str(tmp_path / "new")
    )
    assert code == 0 and "data.fit is proportions" in out, err
    assert Image.open(tmp_path / "new" / "anomaly_maps" / "nut" / "test" / "003.tiff").size == (94, 40)
    assert run_main("--figure", str(results), "--output", str(tmp_path / "figure"))[0] == 0


def test_pictures_of_several_proportions_are_handled_one_by_one(run_main, tmp_path):
    """Each batch holds one shape; scores do not depend on the company."""
    category = shaped_category(tmp_path, [(96, 40), (48, 48), (40, 96)])
    code, out, err = run_main("--train", "--domain_adaptation", "--detection", *MEMORY)
    assert code == 0, err
    assert "96×40: resized to 50×20 (4); 48×48: resized to 32×32 (4); 40×96: resized to 20×50 (4)" in out
    figures, scores = (
        read_metrics(tmp_path),
        {row["path"]: float(row["score"]) for row in read_rows(tmp_path / "results")},
    )
    assert sorted(figures["shapes"].values()) == [2, 2, 4] and {"pixel_auroc", "pro"} <= set(figures)
    assert figures["image_auroc"] == 1 and figures["pixel_auroc"] > 0.9
    for name in ("test/good/000.png", "test/spot/002.png"):
        (category / name).unlink()
    assert run_main("--detection", *MEMORY)[0] == 0
    for row in read_rows(tmp_path / "results"):
        assert float(row["score"]) == pytest.approx(scores[row["path"]], rel=1e-4)


def test_pictures_of_nearly_the_usual_proportions_have_one_shape_in_all_stages(run_main, tmp_path):
    """The shape is that of the weights: pictures of another set do not change it."""
    usual, near, far = (100, 40), (92, 40), (60, 40)
    category, folder = shaped_category(tmp_path, [usual, usual, usual, near, far]), tmp_path / "checkpoints" / "nut"
    code, out, err = run_main("--train", "--detection", *MEMORY)
    assert code == 0 and "100×40: resized to 50×20 (10); 60×40: resized to 40×26 (2)" in out, err
    assert sorted(read_metrics(tmp_path)["shapes"].values()) == [8]
    assert stored_fit(folder, 2) == Fit(PROPORTIONS, 2.5)
    detector = Detector.load(folder, "cpu")
    assert [detector.view.shape(*size) for size in (usual, near, far)] == [(50, 20), (50, 20), (40, 26)]
    shutil.rmtree(category / "train")
    shaped_category(tmp_path, [near])
    code, out, err = run_main("--detection", *MEMORY)
    assert code == 0 and "ratio=2.5" in out and "92×40: resized to 50×20 (12)" in out, err
    code, out, err = run_main("--train", "--resume", *MEMORY)
    assert code == 0 and "ratio=2.5" in out, err
    assert run_main("--train", *MEMORY)[0] == 0 and stored_fit(folder, 2) == Fit(PROPORTIONS, 2.3)


def test_weights_without_a_ratio_keep_each_picture_as_it_is(run_main, tmp_path):
    """Earlier versions wrote none; data.ratio can be set by hand."""
    shaped_category(tmp_path, [(100, 40), (100, 40), (92, 40)])
    assert run_main("--train", *MEMORY)[0] == 0
    path = tmp_path / "checkpoints" / "nut" / "2"
    state = checkpoint.read_state(path)
    del state["made_with"]["ratio"]
    checkpoint.save(path, state)
    code, out, err = run_main("--detection", *MEMORY)
    assert code == 0 and "ratio=None" in out and "92×40: resized to 48×22 (4)" in out, err
    code, out, err = run_main("--detection", *MEMORY, "data.ratio=2.5")
    assert code == 0 and "100×40: resized to 50×20 (12)" in out and "to be measured" in out, err
    state["made_with"]["ratio"] = -1.0
    checkpoint.save(path, state)
    code, _, err = run_main("--detection", *MEMORY)
    assert code == 2 and "nut/2 is damaged: its data.ratio is -1.0; replace or remove it" in err


@pytest.mark.parametrize(
    ("ratio", "size", "shape"),
    [
        (2.5, (100, 40), (800, 320)),
        (2.5, (110, 40), (800, 320)),
        (2.5, (111, 40), (864, 320)),
        (3.9, (420, 100), (1024, 256)),
        (4.1, (420, 100), (544, 128)),
        (None, (420, 100), (544, 128)),
    ],
)
def test_pictures_within_a_tenth_of_the_usual_proportions_take_them(ratio, size, shape):
    """A strip has its own scale, hence its own shape."""
    assert View(512, fit=PROPORTIONS, ratio=ratio).shape(*size) == shape


def test_the_usual_proportions_are_those_of_upright_pictures(tmp_path):
    for number in range(3):
        exif = Image.Exif()
        exif[0x0112] = 6  # shown after a quarter turn
        folder = tmp_path / "nut" / "train" / "good"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 60)).save(folder / f"{number}.jpg", exif=exif)
    assert usual_ratio(ImageFolder(tmp_path / "nut", "train", View(32)).sizes()) == 1.5


def test_a_strip_is_cut_into_tiles_and_its_defect_is_found(run_main, tmp_path):
    category = shaped_category(tmp_path, [(256, 16)])
    code, out, err = run_main("--train", "--detection", "model.epochs=20", *MEMORY, "score.parts=[memory, pixel]")
    assert code == 0, err
    assert "pictures of train/good are 256×16: 11 tiles of 32×16 (12)" in out
    figures = read_metrics(tmp_path)
    assert figures["image_auroc"] == 1 and figures["pixel_auroc"] > 0.95 and figures["shapes"] == {"1024×64": 8}
    arguments = ("--input", str(category / "test" / "spot" / "001.png"), "--output", str(tmp_path / "new"))
    assert run_main("--detection", *MEMORY, "score.parts=[memory, pixel]", *arguments)[0] == 0
    with (tmp_path / "new" / "predictions.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    left, top, right, bottom = map(int, row["boxes"].split("; ")[0].split())
    assert row["verdict"] == "anomalous" and left < 245.5 < right and top < 7.5 < bottom


def test_squares_are_as_before(run_main, tmp_path, category):
    """Up to 5:4, `auto` is `square` in every bit. It is not stored, so that files of earlier versions compare equal."""
    for path in category.rglob("*.png"):
        with Image.open(path) as picture:
            resized = picture.resize((60, 48))
        resized.save(path)
    tables = []
    for fit in ("square", "auto"):
        code, out, err = run_main("--train", "--detection", f"data.fit={fit}")
        assert code == 0 and "data.fit is" not in out, err
        tables.append((tmp_path / "results" / "scores.csv").read_bytes())
    assert tables[0] == tables[1]
    made_with = checkpoint.read_state(tmp_path / "checkpoints" / "nut" / "2")["made_with"]
    assert "fit" not in made_with
    assert (
        "fit"
        not in json.loads((tmp_path / "checkpoints" / "nut" / "calibration.json").read_text())["made_with"]["view"]
    )


def test_weights_keep_the_fit_that_they_were_trained_with(run_main, tmp_path):
    """Weights of squares, such as those of earlier versions, detect on squares whatever the pictures are."""
    shaped_category(tmp_path, [(96, 40)])
    assert run_main("--train", "data.fit=square")[0] == 0
    code, out, err = run_main("--detection")
    assert code == 0 and "fit=square" in out and "shapes" not in read_metrics(tmp_path), err
    assert run_main("--rerun", str(tmp_path / "results"))[0] == 0
    code, out, _ = run_main("--train", "--resume")
    assert code == 0 and "is trained" in out
    code, out, _ = run_main("--train")
    assert code == 0 and "fit=proportions" in out
    assert stored_fit(tmp_path / "checkpoints" / "nut", 2) == Fit(PROPORTIONS, 96 / 40)
    assert stored_fit(tmp_path / "checkpoints" / "nut", 3) is None


@pytest.mark.parametrize(
    ("shapes", "fit"),
    [
        ([(60, 48)], SQUARE),
        ([(61, 48)], PROPORTIONS),
        ([(48, 64)], PROPORTIONS),
        ([(48, 48)] * 11 + [(96, 48)], SQUARE),
        ([(48, 48)] * 5 + [(48, 96)], PROPORTIONS),
    ],
)
def test_auto_follows_more_than_a_tenth_of_the_pictures(tmp_path, shapes, fit):
    config = make_config(tmp_path, shaped_category(tmp_path, shapes))
    assert choose_fit(load_settings(config), trains=True).data.fit == fit
    for squares in ("data.tiles=2", "score.protocol=published", "data.fit=square"):
        assert choose_fit(load_settings(config, [squares]), trains=True).data.fit == SQUARE


def test_the_check_warns_of_squashing_where_pictures_become_squares(run_main, tmp_path):
    shaped_category(tmp_path, [(256, 16), (96, 40)])
    squashed, mixed = "pictures that are squashed to squares", "training pictures of different aspect ratios"
    for changes in ([], ["data.fit=proportions"], ["data.tiles=1"]):
        out = run_main("--check", *changes)[1]
        assert squashed not in out and mixed not in out
    for changes in (["data.fit=square"], ["score.protocol=published"], ["data.name=VisA"]):
        out = run_main("--check", *changes)[1]
        assert squashed in out and mixed in out and "data.fit=proportions keeps the proportions" in out
    shaped_category(tmp_path, [(48, 48)] * 11 + [(96, 48)])
    assert squashed in run_main("--check")[1]


def test_the_check_names_pictures_that_are_too_narrow_to_keep_their_proportions(run_main, tmp_path):
    shaped_category(tmp_path, [(510, 10), (500, 10), (96, 40)])
    for changes in ([], ["data.fit=proportions"], ["data.tiles=1"]):
        code, out, _ = run_main("--check", *changes)
        assert code == 2 and "pictures beyond 50:1" in out and "510×10, 51:1" in out and "500×10, 50:1" not in out
        assert "crop them, or set data.fit=square" in out
    assert "pictures beyond 50:1" not in run_main("--check", "data.fit=square")[1]


def test_a_budget_is_planned_for_the_pictures_as_they_are(run_main, tmp_path):
    shaped_category(tmp_path, [(256, 16), (96, 40)])
    small = ("model.unet_size=16", "model.channel_multipliers=[1]", "model.base_channels=8", "data.image_size=32")
    laptop = (
        "preset=laptop",
        "budget_minutes=5",
        *small,
        "data.batch_size=4",
        "training.most_steps=4",
        "model.blur_sigma=1",
        "score.weights=equal",
        f"model.feature_extractor={BACKBONE}",
    )
    code, out, err = run_main("--train", "--detection", *laptop)
    assert (code, err) == (0, "")
    assert "256×16: 11 tiles of 32×16 (6); 96×40: resized to 50×20 (6)" in out
    assert "plan: about 4 training steps of 4 pictures" in out and "trained nut for 2 epochs, 4 steps" in out


def test_the_published_settings_are_square_and_the_preset_looks_at_the_pictures(tmp_path):
    config = make_config(tmp_path, make_category(tmp_path))
    own = load_settings(config)
    assert (own.data.fit, own.metrics.size) == ("auto", None)
    paper = ["data.name=VisA", "data.category=capsules"]
    published = load_settings(config, paper)
    assert (published.data.fit, published.metrics.size) == (SQUARE, 256)
    assert load_settings(config, [*paper, "preset=laptop"]).data.fit == "auto"


def test_metrics_are_large_enough_for_every_mask(run_main, tmp_path, category):
    dot = np.zeros((1200, 1200), np.uint8)
    dot[600:603, 600:603] = 255
    Image.fromarray(dot).save(category / "ground_truth" / "crack" / "001_mask.png")
    Image.new("L", (1200, 1200)).save(category / "test" / "crack" / "001.png")
    code, out, err = run_main("--train", "--detection")
    assert code == 0, err
    assert "metrics are measured at 512² pixels: at 256² the masks of 1 defective pictures would be empty" in out
    figures = read_metrics(tmp_path)
    assert (figures["size"], figures["vanished_defects"]) == (512, 0)
    code, out, _ = run_main("--detection", "metrics.size=256")
    assert "1 defective pictures count as normal for pixels" in out and "metrics.size=512 keeps smaller ones" in out


def test_a_stopped_training_of_several_shapes_continues(run_main, tmp_path):
    shaped_category(tmp_path, [(96, 40), (48, 48)])
    assert run_main("--train")[0] == 0
    weights = checkpoint.read_state(tmp_path / "checkpoints" / "nut" / "2")["weights"]
    assert run_main("--train", f"model.checkpoint_dir={tmp_path / 'again'}")[0] == 0
    torch.testing.assert_close(
        checkpoint.read_state(tmp_path / "again" / "nut" / "2")["weights"], weights, rtol=0, atol=0
    )
