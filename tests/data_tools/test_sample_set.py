"""The sample set is complete, depends on the seed alone, and leaves other files alone."""

import json
from pathlib import Path

import numpy as np
import pytest
from originals import read_pixels

from data_tools import sample_set
from data_tools.sample_set import (
    BLOCKS,
    CROP,
    NORMAL_PICTURES,
    PICTURES_PER_DEFECT,
    TEXTURES,
    TRAINING_PICTURES,
    divide_blocks,
    ensure_sample_set,
    spread_crops,
)
from images.synthetic_defects import DEFECTS

SIDE = 512  # pixels of a photograph


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "sample"
    ensure_sample_set(folder, seed=3)
    return folder


def test_the_set_is_complete_and_in_the_mvtec_layout(sample):
    for texture in TEXTURES:
        trained = [path.name.partition("_")[0] for path in (sample / texture / "train" / "good").glob("*.png")]
        assert len(trained) == TRAINING_PICTURES and len(set(trained)) == BLOCKS * (BLOCKS - 1)  # named by their block
        assert {folder.name for folder in (sample / texture / "test").iterdir()} == {"good", *DEFECTS}
        for kind in DEFECTS:
            pictures = sorted((sample / texture / "test" / kind).glob("*.png"))
            assert len(pictures) == PICTURES_PER_DEFECT
            for picture in pictures:
                mask = read_pixels(sample / texture / "ground_truth" / kind / f"{picture.stem}_mask.png")
                assert mask.shape == (CROP, CROP) and set(np.unique(mask)) == {0, 255}
                assert 0.002 < (mask > 0).mean() < 0.3


def test_a_defect_changes_nothing_outside_its_mask():
    rng = np.random.default_rng(0)
    for add_defect in DEFECTS.values():
        normal, other = rng.random((2, CROP, CROP)).astype(np.float32)
        defective, mask = add_defect(normal.copy(), np.tile(other, (2, 2)), rng)
        assert mask.any() and not (defective != normal)[~mask].any()
        assert np.abs(defective - normal)[mask].mean() > 0.15


@pytest.fixture
def plain_defects(monkeypatch):
    """Replace the photographs by the numbers of their pixels, and leave out the defects."""
    written: dict[str, list[np.ndarray]] = {"train": [], "test": []}

    def keep(path, picture):
        if "ground_truth" not in path.parts:
            written[path.parts[-3]].append(picture)

    pixels = np.arange(SIDE**2, dtype=np.float32).reshape(SIDE, SIDE)
    monkeypatch.setattr(sample_set, "load_photograph", lambda texture: pixels)
    monkeypatch.setattr(sample_set, "save_picture", keep)
    monkeypatch.setattr(sample_set, "DEFECTS", dict.fromkeys(DEFECTS, lambda *given: (given[0], given[0] > 0)))
    return written


@pytest.mark.parametrize("seed", range(5))
def test_training_and_test_pictures_share_no_pixel_and_cover_the_photograph(plain_defects, seed):
    sample_set.write_sample_category(Path("brick"), "brick", np.random.default_rng(seed))
    training, testing = plain_defects["train"], plain_defects["test"]
    assert len(training) == TRAINING_PICTURES and len(testing) == NORMAL_PICTURES + PICTURES_PER_DEFECT * len(DEFECTS)
    assert not set(np.unique(training)) & set(np.unique(testing))
    corners = {int(picture[0, 0]) for picture in (*training, *testing)}
    assert len(corners) == len(training) + len(testing)  # no picture twice
    for pictures in (training, testing, testing[:NORMAL_PICTURES]):
        for places in (np.unique(pictures) // SIDE, np.unique(pictures) % SIDE):  # rows and columns
            assert len(np.unique(places // (SIDE / BLOCKS))) == BLOCKS


def test_each_row_and_column_has_one_block_for_testing_and_the_seed_draws_it():
    numbers = np.arange(SIDE**2, dtype=np.float32).reshape(SIDE, SIDE)
    drawn = set()
    for seed in range(20):
        training, testing = divide_blocks(numbers, np.random.default_rng(seed))
        assert len(training) + len(testing) == BLOCKS**2 and len(testing) == BLOCKS
        corners = [int(block[0, 0]) for block in testing]
        assert len({corner % SIDE for corner in corners}) == len({corner // SIDE for corner in corners}) == BLOCKS
        drawn.add(tuple(corners))
    assert len(drawn) > 3


def test_the_crops_of_a_block_are_spread_over_it():
    """Crops at random places have a nearest neighbour half as far away."""
    rows, columns = np.mgrid[: 2 * CROP, : 2 * CROP].astype(np.float32)
    count = 25
    places = np.array(
        [[crop[0, 0] for crop in spread_crops(axis, count, np.random.default_rng(0))] for axis in (rows, columns)]
    ).T
    distances = np.linalg.norm(places[:, None] - places, axis=2) + 2 * CROP * np.eye(count)
    assert places.min() >= 0 and places.max() <= CROP and np.median(distances.min(axis=0)) > 0.12 * CROP


def test_the_seed_determines_every_pixel(sample, tmp_path):
    ensure_sample_set(tmp_path / "again", seed=3)
    ensure_sample_set(tmp_path / "other", seed=4)
    name = "grass/test/stain/005.png"
    np.testing.assert_array_equal(read_pixels(sample / name), read_pixels(tmp_path / "again" / name))
    assert (read_pixels(sample / name) != read_pixels(tmp_path / "other" / name)).any()


def test_a_set_of_another_seed_or_version_is_replaced_and_other_files_are_left_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sample_set, "TRAINING_PICTURES", 6)
    ensure_sample_set(tmp_path / "set", seed=1)
    capsys.readouterr()
    ensure_sample_set(tmp_path / "set", seed=1)
    assert capsys.readouterr().out == ""
    note = json.loads((tmp_path / "set" / "sample.json").read_text())
    (tmp_path / "set" / "sample.json").write_text(json.dumps({**note, "version": 1}))
    ensure_sample_set(tmp_path / "set", seed=1)
    assert f"of version 1 is replaced by version {sample_set.VERSION}" in capsys.readouterr().out
    ensure_sample_set(tmp_path / "set", seed=2)
    assert "seed 2" in capsys.readouterr().out
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="holds other files than the sample set; name a new folder"):
        ensure_sample_set(tmp_path / "mine", seed=1)


def test_an_unfinished_set_is_replaced(tmp_path, monkeypatch):
    def stop(folder, texture, rng):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sample_set, "write_sample_category", stop)
        ensure_sample_set(tmp_path / "set", seed=1)
    monkeypatch.setattr(sample_set, "TRAINING_PICTURES", 24)
    ensure_sample_set(tmp_path / "set", seed=1)
    assert len(list((tmp_path / "set" / "grass" / "train" / "good").iterdir())) == 24
