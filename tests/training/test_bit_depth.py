"""Files of 16 bits that hold 12: whole runs through main.py."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_picture
from PIL import Image
from score_tables import read_rows

from dataset import ImageFolder, View
from detection import Detector
from training import checkpoint


@pytest.fixture
def twelve_bits(category) -> Path:
    """The category with its pictures as 12 bits in PNGs of 16; the defects are white."""
    for path in [*category.glob("train/good/*"), *category.glob("test/*/*")]:
        values = (np.asarray(Image.open(path).convert("L")).astype(int) * 4095 // 255).astype(np.uint16)
        values[0, 0] = 4095
        write_picture(path, values)
    return category


def scores(folder):
    return [float(row["score"]) for row in read_rows(folder)]


def test_twelve_bits_are_measured_said_and_kept_with_the_weights(twelve_bits, run_main, tmp_path):
    code, out, err = run_main("--train", "--detection")
    assert code == 0, err
    assert out.count("is 4095: white is 4095 (12 bits) for all of nut") == 1
    weights = tmp_path / "checkpoints" / "nut" / "2"
    assert checkpoint.read_state(weights)["settings"]["data"]["bit_depth"] == 12
    first = scores(tmp_path / "results")
    code, out, err = run_main("--detection")
    assert code == 0, err
    assert f"white of 16-bit files is 4095 (12 bits), as in training {weights}" in out
    assert scores(tmp_path / "results") == first
    detector, path = Detector.load(tmp_path / "checkpoints" / "nut"), twelve_bits / "test" / "crack" / "000.png"
    assert detector(path).score == detector(np.asarray(Image.open(path))).score == pytest.approx(first[0], rel=1e-5)
    code, out, err = run_main("--detection", "--input", str(path))
    assert code == 0, err
    grey_levels = ImageFolder(twelve_bits, "train", detector.view)[0].picture.unique()
    assert len(grey_levels) > 40 and len(ImageFolder(twelve_bits, "train", View(32))[0].picture.unique()) < 30


def test_another_depth_than_the_weights_is_refused(twelve_bits, run_main):
    run_main("--train", "data.bit_depth=14")
    code, _, err = run_main("--detection", "data.bit_depth=12")
    assert code == 2 and "data.bit_depth is 12, but" in err and "was trained with 14" in err
    code, out, err = run_main("--detection")
    assert code == 0 and "white of 16-bit files is 16383 (14 bits)" in out, err


def test_weights_of_earlier_versions_read_sixteen_bits(twelve_bits, run_main, tmp_path):
    run_main("--train", "--detection", "data.bit_depth=16")
    expected = scores(tmp_path / "results")
    path = tmp_path / "checkpoints" / "nut" / "2"
    state = checkpoint.read_state(path)
    del state["settings"]["data"]["bit_depth"]
    torch.save(state, path)
    code, out, err = run_main("--detection")
    assert code == 0 and "white" not in out, err
    assert scores(tmp_path / "results") == expected
    state["settings"]["data"]["bit_depth"] = 10**9
    torch.save(state, path)
    code, _, err = run_main("--detection")
    assert code == 2 and "its data.bit_depth is 1000000000; replace or remove it" in err
