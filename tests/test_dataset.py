import contextlib
import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dataset import ImageFolder, View, pictures_below, shuffled_batches, to_unit_range
from images.read import SUFFIXES, read_mask, read_picture

RAMP = np.tile(np.linspace(0, 255, 32).astype(np.uint8), (24, 1))  # 32 wide, 24 high
COLOUR = np.stack([RAMP, RAMP[:, ::-1], np.full_like(RAMP, 90)], axis=2)


def pixels(path, channels=3):
    return np.asarray(read_picture(path, channels))


@pytest.mark.parametrize("suffix", ["png", "PNG", "bmp", "tif", "TIFF", "webp"])
def test_lossless_formats_in_any_case_give_the_same_pixels(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(COLOUR).save(
        path, format={"tif": "TIFF", "tiff": "TIFF"}.get(suffix.lower(), suffix.upper()), lossless=True
    )
    np.testing.assert_array_equal(pixels(path), COLOUR)


@pytest.mark.parametrize("suffix", ["jpg", "JPG", "jpeg"])
def test_jpeg(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(COLOUR).save(path, format="JPEG", quality=98)
    assert np.abs(pixels(path).astype(int) - COLOUR).mean() < 3


def test_grey_becomes_three_equal_channels_and_colour_becomes_grey(tmp_path):
    write_picture(tmp_path / "grey.png", RAMP)
    np.testing.assert_array_equal(pixels(tmp_path / "grey.png"), np.repeat(RAMP[..., None], 3, axis=2))
    np.testing.assert_array_equal(pixels(tmp_path / "grey.png", channels=1), RAMP)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    deep = (RAMP.astype(np.uint16)) * 257
    for name in ("deep.png", "deep.tif"):
        Image.fromarray(deep).save(tmp_path / name)
        np.testing.assert_array_equal(pixels(tmp_path / name, channels=1), RAMP)


def test_palette_and_opaque_alpha_do_not_change_colours(tmp_path):
    Image.fromarray(COLOUR).quantize(8).save(tmp_path / "palette.png")
    np.testing.assert_array_equal(
        pixels(tmp_path / "palette.png"), np.asarray(Image.fromarray(COLOUR).quantize(8).convert("RGB"))
    )
    Image.fromarray(np.dstack([COLOUR, np.full_like(RAMP, 255)])).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(pixels(tmp_path / "rgba.png"), COLOUR)


def test_transparent_pixels_are_white(tmp_path):
    Image.fromarray(np.dstack([COLOUR, np.zeros_like(RAMP)])).save(tmp_path / "clear.png")
    assert (pixels(tmp_path / "clear.png") == 255).all()


def test_exif_rotation_is_undone(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    Image.fromarray(COLOUR).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(pixels(tmp_path / "turned.png"), np.rot90(COLOUR, -1))


def test_pictures_reach_the_network_in_minus_one_to_one(category):
    item = ImageFolder(category, "test", View(32))[0]
    assert item.picture.shape == (3, 32, 32) and item.picture.dtype == torch.float32
    torch.testing.assert_close(to_unit_range(torch.tensor([0, 255], dtype=torch.uint8)), torch.tensor([-1.0, 1.0]))


def test_resizing_is_antialiased():
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (64, 32)))
    assert View(16, channels=1).pixels(stripes).float().std() < 5


def test_training_sees_good_pictures_only(category):
    write_picture(category / "train" / "crack" / "000.png", RAMP)
    folder = ImageFolder(category, "train", View(32))
    assert {sample.kind for sample in folder.samples} == {"good"} and len(folder) == 10
    assert [picture.shape for picture in folder.pixels(workers=2)] == [(3, 32, 32)] * 10


def test_items_are_sorted_and_carry_label_mask_and_path(category):
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


def test_masks_may_lack_the_ending(category):
    truth = category / "ground_truth" / "crack"
    for path in truth.iterdir():
        path.rename(truth / path.name.replace("_mask", ""))
    assert all(ImageFolder(category, "test", View(32))[i].mask.any() for i in range(3))


@pytest.mark.parametrize("values", [(0, 255), (0, 1), (0, 3)])
def test_masks_are_binary_whatever_their_values(tmp_path, values):
    mask = np.zeros((24, 32), np.uint8)
    mask[:, 16:] = values[1]
    write_picture(tmp_path / "m.png", mask)
    read = read_mask(tmp_path / "m.png", (32, 24), tmp_path / "x.png", 16)
    np.testing.assert_array_equal(read, np.tile(np.arange(16) >= 8, (16, 1)))


def test_masks_are_binary_after_the_resize_not_before(tmp_path):
    mask = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    write_picture(tmp_path / "m.png", mask)
    resized = np.asarray(Image.fromarray(mask).resize((16, 16), Image.Resampling.BILINEAR))
    before = (
        np.asarray(Image.fromarray((mask > 127).astype(np.uint8) * 255).resize((16, 16), Image.Resampling.BILINEAR))
        > 127
    )
    read = read_mask(tmp_path / "m.png", (32, 32), tmp_path / "x.png", 16)
    np.testing.assert_array_equal(read, resized > 127)
    assert (read != before).any()


def test_masks_of_any_mode_are_read(tmp_path):
    truth = np.tile(np.arange(32) >= 16, (24, 1))
    palette = Image.new("P", (32, 24))
    palette.putdata(truth.astype(np.uint8).ravel().tolist())
    palette.putpalette([0, 0, 0, 40, 0, 0, 255, 255, 255])
    palette.save(tmp_path / "palette.png")
    Image.fromarray(truth.astype(np.uint16)).save(tmp_path / "deep labels.png")
    Image.fromarray(truth.astype(np.uint16) * 65535).save(tmp_path / "deep.png")
    Image.fromarray(truth).save(tmp_path / "bits.png")
    Image.fromarray(np.repeat(truth[..., None] * np.uint8(255), 4, axis=2)).save(tmp_path / "clear.png")
    for name in ("palette", "deep labels", "deep", "bits", "clear"):
        read = read_mask(tmp_path / f"{name}.png", (32, 24), tmp_path / "x.png", 16)
        np.testing.assert_array_equal(read, np.tile(np.arange(16) >= 8, (16, 1)), err_msg=name)


def test_hidden_folders_are_no_defects(category):
    (category / "test" / ".ipynb_checkpoints").mkdir()
    assert len(ImageFolder(category, "test", View(32))) == 6


def test_held_out_pictures_are_a_share_that_another_picture_hardly_changes(category):
    whole = ImageFolder(category, "train", View(32))
    learnt, kept = whole.split(share=0.3, most=100, seed=0)
    assert (
        len(kept) == 3
        and sorted([*learnt.names(), *kept.names()]) == whole.names()
        and not set(learnt.names()) & set(kept.names())
    )
    assert (
        kept.names()
        == whole.split(share=0.3, most=100, seed=0)[1].names()
        != whole.split(share=0.3, most=100, seed=1)[1].names()
    )
    write_picture(category / "train" / "good" / "0000.png", COLOUR)
    again = ImageFolder(category, "train", View(32)).split(share=0.3, most=100, seed=0)[1]
    assert len(set(again.names()) - set(kept.names())) <= 1


@pytest.mark.parametrize(
    ("share", "most", "expected"), [(0, 100, 0), (0.01, 100, 1), (0.5, 2, 2), (0.9, 100, 9), (0.99, 100, 9)]
)
def test_no_side_of_the_split_is_empty_unless_nothing_is_held_out(category, share, most, expected):
    learnt, kept = ImageFolder(category, "train", View(32)).split(share, most, seed=0)
    assert len(kept) == expected and len(learnt) == 10 - expected


def test_tiled_pictures_keep_their_proportions():
    picture = Image.fromarray(np.zeros((200, 301, 3), np.uint8))
    assert View(32).pixels(picture).shape == (3, 32, 32)
    assert View(32, tiles=2).pixels(picture).shape == (3, 64, 96)
    assert View(32, tiles=1).pixels(picture.rotate(90, expand=True)).shape == (3, 48, 32)


def test_a_picture_too_narrow_for_tiles_is_refused():
    with pytest.raises(
        ValueError, match="a picture of 2000×10 is too narrow for data.tiles; cut it, or set data.tiles=null"
    ):
        View(32, tiles=1).shape(2000, 10)
    assert View(32).shape(2000, 10) == (32, 32)


def test_training_takes_random_squares_of_larger_pictures():
    rows, columns = np.mgrid[:20, :30].astype(np.uint8)
    picture = torch.from_numpy(np.stack([rows, columns]))
    generator = torch.Generator().manual_seed(0)
    corners = set()
    for _ in range(300):
        (batch,) = shuffled_batches([picture], 1, 18, generator)
        square = ((batch[0] + 1) * 127.5).round().int()
        top, left = square[:, 0, 0].tolist()
        np.testing.assert_array_equal(square, picture[:, top : top + 18, left : left + 18])
        corners.add((top, left))
    assert {top for top, _ in corners} == set(range(3)) and {left for _, left in corners} == set(range(13))


def test_pictures_are_found_in_all_subfolders_but_the_output(tmp_path):
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


def test_other_files_are_passed_over(category):
    for name in ("Thumbs.db", ".hidden.png", "notes.txt"):
        (category / "train" / "good" / name).write_text("x")
    assert len(ImageFolder(category, "train", View(32))) == 10
    assert ".png" in SUFFIXES


def encoded(size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("L", size, 255).save(file, "PNG")
    return file.getvalue()


PLACES = st.sampled_from(
    (
        *(
            "train/good/a.png",
            "train/good/b.JPG",
            "train/bad/a.png",
            "test/good/a.png",
            "test/crack/c.png",
            "test/crack/c.bmp",
            "test/crack/.c.png",
        ),
        *(
            "test/.hidden/a.png",
            "test/crack/deep/a.png",
            "test/loose.png",
            "test/hole/=1.png",
            "test/con/nul.png",
            "ground_truth/crack/c_mask.png",
        ),
        *(
            "ground_truth/crack/c.png",
            "ground_truth/hole/=1.tif",
            "ground_truth/good/a.png",
            "notes.txt",
            "test/crack/c.txt",
            "test/good",
        ),
    )
)
CONTENTS = st.sampled_from([encoded((6, 4)), encoded((6, 4)), encoded((6, 4)), encoded((4, 6)), b"", b"text"])


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.dictionaries(PLACES, CONTENTS, min_size=3), st.sampled_from(["train", "test"]), st.booleans())
def test_any_layout_is_read_or_refused_with_a_word(files, split, masks):
    """What is read lies where the layout says, once, with the label of its folder and the mask of its name."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "nut"
        root.mkdir()
        for name, content in files.items():
            with contextlib.suppress(OSError):  # a file where another name wants a folder
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes(content)
        try:
            pictures = ImageFolder(root, split, View(8), masks=masks)
        except FileNotFoundError as error:
            assert "\n" not in str(error) and str(root) in str(error)
            return
        assert pictures.names() == sorted(set(pictures.names())) and set(pictures.names()) <= set(files)
        for index, name in enumerate(pictures.names()):
            assert name.count("/") == 2 and name.split("/")[0] == split and not name.split("/")[2].startswith(".")
            try:
                item = pictures[index]
            except ValueError as error:
                assert str(root) in str(error) and "\n" not in str(error)
                continue
            assert (
                item.path == name and item.label == (name.split("/")[1] != "good") and item.picture.shape == (3, 8, 8)
            )
            assert (item.mask is not None) == (masks and item.label)
