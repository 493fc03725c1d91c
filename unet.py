"""The noise predictor eps_theta(x_t, t): a UNet with self-attention, as published (section 4 of the paper; ADM, Dhariwal & Nichol 2021).

Module names follow the published state dict (`down.1.0.in_layers.0.weight` …), so released weights load by name.
"""

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

PUBLISHED_MULTIPLIERS: dict[int, tuple[float, ...]] = {
    32: (1, 2, 3, 4),
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}
PUBLISHED_GROUPS = 32
TIME_EMBEDDING_FACTOR = 4  # width of the time embedding, in base channels
LONGEST_PERIOD = 10_000.0  # of the sinusoidal time embedding

Module = TypeVar("Module", bound=nn.Module)


def published_multipliers(image_size: int) -> tuple[float, ...]:
    """Channel multipliers of the largest published picture size that is not above `image_size` pixels (32 to 512)."""
    sizes = [size for size in PUBLISHED_MULTIPLIERS if size <= image_size]
    if not sizes or image_size > max(PUBLISHED_MULTIPLIERS):
        raise ValueError(
            f"image_size is {image_size}; the published network takes 32 to 512 pixels (or give channel_multipliers)"
        )
    return PUBLISHED_MULTIPLIERS[max(sizes)]


class UNet(nn.Module):
    """Predicts the noise in x_t, or what `predicts` names (ddad.noise_predictor). Called as `unet(x, t)`: x (B, C, H, W), t (B,) steps
    0…T−1 → noise (B, C, H, W).

    A level is `blocks_per_level` residual blocks of `base_channels · multiplier` channels, each followed by self-attention
    where the feature map is one of `attention_sizes` pixels wide. `channel_multipliers=None` takes the published ones.
    `architecture` holds these arguments as plain values: `UNet(**unet.architecture)` is the same network.
    With `checkpointing` training keeps only the layers' outputs and computes the rest again: less memory for more time.
    Raises ValueError when the levels do not divide `image_size`, or the heads a width.
    """

    checkpointing = False

    def __init__(
        self,
        image_size: int,
        base_channels: int = 64,
        *,
        channel_multipliers: Sequence[float] | None = None,
        blocks_per_level: int = 2,
        attention_sizes: Sequence[int] = (32, 16, 8),
        heads: int = 4,
        dropout: float = 0.0,
        in_channels: int = 3,
        predicts: str | None = None,
    ):
        super().__init__()
        multipliers = published_multipliers(image_size) if channel_multipliers is None else tuple(channel_multipliers)
        widths = [int(base_channels * multiplier) for multiplier in multipliers]
        check_shape(image_size, base_channels, widths, attention_sizes, heads)
        self.architecture = {
            "image_size": image_size,
            "base_channels": base_channels,
            "channel_multipliers": [float(multiplier) for multiplier in multipliers],
            "blocks_per_level": blocks_per_level,
            "attention_sizes": list(attention_sizes),
            "heads": heads,
            "dropout": dropout,
            "in_channels": in_channels,
            "predicts": predicts,
        }
        embedding = TIME_EMBEDDING_FACTOR * base_channels
        sizes = [image_size >> level for level in range(len(widths))]

        def block(channels: int, width: int, resample: nn.Module | None = None) -> ResidualBlock:
            return ResidualBlock(channels, width, embedding, dropout, resample)

        def attention(size: int, width: int) -> list[nn.Module]:
            return [SelfAttention(width, heads)] if size in attention_sizes else []

        self.time_embedding = nn.Sequential(
            SinusoidalEmbedding(base_channels),
            nn.Linear(base_channels, embedding),
            nn.SiLU(),
            nn.Linear(embedding, embedding),
        )

        channels = widths[0]
        self.down = nn.ModuleList([TimedSequential(nn.Conv2d(in_channels, channels, 3, padding=1))])
        skips = [channels]
        for level, (size, width) in enumerate(zip(sizes, widths, strict=True)):
            for _ in range(blocks_per_level):
                self.down.append(TimedSequential(block(channels, width), *attention(size, width)))
                channels = width
                skips.append(channels)
            if level < len(widths) - 1:
                self.down.append(TimedSequential(block(channels, channels, nn.AvgPool2d(2))))
                skips.append(channels)

        self.middle = TimedSequential(
            block(channels, channels), SelfAttention(channels, heads), block(channels, channels)
        )

        self.up = nn.ModuleList()
        for level, (size, width) in reversed(list(enumerate(zip(sizes, widths, strict=True)))):
            for position in range(blocks_per_level + 1):
                layers = [block(channels + skips.pop(), width), *attention(size, width)]
                channels = width
                if level > 0 and position == blocks_per_level:
                    layers.append(block(channels, channels, nn.Upsample(scale_factor=2, mode="nearest")))
                self.up.append(TimedSequential(*layers))

        self.out = nn.Sequential(group_norm(channels), SiLU(), zeroed(nn.Conv2d(channels, in_channels, 3, padding=1)))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        embedding = self.time_embedding(t)  # (B, 4·base)
        skips = []
        for layer in self.down:
            x = self.through(layer, x, embedding)
            skips.append(x)
        x = self.through(self.middle, x, embedding)
        for layer in self.up:
            x = self.through(layer, torch.cat([x, skips.pop()], dim=1), embedding)
        return self.out(x)

    def through(self, layer: nn.Module, x: Tensor, embedding: Tensor) -> Tensor:
        if self.checkpointing and self.training:
            return checkpoint(layer, x, embedding, use_reentrant=False)
        return layer(x, embedding)


