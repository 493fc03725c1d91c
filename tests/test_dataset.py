import contextlib
import hashlib
import io
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_picture
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from dataset import ImageFolder, View, held_out_count, measure_bits, picture_fingerprint, pictures_below, to_unit_range
from images import bit_depth
from images.tiles import tile_corners
from runtime.errors import UserError

properties = settings(deadline=None, derandomize=True, max_examples=60)
GREY = np.tile(np.linspace(0, 255, 32).astype(np.uint8), (24, 1))  # 32 wide, 24 high


def test_pictures_have_values_from_minus_one_to_one(category):
    item = ImageFolder(category, "test", View(32))[0]
    assert item.picture.shape == (3, 32, 32) and item.picture.dtype == torch.float32
    torch.testing.assert_close(to_unit_range(torch.tensor([0, 255], dtype=torch.uint8)), torch.tensor([-1.0, 1.0]))


def test_resizing_is_antialiased():
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (64, 32)))
    assert View(16, channels=1).pixels(stripes).float().std() < 5


def test_the_training_split_holds_good_pictures_only(category):
    write_picture(category / "train" / "crack" / "000.png", GREY)
    folder = ImageFolder(category, "train", View(32))
    assert {sample.kind for sample in folder.samples} == {"good"} and len(folder) == 10
    assert [picture.shape for picture in folder.pixels(workers=2)] == [(3, 32, 32)] * 10


def test_items_are_sorted_and_hold_label_mask_and_path(category):
    items = [ImageFolder(category, "test", View(32))[i] for i in range(6)]
    assert [item.path for item in items] == [
        f"test/{kind}/{number:03}.png" for kind in ("crack", "good") for number in range(3)
    ]
    assert [item.label for item in items] == [True] * 3 + [False] * 3
    assert all(item.mask.any() for item in items[:3]) and all(item.mask is None for item in items[3:])


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_hold_the_items_in_order(category, workers):
    folder = ImageFolder(category, "test", View(32))
    batches = list(folder.batches(4, workers))
    assert [len(batch) for batch in batches] == [4, 2]
    assert [item.path for batch in batches for item in batch] == [folder[i].path for i in range(6)]


def test_masks_may_have_the_stem_of_their_picture(category):
    truth = category / "ground_truth" / "crack"
    for path in truth.iterdir():
        path.rename(truth / path.name.replace("_mask", ""))
    assert all(ImageFolder(category, "test", View(32))[i].mask.any() for i in range(3))


def test_hidden_folders_are_not_kinds_of_defects(category):
    (category / "test" / ".ipynb_checkpoints").mkdir()
    assert len(ImageFolder(category, "test", View(32))) == 6


def test_one_more_picture_changes_the_held_out_set_by_one_picture_at_most(category):
    folder = ImageFolder(category, "train", View(32))
    training, held_out = (part.names() for part in folder.split(share=0.3, most=100, seed=0))
    assert len(held_out) == 3 and sorted(training + held_out) == folder.names()
    assert held_out == folder.split(share=0.3, most=100, seed=0)[1].names()
    assert held_out != folder.split(share=0.3, most=100, seed=1)[1].names()
    write_picture(category / "train" / "good" / "0000.png", GREY)
    _, again = ImageFolder(category, "train", View(32)).split(share=0.3, most=100, seed=0)
    assert len(set(again.names()) - set(held_out)) <= 1


@pytest.mark.parametrize(
    ("share", "most", "expected"), [(0, 100, 0), (0.01, 100, 1), (0.5, 2, 2), (0.9, 100, 9), (0.99, 100, 9)]
)
def test_both_sides_of_the_split_hold_pictures_unless_the_share_is_zero(category, share, most, expected):
    training, held_out = ImageFolder(category, "train", View(32)).split(share, most, seed=0)
    assert len(held_out) == expected == held_out_count(10, share, most) and len(training) == 10 - expected


def test_tiled_pictures_keep_their_proportions():
    picture = Image.fromarray(np.zeros((200, 301, 3), np.uint8))
    assert View(32).pixels(picture).shape == (3, 32, 32)
    assert View(32, tiles=2).pixels(picture).shape == (3, 64, 96)
    assert View(32, tiles=1).pixels(picture.rotate(90, expand=True)).shape == (3, 48, 32)


def test_a_picture_too_narrow_for_tiles_is_refused():
    with pytest.raises(
        ValueError, match="a picture of 2000×10 is too narrow for data.tiles; crop it, or set data.tiles=null"
    ):
        View(32, tiles=1).shape(2000, 10)
    with pytest.raises(ValueError, match="2000×10 is too narrow for data.fit; crop it, or set data.fit=square"):
        View(32, fit="proportions").shape(2000, 10)
    assert View(32).shape(2000, 10) == (32, 32)


