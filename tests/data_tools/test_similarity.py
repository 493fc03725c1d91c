import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageDraw

from data_tools import similarity
from data_tools.similarity import Common, drawn_apart, groups_of, groups_of_pictures, thumbnail

COUNT, SIDE = 40, 400


def objects(rng: np.random.Generator) -> Image.Image:
    """A polygon with a disc on it, at one place but for some pixels, at any angle, with the noise of a camera."""
    picture = Image.new("L", (SIDE, SIDE), 200)
    pen = ImageDraw.Draw(picture)
    radius, corners, angle = map(int, rng.integers((110, 5, 0), (140, 8, 72)))
    pen.regular_polygon((SIDE / 2, SIDE / 2, radius), corners, angle, fill=90)
    pen.circle(tuple(rng.normal(SIDE / 2, 18, 2)), 30, fill=150)
    return Image.fromarray((np.asarray(picture) + rng.normal(0, 5, (SIDE, SIDE))).clip(0, 255).astype(np.uint8))


def views(name: str) -> Callable[[np.random.Generator], Image.Image]:
    photograph = Image.fromarray(getattr(skimage.data, name)())

    def view(rng: np.random.Generator) -> Image.Image:
        left, top = map(int, rng.integers(0, np.array(photograph.size) - SIDE))
        return photograph.crop((left, top, left + SIDE, top + SIDE))

    return view


def as_jpeg(picture: Image.Image) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=75)
    return Image.open(file)


KINDS = {"objects": objects, **{name: views(name) for name in ("brick", "grass", "gravel")}}
COPIES = {
    "jpeg": as_jpeg,
    "half": lambda picture: picture.resize((SIDE // 2, SIDE // 2)),
    "brighter": lambda picture: picture.point(lambda value: min(255, value * 1.05 + 4)),
    "colour": lambda picture: picture.convert("RGB"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_distinct_pictures_are_no_group_and_copies_are(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(similarity, "AT_ONCE", 16)
    rng = np.random.default_rng(0)
    distinct = [KINDS[kind](rng) for _ in range(COUNT)]
    normal = [tmp_path / f"{number}.png" for number in range(COUNT)]
    copies = {tmp_path / f"{name}.png": copy(one) for (name, copy), one in zip(COPIES.items(), distinct, strict=False)}
    for path, picture in {**dict(zip(normal, distinct, strict=True)), **copies}.items():
        picture.save(path)
    assert len(set(groups_of_pictures(normal).values())) == COUNT
    for groups in (groups_of_pictures([*normal, *copies]), groups_of_pictures(normal, list(copies))):
        assert len(set(groups.values())) == COUNT
        assert [groups[copy] for copy in copies] == [groups[path] for path in normal[: len(copies)]]


def test_groups_hold_what_is_alike_by_others_between():
    """A picture that turns into another step by step: only neighbours are alike."""
    rng = np.random.default_rng(0)
    first, last, *others = rng.normal(128, 30, (COUNT, similarity.SIDE, similarity.SIDE)).astype(np.float32)
    angles = np.linspace(0, np.pi / 2, 9)
    chain = [np.cos(angle) * (first - 128) + np.sin(angle) * (last - 128) + 128 for angle in angles]
    others = np.stack(others)
    common = Common(others)
    groups = groups_of(np.stack([chain[0], chain[-1], *others]), common)
    assert len(set(groups)) == len(groups)
    groups = groups_of(np.stack([chain[0], chain[-1], *others, *chain[1:-1]]), common)
    assert len({*groups[:2], *groups[-7:]}) == 1 and len(set(groups)) == len(others) + 1


def test_equal_pictures_are_a_group_in_the_smallest_set():
    """Of two there is nothing to learn what is common."""
    one = thumbnail(objects(np.random.default_rng(0)))
    both = np.stack([one, one])
    assert len(set(groups_of(both, Common(both)))) == 1


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
