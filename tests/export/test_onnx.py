"""An exported detector judges as the detector itself, in onnxruntime, for pictures of any size."""

import json
from dataclasses import replace

import numpy as np
import pytest
from exported import MEMORIES, calibrated, random_pictures
from PIL import Image
from tiny_networks import make_detector

from dataset import View
from detection import Detector
from export.onnx_file import write_onnx
from images.region import JudgedRegion

pytest.importorskip("onnxscript", reason="onnxscript is missing; python -m pip install -r requirements-export.txt")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is missing; install requirements-export.txt")

SPREAD_SHARE = 1e-3  # of the normal scores' spread


def open_session(path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def assert_same_verdicts(detector, path, pictures):
    session, spread = open_session(path), np.std(detector.required_calibration.scores)
    for pixels in pictures:
        expected = detector(pixels)
        score, p_value, is_anomalous, anomaly_map, threshold = session.run(None, {"picture": pixels[None]})
        assert abs(score - expected.score) < SPREAD_SHARE * spread and is_anomalous == expected.is_anomalous
        assert p_value == pytest.approx(expected.p_value, rel=1e-3)
        assert threshold == pytest.approx(detector.threshold)
        np.testing.assert_allclose(anomaly_map, expected.map, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"parts": MEMORIES, "unet_size": 12},
        {"parts": ("patch_memory",), "view": View(32, channels=1)},
        {"draws": 2, "pooling": "top_mean", "crop": 0.75},
    ],
    ids=["memories", "grey", "the paper's map"],
)
def test_an_exported_detector_gives_the_same_verdicts(tmp_path, changes):
    detector = calibrated(**changes)
    write_onnx(detector, tmp_path / "nut.onnx")
    assert_same_verdicts(detector, tmp_path / "nut.onnx", random_pictures((32, 32), (60, 131), (9, 20), (300, 6)))


def test_an_exported_detector_judges_its_region_alone(tmp_path):
    mask = np.zeros((40, 50), bool)
    mask[:, 20:] = True
    detector = calibrated(MEMORIES, region=JudgedRegion(tmp_path / "region.png", mask))
    write_onnx(detector, tmp_path / "nut.onnx")
    assert_same_verdicts(detector, tmp_path / "nut.onnx", random_pictures((40, 50)))


def test_the_threshold_is_an_input_and_the_metadata_have_others(tmp_path):
    detector = calibrated()
    write_onnx(detector, tmp_path / "nut.onnx")
    session, content = open_session(tmp_path / "nut.onnx"), (tmp_path / "nut.onnx").read_bytes()
    assert b"Traceback" not in content and b".py" not in content  # no notes about this machine
    metadata = session.get_modelmeta().custom_metadata_map
    points = {point["wanted_rate"]: point["threshold"] for point in json.loads(metadata["operating_points"])}
    assert metadata["name"] == "nut" and points == {row.wanted_rate: row.threshold for row in detector.operating_points}
    for threshold, verdict in ((-1, True), (1e6, False)):
        inputs = {"picture": np.zeros((1, 8, 8, 3), np.uint8), "threshold": np.array(threshold, np.float32)}
        assert session.run(["is_anomalous", "used_threshold"], inputs) == [verdict, np.float32(threshold)]


def test_a_trained_detector_is_exported(run_main, trained, category, tmp_path):
    path = tmp_path / "nut.onnx"
    code, out, err = run_main("--export", str(path), "score.noise=seed", "model.test_trajectory_steps=50")
    assert code == 0 and f"{path}: " in out, err
    pictures = [np.asarray(Image.open(category / "test" / kind / "000.png")) for kind in ("good", "crack")]
    assert_same_verdicts(Detector.load(trained / "nut", "cpu"), path, pictures)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise": None}, r"the noise follows from a hash of each picture, .* set score\.noise=seed"),
        ({"view": View(32, tiles=2)}, r"data\.tiles is 2; ONNX takes data\.tiles=null"),
    ],
)
def test_what_a_graph_cannot_hold_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        write_onnx(replace(calibrated(), **changes), tmp_path / "nut.onnx")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package onnx; python -m pip install -r requirements-export\.txt"):
        write_onnx(make_detector(), tmp_path / "nut.onnx")
