"""Batches of pictures (C, H, W) uint8: random order, crops and augmentation, on the device of the generator passed."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dataset import to_unit_range
from runtime.device import send
from runtime.errors import UserError


def shuffled_batches(pictures: Sequence[Tensor], size: int, side: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield `random_squares` of all pictures in a random order, `size` at a time; drop the last incomplete batch."""
    order = shuffled_order(len(pictures), size, generator)
    for first in range(0, len(order), size):
        yield random_squares([pictures[index] for index in order[first : first + size]], side, generator)


def shuffled_order(count: int, size: int, generator: torch.Generator) -> list[int]:
    """Return 0…count − 1 in a random order, cut to full batches of `size`."""
    return torch.randperm(count, generator=generator, device=generator.device).tolist()[: count // size * size]


def random_squares(pictures: Sequence[Tensor], side: int, generator: torch.Generator) -> Tensor:
    """Return (N, C, side, side) in [−1, 1]: the pictures, or random crops if a picture is larger."""
    if any(picture.shape[1:] != (side, side) for picture in pictures):
        places = torch.rand(len(pictures), 2, generator=generator, device=generator.device).tolist()
        squares = []
        for picture, (down, across) in zip(pictures, places, strict=True):
            top, left = int(down * (picture.shape[1] - side + 1)), int(across * (picture.shape[2] - side + 1))
            squares.append(picture[:, top : top + side, left : left + side])
        pictures = squares
    return to_unit_range(send(torch.stack(list(pictures)), generator.device))


def augment(squares: Tensor, augmentation: str | None, generator: torch.Generator) -> Tensor:
    """Return squares (N, C, S, S), each mirrored at random ("flip"), or also turned by multiples of 90° ("rotate")."""
    if augmentation is None:
        return squares
    count, device = len(squares), generator.device
    mirrored, turns = (torch.randint(high, (count,), generator=generator, device=device) for high in (2, 4))
    if augmentation == "rotate":  # all turns of all squares, so that the host need not wait for `turns`
        turned = torch.stack([squares.rot90(times, (2, 3)) for times in range(4)])  # (4, N, C, S, S)
        squares = turned[turns, torch.arange(count, device=device)]
    return torch.where(mirrored.view(-1, 1, 1, 1) == 1, squares.flip(3), squares)


def full_batches(pictures: int, size: int, key: str, held_out: int) -> int:
    """Return the number of full batches of an epoch. Raise UserError, which names the setting `key`, if it is 0."""
    if pictures < size:
        shortage = f"{key} is {size}, but train/good holds {pictures} pictures to learn from and {held_out} held out"
        raise UserError(f"{shortage}; set {key}={pictures} or less")
    return pictures // size
