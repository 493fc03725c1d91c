import csv
import json
import os

import numpy as np
import pytest
import tifffile
from PIL import Image

from reports.drawing import ColourScale, Panel
from reports.writer import Writer


def make_panel(path="test/crack/001.png", masked=True):
    grey, ramp = np.full((32, 32, 3), 90, np.uint8), np.tile(np.linspace(0, 1, 32), (32, 1))
    return Panel(path, 0.5, grey, grey, ramp, ramp, ramp, ramp > 0.5 if masked else None, (48, 48))


def test_a_figure_shows_six_panels_and_the_mask(tmp_path):
    writer, panels = Writer(tmp_path), [make_panel(), make_panel("test/good/001.png", masked=False)]
    for panel in panels:
        writer.figure(panel.path.removesuffix(".png"), panel, ColourScale.of_panels(panels))
    assert writer.written == ["figures (2)"]
    pixels = np.asarray(Image.open(tmp_path / "figures" / "test" / "crack" / "001.png"))
    assert pixels.shape == (304, 6 * 262 + 6, 3)
    ground_truth = pixels[48:, 6 + 5 * 262 : 6 + 5 * 262 + 256]
    assert (ground_truth[:, 8:120] == 0).all() and (ground_truth[:, 136:248] == 255).all()
    heat = pixels[100, 6 + 2 * 262 : 6 + 2 * 262 + 256].astype(int)
    assert heat[0, 0] < 80 and heat[250, 0] > heat[250, 2]  # cold at 0, hot at the largest value


def test_scores_csv_keeps_names_of_any_kind(tmp_path):
    paths = ['test/crack, wide/a"b.png', "test/Блеск/中.png", os.fsdecode(b"test/crack/\xff.png")]
    Writer(tmp_path).scores(paths, [True, True, False], [0.5, 1 / 3, 0.25])
    with (tmp_path / "scores.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == paths and float(rows[1]["score"]) == pytest.approx(1 / 3, rel=1e-7)


def test_misclassifications_csv_lists_only_errors(tmp_path):
    errors = ["", "missed", "false_alarm", ""]
    Writer(tmp_path).misclassifications(["a", "b", "c", "d"], errors, [0.9, 0.1, 0.5, 0.2], 0.5)
    with (tmp_path / "misclassifications.csv").open(newline="") as file:
        assert [(row["path"], row["error"]) for row in csv.DictReader(file)] == [("b", "missed"), ("c", "false alarm")]


def test_a_figure_keeps_the_proportions_of_its_picture(tmp_path):
    Writer(tmp_path).figure("test/crack/001", make_panel()._replace(size=(96, 64)), ColourScale(1, 1, 1))
    assert Image.open(tmp_path / "figures" / "test" / "crack" / "001.png").size == (6 * (384 + 6) + 6, 304)


def test_the_gallery_keeps_proportions_and_curves_json_names_its_layers(tmp_path):
    writer, wide = Writer(tmp_path), make_panel()._replace(size=(96, 64))
    writer.gallery("crack/001", wide, ColourScale(1, 1, 1))
    writer.gallery("good/001", wide._replace(mask=np.zeros((32, 32), bool)), ColourScale(1, 1, 1))
    writer.curves({"pro": [[0, 1]]})
    layers = ["picture", "reconstruction", "map", "outline"]
    assert json.loads((tmp_path / "curves.json").read_text()) == {"pro": [[0, 1]], "layers": layers}
    normal = {file.relative_to(tmp_path / "gallery").as_posix() for file in tmp_path.rglob("*/good/*.webp")}
    assert normal == {f"{layer}/good/001.webp" for layer in layers[:3]}
    assert {Image.open(file).size for file in tmp_path.rglob("*.webp")} == {(256, 171)}
    drawn = np.asarray(Image.open(tmp_path / "gallery" / "outline" / "crack" / "001.webp"))[..., 3] > 0
    assert drawn.any(axis=0)[126:128].all() and drawn.any(axis=0).sum() == 2  # just left of the half that is defective


def test_spooled_arrays_come_back_as_one_array_per_shape(tmp_path):
    rng = np.random.default_rng(0)
    arrays = [rng.random(shape).astype(np.float32) for shape in ((5, 7), (7, 5), (5, 7), (5, 7))]
    with Writer(tmp_path).spool() as spool:
        for array in arrays:
            spool.add(array)
        wide, tall = spool.stacks()
    np.testing.assert_array_equal(wide, arrays[:1] + arrays[2:])
    np.testing.assert_array_equal(tall, arrays[1:2])
    assert not list(tmp_path.iterdir())


def test_raw_maps_are_float_tiffs_where_mvtecs_evaluation_code_looks(tmp_path):
    values = np.random.default_rng(0).random((20, 30)).astype(np.float32)
    writer = Writer(tmp_path)
    writer.raw_map("test/crack/003", values, "bottle")
    stored = tifffile.imread(tmp_path / "anomaly_maps" / "bottle" / "test" / "crack" / "003.tiff")
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored, values)
    assert writer.written == ["anomaly_maps (1)"]
