"""Synthetic defects with exact masks, for the sample set and for tuning without labels.

A defect takes a square picture (S, S) or (S, S, C), float32 in 0…1, another surface of this size or larger, and a
random generator. It returns the changed picture and a mask (S, S) of the pixels that it may change.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from skimage.filters import gaussian
from torch import Tensor

Pixels = NDArray[np.float32]
Mask = NDArray[np.bool_]
Anomalies = tuple[list[Tensor], NDArray[np.str_], list[Mask]]  # pictures, their kinds of defect, masks (H, W)
Defect = Callable[[Pixels, Pixels, np.random.Generator], tuple[Pixels, Mask]]
REFERENCE_SIDE = 128  # pixels; the side for which docstrings give widths
PLACES = 12  # among which the busiest piece of a picture is found
EDGE = 0.012  # of the side: width of a piece's soft edge
LEAST_CHANGE = 0.03  # of white; smaller changes of a piece are not seen


def scratch(picture: Pixels, other: Pixels, rng: np.random.Generator) -> tuple[Pixels, Mask]:
    """Add a straight stroke, 3 or 4 pixels of 128 wide."""
    side = len(picture)
    angle, length = rng.uniform(0, np.pi), rng.uniform(0.4, 0.7) * side
    middle = rng.uniform(0.35, 0.65, 2) * side
    reach = length / 2 * np.array([np.cos(angle), np.sin(angle)])
    mask = stroke([middle - reach, middle + reach], int(rng.integers(3, 5)), side)
    return paint(picture, mask, opacity=0.9), mask


def bent_line(picture: Pixels, other: Pixels, rng: np.random.Generator) -> tuple[Pixels, Mask]:
    """Add a wire or fibre, 3 to 5 pixels of 128 thick, bent into an arc or an S."""
    side, along = len(picture), np.linspace(-1, 1, 40)
    bend = rng.choice([along**2, along**3, np.sin(np.pi * along) / 2]) * rng.uniform(0.5, 1) * side / 4
    angle, middle = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 0.6, 2) * side
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = np.stack([along * rng.uniform(0.2, 0.35) * side, bend], axis=1) @ turn.T + middle
    mask = stroke(points, int(rng.integers(3, 6)), side)
    return paint(picture, mask, opacity=0.9), mask


def stain(picture: Pixels, other: Pixels, rng: np.random.Generator) -> tuple[Pixels, Mask]:
    """Add a translucent blot with a frayed edge."""
    side = len(picture)
    middle, radius = rng.uniform(0.3, 0.7, 2) * side, rng.uniform(0.10, 0.18) * side
    fray = gaussian(rng.standard_normal((side, side)), side / 24)
    mask = distances(middle, side) / radius + 0.3 * fray / fray.std() < 1
    return paint(picture, mask, opacity=rng.uniform(0.6, 0.8)), mask


def foreign_patch(picture: Pixels, other: Pixels, rng: np.random.Generator) -> tuple[Pixels, Mask]:
    """Add a rectangle of another surface, lighter or darker."""
    side = len(picture)
    height, width = rng.integers(side // 6, side // 3, 2)
    top, left = rng.integers(side // 8, 7 * side // 8 - height), rng.integers(side // 8, 7 * side // 8 - width)
    mask = np.zeros((side, side), bool)
    mask[top : top + height, left : left + width] = True
    piece = random_crop(other, side, rng)
    piece = (piece - piece.mean()) + np.clip(picture.mean() + rng.choice([-0.3, 0.3]), 0.15, 0.85)
    return lay_over(picture, piece, mask), mask


def pit(picture: Pixels, other: Pixels, rng: np.random.Generator) -> tuple[Pixels, Mask]:
    """Add a dark or light dot, 2 to 5 pixels of 128 across."""
    side = len(picture)
    middle, radius = rng.uniform(0.25, 0.75, 2) * side, rng.uniform(1, 2.5) * side / 128
    mask = distances(middle, side) < max(radius, 1)
    return paint(picture, mask, opacity=0.8), mask


def crack(picture: Pixels, other: Pixels, rng: np.random.Generator) -> tuple[Pixels, Mask]:
    """Add a thin winding line, one pixel of 128 wide."""
    side = len(picture)
    turns, steps = rng.normal(0, 0.35, 25).cumsum() + rng.uniform(0, 2 * np.pi), rng.uniform(0.01, 0.03, 25) * side
    points = np.stack([np.cos(turns), np.sin(turns)], axis=1) * steps[:, None]
    mask = stroke(points.cumsum(axis=0) + rng.uniform(0.3, 0.7, 2) * side, 1, side)
    return paint(picture, mask, opacity=0.6), mask


def displaced(picture: Pixels, other: Pixels, rng: np.random.Generator) -> tuple[Pixels, Mask]:
    """Replace a disc by another part of the picture, turned."""
    side = len(picture)
    middle, radius = rng.uniform(0.25, 0.75, 2) * side, rng.uniform(0.05, 0.12) * side
    mask = distances(middle, side) < radius
    shift = rng.integers(side // 6, side // 2, 2) * rng.choice([-1, 1], 2)
    return lay_over(picture, np.rot90(np.roll(picture, shift, (0, 1)), int(rng.integers(1, 4))), mask), mask


def worn(picture: Pixels, other: Pixels, rng: np.random.Generator) -> tuple[Pixels, Mask]:
    """Blur a large disc by up to half towards its centre, and make it slightly lighter or darker."""
    side = len(picture)
    middle, radius = rng.uniform(0.2, 0.8, 2) * side, rng.uniform(0.25, 0.6) * side
    depth = np.clip(2 - 2 * distances(middle, side) / radius, 0, 1).astype(np.float32)
    mask, depth = depth > 0, as_channels(depth, picture)
    smooth = gaussian(picture, side / 64, channel_axis=-1 if picture.ndim > 2 else None)
    return lay_over(picture, picture + depth * ((smooth - picture) / 2 + rng.choice([-0.08, 0.08])), mask), mask


def wrong_structure(picture: Pixels, other: Pixels, rng: np.random.Generator) -> tuple[Pixels, Mask]:
    """Remove, move, double, turn, mirror or replace a piece of the picture, the busiest of several."""
    side = len(picture)
    radius, turn = rng.uniform(0.06, 0.14) * side, int(rng.integers(1, 4))
    places = rng.uniform(radius, side - radius, (PLACES, 2))
    contrast = np.abs(np.gradient(picture if picture.ndim == 2 else picture.mean(axis=-1))).sum(axis=0)
    centre = max(places, key=lambda place: contrast[distances(place, side) < radius].mean())
    shift = tuple(np.rint(places[0 if (places[0] != centre).any() else 1] - centre).astype(int))
    piece = np.clip((radius - distances(centre, side)) / (EDGE * side), 0, 1).astype(np.float32)
    moved_piece = np.roll(piece, shift, (0, 1))
    without = blend(picture, fill_in(picture, piece, radius), piece)
    moved = np.roll(picture, shift, (0, 1))
    changes = [
        (without, piece),
        (blend(without, moved, moved_piece), piece + moved_piece),
        (blend(picture, moved, moved_piece), moved_piece),
        (blend(picture, about(picture, centre, lambda square: np.rot90(square, turn)), piece), piece),
        (blend(picture, about(picture, centre, lambda square: square[:, ::-1]), piece), piece),
        (blend(picture, np.roll(picture, (-shift[0], -shift[1]), (0, 1)), piece), piece),
    ]
    shuffled = [changes[number] for number in rng.permutation(len(changes))]
    visible = (change for change in shuffled if np.abs(change[0] - picture).max() > LEAST_CHANGE)
    changed, covered = next(visible, shuffled[0])
    return changed, covered > 0


def with_defect(picture: Pixels, defect: Defect, rng: np.random.Generator) -> tuple[Pixels, Mask]:
    """Add a defect to a random square of a picture (H, W) or (H, W, C); the other surface is that square, turned."""
    height, width = picture.shape[:2]
    side, mask, changed = min(height, width), np.zeros((height, width), bool), picture.copy()
    top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
    place = (slice(top, top + side), slice(left, left + side))
    changed[place], mask[place] = defect(picture[place], np.rot90(picture[place], 2), rng)
    return changed, mask


def random_crop(surface: Pixels, side: int, rng: np.random.Generator) -> Pixels:
    """Return a square of `side` pixels from a random place."""
    top, left = (rng.integers(0, extent - side + 1) for extent in surface.shape[:2])
    return surface[top : top + side, left : left + side].copy()


def distances(centre: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Return the distance of each pixel of a square (side, side) from `centre` (row, column)."""
    rows, columns = np.mgrid[:side, :side]
    return np.hypot(rows - centre[0], columns - centre[1])


