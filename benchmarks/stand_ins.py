"""python -m benchmarks.stand_ins FOLDER [--seed 0]: five drawn categories in the MVTec AD layout, for what the real ones at hand lack.

| category          | normal pictures                                     | defects                                                    |
|-------------------|-----------------------------------------------------|------------------------------------------------------------|
| `rotated_part`    | a machined part, at any rotation, lit from one side | pits, scratches and nicks of 2 to 5 pixels                 |
| `cracked_surface` | rough plaster                                       | a crack of a pixel or two, faint to plain                  |
| `assembly`        | a board with pieces in their places                 | one is missing, moved or turned around                     |
| `many_objects`    | some forty tablets anywhere                         | one is chipped, speckled or of another size                |
| `woven_cloth`     | a plain weave                                       | a thread of another colour, one that is missing, a thin spot |

They are 384 pixels square, 100 to train on, 36 normal and 36 defective to test.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from skimage.filters import gaussian

from data_tools.sample_set import save_picture

Pixels = NDArray[np.float32]  # (SIDE, SIDE, 3) in 0…1
SIDE = 384
FINE = 2  # times as large as they are kept, pictures are drawn
TRAINING, NORMAL, OF_A_KIND = 100, 36, 12
NOISE = 0.008  # of the camera
LEAST_CHANGE = 4 / 255  # of a channel, from which a pixel belongs to a defect


class Category(NamedTuple):
    """`draw(rng, kind)` is a picture, normal where the kind is empty; the same `rng` gives the same one but for the defect."""

    draw: Callable[[np.random.Generator, str], Pixels]
    kinds: tuple[str, ...]


def rotated_part(rng: np.random.Generator, kind: str) -> Pixels:
    side, middle = FINE * SIDE, FINE * SIDE / 2
    rows, columns = np.mgrid[:side, :side].astype(np.float32) - np.float32(middle)
    radius, angle = np.hypot(rows, columns) / middle, np.arctan2(rows, columns)
    turn, light = rng.uniform(0, 2 * np.pi), rng.uniform(0.95, 1.05)
    outline = 0.72 + 0.05 * np.cos(6 * (angle - turn)).clip(-0.4, 0.4)
    part = (radius < outline) & (radius > 0.28)
    for hole in range(3):
        place = turn + hole * 2 * np.pi / 3 + (0.35 if hole == 0 else 0)  # one sits askew: every rotation can be told
        part &= np.hypot(rows / middle - 0.5 * np.sin(place), columns / middle - 0.5 * np.cos(place)) > 0.07
    grooves = 0.05 * np.cos(2 * np.pi * radius * 42) * (radius < 0.45) + 0.02 * np.cos(9 * (angle - turn) + 30 * radius)
    shade = (0.58 + 0.09 * np.cos(angle - 0.7) + grooves) * light + 0.02 * grain(rng, side, 3)
    rim = gaussian(part.astype(np.float32), 3 * FINE)
    surface = shade * (0.6 + 0.4 * rim)
    where, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 0.62)
    spot = middle + middle * reach * np.array([np.cos(where), np.sin(where)])
    size, tone, way = rng.uniform(2, 5) * FINE, rng.choice([-0.25, 0.25]), rng.uniform(0, np.pi)
    if kind == "pit":
        surface = surface + tone * dot(side, spot, size / 2)
    elif kind == "scratch":
        along = 5 * size * np.array([np.cos(way), np.sin(way)])
        surface = surface + tone * line(side, [spot - along / 2, spot + along / 2], 1.2 * FINE)
    elif kind == "nick":
        edge = middle + middle * 0.71 * np.array([np.cos(where), np.sin(where)])
        part = part & (dot(side, edge, 1.5 * size) < 0.5)
    background = 0.12 + 0.01 * grain(rng, side, 6)
    return coloured(np.where(part, surface, background), (1.0, 0.99, 0.96))


def cracked_surface(rng: np.random.Generator, kind: str) -> Pixels:
    side = FINE * SIDE
    surface = 0.62 + 0.05 * grain(rng, side, 2) + 0.04 * grain(rng, side, 8) + 0.04 * grain(rng, side, 40)
    turns = rng.normal(0, 0.3, 60).cumsum() + rng.uniform(0, 2 * np.pi)
    steps = np.stack([np.cos(turns), np.sin(turns)], axis=1) * rng.uniform(0.006, 0.016, (60, 1)) * side
    points = steps.cumsum(axis=0) - steps.sum(axis=0) / 2 + rng.uniform(0.35, 0.65, 2) * side
    depth = {"": 0.0, "faint": 0.1, "plain": 0.2, "deep": 0.35}[kind]
    return coloured(surface - depth * line(side, points, rng.uniform(1, 2) * FINE), (1.0, 0.97, 0.92))


def assembly(rng: np.random.Generator, kind: str) -> Pixels:
    side = FINE * SIDE
    board = np.random.default_rng(7)  # the same on all pictures
    image = Image.new("RGB", (side, side), (38, 92, 60))
    pen = ImageDraw.Draw(image)
    for _ in range(14):
        x, y, bend = board.uniform(0, 1, 3) * side
        pen.line([(0, y), (x, y), (x, bend), (side, bend)], fill=(58, 120, 80), width=3 * FINE)
    places = [(0.18 + 0.22 * column, 0.2 + 0.2 * row) for row in range(4) for column in range(4)]
    sizes = board.uniform(0.045, 0.08, (len(places), 2))
    tones = board.integers(0, 3, len(places))
    wrong, shift = int(rng.integers(len(places))), rng.choice([-1, 1]) * rng.uniform(0.03, 0.05)
    for number, ((x, y), (half_width, half_height), tone) in enumerate(zip(places, sizes, tones, strict=True)):
        x, y = x + rng.normal(0, 0.002), y + rng.normal(0, 0.002)
        change = kind if number == wrong else ""
        pads = [(x - half_width, y), (x + half_width, y)]
        for pad in pads:
            pen.rectangle(box(pad, 0.018, 0.028, side), fill=(196, 190, 170))
        if change == "missing":
            continue
        if change == "moved":
            y += shift
        pen.rectangle(
            box((x, y), half_width, half_height, side), fill=[(28, 28, 30), (150, 120, 80), (60, 66, 110)][tone]
        )
        stripe = x + (half_width if change == "turned" else -half_width) * 0.6
        pen.rectangle(box((stripe, y), half_width * 0.18, half_height, side), fill=(225, 225, 220))
    drawn = np.asarray(image, np.float32) / 255 * np.float32(rng.uniform(0.94, 1.06))
    moved = np.roll(drawn, rng.integers(-4, 5, 2) * FINE, (0, 1))
    return (moved + 0.012 * grain(rng, side, 3)[..., None]).astype(np.float32)


def many_objects(rng: np.random.Generator, kind: str) -> Pixels:
    side = FINE * SIDE
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    picture = coloured(0.3 + 0.015 * grain(rng, side, 5), (0.9, 0.95, 1.0))
    cells = [(row, column) for row in range(7) for column in range(6)]
    present = [cell for cell in cells if rng.uniform() < 0.95]
    wrong = int(rng.integers(len(present)))
    for number, (row, column) in enumerate(present):
        centre = (np.array([row, column]) + 0.5 + rng.uniform(-0.12, 0.12, 2)) / (7, 6) * side
        radius, tone, way = rng.uniform(0.048, 0.052) * side, rng.uniform(0.8, 0.88), rng.uniform(0, np.pi)
        spot = centre + radius * rng.uniform(0.3, 0.6) * unit(rng.uniform(0, 2 * np.pi))
        change = kind if number == wrong else ""
        radius *= 0.8 if change == "smaller" else 1
        distance = np.hypot(rows - centre[0], columns - centre[1]) / radius
        body = distance < 1
        if change == "chipped":
            edge = centre + radius * unit(way)
            body &= np.hypot(rows - edge[0], columns - edge[1]) > 0.38 * radius
        shade = tone * (1 - 0.18 * distance**4) - 0.12 * (
            np.abs((rows - centre[0]) * np.cos(way) + (columns - centre[1]) * np.sin(way)) < 1.5 * FINE
        )
        if change == "speckled":
            shade = shade - 0.3 * dot(side, spot, 2 * FINE)
        picture = np.where(body[..., None], coloured(shade, (1.0, 0.94, 0.86)), picture)
    return picture


def woven_cloth(rng: np.random.Generator, kind: str) -> Pixels:
    side, threads = FINE * SIDE, 48
    pitch = side / threads
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    sway = 0.12 * pitch * grain(rng, side, 25), 0.12 * pitch * grain(rng, side, 25)
    down, across = (rows + sway[0] + rng.uniform(0, pitch)) / pitch, (columns + sway[1] + rng.uniform(0, pitch)) / pitch
    weft, warp = down.astype(int), across.astype(int)
    over = (weft + warp) % 2 == 0
    tones = 0.5 + 0.03 * rng.standard_normal((2, threads + 3))
    which, first, length = int(rng.integers(8, threads - 8)), int(rng.integers(6, 20)), int(rng.integers(8, 20))
    spot, reach = rng.uniform(0.2, 0.8, 2) * side, rng.uniform(8, 14) * FINE
    run = (weft == which) & (warp >= first) & (warp < first + length)
    if kind == "missing":
        over = over & ~run
    bulge = np.where(over, np.sin(np.pi * (down % 1)), np.sin(np.pi * (across % 1)))
    shade = np.where(over, tones[0][weft], tones[1][warp]) * (0.45 + 0.55 * bulge)
    if kind == "missing":
        shade = np.where(run & ((weft + warp) % 2 == 0), 0.75 * shade, shade)
    if kind == "thin":
        shade = shade * (1 - 0.4 * gaussian(dot(side, spot, reach), FINE))
    shade = shade + 0.02 * grain(rng, side, 2)
    picture = coloured(shade, (0.75, 0.85, 1.0))
    return (
        np.where((run & over)[..., None], picture * np.array([1.3, 0.95, 0.7], np.float32), picture)
        if kind == "coloured"
        else picture
    )


CATEGORIES: Mapping[str, Category] = {
    "rotated_part": Category(rotated_part, ("pit", "scratch", "nick")),
    "cracked_surface": Category(cracked_surface, ("faint", "plain", "deep")),
    "assembly": Category(assembly, ("missing", "moved", "turned")),
    "many_objects": Category(many_objects, ("chipped", "speckled", "smaller")),
    "woven_cloth": Category(woven_cloth, ("coloured", "missing", "thin")),
}


def unit(angle: float) -> NDArray[np.float64]:
    return np.array([np.sin(angle), np.cos(angle)])


def grain(rng: np.random.Generator, side: int, sigma: float) -> Pixels:
    """Noise of unit spread with specks of `sigma` kept pixels, (side, side)."""
    coarse = max(1, round(sigma * FINE / 3))
    cells = rng.standard_normal((side // coarse + 2,) * 2).astype(np.float32)
    smooth = gaussian(cells, sigma * FINE / coarse)
    large = np.asarray(Image.fromarray(smooth).resize((side, side), Image.Resampling.BICUBIC))
    return (large - large.mean()) / large.std()


def dot(side: int, centre: NDArray, radius: float) -> Pixels:
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    return (np.hypot(rows - centre[0], columns - centre[1]) < radius).astype(np.float32)


def line(side: int, points: "list[NDArray] | NDArray", width: float) -> Pixels:
    canvas = Image.new("L", (side, side))
    ImageDraw.Draw(canvas).line(
        [(float(column), float(row)) for row, column in points], fill=255, width=max(1, round(width)), joint="curve"
    )
    return np.asarray(canvas).astype(np.float32) / np.float32(255)


def box(
    centre: tuple[float, float], half_width: float, half_height: float, side: int
) -> tuple[float, float, float, float]:
    (x, y) = centre
    return ((x - half_width) * side, (y - half_height) * side, (x + half_width) * side, (y + half_height) * side)


def coloured(grey: NDArray, tint: tuple[float, float, float]) -> Pixels:
    return (grey[..., None] * np.array(tint, np.float32)).astype(np.float32)


def kept(drawn: Pixels) -> Pixels:
    """At the size in which it is kept: means over FINE × FINE."""
    return drawn.reshape(SIDE, FINE, SIDE, FINE, 3).mean(axis=(1, 3)).clip(0, 1)


def make(folder: Path, category: Category, seed: int) -> None:
    """The category's pictures and masks; a mask is what differs from the picture without the defect."""

    def picture(number: int, kind: str = "") -> tuple[Pixels, Pixels]:
        normal, drawn = (kept(category.draw(np.random.default_rng([seed, number]), wanted)) for wanted in ("", kind))
        mask = np.abs(drawn - normal).max(axis=2) >= LEAST_CHANGE
        noise = np.random.default_rng([seed, number, 1]).normal(0, NOISE, drawn.shape)
        return (drawn + noise).astype(np.float32), mask.astype(np.float32)

    for number in range(TRAINING):
        save_picture(folder / "train" / "good" / f"{number:03}.png", picture(number)[0])
    for number in range(NORMAL):
        save_picture(folder / "test" / "good" / f"{number:03}.png", picture(TRAINING + number)[0])
    for place, kind in enumerate(category.kinds):
        for number in range(OF_A_KIND):
            drawn, mask = picture(TRAINING + NORMAL + place * OF_A_KIND + number, kind)
            save_picture(folder / "test" / kind / f"{number:03}.png", drawn)
            save_picture(folder / "ground_truth" / kind / f"{number:03}_mask.png", mask)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stand_ins", description="Draws five categories in the MVTec AD layout."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name, category in CATEGORIES.items():
        make(options.folder / name, category, options.seed)
        print(options.folder / name, flush=True)


if __name__ == "__main__":
    main()
