import csv
import json
import os

import numpy as np
import pytest
import tifffile
from PIL import Image

from reports.drawing import ColourScale, Panel, draw_outline
from reports.predictions import Predictions
from reports.writer import Writer
from storage.safe_names import file_stems


def panel(path="test/crack/001.png", mask=True):
    grey, ramp = np.full((32, 32, 3), 90, np.uint8), np.tile(np.linspace(0, 1, 32), (32, 1))
    return Panel(path, 0.5, grey, grey, ramp, ramp, ramp, ramp > 0.5 if mask else None, (48, 48))


def test_no_two_pictures_share_a_file():
    assert file_stems(["test/crack/001.png", "test/good/001.PNG"]) == {
        "test/crack/001.png": "test/crack/001",
        "test/good/001.PNG": "test/good/001",
    }
    names = ["a.png", "a.jpg", "a.jpg.png", "a.PNG", "b/a.png", "1.001.png", "c"]
    stems = file_stems(names)
    assert len(set(stems.values())) == len(names) and stems["b/a.png"] == "b/a" and stems["a.jpg"] == "a.jpg"


def test_a_figure_shows_six_panels_and_the_mask(tmp_path):
    writer, panels = Writer(tmp_path), [panel(), panel("test/good/001.png", mask=False)]
    for one in panels:
        writer.figure(one.path.removesuffix(".png"), one, ColourScale.reached(panels))
    assert writer.written == ["figures (2)"]
    pixels = np.asarray(Image.open(tmp_path / "figures" / "test" / "crack" / "001.png"))
    assert pixels.shape == (304, 6 * 262 + 6, 3)
    ground_truth = pixels[48:, 6 + 5 * 262 : 6 + 5 * 262 + 256]
    assert (ground_truth[:, 8:120] == 0).all() and (ground_truth[:, 136:248] == 255).all()
    reds = pixels[100, 6 + 2 * 262 : 6 + 2 * 262 + 256].astype(int)
    assert reds[0, 0] < 80 and reds[250, 0] > reds[250, 2]  # cold at 0, hot at the largest value


def test_names_of_any_kind_stand_in_the_tables(tmp_path):
    paths = ['test/crack, wide/a"b.png', "test/Блеск/中.png", os.fsdecode(b"test/crack/\xff.png")]
    Writer(tmp_path).scores(paths, [True, True, False], [0.5, 1 / 3, 0.25])
    with (tmp_path / "scores.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == paths and float(rows[1]["score"]) == pytest.approx(1 / 3, rel=1e-7)


def test_misclassified_pictures_are_those_on_the_wrong_side(tmp_path):
    Writer(tmp_path).misclassifications(
        ["a", "b", "c", "d"], ["", "missed", "false_alarm", ""], [0.9, 0.1, 0.5, 0.2], 0.5
    )
    with (tmp_path / "misclassifications.csv").open(newline="") as file:
        assert [(row["path"], row["error"]) for row in csv.DictReader(file)] == [("b", "missed"), ("c", "false alarm")]


def test_a_figure_keeps_the_proportions_of_its_picture(tmp_path):
    Writer(tmp_path).figure("test/crack/001", panel()._replace(size=(96, 64)), ColourScale(1, 1, 1))
    assert Image.open(tmp_path / "figures" / "test" / "crack" / "001.png").size == (6 * (384 + 6) + 6, 304)


def test_the_gallery_holds_layers_in_the_pictures_proportions_and_says_which(tmp_path):
    writer, wide = Writer(tmp_path), panel()._replace(size=(96, 64))
    writer.gallery("crack/001", wide, ColourScale(1, 1, 1))
    writer.gallery("good/001", wide._replace(mask=np.zeros((32, 32), bool)), ColourScale(1, 1, 1))
    writer.curves({"pro": [[0, 1]]})
    assert json.loads((tmp_path / "curves.json").read_text()) == {
        "pro": [[0, 1]],
        "layers": ["picture", "reconstruction", "map", "outline"],
    }
    assert {file.relative_to(tmp_path / "gallery").as_posix() for file in tmp_path.rglob("*/good/*.webp")} == {
        f"{layer}/good/001.webp" for layer in ("picture", "reconstruction", "map")
    }
    assert {Image.open(file).size for file in tmp_path.rglob("*.webp")} == {(256, 171)}
    drawn = np.asarray(Image.open(tmp_path / "gallery" / "outline" / "crack" / "001.webp"))[..., 3] > 0
    assert drawn.any(axis=0)[126:128].all() and drawn.any(axis=0).sum() == 2  # just left of the half that is defective


def test_spooled_arrays_come_back_as_one(tmp_path):
    rng = np.random.default_rng(0)
    arrays = [rng.random((5, 7)).astype(np.float32) for _ in range(4)]
    with Writer(tmp_path).spool() as spool:
        for array in arrays:
            spool.add(array)
        together = spool.array()
    np.testing.assert_array_equal(together, arrays)
    assert not list(tmp_path.iterdir())


def test_raw_maps_are_float_tiffs_in_the_layout_of_mvtecs_evaluation(tmp_path):
    values = np.random.default_rng(0).random((20, 30)).astype(np.float32)
    writer = Writer(tmp_path)
    writer.raw_map("test/crack/003", values, "bottle")
    read = tifffile.imread(tmp_path / "anomaly_maps" / "bottle" / "test" / "crack" / "003.tiff")
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values)
    assert writer.written == ["anomaly_maps (1)"]