@properties
@given(st.sampled_from([32, 96, 256, 512]), st.integers(50, 5000), st.floats(1, 4), st.booleans())
def test_proportions_have_the_pixels_of_a_square_and_sides_in_steps(size, short, ratio, tall):
    view, long = View(size, fit="proportions"), min(4 * short, round(short * ratio))
    width, height = (short, long) if tall else (long, short)
    across, down = view.shape(width, height)
    assert across % view.step == 0 == down % view.step and size % view.step == 0
    assert across * down == pytest.approx(size**2, rel=0.07)
    assert across / down == pytest.approx(width / height, rel=0.08)
    assert view.shape(height, width) == (down, across) and view.tile(down, across) == (down, across)
    assert view.shape(width, width) == (size, size) == View(size).shape(width, height)
    measured = view.measured_shape(width, height, 256)
    assert measured[0] * measured[1] == pytest.approx(256**2, rel=0.01)
    unet = view.scaled_shape((down, across), size // 4, 4)
    assert unet[0] % 4 == 0 == unet[1] % 4 and view.scaled_shape((size, size), size // 4, 4) == (size // 4, size // 4)


def test_few_shapes_serve_all_proportions():
    assert len({View(512, fit="proportions").shape(1000 + 3 * ratio, 1000) for ratio in range(1001)}) < 30
    assert {View(512, fit="proportions").shape(500, height) for height in range(1240, 1265)} == {(320, 800)}


@properties
@given(st.integers(20, 3000), st.floats(4.01, 50), st.booleans())
def test_strips_keep_their_scale_in_tiles(short, ratio, tall):
    view, long = View(512, fit="proportions"), int(short * ratio)
    assume(long > 4 * short)
    width, height = (short, long) if tall else (long, short)
    across, down = view.shape(width, height)
    narrow, wide = sorted((across, down))
    assert 128 <= narrow <= 512 and wide / narrow == pytest.approx(long / short, rel=0.08)
    assert not 128 <= short <= 512 or narrow == pytest.approx(short, abs=16)  # at its own scale
    tile = view.tile(down, across)
    assert sorted(tile) == [narrow, 512]
    assert len(tile_corners((down, across), tile)) >= 2


def test_the_form_of_a_picture_is_described():
    view = View(512, fit="proportions")
    assert view.describe(4096, 256) == "11 tiles of 512×256"
    assert view.describe(500, 1260) == "resized to 320×800"
    assert view.describe(512, 512) == "as they are"
    assert view.describe(500, 5000) == "resized to 512×5120, 13 tiles of 512×512"


def test_pictures_of_all_subfolders_are_found_except_the_output(tmp_path):
    for name in ("b.png", "a/2.JPG", "a/1.png", ".hidden/x.png", "out/heat.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = pictures_below(tmp_path, [tmp_path / "out"])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a/1.png", "a/2.JPG", "b.png"]
    assert pictures_below(tmp_path / "notes.txt", []) == [tmp_path / "notes.txt"]
    with pytest.raises(FileNotFoundError, match="check --input"):
        pictures_below(tmp_path / "none", [])
    with pytest.raises(FileNotFoundError, match="no pictures in"):
        pictures_below(tmp_path / "out", [tmp_path / "out"])


def test_other_files_are_ignored(category):
    for name in ("Thumbs.db", ".hidden.png", "notes.txt"):
        (category / "train" / "good" / name).write_text("x")
    assert len(ImageFolder(category, "train", View(32))) == 10


def move_to_subfolders(category, subfolder="day 2/a"):
    """Move the last picture of each folder, and the mask of the last defective one."""
    for part in ("train/good", "test/good", "test/crack", "ground_truth/crack"):
        last = sorted((category / part).iterdir())[-1]
        (category / part / subfolder).mkdir(parents=True)
        last.rename(category / part / subfolder / last.name)


def test_pictures_in_subfolders_are_read_with_the_masks_at_the_same_place(category):
    flat = {split: ImageFolder(category, split, View(32)) for split in ("train", "test")}
    items = {item.path: item for item in next(flat["test"].batches(6, 0))}
    move_to_subfolders(category)
    nested = {split: ImageFolder(category, split, View(32)) for split in ("train", "test")}
    assert [len(folder) for folder in nested.values()] == [10, 6]
    assert nested["train"].names()[-1] == "train/good/day 2/a/009.png"
    for item in next(nested["test"].batches(6, 0)):
        same = items[item.path.replace("day 2/a/", "")]
        assert item.kind == same.kind and torch.equal(item.picture, same.picture)
        assert item.mask is None or (item.mask == same.mask).all()
    assert len(set(nested["test"].names())) == 6 and "test/crack/day 2/a/002.png" in nested["test"].names()


def test_pictures_of_one_name_in_several_subfolders_keep_their_own_masks(category):
    move_to_subfolders(category)
    for part, ending in (("test/crack", ".png"), ("ground_truth/crack", "_mask.png")):
        (category / part / "day 2" / "a" / f"002{ending}").rename(category / part / "day 2" / f"000{ending}")
    samples = ImageFolder(category, "test", View(32)).samples
    masks = {sample.mask.relative_to(category / "ground_truth").as_posix() for sample in samples if sample.mask}
    assert masks == {"crack/000_mask.png", "crack/001_mask.png", "crack/day 2/000_mask.png"}


def test_the_fingerprint_of_pictures_without_subfolders_is_that_of_earlier_versions(category):
    """Weights and results name it, and are recognised by it."""
    samples = ImageFolder(category, "test", View(32)).samples
    files = [path for sample in samples for path in (sample.picture, sample.mask) if path]
    lines = [f"{path.parent.name}/{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]
    expected = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    assert picture_fingerprint(samples) == {"files": 9, "hash": expected}
    move_to_subfolders(category)
    assert picture_fingerprint(ImageFolder(category, "test", View(32)).samples)["hash"] != expected


def test_a_linked_subfolder_is_read_once_and_links_that_lead_nowhere_are_named(category, capsys, monkeypatch):
    monkeypatch.setattr(bit_depth, "PRINTED", set())
    good, elsewhere = category / "train" / "good", category.parent.parent / "elsewhere"
    write_picture(elsewhere / "x.png", GREY)
    (good / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(good)
    for name in ("lost.png", "lost folder"):
        (good / name).symlink_to(elsewhere / "none")
    for _ in range(2):
        assert len(ImageFolder(category, "train", View(32))) == 11
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{good / 'lost folder'} and 1 more; restore it, or remove the link" in line


def test_two_pictures_with_one_mask_are_an_error(category):
    shutil.copy(category / "test" / "crack" / "000.png", category / "test" / "crack" / "000.bmp")
    shutil.copy(
        category / "ground_truth" / "crack" / "000_mask.png", category / "ground_truth" / "crack" / "000.png"
    )  # a second mask does not say which picture it belongs to
    with pytest.raises(
        UserError, match=r"test/crack/000\.bmp and test/crack/000\.png in .* have one mask, ground_truth"
    ):
        ImageFolder(category, "test", View(32))
    assert len(ImageFolder(category, "test", View(32), masks=False)) == 7


def encoded(size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("L", size, 255).save(file, "PNG")
    return file.getvalue()


PLACES = st.sampled_from(
    (
        *("train/good/a.png", "train/good/b.JPG", "train/bad/a.png", "test/good/a.png"),
        *("test/crack/c.png", "test/crack/c.bmp", "test/crack/.c.png", "test/.hidden/a.png"),
        *("test/crack/deep/a.png", "test/loose.png", "test/hole/=1.png", "test/con/nul.png"),
        *(
            "ground_truth/crack/c_mask.png",
            "ground_truth/crack/c.png",
            "ground_truth/hole/=1.tif",
            "ground_truth/good/a.png",
        ),
        *("notes.txt", "test/crack/c.txt", "test/good"),
    )
)
CONTENTS = st.sampled_from([encoded((6, 4)), encoded((6, 4)), encoded((6, 4)), encoded((4, 6)), b"", b"text"])


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.dictionaries(PLACES, CONTENTS, min_size=3), st.sampled_from(["train", "test"]), st.booleans())
def test_any_layout_is_read_or_refused_in_one_line(files, split, masks):
    """Each picture is where the layout says, once, with the label of its folder and the mask of its name."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "nut"
        root.mkdir()
        for name, content in files.items():
            with contextlib.suppress(OSError):  # another name uses this folder as a file
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes(content)
        try:
            pictures = ImageFolder(root, split, View(8), masks=masks)
        except UserError as error:
            assert "\n" not in str(error) and str(root) in str(error)
            assert isinstance(error, FileNotFoundError) or "have one mask" in str(error)
            return
        assert pictures.names() == sorted(set(pictures.names())) and set(pictures.names()) <= set(files)
        for index, name in enumerate(pictures.names()):
            assert name.split("/")[0] == split and "/." not in name and name.count("/") == 2 + ("/deep/" in name)
            try:
                item = pictures[index]
            except ValueError as error:
                assert str(root) in str(error) and "\n" not in str(error)
                continue
            assert (
                item.path == name and item.label == (name.split("/")[1] != "good") and item.picture.shape == (3, 8, 8)
            )
            assert (item.mask is not None) == (masks and item.label)


@pytest.mark.parametrize(
    ("highest", "bits"), [(0, 16), (200, 8), (1023, 10), (1024, 12), (4095, 12), (4096, 14), (16384, 16), (65535, 16)]
)
def test_the_bits_of_a_category_hold_its_highest_value(tmp_path, highest, bits):
    for number in range(40):
        write_picture(tmp_path / f"{number:02}.png", np.full((4, 4), highest if number == 20 else 0, np.uint16))
    (tmp_path / "40.png").write_bytes(b"damaged: reported when its pixels are read")
    write_picture(tmp_path / "41.png", GREY)
    assert measure_bits(sorted(tmp_path.iterdir()), workers=2) == (highest, bits)
