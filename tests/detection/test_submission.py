"""MVTec AD 2: thresholds from the validation split, SegF1, and the files for its server, in whole runs."""

import json

import numpy as np
import pytest
import tifffile
from conftest import write_picture
from PIL import Image

from detection import Detector
from detection.evaluate import Segmentation

SPLITS = ("test_private", "test_private_mixed")
VALIDATION = "calibration.folder=validation"


@pytest.fixture
def category(category):
    """Add validation/good, and splits without labels."""
    rng = np.random.default_rng(1)
    for number in range(3):
        pixels = np.array(Image.open(category / "train" / "good" / f"{number:03}.png"))
        write_picture(
            category / "validation" / "good" / f"{number:03}.png", pixels + rng.integers(0, 9, pixels.shape, "u1")
        )
    for split in SPLITS:
        for number, kind in enumerate(("good", "crack")):
            pixels = np.array(Image.open(category / "test" / kind / "000.png"))
            write_picture(category / split / f"{number:03}_{split[5:]}.png", pixels[:40])
    return category


def test_validation_gives_the_threshold_and_a_submission_holds_every_private_picture(run_main, category, tmp_path):
    folder = tmp_path / "submission"
    code, out, err = run_main("--train", "--detection", "--submission", str(folder), VALIDATION)
    assert code == 0, err
    assert "(10 pictures" in out and "from 3 normal pictures" in out, out
    assert "training has seen these pictures" not in out and "SegF1 of the outlined defects" in out
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    stems = [f"nut/{split}/{number:03}_{split[5:]}" for split in SPLITS for number in range(2)]
    maps, masks = "anomaly_images", "anomaly_images_thresholded"
    assert {name for name in files if not name.rpartition("/")[2].startswith(".")} == {
        *(f"{maps}/{stem}.tiff" for stem in stems),
        *(f"{masks}/{stem}.png" for stem in stems),
    }
    detector = Detector.load(tmp_path / "checkpoints" / "nut", device="cpu")
    for stem in stems:
        values, mask = (
            tifffile.imread(folder / maps / f"{stem}.tiff"),
            np.array(Image.open(folder / masks / f"{stem}.png")),
        )
        found = detector(category.parent / f"{stem}.png")
        assert values.dtype == np.float16 and mask.dtype == np.uint8 and values.shape == mask.shape == (40, 48)
        np.testing.assert_allclose(values, found.map, rtol=2e-3, atol=1e-4)
        assert set(np.unique(mask)) <= {0, 255} and (mask > 0).mean() == pytest.approx(found.mask.mean(), abs=0.01)
    stored = json.loads((tmp_path / "results" / "metrics.json").read_text())
    assert stored["calibration"]["pictures"] == 3 and 0 <= stored["segmentation"].get("seg_f1", 0) <= 1


def test_changed_validation_pictures_are_noticed(run_main, category):
    run_main("--train", VALIDATION)
    run_main("--detection", VALIDATION)
    assert "to be measured" not in run_main("--detection", VALIDATION)[1]
    (category / "validation" / "good" / "002.png").unlink()
    out = run_main("--detection", VALIDATION)[1]
    assert "the pictures of train/good or validation/good have changed" in out and "from 2 normal pictures" in out
    assert "to be measured: folder was validation" in run_main("--detection")[1]


@pytest.mark.parametrize("method", ["split", "cross"])
def test_with_validation_both_methods_compare_with_the_memory_of_all_training_pictures(
    method, run_main, category, tmp_path
):
    """The threshold is the slow way's: each validation picture judged by the detector as a new one."""
    keys = ("score.parts=[memory, pixel]", "model.unet_size=16", VALIDATION, f"calibration.method={method}")
    code, out, err = run_main("--train", "--detection", *keys)
    assert code == 0 and "learning normal pictures" not in err and "from 3 normal pictures" in out, err
    detector = Detector.load(tmp_path / "checkpoints" / "nut", device="cpu")
    calibration = detector.required_calibration
    assert calibration.method == "split" and calibration.held_out
    paths = [category / name for name in calibration.pictures]
    assert {path.parent for path in paths} == {category / "validation" / "good"}
    assert [detector(path).score for path in paths] == pytest.approx(list(calibration.scores), rel=1e-5)
    odd = run_main("--detection", *keys, "calibration.exclude=[validation/good/002.png]")[1]
    assert "from 2 normal pictures" in odd
    back = run_main("--recalibrate", str(category / "validation" / "good"), *keys)[1]
    assert "from 3 normal pictures" in back and "not from" not in back


def test_tuning_takes_unseen_pictures_from_validation(run_main, category):
    run_main("--train", VALIDATION)
    code, out, err = run_main("--tune", VALIDATION)
    assert code == 0 and "3 normal pictures" in out, err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--train", "--submission", "out"), "which belongs to --detection"),
        (("--detection", "--submission", "out", "--input", "new"), "remove --input"),
        (("--train", "--detection", "--submission", "out", "score.protocol=published"), "set score.protocol=per_image"),
        (("--train", "--detection", "--submission", "out", "data.category=other"), "no category 'other'"),
        (("--train", "calibration.folder=all"), "it should be train or validation"),
    ],
)
def test_a_wrong_request_ends_with_one_error_line(flags, message, run_main):
    code, _, err = run_main(*flags)
    assert code == 2 and message in err and err.count("\n") == 1, err


def test_missing_splits_are_named_before_training(run_main, category):
    (category / "test_private_mixed").rename(category / "other")
    code, _, err = run_main("--train", "--detection", "--submission", "out")
    assert code == 2 and "no folder test_private_mixed in" in err and "--prepare_mvtec2" in err
    (category / "validation").rename(category / "more")
    code, _, err = run_main("--train", VALIDATION)
    assert code == 2 and "validation/good" in err and err.count("\n") == 1


def test_segmentation_counts_pixels_over_all_pictures():
    counts, truth = Segmentation(), np.eye(4, dtype=bool)
    assert counts.shares() == {}
    counts.add(np.ones((4, 4), bool), truth)
    counts.add(np.zeros((4, 4), bool), truth)
    assert counts.shares() == {"seg_f1": 8 / 24, "seg_precision": 4 / 16, "seg_recall": 4 / 8}
