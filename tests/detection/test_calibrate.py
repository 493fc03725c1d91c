"""Calibrations and references, measured by whole runs."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from config.load import load_settings
from dataset import ImageFolder
from detection import reference
from detection.calibrate import calibration_work, learn_memories
from detection.detector import Detector, load_detector
from detection.reference import Reference

pytestmark = pytest.mark.usefixtures("small_features")
PARTS = (
    "score.parts=[pixel, feature, memory, wide_memory, whole_memory, patch_memory]",
    "model.unet_size=16",
    "score.pooling=top_mean",
)


@pytest.mark.parametrize(
    ("parts", "method", "expected"),
    [
        ("null", "split", (60, 0)),
        ("[memory]", "split", (60, 500)),
        ("[pixel]", "split", (60, 0)),
        ("[memory, pixel]", "split", (60, 500)),
        ("[memory, pixel]", "cross", (100, 560)),
        ("[pixel]", "cross", (100, 0)),
    ],
)
def test_calibration_work_counts_reconstructed_and_described_pictures(tiny_config, parts, method, expected):
    loaded = load_settings(
        tiny_config, [f"score.parts={parts}", f"calibration.method={method}", "calibration.pictures=100"]
    )
    assert calibration_work(loaded, pictures=560, unseen=60) == expected


def test_without_held_out_pictures_half_are_measured(tiny_config):
    for parts, expected in (("null", (40, 0)), ("[pixel]", (20, 0)), ("[memory]", (20, 20))):
        loaded = load_settings(tiny_config, [f"score.parts={parts}", "calibration.method=split"])
        assert calibration_work(loaded, pictures=40, unseen=0) == expected


def test_a_calibration_of_all_parts_is_stored_beside_the_weights(run_main, tmp_path, category):
    assert run_main("--train", *PARTS)[0] == 0
    code, out, _ = run_main("--detection", *PARTS)
    assert code == 0 and "calibration is to be measured" in out and "image AUROC" in out
    folder = tmp_path / "checkpoints" / "nut"
    detector, paths = Detector.load(folder, device="cpu"), sorted((category / "test").rglob("*.png"))
    for path, found in zip(paths, detector.detect(paths), strict=True):
        alone = detector(Image.open(path))
        assert alone.score == pytest.approx(found.score, rel=1e-4, abs=1e-4)
        assert bool(found.regions) == found.is_anomalous
    assert (
        detector.required_calibration.references.keys()
        == detector.required_calibration.scales.keys() & reference.DESCRIBED_BY.keys()
    )

    assert "calibration is to be measured" not in run_main("--detection", *PARTS)[1]
    (folder / "references").unlink()
    out = run_main("--detection", *PARTS, "score.parts=[pixel, memory]")[1]
    assert "calibration is to be measured: no calibration.json" in out
    (folder / "references").write_bytes(b"no weights")
    code, _, err = run_main("--detection", *PARTS, "score.parts=[pixel, memory]")
    assert code == 2 and "references is not a file of weights" in err


@pytest.mark.parametrize(
    ("method", "expected"),
    [("split", "from 5 normal pictures, too few to promise 1 %: 16.7 %"), ("auto", "from 10 normal pictures")],
)
def test_no_picture_is_compared_with_its_own_rows(run_main, tmp_path, method, expected):
    """A memory that holds the pictures of the threshold would put it at 0."""
    assert run_main("--train", "calibration.share=0")[0] == 0
    code, out, _ = run_main(
        "--detection", "calibration.share=0", "score.parts=[memory]", f"calibration.method={method}"
    )
    assert code == 0 and expected in out
    assert ("training has seen these pictures" in out) == (method == "split")
    stored = json.loads((tmp_path / "checkpoints" / "nut" / "calibration.json").read_text())
    assert min(stored["scores"]) > 0 and len(set(stored["pictures"])) == len(stored["scores"])


def test_a_cross_calibration_holds_no_picture_out(run_main, tmp_path, category):
    parts = ("score.parts=[memory, pixel]", "model.unet_size=16", "calibration.false_positive_rate=0.1")
    out = run_main("--train", "--detection", *parts)[1]
    assert "0 more are held out" in out and "from 10 normal pictures" in out
    folder, normals = tmp_path / "checkpoints" / "nut", sorted((category / "train" / "good").iterdir())
    before = Detector.load(folder)
    assert before.required_calibration.method == "cross" and not before.required_calibration.held_out
    names = [f"train/good/{path.name}" for path in normals]
    assert sorted(before.required_calibration.pictures) == names
    seen = [found.score for found in before.detect(normals)]
    assert np.mean(seen) < np.mean(before.required_calibration.scores)

    code, out, _ = run_main("--detection", *parts, f"calibration.exclude=[{normals[3].name}]")
    assert code == 0 and "pictures of train/good have changed" in out and "from 9 normal pictures" in out
    assert names[3] not in Detector.load(folder).required_calibration.pictures
    code, _, err = run_main("--detection", *parts, "calibration.exclude=[012.pgn]")
    assert code == 2 and "calibration.exclude names '012.pgn', which is not in" in err


def test_an_odd_normal_picture_is_named(run_main, category):
    paths = sorted((category / "train" / "good").iterdir())
    picture = np.asarray(Image.open(paths[4])).copy()
    picture[4:12, 4:12] = 255 - picture[4:12, 4:12]
    for number in range(8):  # more pictures, so that a tail can be told
        shutil.copy(paths[number % 4], category / "train" / "good" / f"copy{number}.png")
    Image.fromarray(picture).save(paths[4])
    out = run_main("--train", "--detection", "score.parts=[memory]")[1]
    assert f"train/good/{paths[4].name} is unlike the other normal pictures" in out and "calibration.exclude" in out


def test_a_reference_does_not_depend_on_the_other_parts(run_main, tiny_config):
    run_main("--train", "model.unet_size=16")

    def references(*parts: str) -> dict[str, Reference]:
        loaded = load_settings(tiny_config, [f"score.parts=[{','.join(parts)}]", "model.unet_size=16"])
        detector, loaded, _ = load_detector(loaded, loaded.checkpoint_folder, torch.device("cpu"))
        pictures = ImageFolder(loaded.category_dir, "train", detector.view)
        return {part: memory.reference for part, memory in learn_memories(detector, pictures, loaded)[0].items()}

    beside_others = references(*reference.DESCRIBED_BY)
    for part in reference.DESCRIBED_BY:
        alone = references(part)[part]
        assert torch.equal(alone.transform, beside_others[part].transform) and torch.equal(
            alone.bank, beside_others[part].bank
        )


def test_a_calibration_is_reused_until_something_that_it_depends_on_changes(run_main, tmp_path, category):
    run_main("--train")
    kept = tmp_path / "checkpoints" / "nut" / "calibration.json"
    out = run_main("--detection")[1]
    before = kept.read_bytes()
    assert "from 2 normal pictures" in out and json.loads(before)["held_out"]
    out = run_main("--detection", "data.test_batch_size=2", "calibration.false_positive_rate=0.4")[1]
    after = json.loads(kept.read_text())
    assert (
        "to be measured" not in out
        and "40.0 % false alarms expected" in out
        and after["scores"] == json.loads(before)["scores"]
    )
    assert Detector.load(kept.parent).false_positive_rate == 0.4
    assert (
        "calibration is to be measured: w was 3.0, is 2.0" in run_main("--detection", "model.w=2")[1]
        and kept.read_bytes() != before
    )
    run_main("--train", "model.seed=7")
    assert "to be measured: weights was" in run_main("--detection", "model.w=2")[1]
    kept.write_text("{")
    code, _, err = run_main("--detection")
    assert code == 2 and "calibration.json is damaged; remove it" in err
    kept.write_text('{"balance": 3.1, "pictures": 32, "fingerprint": "of an earlier version"}')
    assert "no calibration.json of this version" in run_main("--detection")[1]
    shutil.rmtree(category / "train")
    assert run_main("--detection")[0] == 0
    code, _, err = run_main("--detection", "model.w=4")
    assert (
        code == 2
        and "calibration.json can't be used (w was 3.0, is 4.0), nor measured again" in err
        and "put the pictures there" in err
    )


def test_features_that_have_seen_the_held_out_pictures_are_reported(run_main):
    run_main("--train", "--domain_adaptation", "score.protocol=published")
    run_main("--train")
    assert "training has seen these pictures" in run_main("--detection", "model.DA_chp=1")[1]
    run_main("--domain_adaptation")
    assert "training has seen" not in run_main("--detection", "model.DA_chp=1")[1]


def test_a_calibration_on_training_pictures_is_reported(run_main):
    run_main("--train", "score.protocol=published")
    out = run_main("--detection", "calibration.pictures=6")[1]
    assert "from 6 normal pictures" in out and "training has seen these pictures" in out
