"""The noise predictor eps_theta(x_t, t): a UNet with self-attention (Sec. 4 of the paper; ADM, Dhariwal & Nichol 2021).

Modules are named as in the published state dict (`down.1.0.in_layers.0.weight` …), so released weights load by name.
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
TIME_EMBEDDING_FACTOR = 4  # width of the time embedding, as a multiple of base_channels
LONGEST_PERIOD = 10_000.0  # of the sinusoidal time embedding

Module = TypeVar("Module", bound=nn.Module)


def published_multipliers(image_size: int) -> tuple[float, ...]:
    """Return the channel multipliers of the largest published image size up to `image_size` (32 to 512 pixels)."""
    sizes = [size for size in PUBLISHED_MULTIPLIERS if size <= image_size]
    if not sizes or image_size > max(PUBLISHED_MULTIPLIERS):
        raise ValueError(f"image_size is {image_size}; take 32 to 512 pixels, or give channel_multipliers")
    return PUBLISHED_MULTIPLIERS[max(sizes)]


class UNet(nn.Module):
    """Predict the noise in x_t: `unet(x, t)` with x (B, C, H, W) and steps t (B,) in 0…T−1 → (B, C, H, W).

    A level has `blocks_per_level` residual blocks of `base_channels · multiplier` channels.
    Self-attention follows each block where the width of the feature map, in pixels, is in `attention_sizes`.
    A picture may have any height and width that are multiples of `factor`; `image_size` and `attention_sizes` are of a
    square with as many pixels.
    `channel_multipliers=None` takes the published ones. `predicts` names an output other than the noise (see ddad).
    `architecture` holds these arguments as plain values: `UNet(**unet.architecture)` is the same network.
    `checkpointing` saves memory in training: it keeps the layers' outputs only and computes the rest again.
    Raise ValueError for a shape that cannot be built, such as one where `heads` does not divide a width.
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
        self.factor = 2 ** (len(widths) - 1)
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
        levels = [(level, image_size >> level, width) for level, width in enumerate(widths)]

        def block(channels: int, width: int, resample: nn.Module | None = None) -> ResidualBlock:
            return ResidualBlock(channels, width, embedding, dropout, resample)

        def attention(size: int, width: int) -> list[nn.Module]:
            return [SelfAttention(width, heads)] if size in attention_sizes else []

        first, second = nn.Linear(base_channels, embedding), nn.Linear(embedding, embedding)
        self.time_embedding = nn.Sequential(SinusoidalEmbedding(base_channels), first, nn.SiLU(), second)

        channels = widths[0]
        self.down = nn.ModuleList([TimedSequential(nn.Conv2d(in_channels, channels, 3, padding=1))])
        skips = [channels]
        for level, size, width in levels:
            for _ in range(blocks_per_level):
                self.down.append(TimedSequential(block(channels, width), *attention(size, width)))
                channels = width
                skips.append(channels)
            if level < len(widths) - 1:
                self.down.append(TimedSequential(block(channels, channels, nn.AvgPool2d(2))))
                skips.append(channels)

        before, attended, after = block(channels, channels), SelfAttention(channels, heads), block(channels, channels)
        self.middle = TimedSequential(before, attended, after)

        self.up = nn.ModuleList()
        for level, size, width in reversed(levels):
            for position in range(blocks_per_level + 1):
                layers = [block(channels + skips.pop(), width), *attention(size, width)]
                channels = width
                if level > 0 and position == blocks_per_level:
                    layers.append(block(channels, channels, nn.Upsample(scale_factor=2, mode="nearest")))
                self.up.append(TimedSequential(*layers))

        convolution = zero_parameters(nn.Conv2d(channels, in_channels, 3, padding=1))
        self.out = nn.Sequential(Float32GroupNorm(channels), InPlaceSiLU(), convolution)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        embedding = self.time_embedding(t)  # (B, 4·base)
        skips = []
        for layer in self.down:
            x = self.apply_layer(layer, x, embedding)  # (B, width, size, size), size halved after each level
            skips.append(x)
        x = self.apply_layer(self.middle, x, embedding)
        for layer in self.up:
            x = torch.cat([x, skips.pop()], dim=1)  # (B, channels of both, size, size)
            x = self.apply_layer(layer, x, embedding)
        return self.out(x)  # (B, C, H, W)

    def apply_layer(self, layer: nn.Module, x: Tensor, embedding: Tensor) -> Tensor:
        if self.checkpointing and self.training:
            return checkpoint(layer, x, embedding, use_reentrant=False)
        return layer(x, embedding)


