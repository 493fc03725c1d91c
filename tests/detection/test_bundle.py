"""A detector in one file: the same verdicts as its checkpoint folder, without the folder; damaged files are refused."""

import shutil

import numpy as np
import pytest
import torch
from conftest import make_category, make_config
from PIL import Image

import main
from detection import Detector
from training import checkpoint


@pytest.fixture(scope="module")
def calibrated_once(trained_once, tmp_path_factory):
    root = tmp_path_factory.mktemp("calibrated")
    shutil.copytree(trained_once, root / "checkpoints")
    command = ["--detection", "score.parts=[memory, whole_memory, pixel]", "score.noise=seed"]
    place = ["--config", str(make_config(root, make_category(root))), "--output", str(root / "results")]
    assert main.main(command + place) == 0
    return root / "checkpoints" / "nut"


@pytest.fixture
def calibrated(calibrated_once, tmp_path):
    """Return a copy of the checkpoint folder of a calibrated detector whose map has memories."""
    return shutil.copytree(calibrated_once, tmp_path / "calibrated")


def assert_same(one, other, picture):
    first, second = one(picture), other(picture)
    assert (first.score, first.p_value, first.is_anomalous) == (second.score, second.p_value, second.is_anomalous)
    assert first.regions == second.regions
    np.testing.assert_array_equal(first.map, second.map)


def test_a_file_judges_as_its_folder_does(calibrated, category, tmp_path):
    detector, path = Detector.load(calibrated), tmp_path / "elsewhere" / "nut.ddad"
    detector.save(path)
    pictures = [category / "test" / kind / "000.png" for kind in ("good", "crack")]
    shutil.rmtree(calibrated)
    loaded = Detector.load(path)
    for picture in pictures:
        assert_same(loaded, detector, picture)
    assert loaded.threshold == detector.threshold and loaded.operating_points == detector.operating_points


def test_a_file_holds_the_region(run_main, trained, category, tmp_path):
    mask = np.zeros((48, 48), np.uint8)
    mask[:, 20:] = 255
    Image.fromarray(mask).save(tmp_path / "region.png")
    assert run_main("--detection", f"data.region={tmp_path / 'region.png'}")[0] == 0
    (tmp_path / "region.png").unlink()
    detector = Detector.load(trained / "nut")
    detector.save(tmp_path / "nut.ddad")
    loaded = Detector.load(tmp_path / "nut.ddad")
    np.testing.assert_array_equal(loaded.region.mask, mask > 0)
    assert_same(loaded, detector, category / "test" / "crack" / "000.png")


def changed(path, **parts):
    checkpoint.save(path, torch.load(path, weights_only=True) | parts)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"format": "ddad-detector-0"}, "is no detector of this version; export the detector again"),
        ({"calibration": {"format": "ddad-calibration-1"}}, "holds the calibration of another version"),
        ({"calibration": 3}, "is damaged; export the detector again"),
        ({"references": {}}, "is damaged; export the detector again"),
        ({"region": 3}, "is damaged; export the detector again"),
        ({"region": torch.zeros(3)}, "is damaged; export the detector again"),
        ({"unet": {}}, "holds tensors that are no weights"),
        ({"extractor": 3}, "holds tensors that are no weights"),
    ],
)
def test_a_damaged_file_is_refused(calibrated, tmp_path, parts, message):
    path = tmp_path / "nut.ddad"
    Detector.load(calibrated).save(path)
    changed(path, **parts)
    with pytest.raises(ValueError, match=message):
        Detector.load(path)


def test_a_file_with_other_weights_is_refused(calibrated, tmp_path):
    path = tmp_path / "nut.ddad"
    Detector.load(calibrated).save(path)
    weights = torch.load(path, weights_only=True)["unet"]
    changed(path, unet=weights | {"out.2.bias": weights["out.2.bias"] + 1})
    with pytest.raises(ValueError, match=r"nut\.ddad is stale: weights was"):
        Detector.load(path)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "notes.ddad").write_text("no detector")
    with pytest.raises(ValueError, match="is not a file of weights"):
        Detector.load(tmp_path / "notes.ddad")
    with pytest.raises(FileNotFoundError, match=r"no calibration\.json"):
        Detector.load(tmp_path / "missing.ddad")
