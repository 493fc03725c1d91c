import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import write_picture
from PIL import Image

from dataset import ImageFolder, View
from training.pixel_cache import BYTES_PER_GB, SUFFIX, cached_pixels, entry_key

SQUARES = View(32)
PICTURE_BYTES = 10 * 3 * 32 * 32  # of the ten pictures of `category` at 32 pixels


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def decoded(category, view=SQUARES):
    return ImageFolder(category, "train", view).pixels(1)


def cached(category, folder, view=SQUARES, limit=1.0):
    return cached_pixels(ImageFolder(category, "train", view), workers=2, folder=folder, limit=limit)


def assert_same(found, expected):
    assert [picture.dtype for picture in found] == [torch.uint8] * len(expected)
    torch.testing.assert_close(list(found), list(expected), rtol=0, atol=0)


def entries(folder):
    return sorted(folder.iterdir()) if folder.is_dir() else []


def change_unnoticed(category):
    """Change a picture's file, but neither its size nor its time."""
    path = category / "train" / "good" / "000.png"
    before = path.stat()
    path.write_bytes(b"x" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_pictures_are_decoded_once(category, folder):
    expected = decoded(category)
    assert_same(cached(category, folder), expected)
    change_unnoticed(category)
    assert_same(cached(category, folder), expected)
    assert len(entries(folder)) == 1


def test_without_a_folder_nothing_is_kept(category, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert_same(cached(category, None), decoded(category))
    assert sorted(tmp_path.rglob("*")) == before


def test_changed_and_new_pictures_and_other_views_are_noticed(category, folder):
    cached(category, folder)
    good = category / "train" / "good"
    write_picture(good / "000.png", np.full((48, 48, 3), 9, np.uint8))
    assert_same(cached(category, folder), decoded(category))
    write_picture(good / "new.png", np.full((48, 48, 3), 7, np.uint8))
    assert_same(cached(category, folder), decoded(category))
    for view in (View(16), View(32, channels=1), View(32, tiles=2)):
        assert_same(cached(category, folder, view), decoded(category, view))
    assert len(entries(folder)) == 6


def test_tiled_pictures_keep_their_shapes(category, folder):
    Image.new("RGB", (96, 48)).save(category / "train" / "good" / "wide.png")
    for _ in range(2):
        shapes = [picture.shape for picture in cached(category, folder, View(32, tiles=1))]
        assert shapes == [(3, 32, 32)] * 10 + [(3, 32, 64)]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[:9],
        lambda content: content[:99] + b"!" + content[100:],
    ],
    ids=["empty", "cut", "a few bytes", "a byte"],
)
def test_a_damaged_entry_is_noticed_and_made_again(category, folder, damage, capsys):
    cached(category, folder)
    (path,) = entries(folder)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert_same(cached(category, folder), decoded(category))
    assert "is damaged and is made again" in capsys.readouterr().out and path.read_bytes() == whole


def test_the_entry_used_longest_ago_makes_room(category, folder):
    views = [View(32), View(32, channels=1), View(16), View(8)]
    paths = [folder / f"{entry_key(ImageFolder(category, 'train', view))}{SUFFIX}" for view in views]
    for view, path, time in zip(views[:3], paths, (10, 20, 30), strict=False):
        cached(category, folder, view)
        os.utime(path, (time, time))
    cached(category, folder, views[0])  # now it is the one used last
    cached(category, folder, views[3], limit=1.5 * PICTURE_BYTES / BYTES_PER_GB)
    assert entries(folder) == sorted([paths[0], paths[2], paths[3]])


def test_pictures_larger_than_the_limit_are_not_kept(category, folder, capsys):
    assert_same(cached(category, folder, limit=0.9 * PICTURE_BYTES / BYTES_PER_GB), decoded(category))
    assert (
        "decoded pictures are not kept: they take 3.07e-05 GB, speed.cache_limit is 2.76e-05 GB; raise it"
        in capsys.readouterr().out
    )
    assert entries(folder) == []


def test_a_folder_that_cannot_be_written_is_reported_in_a_line(category, folder, capsys):
    folder.write_text("a file")
    assert_same(cached(category, folder), decoded(category))
    said = capsys.readouterr().out
    assert (
        said.startswith("decoded pictures are not kept: can't write")
        and "change speed.cache" in said
        and said.count("\n") == 1
    )


def test_runs_that_write_an_entry_at_once_do_not_collide(category, folder):
    expected = decoded(category)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: cached(category, folder), range(4)):
            assert_same(found, expected)
    assert len(entries(folder)) == 1


def test_temporary_files_of_a_killed_run_are_removed(category, folder):
    folder.mkdir()
    (folder / ".entry.pixels.0123abcd.part").write_bytes(b"half")
    cached(category, folder)
    assert len(entries(folder)) == 1


def test_stages_read_their_pictures_from_the_cache(run_main, tmp_path, folder):
    weights = []
    for place in ("null", folder, folder):
        assert run_main("--train", f"speed.cache={place}")[0] == 0
        weights.append(torch.load(tmp_path / "checkpoints" / "nut" / "2", weights_only=True)["weights"])
    torch.testing.assert_close(weights[1:], weights[:1] * 2, rtol=0, atol=0)
    (entry,) = entries(folder)
    entry.unlink()
    assert run_main("--domain_adaptation", "model.DA_epochs=0", f"speed.cache={folder}")[0] == 0
    assert entries(folder) == [entry]  # both stages learn from the same pictures
