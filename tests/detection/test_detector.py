import copy
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_weights import assert_golden, cosine_share, state_dict
from PIL import Image
from score_tables import read_rows
from tiny_networks import SCHEDULE, Pyramid, Wavy, make_detector
from torch import nn

from anomaly_map import resize_maps
from dataset import ImageFolder, View, to_unit_range
from detection import Detector
from detection.comparison import Networks
from detection.detector import Prediction, predict_pictures, stream_noise
from detection.reference import Scale
from detection.threshold import PIXEL_RATES, Calibration
from feature_extractor import FeatureExtractor
from images.tiles import cut_tiles, merge_tiles


@pytest.fixture
def folder(category):
    return ImageFolder(category, "test", View(32))


def test_the_noise_of_a_picture_does_not_depend_on_its_resized_pixels(folder, monkeypatch):
    """The last digits of resized pixels differ between machines."""
    shown = torch.stack([item.picture for item in next(folder.batches(2, 0))])
    detector, noises = make_detector(), []
    detector = replace(detector, networks=replace(detector.networks, size=16))
    monkeypatch.setattr(Networks, "reconstruct", lambda self, pictures, draw: noises.append(draw()) or pictures[None])
    detector.compare_batch(shown, detector.picture_noise)
    monkeypatch.setattr("detection.detector.resize_maps", lambda maps, shape: resize_maps(maps, shape) + 1e-3)
    detector.compare_batch(shown, detector.picture_noise)
    assert noises[0].shape == (2, 3, 16, 16)
    torch.testing.assert_close(noises[1], noises[0], rtol=0, atol=0)


def anomalies(detector, folder, noise=None, workers=2):
    return torch.stack(
        [
            prediction.anomaly
            for _, prediction in predict_pictures(detector, folder, noise or detector.picture_noise, workers)
        ]
    )


def test_the_published_protocol_is_one_stream_and_batch_maxima(folder):
    """The reference is the method written out: noise, two steps, distances, batch maxima, blur, crop, maximum."""
    detector = make_detector(calibration=None)
    predictions = [
        prediction
        for _, prediction in predict_pictures(detector, folder, stream_noise(5, torch.device("cpu")), workers=0)
    ]
    stream = torch.Generator().manual_seed(5)
    expected = []
    for first in (0, 4):
        y_0 = torch.stack([folder[i].picture for i in range(first, min(first + 4, 6))])
        draw = lambda shape=y_0.shape: torch.randn(shape, generator=stream)  # noqa: E731
        x = SCHEDULE.alpha_bar(100).sqrt().float() * y_0 + (1 - SCHEDULE.alpha_bar(100)).sqrt().float() * draw()
        for t, s in ((50, 0), (0, -1)):
            a, b = SCHEDULE.alpha_bar(t).float(), SCHEDULE.alpha_bar(s).float()
            eps = Wavy()(x, None)
            x_0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
            x_0 = x_0 + 3 * (1 - a) * (y_0 - x_0)
            eps = (x - a.sqrt() * x_0) / (1 - a).sqrt()
            c1 = ((1 - a / b) * (1 - b) / (1 - a)).sqrt()
            x = b.sqrt() * x_0 + c1 * draw() + (1 - b - c1**2).clamp_min(0).sqrt() * eps
        d_p = (x - y_0).abs().mean(dim=1, keepdim=True)
        d_f = torch.zeros_like(d_p)
        for p, q in list(zip(Pyramid()(y_0), Pyramid()(x), strict=True))[1:]:
            p, q = F.avg_pool2d(p, 3, 1, 1), F.avg_pool2d(q, 3, 1, 1)
            distance = 1 - (p * q).sum(1, keepdim=True) / (p.norm(dim=1, keepdim=True) * q.norm(dim=1, keepdim=True))
            d_f += F.interpolate(distance, size=(32, 32), mode="bilinear", align_corners=True)
        kernel = torch.exp(-0.5 * (torch.arange(-2.0, 3.0) / 0.5) ** 2)
        kernel = (kernel[:, None] * kernel[None, :] / kernel.sum() ** 2)[None, None]
        a_map = F.conv2d(F.pad(d_f + 2 * d_f.max() / d_p.max() * d_p, [2] * 4, mode="reflect"), kernel)
        expected.append(a_map[:, 0])
    expected = torch.cat(expected)
    torch.testing.assert_close(
        torch.stack([prediction.anomaly for prediction in predictions]), expected, rtol=1e-3, atol=1e-4
    )
    scores = torch.tensor([prediction.score for prediction in predictions])
    torch.testing.assert_close(scores, expected[:, 2:30, 2:30].amax(dim=(1, 2)), rtol=1e-3, atol=1e-4)


