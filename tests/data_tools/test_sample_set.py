import numpy as np
import pytest
from PIL import Image

from data_tools import sample_set
from data_tools.sample_set import (
    CROP,
    DEFECTS,
    DIVIDE,
    PICTURES_PER_DEFECT,
    TEXTURES,
    TRAINING_PICTURES,
    crop_texture,
    ensure_sample_set,
)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "sample"
    ensure_sample_set(folder, seed=3)
    return folder


def read(path):
    return np.asarray(Image.open(path))


def test_the_set_is_complete_and_in_the_mvtec_layout(sample):
    for texture in TEXTURES:
        assert len(list((sample / texture / "train" / "good").glob("*.png"))) == TRAINING_PICTURES
        assert {folder.name for folder in (sample / texture / "test").iterdir()} == {"good", *DEFECTS}
        for kind in DEFECTS:
            pictures = sorted((sample / texture / "test" / kind).glob("*.png"))
            masks = [sample / texture / "ground_truth" / kind / f"{path.stem}_mask.png" for path in pictures]
            assert len(pictures) == PICTURES_PER_DEFECT
            for mask in map(read, masks):
                assert (
                    mask.shape == (CROP, CROP) and set(np.unique(mask)) == {0, 255} and 0.002 < (mask > 0).mean() < 0.3
                )


def test_a_defect_changes_nothing_outside_its_mask():
    rng = np.random.default_rng(0)
    for spoil in DEFECTS.values():
        clean, other = rng.random((2, CROP, CROP)).astype(np.float32)
        spoilt, mask = spoil(clean.copy(), np.tile(other, (2, 2)), rng)
        assert mask.any() and not (spoilt != clean)[~mask].any()
        assert np.abs(spoilt - clean)[mask].mean() > 0.15


def test_training_and_test_crops_share_no_pixel_of_the_photograph():
    columns = np.tile(np.arange(512, dtype=np.float32), (512, 1))
    rng = np.random.default_rng(0)
    training = max(crop_texture(columns[:, :DIVIDE], rng).max() for _ in range(200))
    testing = min(crop_texture(columns[:, DIVIDE:], rng).min() for _ in range(200))
    assert training < DIVIDE <= testing


def test_the_seed_decides_everything(sample, tmp_path):
    ensure_sample_set(tmp_path / "again", seed=3)
    ensure_sample_set(tmp_path / "other", seed=4)
    name = "grass/test/stain/005.png"
    np.testing.assert_array_equal(read(sample / name), read(tmp_path / "again" / name))
    assert (read(sample / name) != read(tmp_path / "other" / name)).any()


def test_a_set_of_another_seed_is_made_again_and_foreign_files_are_left_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sample_set, "TRAINING_PICTURES", 3)
    ensure_sample_set(tmp_path / "set", seed=1)
    capsys.readouterr()
    ensure_sample_set(tmp_path / "set", seed=1)
    assert capsys.readouterr().out == ""
    ensure_sample_set(tmp_path / "set", seed=2)
    assert "seed 2" in capsys.readouterr().out
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="holds other files; name a new folder"):
        ensure_sample_set(tmp_path / "mine", seed=1)


def test_a_set_that_was_not_finished_is_made_again(tmp_path, monkeypatch):
    def killed(folder, texture, rng):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sample_set, "make_sample_category", killed)
        ensure_sample_set(tmp_path / "set", seed=1)
    monkeypatch.setattr(sample_set, "TRAINING_PICTURES", 2)
    ensure_sample_set(tmp_path / "set", seed=1)
    assert len(list((tmp_path / "set" / "grass" / "train" / "good").iterdir())) == 2
