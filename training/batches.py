"""Batches of pictures (C, H, W) uint8: random order, crops and augmentation, on the device of the generator passed."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from anomaly_map import resize_maps
from dataset import View, to_unit_range
from runtime.device import send
from runtime.errors import UserError


def shuffled_batches(pictures: Sequence[Tensor], size: int, view: View, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield `random_tiles` of all pictures in a random order, `size` at a time; drop the last incomplete batch.

    A batch holds one shape, that of its first tile: tiles of another shape are resized.
    """
    order = shuffled_order(len(pictures), size, generator)
    for first in range(0, len(order), size):
        tiles = random_tiles([pictures[index] for index in order[first : first + size]], view, generator)
        shape = tiles[0].shape[1:]
        tiles = [resize_maps(tile[None], shape)[0] for tile in tiles]
        yield to_unit_range(send(torch.stack(tiles), generator.device))


def shuffled_order(count: int, size: int, generator: torch.Generator) -> list[int]:
    """Return 0…count − 1 in a random order, cut to full batches of `size`."""
    return torch.randperm(count, generator=generator, device=generator.device).tolist()[: count // size * size]


def random_tiles(pictures: Sequence[Tensor], view: View, generator: torch.Generator) -> list[Tensor]:
    """Return the pictures, each (C, H, W), or a random tile of each if one of them has several."""
    shapes = [view.tile(*picture.shape[1:]) for picture in pictures]
    if all(picture.shape[1:] == shape for picture, shape in zip(pictures, shapes, strict=True)):
        return list(pictures)
    places = torch.rand(len(pictures), 2, generator=generator, device=generator.device).tolist()
    tiles = []
    for picture, (height, width), (down, across) in zip(pictures, shapes, places, strict=True):
        top, left = int(down * (picture.shape[1] - height + 1)), int(across * (picture.shape[2] - width + 1))
        tiles.append(picture[:, top : top + height, left : left + width])
    return tiles


def augment(tiles: Tensor, augmentation: str | None, generator: torch.Generator) -> Tensor:
    """Return tiles (N, C, H, W), each mirrored at random ("flip"), or also turned ("rotate").

    Squares are turned by multiples of 90°, rectangles by 180°.
    """
    if augmentation is None:
        return tiles
    count, device = len(tiles), generator.device
    mirrored, turns = (torch.randint(high, (count,), generator=generator, device=device) for high in (2, 4))
    if augmentation == "rotate":  # all turns of all tiles, so that the host need not wait for `turns`
        quarter_turns = 1 if tiles.shape[2] == tiles.shape[3] else 2
        turned = torch.stack([tiles.rot90(quarter_turns * times, (2, 3)) for times in range(4)])  # (4, N, C, H, W)
        tiles = turned[turns, torch.arange(count, device=device)]
    return torch.where(mirrored.view(-1, 1, 1, 1) == 1, tiles.flip(3), tiles)


def full_batches(pictures: int, size: int, key: str, held_out: int) -> int:
    """Return the number of full batches of an epoch. Raise UserError, which names the setting `key`, if it is 0."""
    if pictures < size:
        shortage = f"{key} is {size}, but train/good holds {pictures} pictures to learn from and {held_out} held out"
        raise UserError(f"{shortage}; set {key}={pictures} or less")
    return pictures // size