class Knowing(nn.Module):
    """A noise predictor whose last step ends at a given reconstruction."""

    def __init__(self, reconstruction):
        super().__init__()
        self.reconstruction = reconstruction

    def forward(self, x, t):
        a = SCHEDULE.alpha_bar(0).float()
        return (x - a.sqrt() * self.reconstruction) / (1 - a).sqrt()


def test_published_maps_of_a_batch_are_the_golden_ones(golden, tmp_path):
    expected = golden("anomaly_map_resnet50_64")
    weights = tmp_path / "resnet50"
    torch.save(
        {f"module.{name}": value for name, value in state_dict(golden("resnet_state_dict")["resnet50"]).items()},
        weights,
    )
    unet, features = Knowing(torch.from_numpy(expected["recon"])), FeatureExtractor("resnet50", weights).eval()
    networks = Networks(unet, features, SCHEDULE, w=0, start=25, skip=25, eta=1)
    share = cosine_share(expected["feature_distance"])
    for v in (1, 7):
        detector = replace(
            make_detector(calibration=None, v=v, blur_sigma=4, batch_size=3, view=View(64)), networks=networks
        )
        found = detector.predict_batch(torch.from_numpy(expected["target"]), detector.picture_noise)
        assert_golden(torch.stack([prediction.anomaly for prediction in found])[:, None], expected[f"map_v{v}"], share)


def test_maps_are_cropped_for_the_score_alone(folder):
    detector = make_detector(crop=0.5)
    prediction = next(
        prediction for _, prediction in predict_pictures(detector, folder, detector.picture_noise, workers=0)
    )
    assert prediction.anomaly.shape == (32, 32) and prediction.score == prediction.anomaly[8:24, 8:24].max()


def test_a_map_is_the_pictures_own_in_any_company(folder):
    """A map is the same alone, in batches, backwards, with and without threads, and without other pictures."""
    alone = anomalies(make_detector(batch_size=1), folder)
    for size, workers in ((2, 0), (2, 2), (7, 2), (16, 0)):
        torch.testing.assert_close(
            anomalies(make_detector(batch_size=size), folder, workers=workers),
            alone,
            rtol=0,
            atol=1e-5 * float(alone.max()),
        )
    backwards = copy.copy(folder)
    backwards.samples = folder.samples[::-1]
    torch.testing.assert_close(
        anomalies(make_detector(), backwards).flip(0), alone, rtol=0, atol=1e-5 * float(alone.max())
    )
    torch.testing.assert_close(
        anomalies(make_detector(), folder.only(folder.names()[3:4])), alone[3:4], rtol=0, atol=1e-5 * float(alone.max())
    )


def test_published_maps_depend_on_the_company(folder):
    noise = lambda: stream_noise(5, torch.device("cpu"))  # noqa: E731
    together, alone = (anomalies(make_detector(calibration=None, batch_size=size), folder, noise()) for size in (6, 1))
    assert (together - alone).abs().max() > 1e-2 * alone.max()


def test_a_picture_in_any_form_gets_the_same_verdict(category):
    path = category / "test" / "crack" / "000.png"
    detector = make_detector()
    by_path, by_name, by_image, by_array = (
        detector(form) for form in (path, str(path), Image.open(path), np.asarray(Image.open(path)))
    )
    for other in (by_name, by_image, by_array, detector.detect([category / "test" / "good" / "000.png", path])[1]):
        assert other.score == pytest.approx(by_path.score, rel=1e-5) and other.regions == by_path.regions
        np.testing.assert_allclose(other.map, by_path.map, atol=1e-5)
    grey = np.asarray(Image.open(path))[..., 0]
    assert detector(grey).score == detector(grey.astype(np.uint16) * 257).score == detector(grey / 255).score
    colour = np.array(Image.open(path))
    colour[..., 0] //= 2
    for form, order in ((torch.from_numpy(colour).permute(2, 0, 1), "rgb"), (colour[..., ::-1], "bgr")):
        assert detector(form, channels=order).score == detector(colour).score
    assert detector(colour[..., ::-1]).score != detector(colour).score
    assert detector.detect([]) == []


