import csv
import os

import numpy as np
import pytest
from PIL import Image

from report import Panel, Writer, figure_name


def panel(path="test/crack/001.png", mask=True):
    grey, ramp = np.full((32, 32, 3), 90, np.uint8), np.tile(np.linspace(0, 1, 32), (32, 1))
    return Panel(path, 0.5, grey, grey, ramp, ramp, ramp, ramp > 0.5 if mask else None)


def test_no_two_pictures_share_a_figure():
    paths = ["test/crack/001.png", "test/good/001.png", "test/crack/001.jpg", "test/crack/001.PNG", "test/crack/1.001.png"]
    assert figure_name(paths[0]) == "figures/crack/001.png" and len({figure_name(path) for path in paths}) == len(paths)


def test_a_figure_shows_six_panels_and_the_mask(tmp_path):
    Writer(tmp_path).figures([panel(), panel("test/good/001.png", mask=False)])
    pixels = np.asarray(Image.open(tmp_path / "figures" / "crack" / "001.png"))
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
    Writer(tmp_path).misclassifications(["a", "b", "c", "d"], [True, True, False, False], [0.9, 0.1, 0.5, 0.2], 0.5)
    with (tmp_path / "misclassifications.csv").open(newline="") as file:
        assert [(row["path"], row["error"]) for row in csv.DictReader(file)] == [("b", "missed"), ("c", "false alarm")]
