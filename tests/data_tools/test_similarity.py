"""Near-duplicates and outliers are found, and splits keep near-duplicates together."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageDraw

from data_tools import similarity
from data_tools.similarity import (
    CommonContent,
    draw_test_groups,
    find_outliers,
    group_near_duplicates,
    group_thumbnails,
    make_thumbnail,
    pairs_between,
    pairs_within,
)

COUNT, SIDE = 40, 400


def draw_object(rng: np.random.Generator) -> Image.Image:
    """Draw a polygon with a disc on it, at any angle, shifted by some pixels, with the noise of a camera."""
    picture = Image.new("L", (SIDE, SIDE), 200)
    pen = ImageDraw.Draw(picture)
    radius, corners, angle = map(int, rng.integers((110, 5, 0), (140, 8, 72)))
    pen.regular_polygon((SIDE / 2, SIDE / 2, radius), corners, angle, fill=90)
    pen.circle(tuple(rng.normal(SIDE / 2, 18, 2)), 30, fill=150)
    return Image.fromarray((np.asarray(picture) + rng.normal(0, 5, (SIDE, SIDE))).clip(0, 255).astype(np.uint8))


def crops_of(name: str) -> Callable[[np.random.Generator], Image.Image]:
    photograph = Image.fromarray(getattr(skimage.data, name)())

    def crop(rng: np.random.Generator) -> Image.Image:
        left, top = map(int, rng.integers(0, np.array(photograph.size) - SIDE))
        return photograph.crop((left, top, left + SIDE, top + SIDE))

    return crop


def as_jpeg(picture: Image.Image) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=75)
    return Image.open(file)


KINDS = {"objects": draw_object, **{name: crops_of(name) for name in ("brick", "grass", "gravel")}}
COPIES = {
    "jpeg": as_jpeg,
    "half": lambda picture: picture.resize((SIDE // 2, SIDE // 2)),
    "brighter": lambda picture: picture.point(lambda value: min(255, value * 1.05 + 4)),
    "colour": lambda picture: picture.convert("RGB"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_copies_share_a_group_and_distinct_pictures_do_not(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(similarity, "ROWS_AT_ONCE", 16)
    rng = np.random.default_rng(0)
    distinct = [KINDS[kind](rng) for _ in range(COUNT)]
    normal = [tmp_path / f"{number}.png" for number in range(COUNT)]
    copies = {tmp_path / f"{name}.png": copy(one) for (name, copy), one in zip(COPIES.items(), distinct, strict=False)}
    for path, picture in {**dict(zip(normal, distinct, strict=True)), **copies}.items():
        picture.save(path)
    assert len(set(group_near_duplicates(normal).values())) == COUNT
    for groups in (group_near_duplicates([*normal, *copies]), group_near_duplicates(normal, list(copies))):
        assert len(set(groups.values())) == COUNT
        assert [groups[copy] for copy in copies] == [groups[path] for path in normal[: len(copies)]]


def test_a_chain_of_near_duplicates_is_one_group():
    """A picture turns into another step by step: only neighbours are near-duplicates."""
    rng = np.random.default_rng(0)
    first, last, *others = rng.normal(128, 30, (COUNT, similarity.SIDE, similarity.SIDE)).astype(np.float32)
    angles = np.linspace(0, np.pi / 2, 9)
    chain = [np.cos(angle) * (first - 128) + np.sin(angle) * (last - 128) + 128 for angle in angles]
    common = CommonContent(np.stack(others))
    groups = group_thumbnails(np.stack([chain[0], chain[-1], *others]), common)
    assert len(set(groups)) == len(groups)
    groups = group_thumbnails(np.stack([chain[0], chain[-1], *others, *chain[1:-1]]), common)
    assert len({*groups[:2], *groups[-7:]}) == 1 and len(set(groups)) == len(others) + 1


def test_two_equal_pictures_are_a_group_although_nothing_else_is_known():
    thumbnail = make_thumbnail(draw_object(np.random.default_rng(0)))
    both = np.stack([thumbnail, thumbnail])
    assert len(set(group_thumbnails(both, CommonContent(both)))) == 1


def test_each_copy_is_in_one_pair():
    rng = np.random.default_rng(4)
    distinct = rng.integers(0, 255, (50, similarity.SIDE, similarity.SIDE)).astype(np.float32)
    burst = distinct[:1] + rng.normal(0, 3, (6, similarity.SIDE, similarity.SIDE)).astype(np.float32)
    common = CommonContent(distinct)
    between = pairs_between(common.residuals(distinct), common.residuals(burst))
    assert list(between) == [(0, number) for number in range(6)]
    pairs = list(pairs_within(common.residuals(np.concatenate([distinct, burst]))))
    assert [second for _, second in pairs] == list(range(50, 56))
    assert all(first in (0, *range(50, 56)) for first, _ in pairs)


@pytest.mark.parametrize("most_degrees", [3, 180], ids=["one position", "any angle"])
def test_pictures_of_one_part_are_neither_near_duplicates_nor_outliers(most_degrees):
    rng, part = np.random.default_rng(2), np.full((160, 160), 200, np.uint8)
    part[50:110, 70:90], part[70:85, 40:120] = 60, 90
    thumbnails = []
    for _ in range(60):
        angle, shift = rng.uniform(-most_degrees, most_degrees), tuple(map(int, rng.integers(-3, 4, 2)))
        turned = Image.fromarray(part).rotate(angle, Image.Resampling.BILINEAR, translate=shift, fillcolor=200)
        noisy = np.asarray(turned) + rng.normal(0, 5, part.shape)
        thumbnails.append(make_thumbnail(Image.fromarray(noisy.clip(0, 255).astype(np.uint8))))
    thumbnails = np.stack(thumbnails)
    assert list(pairs_within(CommonContent(thumbnails).residuals(thumbnails))) == []
    assert find_outliers(thumbnails) == {}


def test_a_set_that_varies_much_has_no_outliers():
    rng = np.random.default_rng(3)
    brightness = np.exp(rng.normal(3, 0.7, 200)).clip(0, 250)[:, None, None]
    noise = rng.normal(0, 3, (200, similarity.SIDE, similarity.SIDE))
    assert find_outliers((brightness + noise).astype(np.float32)) == {}


def number_groups(count, group, root="/a"):
    return {Path(root, f"{number:03}.png"): group(number) for number in range(count)}


def draw(groups, seed=0, required=()):
    root = next(iter(groups)).parent
    return {picture.stem for picture in draw_test_groups(groups, root, seed, required)}


def test_the_seed_draws_whole_groups_in_any_folder_and_order():
    pictures = number_groups(60, lambda number: number // 3)
    groups = {picture.stem: group for picture, group in pictures.items()}
    draws = {seed: draw(pictures, seed) for seed in range(8)}
    for test in draws.values():
        assert len(test) == 12 and not {groups[name] for name in test} & {groups[name] for name in set(groups) - test}
    elsewhere = number_groups(60, lambda number: number // 3, "/b/c")
    assert draws[1] == draw(dict(reversed(elsewhere.items())), 1)
    assert len({frozenset(test) for test in draws.values()}) > 6


def test_required_groups_are_among_the_test_pictures():
    assert {"003", "017"} <= draw(number_groups(20, int), 0, {3, 17, 99})


def test_a_large_group_stays_in_the_training_set():
    assert len(draw(number_groups(20, lambda number: max(0, number - 15)))) == 4
    assert draw(number_groups(20, lambda number: number // 11)) == {f"{number:03}" for number in range(11, 20)}


@pytest.mark.parametrize("count", [1, 2])
def test_one_group_can_not_be_split(count):
    with pytest.raises(ValueError, match=r"normal pictures can't be split .* add normal pictures that differ"):
        draw(number_groups(count, lambda number: 0))