def test_the_map_and_the_boxes_of_a_turned_picture_fit_what_is_shown(category):
    upright = Image.open(category / "test" / "crack" / "000.png").crop((8, 0, 48, 48))
    stored = upright.rotate(90, expand=True)
    stored.getexif()[0x0112] = 6  # shown after a quarter turn clockwise
    detector = make_detector()
    expected, found = detector(upright), detector(stored)
    assert stored.size == (48, 40) and found.map.shape == (48, 40) and found.regions == expected.regions
    np.testing.assert_array_equal(found.map, expected.map)


def test_a_picture_in_memory_is_rotated_as_its_exif_says(category, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(category / "test" / "crack" / "000.png").save(tmp_path / "turned.png", exif=exif)
    detector = make_detector()
    assert (
        detector(Image.open(tmp_path / "turned.png")).score
        == detector(tmp_path / "turned.png").score
        != detector(category / "test" / "crack" / "000.png").score
    )


@pytest.mark.parametrize(
    "thing", [None, torch.zeros(2, 3, 8, 8), Image.fromarray(np.full((8, 8), -1, np.float32)), Image.new("L", (0, 8))]
)
def test_anything_but_a_picture_is_refused(thing):
    with pytest.raises(ValueError, match=r"is not a picture|neither 0…1 nor|no pixels"):
        make_detector()(thing)


def test_maps_that_are_not_finite_are_refused(category):
    with pytest.raises(ValueError, match=r"not finite; lower model\.w"):
        make_detector(v=float("nan"))(category / "test" / "crack" / "000.png")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((5, 4, 7), np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8),
        np.zeros((4, 4), complex),
        np.zeros((4, 4), int),
        np.zeros((0, 4), np.uint8),
    ],
)
def test_an_array_of_another_shape_or_type_is_refused(array):
    with pytest.raises(ValueError, match="is not a picture; give"):
        make_detector()(array)


def test_without_a_calibration_there_is_no_verdict(category):
    with pytest.raises(ValueError, match=r"no calibration, hence no threshold; load it by Detector\.load"):
        make_detector(calibration=None)(category / "test" / "crack" / "000.png")


def decide_on(anomaly, size, crop=1.0, scores=(1.0,) * 99, pixel=0.5):
    calibration = Calibration(1.0, 1.0, tuple(scores), (pixel,) * len(PIXEL_RATES), True, {}, {})
    detector = make_detector(calibration, crop=crop)
    empty = torch.empty(0)
    return detector.decide(Prediction(empty, empty, empty, anomaly, detector.crop_maps(anomaly).max().item()), size)


def test_regions_exceed_the_pixel_threshold_and_somewhere_the_image_threshold():
    anomaly = torch.zeros(32, 32)
    anomaly[4:8, 4:12], anomaly[5, 6] = 0.7, 2.0  # exceeds the image threshold
    anomaly[20:24, 20:24] = 0.8  # does not exceed it
    anomaly[28, 2] = 1.5
    found = decide_on(anomaly, (32, 32))
    assert found.is_anomalous and found.p_value == 0.01 and found.score == 2
    assert [(region.box, region.area, region.peak) for region in found.regions] == [
        ((4, 4, 12, 8), 32, 2.0),
        ((2, 28, 3, 29), 1, 1.5),
    ]
    assert found.mask.sum() == 33 and found.map.shape == (32, 32)


def test_a_normal_picture_has_no_regions():
    found = decide_on(torch.full((32, 32), 0.9), (100, 50))
    assert not found.is_anomalous and found.regions == [] and not found.mask.any() and found.map.shape == (50, 100)


def test_nothing_is_detected_outside_the_scored_area():
    anomaly = torch.zeros(32, 32)
    anomaly[0:2, 0:2] = 9.0
    assert (
        not decide_on(anomaly, (32, 32), crop=0.75).is_anomalous
        and decide_on(anomaly, (32, 32), crop=0.75).map.max() == 9
    )
    anomaly[16, 16] = 2.0
    for pixel in (0.5, -0.1):  # a region may reach below the mean of normal pictures
        assert [region.box for region in decide_on(anomaly - 0.2, (32, 32), crop=0.75, pixel=pixel).regions] == [
            (16, 16, 17, 17)
        ]


@pytest.mark.parametrize("size", [(32, 32), (97, 61), (20, 14), (320, 200), (5, 5)])
def test_an_anomalous_picture_has_a_region_at_any_size(size):
    for place in ((3, 3), (16, 9), (31, 0)):
        anomaly = torch.zeros(32, 32)
        anomaly[place] = 1.01
        found = decide_on(anomaly, size)
        (region,) = found.regions
        left, top, right, bottom = region.box
        x, y = (place[1] + 0.5) * size[0] / 32, (place[0] + 0.5) * size[1] / 32
        assert left <= x <= right and top <= y <= bottom and 0 < found.mask.sum() == region.area