class ResidualBlock(nn.Module):
    """GroupNorm·SiLU·conv, plus the time embedding, GroupNorm·SiLU·dropout·conv, plus the shortcut.

    With `resample` (2×2 mean or nearest ×2) both branches change resolution, after the first norm and activation.
    Each sum overwrites its first term: no gradient needs the old value.
    """

    def __init__(self, in_channels: int, out_channels: int, embedding: int, dropout: float, resample: nn.Module | None):
        super().__init__()
        self.resample = resample or nn.Identity()
        convolution_type = UpsamplingConv2d if isinstance(resample, nn.Upsample) else nn.Conv2d
        first = convolution_type(in_channels, out_channels, 3, padding=1)
        self.in_layers = nn.Sequential(Float32GroupNorm(in_channels), InPlaceSiLU(), first)
        self.embed_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, out_channels))
        second = zero_parameters(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.out_layers = nn.Sequential(Float32GroupNorm(out_channels), InPlaceSiLU(), UniformDropout(dropout), second)
        self.skip_connection = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        norm, activation, convolution = self.in_layers
        h = activation(norm(x))
        h = convolution(h if isinstance(convolution, UpsamplingConv2d) else self.resample(h))  # (B, C', H', W')
        h += self.embed_layers(embedding)[:, :, None, None]  # (B, C', 1, 1)
        h = self.out_layers(h)
        h += self.skip_connection(self.resample(x))
        return h


class UpsamplingConv2d(nn.Conv2d):
    """Nearest-neighbour upsampling ×2 and a 3×3 convolution in one: x (B, C, H, W) → (B, C', 2H, 2W).

    It is a transposed convolution of x. Its 4×4 kernel sums the 3×3 kernel over the 2×2 copies of each pixel.
    It needs four ninths of the operations, and no upsampled tensor in memory.
    """

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(self.weight.transpose(0, 1).flip(2, 3), (1, 1, 1, 1))  # (C, C', 5, 5)
        shifted = [padded[..., top : top + 4, left : left + 4] for top in (0, 1) for left in (0, 1)]
        kernel = torch.stack(shifted).sum(dim=0)  # (C, C', 4, 4)
        return F.conv_transpose2d(x, kernel, self.bias, stride=2, padding=1)


class SelfAttention(nn.Module):
    """Multi-head self-attention over the positions of a feature map, added to its input.

    The projections are 1×1 convolutions, as in the published state dict. Each is applied as a linear layer.
    """

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = Float32GroupNorm(channels)
        self.to_qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero_parameters(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, H·W, C)
        qkv = F.linear(tokens, self.to_qkv.weight.squeeze(2), self.to_qkv.bias)  # (B, H·W, 3·C)
        qkv = qkv.view(batch, height * width, self.heads, 3, channels // self.heads)  # [head][q|k|v][channel]
        q, k, v = qkv.permute(3, 0, 2, 1, 4).unbind(0)  # each (B, heads, H·W, C/heads)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, H·W, C)
        projected = F.linear(attended, self.proj_out.weight.squeeze(2), self.proj_out.bias)
        return x + projected.transpose(1, 2).reshape(x.shape)  # (B, C, H, W)


class SinusoidalEmbedding(nn.Module):
    """t (B,) → [sin(t·f), cos(t·f)] (B, width), with f_k = 10000^(−k / (width/2))."""

    frequencies: Tensor

    def __init__(self, width: int):
        super().__init__()
        half = width // 2
        frequencies = torch.exp(-math.log(LONGEST_PERIOD) * torch.arange(half, dtype=torch.float32) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None].to(self.frequencies) * self.frequencies  # (B, width/2)
        return torch.cat([angles.sin(), angles.cos()], dim=1)  # (B, width)


class TimedSequential(nn.Sequential):
    """A sequence that also passes the time embedding to its residual blocks."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, ResidualBlock) else layer(x)
        return x


class InPlaceSiLU(nn.SiLU):
    """SiLU of a norm's output. It works in place where no gradients are computed, as nothing else reads that tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x, inplace=not torch.is_grad_enabled())


class UniformDropout(nn.Dropout):
    """Dropout that draws uniform numbers on a CPU, which takes a third of the time of Bernoulli numbers."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not self.training or not self.p:
            return super().forward(x)
        mask = torch.rand_like(x, dtype=torch.float32) >= self.p
        return (x * mask).mul_(1 / (1 - self.p))


class Float32GroupNorm(nn.GroupNorm):
    """GroupNorm of 32 groups, as published, or fewer if 32 does not divide `channels`; in fp32 under any autocast.

    On a CPU the kernel for NCHW tensors reads bf16 and computes in fp32 by itself, so no copy in fp32 is made.
    """

    def __init__(self, channels: int):
        super().__init__(math.gcd(PUBLISHED_GROUPS, channels), channels)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.is_contiguous():
            if not torch.is_autocast_enabled("cpu"):
                return super().forward(x)
            with torch.autocast("cpu", enabled=False):
                return super().forward(x)
        return super().forward(x.float())


def zero_parameters(module: Module) -> Module:
    """Set the parameters to zero, so that the module's output is zero at first. Return the module."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def check_shape(image_size: int, base_channels: int, widths: list[int], attention: Sequence[int], heads: int) -> None:
    """Raise ValueError if no network of this shape can be built."""
    if not widths:
        raise ValueError("channel_multipliers is empty; give one number per level, such as [1, 2]")
    factor = 2 ** (len(widths) - 1)
    if image_size % factor:
        lower = max(image_size // factor, 1) * factor
        problem = f"image_size is {image_size}, not a multiple of {factor}, as {len(widths)} levels need"
        raise ValueError(f"{problem}; take {lower} or {lower + factor}, or fewer channel_multipliers")
    if base_channels < 2 or base_channels % 2:
        raise ValueError(f"base_channels is {base_channels}; take an even number, which the time embedding needs")
    if min(widths) < 1:
        raise ValueError(f"base_channels is {base_channels}: a level has no channels; raise channel_multipliers")
    attended = {width for level, width in enumerate(widths) if image_size >> level in attention} | {widths[-1]}
    for width in sorted(attended):
        if width % heads:
            raise ValueError(f"heads is {heads}, no divisor of {width} channels; change heads or channel_multipliers")
