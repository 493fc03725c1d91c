import io

import numpy as np
import pytest
import skimage.data
from PIL import Image

from likeness import NEAR, drawn_apart, near_duplicates, perceptual_hash


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
    monkeypatch.setattr("likeness.ROWS", 3)
    groups = near_duplicates(hashes)
    assert groups[0] == groups[2] == groups[3] != groups[1]


def test_whole_groups_are_drawn_from_a_seed():
    groups = {f"{number:03}": number // 3 for number in range(60)}
    draws = {seed: drawn_apart(groups, seed) for seed in range(8)}
    for held in draws.values():
        assert len(held) == 12 and not {groups[name] for name in held} & {groups[name] for name in set(groups) - held}
    assert draws[1] == drawn_apart(dict(reversed(groups.items())), 1)
    assert len({frozenset(held) for held in draws.values()}) > 6


def test_groups_of_defective_pictures_are_to_test_with():
    groups = {f"{number:03}": number for number in range(20)}
    assert {"003", "017"} <= drawn_apart(groups, 0, {3, 17, 99})


def test_a_large_group_stays_to_train_on():
    groups = {f"{number:03}": 0 if number < 15 else number for number in range(20)}
    assert drawn_apart(groups, 0) == {f"{number:03}" for number in range(15, 19)} or all(groups[name] for name in drawn_apart(groups, 0))


@pytest.mark.parametrize("groups", [{"a": 0}, {"a": 0, "b": 0}])
def test_what_cannot_be_divided_is_said(groups):
    with pytest.raises(ValueError, match="normal pictures can't be divided .* add normal pictures that differ"):
        drawn_apart(groups, 0)
