"""A region (data.region) decides what is judged, in whole runs: thresholds, verdicts, metrics, figures."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from score_tables import read_rows
from tiny_networks import make_detector

from config.load import load_settings
from dataset import ImageFolder
from detection import Detector
from detection.calibrate import image_descriptors, learn_memories
from detection.detector import Prediction, load_detector
from detection.threshold import PIXEL_RATES, Calibration
from images.region import JudgedRegion

WHOLE = "metrics.centre_crop=1"
MEMORIES = ("score.parts=[memory, whole_memory, pixel]", "model.unet_size=16")


@pytest.fixture
def region(tmp_path):
    """Return the file of a region: the left 30 of 48 columns, which hold all cracks."""
    mask = np.zeros((48, 48), bool)
    mask[:, :30] = True
    Image.fromarray(mask).save(tmp_path / "region.png")
    return tmp_path / "region.png"


def paint_outside(category):
    """Put a white patch into the right columns of the normal test pictures."""
    for path in (category / "test" / "good").iterdir():
        pixels = np.array(Image.open(path))
        pixels[4:40, 40:] = 255
        Image.fromarray(pixels).save(path)


def test_a_defect_outside_the_region_is_neither_scored_nor_reported(run_main, category, tmp_path, region):
    assert run_main("--train", "--detection", WHOLE, f"data.region={region}", *MEMORIES)[0] == 0
    paint_outside(category)
    code, out, err = run_main("--detection", WHOLE, f"data.region={region}", *MEMORIES)
    assert code == 0 and "62% of them in data.region" in out and "to be measured" not in out, err
    assert json.loads((tmp_path / "results" / "metrics.json").read_text())["defects_outside"] == 0
    detector = Detector.load(tmp_path / "checkpoints" / "nut", device="cpu")
    for path in sorted((category / "test" / "good").iterdir()):
        found = detector(path)
        assert found.map[:, 36:].max() > 1.2 * found.score and not found.mask[:, 30:].any()
        assert found.score == pytest.approx(found.map[:, :30].max(), rel=0.3)


def test_what_happens_outside_does_not_reach_the_score(category):
    """The features of these networks see a few pixels only."""
    mask = np.zeros((48, 48), bool)
    mask[:, :24] = True
    detector = make_detector(crop=1.0, region=JudgedRegion(None, mask))
    picture = np.array(Image.open(category / "test" / "good" / "000.png"))
    painted = picture.copy()
    painted[4:40, 36:] = 255
    assert detector(painted).score == pytest.approx(detector(picture).score, rel=0.3)


def test_a_changed_region_makes_the_calibration_stale_and_another_file_of_it_does_not(run_main, tmp_path, region):
    run_main("--train")
    run_main("--detection", f"data.region={region}")
    copy = shutil.copy(region, tmp_path / "copy.png")
    assert "to be measured" not in run_main("--detection", f"data.region={copy}")[1]
    assert "to be measured: region was" in run_main("--detection")[1]
    code, out, _ = run_main("--detection", f"data.region={region}")
    assert code == 0 and "to be measured: region was None" in out


def test_a_moved_checkpoint_folder_keeps_its_region(run_main, tmp_path, category, region):
    run_main("--train", "--detection", f"data.region={region}")
    moved = shutil.move(tmp_path / "checkpoints" / "nut", tmp_path / "moved")
    region.unlink()
    detector, row = Detector.load(moved, device="cpu"), read_rows(tmp_path / "results")[0]
    found = detector(category / row["path"])
    assert found.score == pytest.approx(float(row["score"]), rel=1e-5)
    assert not found.mask[:, 30:].any()
    with pytest.raises(ValueError, match=r"region.png is 48×48 pixels, the picture is 20×10"):
        detector(np.zeros((10, 20, 3), np.uint8))


def test_defects_outside_are_counted_and_their_pixels_not_ranked(run_main, category, tmp_path, region):
    mask = np.array(Image.open(category / "ground_truth" / "crack" / "001_mask.png"))
    mask[2:5, 40:44] = 255
    Image.fromarray(mask).save(category / "ground_truth" / "crack" / "001_mask.png")
    mask[:, :40], mask[:, 40:] = 0, 255
    Image.fromarray(mask).save(category / "ground_truth" / "crack" / "002_mask.png")
    figures = ("metrics.visualisation=True", "metrics.raw_maps=True")
    code, out, err = run_main("--train", "--detection", WHOLE, f"data.region={region}", *figures)
    assert code == 0 and "outside the scored area lie 2 defects wholly, 0 partly" in out, err
    assert "1 defective pictures count as normal for pixels" in out
    stored = json.loads((tmp_path / "results" / "metrics.json").read_text())
    assert stored["judged"] == 30 / 48 and stored["defects_outside"] == 2 and stored["vanished_defects"] == 1
    layer = np.array(Image.open(tmp_path / "results" / "gallery" / "picture" / "good" / "000.webp").convert("L"))
    assert layer[:, :150].mean() > 2 * layer[:, 170:].mean()


def test_a_picture_of_another_size_is_unreadable_for_the_region(run_main, category, tmp_path, region):
    run_main("--train")
    new = tmp_path / "new"
    new.mkdir()
    shutil.copy(category / "test" / "crack" / "000.png", new / "a.png")
    Image.new("RGB", (50, 40)).save(new / "b.png")
    code, _, err = run_main("--detection", "--input", str(new), f"data.region={region}", "metrics.visualisation=True")
    rows = [json.loads(line) for line in (tmp_path / "results" / "predictions.jsonl").read_text().splitlines()]
    assert code == 3 and rows[0]["error"] == "" and "the picture is 50×40" in rows[1]["error"], err
    heat = np.array(Image.open(tmp_path / "results" / "heatmaps" / "a.png"))
    assert heat[:, 30:].max() <= 0.4 * 255


@pytest.mark.parametrize("flags", [("--train", "--detection"), ("--check",), ("--tune",)])
def test_a_wrong_region_ends_every_run_before_it_begins(flags, run_main, tmp_path, region):
    cases = {
        "gone.png": (None, "no data.region at"),
        "black.png": (Image.new("L", (48, 48)), "is all black, so nothing is judged"),
        "large.png": (Image.new("L", (96, 96), 255), "large.png is 96×96 pixels"),
        "wide.png": (Image.new("L", (96, 48), 255), "wide.png is 96×48 pixels"),
    }
    for name, (picture, message) in cases.items():
        if picture:
            picture.save(tmp_path / name)
        code, _, err = run_main(*flags, f"data.region={tmp_path / name}")
        assert code == 2 and message in err and err.count("\n") == 1, err
    assert not list((tmp_path / "checkpoints").rglob("*"))


@pytest.mark.parametrize("command", ["--train", "--tune", "--recalibrate"])
def test_a_region_outside_the_scored_centre_ends_the_run(command, run_main, category, tmp_path):
    edge = np.zeros((48, 48), bool)
    edge[:, 0] = True
    Image.fromarray(edge).save(tmp_path / "edge.png")
    flags = [command, str(category / "test" / "good")] if command == "--recalibrate" else [command]
    code, _, err = run_main(*flags, f"data.region={tmp_path / 'edge.png'}", "metrics.centre_crop=0.875")
    assert code == 2 and "set metrics.centre_crop=1" in err and err.count("\n") == 1, err


def test_recalibration_keeps_to_the_region(run_main, category, tmp_path, region):
    """Thresholds of pictures that change outside only stay; the moved folder finds its region."""
    keys = (WHOLE, f"data.region={region}", *MEMORIES)
    assert run_main("--train", WHOLE, *MEMORIES)[0] == 0
    new = shutil.copytree(category / "test" / "good", tmp_path / "new")
    Image.new("RGB", (50, 40)).save(new / "wide.png")
    code, out, err = run_main("--recalibrate", str(new), *keys)
    assert code == 3 and "the picture is 50×40" in out, err
    plain = Detector.load(tmp_path / "checkpoints" / "nut", device="cpu").required_calibration
    for path in new.glob("0*.png"):
        pixels = np.array(Image.open(path))
        pixels[4:40, 44:] = 255
        Image.fromarray(pixels).save(path)
    assert run_main("--recalibrate", str(new), *keys)[0] == 3
    moved = shutil.move(tmp_path / "checkpoints" / "nut", tmp_path / "moved")
    region.unlink()
    painted = Detector.load(moved, device="cpu").required_calibration
    assert painted.source and painted.scores == pytest.approx(plain.scores, rel=0.5)


def test_the_published_protocol_has_no_region(run_main, region):
    code, _, err = run_main("--train", "score.protocol=published", f"data.region={region}")
    assert code == 2 and "set score.protocol=per_image, or data.region=null" in err


@pytest.mark.parametrize("size", [(32, 32), (97, 61), (200, 150), (20, 14)])
def test_regions_end_at_the_border_of_what_is_judged(size):
    width, height = size
    mask = np.zeros((height, width), bool)
    mask[:, : width // 2] = True
    calibration = Calibration(1.0, 1.0, (1.0,) * 99, (0.5,) * len(PIXEL_RATES))
    detector = make_detector(calibration, crop=1.0, region=JudgedRegion(None, mask))
    anomaly, empty = torch.zeros(32, 32), torch.empty(0)
    anomaly[8:20, 10:30] = 3.0

    def decide(score):
        return detector.decide(Prediction(empty, empty, empty, anomaly, score), size)

    found = decide(detector.crop_maps(anomaly).max().item())
    assert found.is_anomalous and len(found.regions) == 1 and not (found.mask & ~mask).any()
    anomaly[:, :16] = 0
    assert detector.crop_maps(anomaly).max() == 0 and decide(0.0).regions == []


def test_memories_are_learnt_inside_only(run_main, tmp_path, category, region):
    """Every row of a bank describes a position inside the region of some training picture."""
    run_main("--train", "model.unet_size=16")
    keys = ["score.parts=[patch_memory]", "model.unet_size=16", f"data.region={region}", "data.image_size=64"]
    loaded = load_settings(tmp_path / "tiny.yaml", keys)
    detector, loaded, _ = load_detector(loaded, loaded.checkpoint_folder, torch.device("cpu"))
    pictures = ImageFolder(loaded.category_dir, "train", detector.view)
    batch = torch.stack([pictures[number].picture for number in range(len(pictures))])
    described = image_descriptors(detector, batch)["picture"]  # (10, C, 32, 32)
    inside = detector.region.select(described).transpose(1, 2).flatten(0, 1)
    assert len(inside) == 10 * 32 * 20
    for judging, is_inside in ((detector, True), (replace(detector, region=None), False)):
        memory = learn_memories(judging, pictures, loaded)[0]["patch_memory"].reference
        distances = torch.cdist(memory.bank, inside @ memory.transform, compute_mode="donot_use_mm_for_euclid_dist")
        assert (distances.min(dim=1).values.max() < 1e-3 * memory.bank.norm(dim=1).mean()) == is_inside
