"""Draw five categories in the MVTec AD layout.

    python -m benchmarks.synthetic_categories FOLDER [--seed 0]

They have what bottle, capsules and magnetic tiles lack:

| category          | normal pictures                     | defects                                        |
|-------------------|-------------------------------------|------------------------------------------------|
| `rotated_part`    | a machined part at any rotation     | pits, scratches and nicks of 2 to 5 pixels     |
| `cracked_surface` | rough plaster                       | a crack of 1 or 2 pixels: faint, plain or deep |
| `assembly`        | a board with pieces in fixed places | a missing, moved or turned piece               |
| `many_objects`    | about forty tablets                 | a chipped, speckled or smaller tablet          |
| `woven_cloth`     | a plain weave                       | a coloured or missing thread, a thin spot      |

Pictures are squares of 384 pixels: 100 to train on, 36 normal and 36 defective ones to test. A mask holds the pixels in
which a picture differs from the same picture without its defect.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from skimage.filters import gaussian

from data_tools.sample_set import save_picture

Pixels = NDArray[np.float32]  # (SIDE, SIDE, 3) in 0…1
SIDE = 384
OVERSAMPLING = 2  # pictures are drawn this many times as large, and averaged
TRAINING, NORMAL, DEFECTIVE = 100, 36, 12  # pictures; DEFECTIVE of each kind
NOISE = 0.008  # standard deviation of the camera's noise
LEAST_CHANGE = 4 / 255  # of a channel, from which on a pixel belongs to the defect


class Category(NamedTuple):
    """Draws pictures: `draw(rng, kind)` with a defect of this kind, or a normal one where `kind` is empty.

    Generators of the same state give the same picture, but for the defect.
    """

    draw: Callable[[np.random.Generator, str], Pixels]
    kinds: tuple[str, ...]


def rotated_part(rng: np.random.Generator, kind: str) -> Pixels:
    side, middle = OVERSAMPLING * SIDE, OVERSAMPLING * SIDE / 2
    rows, columns = np.mgrid[:side, :side].astype(np.float32) - np.float32(middle)
    radius, angle = np.hypot(rows, columns) / middle, np.arctan2(rows, columns)
    turn, light = rng.uniform(0, 2 * np.pi), rng.uniform(0.95, 1.05)
    outline = 0.72 + 0.05 * np.cos(6 * (angle - turn)).clip(-0.4, 0.4)
    part = (radius < outline) & (radius > 0.28)
    for hole in range(3):
        place = turn + hole * 2 * np.pi / 3 + (0.35 if hole == 0 else 0)  # one is off: no rotation repeats another
        part &= np.hypot(rows / middle - 0.5 * np.sin(place), columns / middle - 0.5 * np.cos(place)) > 0.07
    grooves = 0.05 * np.cos(2 * np.pi * radius * 42) * (radius < 0.45) + 0.02 * np.cos(9 * (angle - turn) + 30 * radius)
    shade = (0.58 + 0.09 * np.cos(angle - 0.7) + grooves) * light + 0.02 * grain(rng, side, 3)
    rim = gaussian(part.astype(np.float32), 3 * OVERSAMPLING)
    surface = shade * (0.6 + 0.4 * rim)
    bearing, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 0.62)
    spot = middle + middle * reach * np.array([np.cos(bearing), np.sin(bearing)])
    size, tone, direction = rng.uniform(2, 5) * OVERSAMPLING, rng.choice([-0.25, 0.25]), rng.uniform(0, np.pi)
    if kind == "pit":
        surface = surface + tone * disc(side, spot, size / 2)
    elif kind == "scratch":
        along = 5 * size * np.array([np.cos(direction), np.sin(direction)])
        surface = surface + tone * stroke(side, [spot - along / 2, spot + along / 2], 1.2 * OVERSAMPLING)
    elif kind == "nick":
        edge = middle + middle * 0.71 * np.array([np.cos(bearing), np.sin(bearing)])
        part = part & (disc(side, edge, 1.5 * size) < 0.5)
    background = 0.12 + 0.01 * grain(rng, side, 6)
    return tint_grey(np.where(part, surface, background), (1.0, 0.99, 0.96))


def cracked_surface(rng: np.random.Generator, kind: str) -> Pixels:
    side = OVERSAMPLING * SIDE
    surface = 0.62 + 0.05 * grain(rng, side, 2) + 0.04 * grain(rng, side, 8) + 0.04 * grain(rng, side, 40)
    turns = rng.normal(0, 0.3, 60).cumsum() + rng.uniform(0, 2 * np.pi)
    steps = np.stack([np.cos(turns), np.sin(turns)], axis=1) * rng.uniform(0.006, 0.016, (60, 1)) * side
    points = steps.cumsum(axis=0) - steps.sum(axis=0) / 2 + rng.uniform(0.35, 0.65, 2) * side
    depth = {"": 0.0, "faint": 0.1, "plain": 0.2, "deep": 0.35}[kind]
    return tint_grey(surface - depth * stroke(side, points, rng.uniform(1, 2) * OVERSAMPLING), (1.0, 0.97, 0.92))


def assembly(rng: np.random.Generator, kind: str) -> Pixels:
    side = OVERSAMPLING * SIDE
    board = np.random.default_rng(7)  # the same board on all pictures
    image = Image.new("RGB", (side, side), (38, 92, 60))
    pen = ImageDraw.Draw(image)
    for _ in range(14):
        x, y, bend = board.uniform(0, 1, 3) * side
        pen.line([(0, y), (x, y), (x, bend), (side, bend)], fill=(58, 120, 80), width=3 * OVERSAMPLING)
    places = [(0.18 + 0.22 * column, 0.2 + 0.2 * row) for row in range(4) for column in range(4)]
    sizes = board.uniform(0.045, 0.08, (len(places), 2))
    tones = board.integers(0, 3, len(places))
    damaged, shift = int(rng.integers(len(places))), rng.choice([-1, 1]) * rng.uniform(0.03, 0.05)
    for number, ((x, y), (half_width, half_height), tone) in enumerate(zip(places, sizes, tones, strict=True)):
        x, y = x + rng.normal(0, 0.002), y + rng.normal(0, 0.002)
        change = kind if number == damaged else ""
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
    picture = np.asarray(image, np.float32) / 255 * np.float32(rng.uniform(0.94, 1.06))
    shifted = np.roll(picture, rng.integers(-4, 5, 2) * OVERSAMPLING, (0, 1))
    return (shifted + 0.012 * grain(rng, side, 3)[..., None]).astype(np.float32)


def many_objects(rng: np.random.Generator, kind: str) -> Pixels:
    side = OVERSAMPLING * SIDE
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    picture = tint_grey(0.3 + 0.015 * grain(rng, side, 5), (0.9, 0.95, 1.0))
    cells = [(row, column) for row in range(7) for column in range(6)]
    present = [cell for cell in cells if rng.uniform() < 0.95]
    damaged = int(rng.integers(len(present)))
    for number, (row, column) in enumerate(present):
        centre = (np.array([row, column]) + 0.5 + rng.uniform(-0.12, 0.12, 2)) / (7, 6) * side
        radius, tone, direction = rng.uniform(0.048, 0.052) * side, rng.uniform(0.8, 0.88), rng.uniform(0, np.pi)
        spot = centre + radius * rng.uniform(0.3, 0.6) * unit(rng.uniform(0, 2 * np.pi))
        change = kind if number == damaged else ""
        radius *= 0.8 if change == "smaller" else 1
        distance = np.hypot(rows - centre[0], columns - centre[1]) / radius
        body = distance < 1
        if change == "chipped":
            edge = centre + radius * unit(direction)
            body &= np.hypot(rows - edge[0], columns - edge[1]) > 0.38 * radius
        shade = tone * (1 - 0.18 * distance**4) - 0.12 * (
            np.abs((rows - centre[0]) * np.cos(direction) + (columns - centre[1]) * np.sin(direction))
            < 1.5 * OVERSAMPLING
        )
        if change == "speckled":
            shade = shade - 0.3 * disc(side, spot, 2 * OVERSAMPLING)
        picture = np.where(body[..., None], tint_grey(shade, (1.0, 0.94, 0.86)), picture)
    return picture


def woven_cloth(rng: np.random.Generator, kind: str) -> Pixels:
    side, threads = OVERSAMPLING * SIDE, 48
    pitch = side / threads
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    sway = 0.12 * pitch * grain(rng, side, 25), 0.12 * pitch * grain(rng, side, 25)
    down, across = (rows + sway[0] + rng.uniform(0, pitch)) / pitch, (columns + sway[1] + rng.uniform(0, pitch)) / pitch
    weft, warp = down.astype(int), across.astype(int)
    over = (weft + warp) % 2 == 0
    tones = 0.5 + 0.03 * rng.standard_normal((2, threads + 3))
    thread, first, length = int(rng.integers(8, threads - 8)), int(rng.integers(6, 20)), int(rng.integers(8, 20))
    spot, reach = rng.uniform(0.2, 0.8, 2) * side, rng.uniform(8, 14) * OVERSAMPLING
    run = (weft == thread) & (warp >= first) & (warp < first + length)
    if kind == "missing":
        over = over & ~run
    bulge = np.where(over, np.sin(np.pi * (down % 1)), np.sin(np.pi * (across % 1)))
    shade = np.where(over, tones[0][weft], tones[1][warp]) * (0.45 + 0.55 * bulge)
    if kind == "missing":
        shade = np.where(run & ((weft + warp) % 2 == 0), 0.75 * shade, shade)
    if kind == "thin":
        shade = shade * (1 - 0.4 * gaussian(disc(side, spot, reach), OVERSAMPLING))
    shade = shade + 0.02 * grain(rng, side, 2)
    picture = tint_grey(shade, (0.75, 0.85, 1.0))
    if kind == "coloured":
        dyed = picture * np.array([1.3, 0.95, 0.7], np.float32)
        picture = np.where((run & over)[..., None], dyed, picture)
    return picture


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
    """Return noise (side, side) of unit standard deviation, smooth at `sigma` pixels of the final picture."""
    coarse = max(1, round(sigma * OVERSAMPLING / 3))
    cells = rng.standard_normal((side // coarse + 2,) * 2).astype(np.float32)
    smooth = gaussian(cells, sigma * OVERSAMPLING / coarse)
    large = np.asarray(Image.fromarray(smooth).resize((side, side), Image.Resampling.BICUBIC))
    return (large - large.mean()) / large.std()


def disc(side: int, centre: NDArray, radius: float) -> Pixels:
    """Return a filled circle of ones on zeros, (side, side)."""
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    return (np.hypot(rows - centre[0], columns - centre[1]) < radius).astype(np.float32)


def stroke(side: int, points: Sequence[NDArray] | NDArray, width: float) -> Pixels:
    """Return a line through points (row, column), ones on zeros, (side, side)."""
    canvas = Image.new("L", (side, side))
    ImageDraw.Draw(canvas).line(
        [(float(column), float(row)) for row, column in points], fill=255, width=max(1, round(width)), joint="curve"
    )
    return np.asarray(canvas).astype(np.float32) / np.float32(255)


def box(
    centre: tuple[float, float], half_width: float, half_height: float, side: int
) -> tuple[float, float, float, float]:
    """Return (left, top, right, bottom) in pixels, from fractions of the side."""
    x, y = centre
    return ((x - half_width) * side, (y - half_height) * side, (x + half_width) * side, (y + half_height) * side)


def tint_grey(grey: NDArray, tint: tuple[float, float, float]) -> Pixels:
    return (grey[..., None] * np.array(tint, np.float32)).astype(np.float32)


def average_down(picture: Pixels) -> Pixels:
    """Return a picture of the final size: means over OVERSAMPLING × OVERSAMPLING pixels."""
    return picture.reshape(SIDE, OVERSAMPLING, SIDE, OVERSAMPLING, 3).mean(axis=(1, 3)).clip(0, 1)


def draw_with_mask(category: Category, seed: int, number: int, kind: str = "") -> tuple[Pixels, Pixels]:
    """Return picture `number` of a category, and the mask of its defect."""
    normal, picture = (
        average_down(category.draw(np.random.default_rng([seed, number]), drawn_kind)) for drawn_kind in ("", kind)
    )
    mask = np.abs(picture - normal).max(axis=2) >= LEAST_CHANGE
    noise = np.random.default_rng([seed, number, 1]).normal(0, NOISE, picture.shape)
    return (picture + noise).astype(np.float32), mask.astype(np.float32)


def write_category(folder: Path, category: Category, seed: int) -> None:
    """Write a category's pictures and masks into a folder."""
    for number in range(TRAINING + NORMAL):
        split, name = ("train", number) if number < TRAINING else ("test", number - TRAINING)
        picture, _ = draw_with_mask(category, seed, number)
        save_picture(folder / split / "good" / f"{name:03}.png", picture)
    for index, kind in enumerate(category.kinds):
        for number in range(DEFECTIVE):
            picture, mask = draw_with_mask(category, seed, TRAINING + NORMAL + index * DEFECTIVE + number, kind)
            save_picture(folder / "test" / kind / f"{number:03}.png", picture)
            save_picture(folder / "ground_truth" / kind / f"{number:03}_mask.png", mask)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.synthetic_categories", description="Draws five categories in the MVTec AD layout."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name, category in CATEGORIES.items():
        write_category(options.folder / name, category, options.seed)
        print(options.folder / name, flush=True)


if __name__ == "__main__":
    main()