def fill_in(picture: Pixels, share: Pixels, radius: float) -> Pixels:
    """Return the picture with what `share` (S, S) covers filled by the mean of what surrounds it."""
    kept = (share == 0).astype(np.float32)
    spread = gaussian(kept, radius / 2)
    surroundings = gaussian(picture * as_channels(kept, picture), (radius / 2,) * 2 + (0,) * (picture.ndim - 2))
    return surroundings / as_channels(np.maximum(spread, 1e-4), picture)


def about(picture: Pixels, centre: NDArray[np.float64], change: Callable[[Pixels], Pixels]) -> Pixels:
    """Return the picture with the largest square about `centre` (row, column) changed."""
    row, column = (int(place) for place in centre)
    reach = min(row, column, len(picture) - 1 - row, len(picture) - 1 - column)
    square = (slice(row - reach, row + reach + 1), slice(column - reach, column + reach + 1))
    changed = picture.copy()
    changed[square] = change(picture[square])
    return changed


def blend(picture: Pixels, other: Pixels, share: Pixels) -> Pixels:
    """Return the picture with a share (S, S), 0…1, of the other one."""
    return (picture + as_channels(share, picture) * (other - picture)).astype(np.float32)


def as_channels(values: NDArray, picture: Pixels) -> NDArray:
    """Return values (S, S) in a shape that multiplies the picture's channels."""
    return values.reshape(*values.shape, *[1] * (picture.ndim - 2))


