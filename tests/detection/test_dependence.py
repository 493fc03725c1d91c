"""Pictures that resemble each other because of when or where they were taken."""

import numpy as np
import pytest

from detection.dependence import Dependence, measure_dependence

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


@pytest.mark.parametrize("seed", range(5))
def test_pictures_in_random_order_are_independent(seed):
    assert measure_dependence(noise(seed=seed), NUMBERED, seed) == Dependence(COUNT, independent=COUNT)


@pytest.mark.parametrize("seed", range(3))
def test_frames_in_a_row_are_few_independent_pictures(seed):
    found = measure_dependence(frames(seed=seed), NUMBERED, 0)
    assert 2 <= found.independent <= 20 and found.reach >= 5 and "neighbours in file order" in found.found
    assert found.relatives(30).tolist() == list(range(30 - found.reach, 31 + found.reach))
    assert found.relatives(0).tolist() == list(range(found.reach + 1))
    shuffled = np.random.default_rng(1).permutation(frames(seed=seed))
    assert measure_dependence(shuffled, NUMBERED, 0).independent == COUNT


def test_pictures_of_one_item_are_left_out_together():
    items = np.repeat(noise(COUNT // 3), 3, axis=0) + 0.5 * noise(seed=1)
    names = [f"train/good/bolt{number // 3:02}_Part{number % 3}.png" for number in range(COUNT)]
    found = measure_dependence(items, names, 0)
    assert COUNT / 3 <= found.independent < COUNT / 2 and "bolt" in found.found
    assert found.relatives(7).tolist() == [6, 7, 8]


def test_items_are_found_in_any_order_of_the_files():
    items = np.tile(noise(COUNT // 3), (3, 1)) + 0.5 * noise(seed=1)
    names = [f"train/good/day{number % 30:02}_{number // 30}.png" for number in range(COUNT)]
    assert measure_dependence(items, names, 0).relatives(7).tolist() == [7, 37, 67]


@pytest.mark.parametrize("count", [1, 2, 7])
def test_few_pictures_tell_nothing(count):
    found = measure_dependence(noise(count), NUMBERED[:count], 0)
    assert found.independent == count and found.relatives(0).tolist() == [0]


def test_equal_pictures_tell_nothing():
    assert measure_dependence(np.ones((COUNT, WIDTH), np.float32), NUMBERED, 0).independent == COUNT
