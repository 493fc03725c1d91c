"""Pictures that resemble each other because of when or where they were taken."""

import numpy as np
import pytest

from runtime.errors import UserError
from training.dependence import Dependence, measure_dependence

COUNT, WIDTH = 90, 20
NUMBERED = [f"train/good/{number:03}.png" for number in range(COUNT)]


def noise(count=COUNT, seed=0):
    return np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)


def frames(memory=0.95, seed=0):
    """Return descriptors of frames, each of which resembles the one before."""
    found = noise(seed=seed)
    for number in range(1, COUNT):
        found[number] += memory * found[number - 1]
    return found


def related(dependence, index):
    return dependence.related(index, COUNT).nonzero()[0].tolist()


@pytest.mark.parametrize("seed", range(5))
def test_pictures_in_random_order_are_independent(seed):
    assert measure_dependence(noise(seed=seed), NUMBERED, "auto", seed) == Dependence()


@pytest.mark.parametrize("seed", range(3))
def test_frames_in_a_row_are_few_independent_pictures(seed):
    found = measure_dependence(frames(seed=seed), NUMBERED, "auto", 0)
    assert 2 <= found.independent(COUNT) <= 20 and found.reach >= 5 and "neighbours in file order" in found.found
    assert related(found, 30) == list(range(30 - found.reach, 31 + found.reach))
    assert related(found, 0) == list(range(found.reach + 1))
    shuffled = np.random.default_rng(1).permutation(frames(seed=seed))
    assert measure_dependence(shuffled, NUMBERED, "auto", 0) == Dependence()


def test_pictures_of_one_item_are_left_out_together():
    items = np.repeat(noise(COUNT // 3), 3, axis=0) + 0.5 * noise(seed=1)
    names = [f"train/good/bolt{number // 3:02}_Part{number % 3}.png" for number in range(COUNT)]
    found = measure_dependence(items, names, "auto", 0)
    assert COUNT / 3 <= found.independent(COUNT) < COUNT / 2 and "bolt" in found.found
    assert related(found, 7) == [6, 7, 8]


def test_items_are_found_in_any_order_of_the_files():
    items = np.tile(noise(COUNT // 3), (3, 1)) + 0.5 * noise(seed=1)
    names = [f"train/good/day{number % 30:02}_{number // 30}.png" for number in range(COUNT)]
    assert related(measure_dependence(items, names, "auto", 0), 7) == [7, 37, 67]


@pytest.mark.parametrize("count", [1, 2, 7])
def test_few_pictures_tell_nothing(count):
    found = measure_dependence(noise(count), NUMBERED[:count], "auto", 0)
    assert found.independent(count) == count and found.related(0, count).sum() == 1


def test_equal_pictures_tell_nothing():
    assert measure_dependence(np.ones((COUNT, WIDTH), np.float32), NUMBERED, "auto", 0) == Dependence()


def test_groups_that_the_user_names_are_taken():
    items = np.repeat(noise(COUNT // 9), 9, axis=0) + noise(seed=1)
    names = [f"train/good/{number % 9}_day{number // 9:02}.png" for number in range(COUNT)]
    found = measure_dependence(items, names, r"day\d+", 0)
    assert related(found, 10) == list(range(9, 18)) and "names 10 groups (correlation 0.4" in found.found
    assert 10 < found.independent(COUNT) < 30
    assert measure_dependence(items, names, None, 0) == Dependence()


@pytest.mark.parametrize(("pattern", "text"), [("(", "no regular expression"), ("week", "no file name contains")])
def test_a_pattern_that_fits_no_name_is_refused(pattern, text):
    with pytest.raises(UserError, match=text):
        measure_dependence(noise(), NUMBERED, pattern, 0)


def test_named_groups_are_held_out_whole(run_main, category):
    paths = sorted((category / "train" / "good").iterdir())
    for number, path in enumerate(paths):
        path.rename(path.with_name(f"item{number // 2}_{number % 2}.png"))
    out = run_main("--train", "--detection", r"calibration.groups=item\d+")[1]
    assert "2 more are held out" in out and "about 1 independent ones as calibration.groups" in out
    for flag in ("--train", "--detection"):
        code, _, err = run_main(flag, "calibration.groups=item", "score.parts=[memory]")
        assert code == 2 and "puts all pictures into one group, 'item'; write one that tells items apart" in err
    code, _, err = run_main("--train", r"calibration.groups=lot\d+")
    assert code == 2 and "no file name contains (such as item0_0)" in err