def paint(picture: Pixels, mask: Mask, opacity: float) -> Pixels:
    """Blend the masked pixels with black or white, whichever contrasts more with the picture."""
    darkest, brightest = np.percentile(picture, [1, 99])
    tone = 0.0 if darkest > 1 - brightest else 1.0
    return lay_over(picture, (1 - opacity) * picture + opacity * tone, mask)


def lay_over(picture: Pixels, other: NDArray, mask: Mask) -> Pixels:
    """Return `other` where the mask (S, S) is true, else the picture."""
    return np.where(as_channels(mask, picture), other, picture).astype(np.float32)


def stroke(points: Sequence[NDArray] | NDArray, width: int, side: int) -> Mask:
    """Return the mask (side, side) of a line through points (x, y), `width` pixels of 128 wide."""
    canvas, pixels = Image.new("1", (side, side)), max(1, round(width * side / REFERENCE_SIDE))
    ImageDraw.Draw(canvas).line([tuple(point) for point in points], fill=1, width=pixels, joint="curve")
    return np.array(canvas)


DEFECTS: dict[str, Defect] = {"bent_line": bent_line, "patch": foreign_patch, "scratch": scratch, "stain": stain}
STRUCTURE = "structure"
ALL_DEFECTS = DEFECTS | {"crack": crack, "displaced": displaced, "pit": pit, STRUCTURE: wrong_structure, "worn": worn}


def make_synthetic_anomalies(normal: Sequence[Tensor], copies: int, seed: int) -> Anomalies:
    """Return `copies` of each normal picture (C, H, W) uint8, each with one defect; the kinds of defect alternate."""
    rng, names = np.random.default_rng(seed), list(ALL_DEFECTS)
    kinds = [names[number % len(names)] for number in range(copies * len(normal))]
    arrays = [pixels.permute(1, 2, 0).numpy().astype(np.float32) / np.float32(255) for pixels in normal]  # (H, W, C)
    pairs = [with_defect(arrays[number % len(arrays)], ALL_DEFECTS[kind], rng) for number, kind in enumerate(kinds)]
    changed = [torch.from_numpy((pixels.clip(0, 1) * 255).round().astype(np.uint8)) for pixels, _ in pairs]
    pictures = [pixels.permute(2, 0, 1).contiguous() for pixels in changed]
    return pictures, np.array(kinds), [mask for _, mask in pairs]