class ResidualBlock(nn.Module):
    """GroupNorm·SiLU·conv, plus the time embedding, GroupNorm·SiLU·dropout·conv, plus the shortcut.

    With `resample` (2×2 mean, or nearest ×2) both branches change resolution after the first norm and activation.
    What a branch adds it adds in place: no tensor there is needed again.
    """

    def __init__(
        self, in_channels: int, out_channels: int, embedding: int, dropout: float, resample: nn.Module | None = None
    ):
        super().__init__()
        self.resample = resample or nn.Identity()
        convolution = EnlargingConv2d if isinstance(resample, nn.Upsample) else nn.Conv2d
        self.in_layers = nn.Sequential(
            group_norm(in_channels), SiLU(), convolution(in_channels, out_channels, 3, padding=1)
        )
        self.embed_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, out_channels))
        self.out_layers = nn.Sequential(
            group_norm(out_channels),
            SiLU(),
            Dropout(dropout),
            zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        norm, activation, convolution = self.in_layers
        h = activation(norm(x))
        h = convolution(h if isinstance(convolution, EnlargingConv2d) else self.resample(h))
        h += self.embed_layers(embedding)[:, :, None, None]  # (B, C, 1, 1)
        h = self.out_layers(h)
        h += self.skip_connection(self.resample(x))
        return h


class EnlargingConv2d(nn.Conv2d):
    """A 3×3 convolution of x (B, C, H, W) as enlarged to twice its size by nearest neighbours → (B, C', 2H, 2W).

    Done as a transposed convolution of x itself, whose 4×4 kernel is the 3×3 one summed over the 2×2 places of each pixel: four ninths of the
    operations, and no enlarged tensor.
    """

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(self.weight.transpose(0, 1).flip(2, 3), (1, 1, 1, 1))
        kernel = torch.stack([padded[..., top : top + 4, left : left + 4] for top in (0, 1) for left in (0, 1)]).sum(
            dim=0
        )
        return F.conv_transpose2d(x, kernel, self.bias, stride=2, padding=1)


class SelfAttention(nn.Module):
    """Multi-head self-attention over the positions of a feature map, with a residual; 1×1 convolutions as published."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels)
        self.to_qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, H·W, C)
        qkv = F.linear(tokens, self.to_qkv.weight.squeeze(2), self.to_qkv.bias)
        qkv = qkv.view(batch, height * width, self.heads, 3, channels // self.heads)  # laid out [head][q|k|v][channel]
        q, k, v = qkv.permute(3, 0, 2, 1, 4).unbind(0)  # each (B, heads, H·W, C/heads)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, H·W, C)
        projected = F.linear(attended, self.proj_out.weight.squeeze(2), self.proj_out.bias)
        return x + projected.transpose(1, 2).reshape(x.shape)


class SinusoidalEmbedding(nn.Module):
    """t (B,) → [sin(t·f), cos(t·f)] (B, width), f_k = 10000^(−k / (width/2))."""

    frequencies: Tensor

    def __init__(self, width: int):
        super().__init__()
        half = width // 2
        frequencies = torch.exp(-math.log(LONGEST_PERIOD) * torch.arange(half, dtype=torch.float32) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None].to(self.frequencies) * self.frequencies  # (B, width/2)
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class TimedSequential(nn.Sequential):
    """A sequence whose residual blocks are also given the time embedding."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, ResidualBlock) else layer(x)
        return x


class SiLU(nn.SiLU):
    """Of a tensor that nothing else needs (a norm's): in place where no gradient does either."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x, inplace=not torch.is_grad_enabled())


class Dropout(nn.Dropout):
    """On a CPU from uniform numbers, which are drawn there in a third of the time of Bernoulli ones."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not self.training or not self.p:
            return super().forward(x)
        kept = torch.rand_like(x, dtype=torch.float32) >= self.p
        return (x * kept).mul_(1 / (1 - self.p))


class GroupNorm(nn.GroupNorm):
    """In fp32 in any autocast. Of an NCHW tensor a CPU's kernel reads and writes bf16 and computes in fp32 by itself: two copies fewer."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.is_contiguous():
            with torch.autocast("cpu", enabled=False):
                return super().forward(x)
        return super().forward(x.float())


def group_norm(channels: int) -> GroupNorm:
    """32 groups as published; fewer where 32 does not divide the width of a small network."""
    return GroupNorm(math.gcd(PUBLISHED_GROUPS, channels), channels)


def zeroed(module: Module) -> Module:
    """The module with its parameters set to zero: a branch that starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def check_shape(
    image_size: int, base_channels: int, widths: Sequence[int], attention_sizes: Sequence[int], heads: int
) -> None:
    if not widths:
        raise ValueError("channel_multipliers is empty; it needs a number a level, such as [1, 2]")
    factor = 2 ** (len(widths) - 1)
    if image_size % factor:
        lower = max(image_size // factor, 1) * factor
        raise ValueError(
            f"image_size is {image_size}, which {len(widths)} levels do not divide; take {lower} or {lower + factor}, or fewer channel_multipliers"
        )
    if base_channels < 2 or base_channels % 2:
        raise ValueError(f"base_channels is {base_channels}; the time embedding needs an even number")
    if min(widths) < 1:
        raise ValueError(
            f"channel_multipliers leave a level without channels (of base_channels, {base_channels}); raise one of them"
        )
    attended = {width for level, width in enumerate(widths) if image_size >> level in attention_sizes} | {widths[-1]}
    for width in sorted(attended):
        if width % heads:
            raise ValueError(
                f"heads is {heads}, which does not divide a width of {width} channels; change heads or channel_multipliers"
            )
