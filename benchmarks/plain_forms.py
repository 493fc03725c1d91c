"""Plain forms of each part, which benchmarks/speed.py compares with ours.

They have the same weights and results, without our speed-ups. Like the published code they attend over strided views of
one tensor by einsum and softmax, enlarge before they convolve, keep NCHW tensors, step the optimizer weight by weight,
recompute alpha_bar at each step, compute layer4 and drop it, and take PRO from 200 thresholds, at each of which all
masks are labelled again. Loss, schedule, feature distance and map are the same on both sides.
"""

import copy
from collections.abc import Collection

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from skimage.measure import label, regionprops
from sklearn.metrics import auc
from torch import Tensor, nn

from ddad import NoiseSchedule
from unet import ResidualBlock, SelfAttention, UNet, UniformDropout

SCHEDULE = NoiseSchedule()
EXTRACTOR = "wide_resnet101_2"
LEARNING_RATE, WEIGHT_DECAY = 3e-4, 0.05
PRO_LIMIT, PRO_THRESHOLDS = 0.3, 200


class PlainAttention(SelfAttention):
    """Attention as published: q, k and v are strided views, the scores are a tensor of their own."""

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.to_qkv(self.norm(x).reshape(batch, channels, -1)).reshape(batch * self.heads, -1, height * width)
        q, k, v = qkv.chunk(3, dim=1)
        scale = (channels // self.heads) ** -0.25
        scores = torch.einsum("bct,bcs->bts", q * scale, k * scale).softmax(dim=-1)
        attended = torch.einsum("bts,bcs->bct", scores, v).reshape(batch, channels, -1)
        return x + self.proj_out(attended).reshape(x.shape)


class PlainBlock(ResidualBlock):
    """A residual block as published: it enlarges first, then convolves, and does nothing in place."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        norm, _, convolution = self.in_layers
        assert isinstance(convolution, nn.Conv2d)
        h = nn.Conv2d.forward(convolution, self.resample(F.silu(norm(x))))
        h = h + self.embed_layers(embedding)[:, :, None, None]
        norm, _, dropout, convolution = self.out_layers
        return self.skip_connection(self.resample(x)) + convolution(dropout(F.silu(norm(h))))


class PlainDropout(UniformDropout):
    """Dropout of torch."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.Dropout.forward(self, x)


PLAIN_MODULES = (PlainAttention, PlainBlock, PlainDropout)


def plain_unet(unet: UNet, forms: Collection[type[nn.Module]] = PLAIN_MODULES) -> UNet:
    """Return a copy in NCHW whose modules have these plain forms."""
    plain = copy.deepcopy(unet).to(memory_format=torch.contiguous_format)
    form_of = {form.__base__: form for form in forms}
    for module in plain.modules():
        module.__class__ = form_of.get(type(module), type(module))
    return plain


def plain_adam(unet: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(unet.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, foreach=False)


class PlainSchedule(NoiseSchedule):
    """A schedule that computes alpha_bar from its product at each call."""

    def add_noise(self, x0: Tensor, t: Tensor | int, noise: Tensor) -> Tensor:
        alpha_bar = plain_alpha_bar(t, x0.device).to(x0.dtype).view(-1, 1, 1, 1)
        return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise


def plain_alpha_bar(t: Tensor | int, device: torch.device) -> Tensor:
    betas = torch.linspace(1e-4, 0.02, SCHEDULE.steps, dtype=torch.float64, device=device)
    alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64, device=device), (1 - betas).cumprod(dim=0)])
    return alpha_bar.index_select(0, torch.as_tensor(t, device=device).view(-1) + 1)


@torch.no_grad()
def plain_reconstruct(unet: nn.Module, x: Tensor, w: float, start: int, skip: int) -> Tensor:
    """Return the conditioned reconstruction of x (B, C, H, W) with eta = 1."""
    signal = plain_alpha_bar(start, x.device).float()
    x_t = signal.sqrt() * x + (1 - signal).sqrt() * torch.randn_like(x)
    times = list(range(0, start, skip))[::-1]
    for t, s in zip(times, [*times[1:], -1], strict=True):
        now, then = plain_alpha_bar(t, x.device).float(), plain_alpha_bar(s, x.device).float()
        eps = unet(x_t, torch.full((len(x),), t, device=x.device))
        y_t = now.sqrt() * x + (1 - now).sqrt() * eps
        eps = eps - w * (1 - now).sqrt() * (y_t - x_t)
        x_0 = (x_t - (1 - now).sqrt() * eps) / now.sqrt()
        sigma = ((1 - now / then) * (1 - then) / (1 - now)).sqrt()
        x_t = then.sqrt() * x_0 + sigma * torch.randn_like(x) + (1 - then - sigma**2).clamp_min(0).sqrt() * eps
    return x_t


class PlainResNet(nn.Module):
    """The whole network, of which layer4 and fc are computed for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.network = torchvision.models.get_model(EXTRACTOR, weights=None)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        features, x = [], pictures
        for name, module in self.network.named_children():
            x = module(x.flatten(1) if name == "fc" else x)
            if name in ("layer1", "layer2", "layer3"):
                features.append(x)
        return features


def plain_pro(maps: np.ndarray, masks: np.ndarray) -> float:
    """Return PRO of maps and masks (N, H, W) as published: regions are labelled again at each threshold."""
    curve = []
    for threshold in np.arange(maps.min(), maps.max(), (maps.max() - maps.min()) / PRO_THRESHOLDS):
        above, overlaps = maps > threshold, []
        for above_one, mask in zip(above, masks, strict=True):
            for region in regionprops(label(mask)):
                overlaps.append(above_one[region.coords[:, 0], region.coords[:, 1]].sum() / region.area)
        curve.append((np.logical_and(~masks, above).sum() / (~masks).sum(), np.mean(overlaps)))
    rate, overlap = np.array([point for point in curve if point[0] < PRO_LIMIT]).T
    return float(auc(rate / rate.max(), overlap))