def test_outlines_lie_around_the_defect_and_leave_it_visible():
    picture, mask = np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40), bool)
    mask[10:20, 12:30] = True
    drawn = draw_outline(picture, mask).any(axis=2)
    assert (
        not drawn[mask].any()
        and drawn[9, 12:30].all()
        and drawn[20, 12:30].all()
        and drawn[10:20, 11].all()
        and not drawn[5].any()
    )


def row(path, error="", regions=()):
    return {"path": path, "verdict": "normal", "score": 0.5, "p_value": 0.25, "regions": list(regions), "error": error}


def test_predictions_continue_after_a_row_cut_short(tmp_path):
    first = Predictions(tmp_path, {"detector": 1}, at_once=4)
    first.add(
        row(
            "a.png",
            regions=[{"box": (1, 2, 3, 4), "area": 4, "peak": 1.0}, {"box": (5, 5, 9, 6), "area": 3, "peak": 0.7}],
        )
    )
    first.add(row("=b.png", error="it is empty"))
    first.add(row("c.png"))
    with (tmp_path / "predictions.jsonl").open("a") as file:
        file.write('{"path": "d.png", "verd')
    with (tmp_path / "predictions.csv").open("a") as file:
        file.write("d.p")
    again = Predictions(tmp_path, {"detector": 1}, at_once=8)
    assert again.done == {"a.png", "c.png"} and again.at_once == 4  # as before, as last digits depend on it
    for path in ("=b.png", "d.png"):
        again.add(row(path))
    with (tmp_path / "predictions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [one["path"] for one in table] == ["a.png", "c.png", "'=b.png", "d.png"]
    assert (table[0]["regions"], table[0]["area"], table[0]["boxes"]) == ("2", "7", "1 2 3 4; 5 5 9 6")
    assert [json.loads(line)["path"] for line in (tmp_path / "predictions.jsonl").read_text().splitlines()] == [
        "a.png",
        "c.png",
        "=b.png",
        "d.png",
    ]


def test_predictions_of_others_are_not_continued(tmp_path):
    Predictions(tmp_path, {"detector": 1}).add(row("a.png"))
    with pytest.raises(ValueError, match="by another detector"):
        Predictions(tmp_path, {"detector": 2})
    with pytest.raises(ValueError, match="holds predictions of 1 pictures; continue them with --resume"):
        Predictions.refuse_others(tmp_path)
