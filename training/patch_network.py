"""A denoiser that sees one patch descriptor at a time, for diffusion on features (docs/laptop.md).

It goes beyond the paper, whose equations stay. Neighbouring descriptors share most of their pixels, not their noise: a
UNet averages the noise out, and reconstructs a defect as it is. A network that sees one position cannot do that. It
must use what it has learnt about normal descriptors, and so reproduces less of a defect.

It knows the place of the position in the picture, so that it reconstructs what is normal there.

It has two members. Each learns half of the pictures, in blocks of their order, as neighbours may resemble each other
(of a single picture each learns half of the positions).
They take turns in judging the positions of a new picture, like the two colours of a checkerboard. A normal picture is
judged by the member that has not learnt it, so that its score is like that of a new one (cross-fitting).
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.feature_space import place_grid
from unet import SinusoidalEmbedding, zero_parameters

MEMBERS = 2
BLOCKS = 8  # of pictures, in their order; the members learn them in turn
EMBEDDED = 64  # numbers of the sinusoidal time embedding
PLACE_FREQUENCIES = (1, 2, 4, 8)  # half turns from one border of the picture to the other
WIDENING = 2  # width inside a block, as a multiple of base_channels


class PatchNetwork(nn.Module):
    """Predict each position from its own channels, its place and the step; x (B, C, H, W), t (B,) → (B, C, H, W).

    At each position one member answers: its members take turns, or with `members` (B,) the named one answers for a
    whole picture. `places` (B, 2, H, W) are shares of the picture's height and width; None: x is a whole picture.
    `blocks_per_level` residual blocks, each two linear layers after a LayerNorm, have `base_channels` channels.
    `architecture` holds the arguments: `PatchNetwork(**network.architecture)` is the same network.
    """

    factor = 1  # any height and width fits
    checkpointing = False  # its layers need little memory

    def __init__(
        self,
        in_channels: int,
        base_channels: int = 256,
        *,
        blocks_per_level: int = 3,
        dropout: float = 0.0,
        predicts: str | None = None,
    ):
        super().__init__()
        shape = {"in_channels": in_channels, "base_channels": base_channels, "blocks_per_level": blocks_per_level}
        self.architecture = {**shape, "dropout": dropout, "predicts": predicts}
        self.members = nn.ModuleList(
            Perceptron(in_channels, base_channels, blocks_per_level, dropout) for _ in range(MEMBERS)
        )

    def forward(self, x: Tensor, t: Tensor, members: Tensor | None = None, places: Tensor | None = None) -> Tensor:
        places = places_of(x) if places is None else places
        if members is None:
            return self.take_turns(x, t, places)
        rows = [(members == member).nonzero().squeeze(1) for member in range(MEMBERS)]
        outputs = [member(x[own], t[own], places[own]) for member, own in zip(self.members, rows, strict=True)]
        return torch.cat(outputs)[torch.cat(rows).argsort()]

    def take_turns(self, x: Tensor, t: Tensor, places: Tensor) -> Tensor:
        """Return the outputs of the members, which take turns in rows and columns."""
        flat = [as_rows(maps).contiguous() for maps in (x, places)]
        *colours, order = checkerboard(x.shape[2:], x.device)
        # index_select, as OpenVINO 2026 computes other forms of indexing wrongly in an exported file
        given = [[rows.index_select(1, own).transpose(1, 2)[..., None] for rows in flat] for own in colours]
        outputs = [as_rows(member(z, t, at)) for member, (z, at) in zip(self.members, given, strict=True)]
        return torch.cat(outputs, dim=1).index_select(1, order).transpose(1, 2).unflatten(2, x.shape[2:])


class Perceptron(nn.Module):
    """A multilayer perceptron with residual blocks, the same at each position."""

    def __init__(self, channels: int, width: int, blocks: int, dropout: float):
        super().__init__()
        self.first = RowLinear(channels, width)
        embedding = [SinusoidalEmbedding(EMBEDDED), nn.Linear(EMBEDDED, width), nn.SiLU(), nn.Linear(width, width)]
        self.time_embedding = nn.Sequential(*embedding)
        self.place_embedding = RowLinear(2 * 2 * len(PLACE_FREQUENCIES), width)
        self.blocks = nn.ModuleList(residual_branch(width, dropout) for _ in range(blocks))
        self.last = zero_parameters(RowLinear(width, channels))

    def forward(self, x: Tensor, t: Tensor, places: Tensor | None = None) -> Tensor:
        code = place_code(places_of(x) if places is None else places)
        hidden = self.first(as_rows(x)) + self.time_embedding(t)[:, None] + self.place_embedding(code)
        for branch in self.blocks:
            hidden = hidden + branch(hidden)
        return self.last(hidden).transpose(1, 2).unflatten(2, x.shape[2:])


class RowLinear(nn.Linear):
    """A linear layer of rows (B, N, C), which a CPU computes as a convolution: twice as fast where MKL is slow."""

    def forward(self, rows: Tensor) -> Tensor:
        if self.training or torch.compiler.is_compiling() or rows.device.type != "cpu" or not rows.numel():
            return super().forward(rows)
        maps = rows.transpose(1, 2)[:, :, None]  # (B, C, 1, N) in the memory layout channels_last
        return F.conv2d(maps, self.weight[..., None, None], self.bias)[:, :, 0].transpose(1, 2)


def as_rows(maps: Tensor) -> Tensor:
    """Return the positions of maps (B, C, H, W) as rows (B, H·W, C)."""
    return maps.flatten(2).transpose(1, 2)


def checkerboard(shape: Sequence[int], device: torch.device) -> list[Tensor]:
    """Return the indices of the positions (H·W) of each colour, and last the order that puts all into their places."""
    height, width = shape
    colours = (np.arange(height)[:, None] + np.arange(width)).ravel() % MEMBERS
    own = [np.flatnonzero(colours == member) for member in range(MEMBERS)]
    parts = (*own, np.argsort(np.concatenate(own)))
    return [torch.tensor(indices.tolist(), dtype=torch.long, device=device) for indices in parts]


def places_of(x: Tensor) -> Tensor:
    """Return the places (B, 2, H, W) of the positions of whole pictures (B, C, H, W)."""
    return place_grid(x.shape[2:]).to(x).expand(len(x), -1, -1, -1)


def place_code(places: Tensor) -> Tensor:
    """Return sines and cosines (B, H·W, ·) of places (B, 2, H, W)."""
    angles = torch.cat([math.pi * frequency * places for frequency in PLACE_FREQUENCIES], dim=1)
    return as_rows(torch.cat([angles.sin(), angles.cos()], dim=1))


def residual_branch(width: int, dropout: float) -> nn.Sequential:
    inner = WIDENING * width
    widened = nn.LayerNorm(width), RowLinear(width, inner), nn.SiLU()
    return nn.Sequential(*widened, nn.Dropout(dropout), RowLinear(inner, width))


def learning_member(index: int, count: int) -> int:
    """Return the member that learns the picture with this index among `count`."""
    blocks = min(BLOCKS, count)
    return (index * blocks // count + 1) % MEMBERS


def learning_members(indices: Sequence[int], count: int, positions: int) -> Tensor:
    """Return the member (N·positions) that learns each position of N pictures; both learn a single picture."""
    if count == 1:
        return torch.arange(len(indices) * positions) % MEMBERS
    return torch.tensor([learning_member(index, count) for index in indices]).repeat_interleave(positions)


def unseen_names(names: Sequence[str]) -> list[list[str]]:
    """Return, for each member, the names of the pictures that it does not learn; `names` are of all, in their order."""
    if len(names) == 1:
        return [[]] * MEMBERS
    learnt_by = [learning_member(index, len(names)) for index in range(len(names))]
    return [[name for name, by in zip(names, learnt_by, strict=True) if by != member] for member in range(MEMBERS)]