def test_a_tiled_picture_is_compared_whole(category):
    """Each tile is reconstructed alone; the map is of the reconstructions put together."""
    paths = [category / "test" / kind / "000.png" for kind in ("good", "crack", "good")]
    picture = Image.fromarray(np.vstack([np.hstack([np.asarray(Image.open(path)) for path in paths])] * 2))
    tiled, alone = make_detector(view=View(32, tiles=2)), make_detector()
    shown = to_unit_range(tiled.view.pixels(picture))[None]
    (found,) = tiled.predict_batch(shown, tiled.picture_noise)
    parts = [
        alone.predict_batch(tile[None], alone.picture_noise)[0].reconstruction for tile in cut_tiles(shown, (32, 32))
    ]
    expected = merge_tiles(torch.stack(parts), shown.shape)
    torch.testing.assert_close(found.reconstruction, expected[0], rtol=0, atol=1e-5)
    d_feature, d_pixel = tiled.networks.compare(shown, shown, expected[None]).distances.values()
    torch.testing.assert_close(found.d_feature, d_feature[0, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(found.d_pixel, d_pixel[0, 0], rtol=0, atol=1e-5)
    assert found.anomaly.shape == (64, 96) and tiled(picture).map.shape == (96, 144)
    both = tiled.detect([picture, picture.rotate(180)])
    np.testing.assert_allclose(both[0].map, tiled(picture).map, atol=1e-5)


def test_a_detector_is_loaded_from_a_moved_folder(run_main, tmp_path, category, trained):
    run_main("--detection", "score.draws=2", "calibration.false_positive_rate=0.4")
    scores = {row["path"]: row for row in read_rows(tmp_path / "results")}
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "checkpoints" / "nut", moved)
    shutil.rmtree(tmp_path / "checkpoints")
    detector = Detector.load(moved, device="cpu")
    for path, row in scores.items():
        found = detector(category / path)
        assert found.score == pytest.approx(float(row["score"]), rel=1e-5) and found.p_value == pytest.approx(
            float(row["p_value"]), abs=1e-5
        )
        assert found.is_anomalous == (found.p_value <= 0.4) == bool(found.regions)
    run_main("--train", "model.seed=9", f"model.checkpoint_dir={tmp_path}", "data.category=nut")
    shutil.copy(tmp_path / "nut" / "2", moved / "20")
    with pytest.raises(ValueError, match=r"calibration\.json is stale: weights was"):
        Detector.load(moved, device="cpu")
    (moved / "calibration.json").unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"no calibration\.json of this version in .*; run python main\.py --detection True first",
    ):
        Detector.load(moved)


def test_a_map_is_the_length_of_its_parts_in_their_units():
    detector = Detector(None, View(4), 1.0, 0.0, 1.0, 0, 4, torch.device("cpu"), parts=("feature", "memory"))
    parts = {
        "feature": torch.zeros(1, 1, 4, 4),
        "pixel": torch.zeros(1, 1, 4, 4),
        "memory": torch.full((1, 1, 4, 4), 10.0),
    }
    parts["feature"][..., 0, 0], parts["memory"][..., 0, 0] = 6.0, 90.0
    parts["feature"][..., 1, 1], parts["memory"][..., 1, 1] = -4.0, 30.0
    parts["feature"][..., 2, 2], parts["memory"][..., 2, 2] = -4.0, 0.0
    found = detector.assemble(parts, 1.0, {"feature": Scale(0, 2), "memory": Scale(10, 30)})
    assert found.anomaly[0, 0] == found.score == 5  # of 3 and 4
    assert (
        found.anomaly[1, 1] == 1 and found.anomaly[2, 2] == -0.5 and found.anomaly[3, 3] == 0
    )  # values below the mean do not count


def test_work_by_shape_keeps_the_order_and_takes_few_sizes_of_batches():
    """One shape passes as a whole, as before; of several, each batch holds a power of 2."""
    detector, wide, tall, sizes = make_detector(batch_size=8), torch.Size([3, 16, 64]), torch.Size([3, 64, 16]), []

    def work(things):
        sizes.append(len(things))
        return [10 * thing for thing in things]

    assert detector.by_shape(range(7), work, [wide] * 7) == list(range(0, 70, 10)) and sizes == [7]
    sizes.clear()
    assert detector.by_shape(range(8), work, [wide, tall] + [wide] * 6) == list(range(0, 80, 10))
    assert sizes == [4, 2, 1, 1]
