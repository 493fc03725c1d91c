import io
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from near_duplicates import NEAR, drawn_apart, near_duplicates, perceptual_hash


def photograph(name="brick"):
    return Image.fromarray(getattr(skimage.data, name)())


def distance(a, b):
    return np.count_nonzero(perceptual_hash(a) != perceptual_hash(b))


def as_jpeg(picture):
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=60)
    return Image.open(file)


@pytest.mark.parametrize("name", ["brick", "grass", "gravel"])
@pytest.mark.parametrize(
    "copy",
    [as_jpeg, lambda p: p.resize((200, 300)), lambda p: p.point(lambda v: min(255, int(v * 1.05) + 4)), lambda p: p.convert("RGB")],
    ids=["jpeg", "resized", "brighter", "colour"],
)
def test_copies_are_near_and_other_views_are_not(name, copy):
    picture = photograph(name)
    assert distance(picture, copy(picture)) <= NEAR
    assert distance(picture.crop((0, 0, 256, 256)), picture.crop((256, 256, 512, 512))) > 4 * NEAR


def test_groups_hold_what_is_near_directly_or_by_others_between(monkeypatch):
    rng = np.random.default_rng(0)
    first = np.where(rng.random(255) < 0.5, 1, -1).astype(np.int8)
    chain = [first]
    for step in range(2):
        following = chain[-1].copy()
        following[step * NEAR : (step + 1) * NEAR] *= -1
        chain.append(following)
    hashes = [chain[0], -first, chain[2], chain[1]]
    monkeypatch.setattr("near_duplicates.ROWS", 3)
    groups = near_duplicates(hashes)
    assert groups[0] == groups[2] == groups[3] != groups[1]


def in_groups(count, group, root="/a"):
    return {Path(root, f"{number:03}.png"): group(number) for number in range(count)}


def drawn(groups, seed=0, spoken_for=()):
    root = next(iter(groups)).parent
    return {picture.stem for picture in drawn_apart(groups, root, seed, spoken_for)}


def test_whole_groups_are_drawn_from_a_seed_wherever_they_lie():
    pictures = in_groups(60, lambda number: number // 3)
    groups = {picture.stem: group for picture, group in pictures.items()}
    draws = {seed: drawn(pictures, seed) for seed in range(8)}
    for held in draws.values():
        assert len(held) == 12 and not {groups[name] for name in held} & {groups[name] for name in set(groups) - held}
    assert draws[1] == drawn(dict(reversed(in_groups(60, lambda number: number // 3, "/b/c").items())), 1)
    assert len({frozenset(held) for held in draws.values()}) > 6


def test_groups_of_defective_pictures_are_to_test_with():
    assert {"003", "017"} <= drawn(in_groups(20, int), 0, {3, 17, 99})


def test_a_large_group_stays_to_train_on():
    assert len(drawn(in_groups(20, lambda number: max(0, number - 15)))) == 4
    assert drawn(in_groups(20, lambda number: number // 11)) == {f"{number:03}" for number in range(11, 20)}


@pytest.mark.parametrize("count", [1, 2])
def test_what_cannot_be_divided_is_said(count):
    with pytest.raises(ValueError, match=r"normal pictures can't be divided .* add normal pictures that differ"):
        drawn(in_groups(count, lambda number: 0))
