"""The sample set is complete, depends on the seed alone, and leaves other files alone."""

import numpy as np
import pytest
from originals import read_pixels

from data_tools import sample_set
from data_tools.sample_set import CROP, DIVIDE, PICTURES_PER_DEFECT, TEXTURES, TRAINING_PICTURES, ensure_sample_set
from images.synthetic_defects import DEFECTS, random_crop


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "sample"
    ensure_sample_set(folder, seed=3)
    return folder


def test_the_set_is_complete_and_in_the_mvtec_layout(sample):
    for texture in TEXTURES:
        assert len(list((sample / texture / "train" / "good").glob("*.png"))) == TRAINING_PICTURES
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


def test_training_and_test_crops_share_no_pixel_of_the_photograph():
    columns = np.tile(np.arange(512, dtype=np.float32), (512, 1))
    rng = np.random.default_rng(0)
    training = max(random_crop(columns[:, :DIVIDE], CROP, rng).max() for _ in range(200))
    testing = min(random_crop(columns[:, DIVIDE:], CROP, rng).min() for _ in range(200))
    assert training < DIVIDE <= testing


def test_the_seed_determines_every_pixel(sample, tmp_path):
    ensure_sample_set(tmp_path / "again", seed=3)
    ensure_sample_set(tmp_path / "other", seed=4)
    name = "grass/test/stain/005.png"
    np.testing.assert_array_equal(read_pixels(sample / name), read_pixels(tmp_path / "again" / name))
    assert (read_pixels(sample / name) != read_pixels(tmp_path / "other" / name)).any()


def test_a_set_of_another_seed_is_replaced_and_other_files_are_left_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sample_set, "TRAINING_PICTURES", 3)
    ensure_sample_set(tmp_path / "set", seed=1)
    capsys.readouterr()
    ensure_sample_set(tmp_path / "set", seed=1)
    assert capsys.readouterr().out == ""
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
    monkeypatch.setattr(sample_set, "TRAINING_PICTURES", 2)
    ensure_sample_set(tmp_path / "set", seed=1)
    assert len(list((tmp_path / "set" / "grass" / "train" / "good").iterdir())) == 2
