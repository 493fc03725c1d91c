"""A denoiser that sees one patch descriptor at a time, for diffusion on features (docs/laptop.md).

It goes beyond the paper, whose equations stay. Neighbouring descriptors share most of their pixels, not their noise: a
UNet averages the noise out, and reconstructs a defect as it is. From one position alone that is impossible.
"""

from torch import Tensor, nn

from unet import SinusoidalEmbedding, zero_parameters

EMBEDDED = 64  # numbers of the sinusoidal time embedding
WIDENING = 2  # width inside a block, as a multiple of base_channels


class PatchNetwork(nn.Module):
    """Predict from x (B, C, H, W) and steps t (B,), at each position from its C numbers alone → (B, C, H, W).

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
        self.architecture = {
            "in_channels": in_channels,
            "base_channels": base_channels,
            "blocks_per_level": blocks_per_level,
            "dropout": dropout,
            "predicts": predicts,
        }
        width, inner = base_channels, WIDENING * base_channels
        self.first = nn.Linear(in_channels, width)
        self.time_embedding = nn.Sequential(
            SinusoidalEmbedding(EMBEDDED), nn.Linear(EMBEDDED, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, inner), nn.SiLU(), nn.Dropout(dropout), nn.Linear(inner, width)
            )
            for _ in range(blocks_per_level)
        )
        self.last = zero_parameters(nn.Linear(width, in_channels))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        hidden = self.first(x.flatten(2).transpose(1, 2)) + self.time_embedding(t)[:, None]  # (B, H·W, width)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.last(hidden).transpose(1, 2).unflatten(2, x.shape[2:])
