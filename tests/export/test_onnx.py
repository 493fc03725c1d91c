"""An exported detector judges as the detector itself, in onnxruntime, for pictures of any size."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from exported import calibrated, random_pictures
from PIL import Image
from tiny_networks import make_detector

from dataset import View
from detection import Detector
from export.onnx_file import OPSET, write_onnx
from training.patch_network import PatchNetwork

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


def test_an_exported_detector_gives_the_same_verdicts(exported):
    detector, path, _ = exported
    assert_same_verdicts(detector, path, random_pictures((32, 32), (60, 131), (9, 20), (300, 6)))


def test_the_map_of_the_paper_is_exported(tmp_path):
    detector = calibrated(draws=2, pooling="top_mean", crop=0.75)
    write_onnx(detector, tmp_path / "nut.onnx")
    assert_same_verdicts(detector, tmp_path / "nut.onnx", random_pictures((32, 32), (60, 131)))


def test_the_threshold_is_an_input_and_the_metadata_have_others(exported):
    detector, path, _ = exported
    session, content = open_session(path), path.read_bytes()
    assert b"Traceback" not in content and b".py" not in content  # no notes about this machine
    metadata = session.get_modelmeta().custom_metadata_map
    points = {point["wanted_rate"]: point["threshold"] for point in json.loads(metadata["operating_points"])}
    assert metadata["name"] == "nut" and points == {row.wanted_rate: row.threshold for row in detector.operating_points}
    for threshold, verdict in ((-1, True), (1e6, False)):
        inputs = {"picture": np.zeros((1, 8, 8, 3), np.uint8), "threshold": np.array(threshold, np.float32)}
        assert session.run(["is_anomalous", "used_threshold"], inputs) == [verdict, np.float32(threshold)]


def test_a_trained_detector_on_features_in_proportions_is_exported_with_its_region(run_main, category, tmp_path):
    mask = np.zeros((40, 72), np.uint8)
    mask[:, 20:] = 255
    Image.fromarray(mask).save(tmp_path / "region.png")
    for picture in category.rglob("*.png"):
        Image.open(picture).resize((72, 40)).save(picture)
    settings = ("score.space=features", "model.unet_size=16", "model.network=patch", "model.predicts=x0")
    chosen = (
        *settings,
        "model.skip=null",
        "score.parts=[memory, diffusion]",
        "score.noise=seed",
        "data.fit=proportions",
    )
    chosen += (f"data.region={tmp_path / 'region.png'}", "data.input_channel=1")
    path = tmp_path / "nut.onnx"
    assert run_main("--train", *chosen)[0] == 0
    code, out, err = run_main("--export", str(path), *chosen)
    assert code == 0 and f"{path}: " in out, err
    pictures = [np.asarray(Image.open(category / "test" / kind / "000.png")) for kind in ("good", "crack")]
    coloured = (pictures[0] * [1, 0.8, 0.9]).astype(np.uint8)
    assert_same_verdicts(Detector.load(tmp_path / "checkpoints" / "nut", "cpu"), path, [*pictures, coloured])
    assert run_main("--export", str(tmp_path / "nut.ddad"), *chosen)[0] == 0
    found, expected = (
        Detector.load(place, "cpu") for place in (tmp_path / "nut.ddad", tmp_path / "checkpoints" / "nut")
    )
    assert found(pictures[1]).score == expected(pictures[1]).score


def test_a_patch_network_is_exported_without_the_indexing_that_openvino_computes_wrongly():
    network, example = PatchNetwork(6, 8, blocks_per_level=1).eval(), (torch.zeros(1, 6, 4, 3), torch.tensor([200]))
    program = torch.onnx.export(network, example, dynamo=True, opset_version=OPSET, optimize=False, verbose=False)
    assert "GatherND" not in {node.op_type for node in program.model_proto.graph.node}


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
