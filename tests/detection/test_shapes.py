"""Pictures of several shapes, and strips, in all that comes after training."""

import csv
import json
import shutil

import numpy as np
import pytest
import tifffile
from annotation_files import labelme, labelme_shape, write_json
from conftest import write_picture
from PIL import Image
from score_tables import read_rows
from shaped_pictures import MEMORY, shaped_category

from config.load import load_settings
from detection import Detector, reference
from detection.calibrate import learn_memories
from detection.detector import load_detector
from runtime.device import choose_device
from training.normal_pictures import normal_pictures

MIXED = [(96, 40), (48, 48), (160, 16)]  # a rectangle, a square and a strip


def stored_metrics(tmp_path):
    return json.loads((tmp_path / "results" / "metrics.json").read_text())


def read_predictions(folder):
    with (folder / "predictions.csv").open(newline="") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def test_mixed_shapes_are_repeated_inspected_and_recalibrated(run_main, tmp_path):
    """Each picture is left out of the memory that it is compared with; no result depends on its company."""
    category, results = shaped_category(tmp_path, MIXED), tmp_path / "results"
    code, out, err = run_main("--train", "--detection", *MEMORY)
    assert code == 0 and "from 12 normal pictures" in out, err
    scores = {row["path"]: float(row["score"]) for row in read_rows(results)}
    code, out, _ = run_main("--rerun", str(results))
    assert code == 0 and "all metrics and 8 scores are equal to the last bit" in out

    paths = sorted((category / "test" / "spot").iterdir())
    detector = Detector.load(tmp_path / "checkpoints" / "nut", device="cpu")
    found = detector.detect([np.array(Image.open(path)) for path in paths])
    assert [one.map.shape for one in found] == [Image.open(path).size[::-1] for path in paths]
    assert [one.score for one in found] == pytest.approx([scores[f"test/spot/{path.name}"] for path in paths], rel=1e-4)
    new = tmp_path / "new"
    assert run_main("--detection", *MEMORY, "--input", str(category / "test"), "--output", str(new))[0] == 0
    rows = read_predictions(new)
    assert {f"test/{name}": float(row["score"]) for name, row in rows.items()} == pytest.approx(scores, rel=1e-4)
    assert {"level", "order"} <= json.loads((new / "summary.json").read_text())["drift"].keys()

    code, out, err = run_main("--recalibrate", str(category / "test" / "good"), *MEMORY)
    assert code == 0 and "4 pictures can't promise 1 %" in out, err
    normal = [scores[f"test/good/{number:03}.png"] for number in range(4)]
    stored = json.loads((tmp_path / "checkpoints" / "nut" / "calibration.json").read_text())
    assert stored["scores"] == pytest.approx(sorted(normal), rel=1e-4)


@pytest.mark.parametrize("shape", [(96, 40), (256, 16)])
def test_a_region_counts_in_rectangles_and_strips(run_main, tmp_path, shape):
    """The region, a drawing, is the right half, where the spots are; normal pictures have a patch outside of it."""
    category, (width, height) = shaped_category(tmp_path, [shape]), shape
    corners = [[width / 2, 0], [width, height]]
    drawing = labelme([labelme_shape("rectangle", corners)], shape)
    write_json(tmp_path / "region.json", drawing)
    region = f"data.region={tmp_path / 'region.json'}"
    for path in (category / "test" / "good").iterdir():
        pixels = np.array(Image.open(path))
        pixels[4:12, 4:12] = 255
        write_picture(path, pixels)
    code, out, err = run_main("--train", "--detection", "model.epochs=20", *MEMORY, region, "metrics.raw_maps=True")
    assert code == 0 and "50% of them in data.region" in out, err
    figures = stored_metrics(tmp_path)
    assert figures["judged"] == pytest.approx(0.5, abs=0.02) and figures["defects_outside"] == 0
    assert figures["image_auroc"] == 1 and figures["pixel_auroc"] > 0.95
    detector = Detector.load(tmp_path / "checkpoints" / "nut", device="cpu")
    for found in detector.detect(sorted((category / "test" / "spot").iterdir())):
        assert found.mask.any() and not found.mask[:, : width // 2 - 1].any()


def test_a_submission_and_the_centre_have_the_proportions_of_the_pictures(run_main, tmp_path):
    category, folder = shaped_category(tmp_path, [(96, 40), (48, 48)]), tmp_path / "submission"
    shutil.copytree(category / "test" / "good", category / "validation" / "good")
    for split in ("test_private", "test_private_mixed"):
        shutil.copytree(category / "test" / "spot", category / split)
    changes = ("calibration.folder=validation", *MEMORY, "metrics.centre_crop=0.875", "metrics.visualisation=True")
    code, out, err = run_main("--train", "--detection", "--submission", str(folder), *changes)
    assert code == 0 and "from 4 normal pictures" in out, err
    assert stored_metrics(tmp_path)["shapes"] == {"354×142": 4, "224×224": 4}
    for number, size in enumerate([(96, 40), (48, 48)]):
        name = f"nut/test_private/{number:03}"
        assert tifffile.imread(folder / "anomaly_images" / f"{name}.tiff").shape == size[::-1]
        assert Image.open(folder / "anomaly_images_thresholded" / f"{name}.png").size == size


def test_the_memory_bank_grows_with_the_pixels_of_strips(run_main, tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "KEPT_PER_SQUARE", 2)
    shaped_category(tmp_path, [(256, 16), (48, 48)])
    assert run_main("--train", *MEMORY)[0] == 0
    settings = load_settings(tiny_config, MEMORY)
    detector, settings, _ = load_detector(settings, settings.checkpoint_folder, choose_device("cpu"))
    pictures = normal_pictures(settings)
    assert list(pictures.squares().values()) == [4, 1] * 6
    memories, _ = learn_memories(detector, pictures, settings)
    assert len(memories["memory"].reference.bank) == 2 * (6 * 4 + 6)
    owners = np.bincount(memories["memory"].owners)
    assert owners[::2].sum() > owners[1::2].sum()
