"""Denoising diffusion conditioned on a target picture: schedule, training loss and reconstruction (Sec. 3 and 4.1).

| symbol    | name           | meaning                                                        |
|-----------|----------------|----------------------------------------------------------------|
| x_t       | noisy picture  | x_0 with noise of step t                                       |
| x_0       | reconstruction | the picture without noise, in [−1, 1], given or predicted      |
| y_0       | target         | the picture that the reconstruction is pulled towards          |
| y_t       | noisy target   | y_0 with the noise that the network predicts in x_t            |
| eps       | noise          | the noise in x_t, as the network predicts it                   |
| alpha_bar | signal share   | product of 1 − beta over all steps up to t; 1 before the first |
| w         | strength       | how hard the target pulls; 0 is plain denoising                |
| eta       | stochasticity  | 1 draws new noise at each step (DDPM), 0 draws none (DDIM)     |
| t, s      | steps          | the current step and the lower one after it; −1 has no noise   |
"""

import hashlib
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

NoisePredictor = Callable[..., Tensor]  # of x_t and t
LEAST_SIGNAL = 1e-12  # smallest alpha_bar allowed; the prediction of x_0 divides by its root


class NoiseSchedule:
    """Linear beta schedule. It computes alpha_bar once, in float64.

    Raise ValueError unless steps ≥ 1, 0 < beta_start ≤ beta_end < 1 and the last alpha_bar is LEAST_SIGNAL or more.
    """

    def __init__(self, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02):
        name = f"schedule of {steps} steps from {beta_start} to {beta_end}"
        if steps < 1 or not 0 < beta_start <= beta_end < 1:
            raise ValueError(f"{name} is invalid; take steps ≥ 1 and 0 < beta_start ≤ beta_end < 1")
        self.steps = steps
        alpha_bars = torch.cumprod(1 - torch.linspace(beta_start, beta_end, steps, dtype=torch.float64), dim=0)
        self._alpha_bars = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bars])  # index t + 1
        if alpha_bars[-1] < LEAST_SIGNAL:
            raise ValueError(f"{name} leaves no signal; lower beta_end or the number of steps")
        self.alpha_bars: list[float] = self._alpha_bars.tolist()  # of all steps, from −1
        self._roots: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}

    def alpha_bar(self, t: Tensor | int) -> Tensor:
        """Return alpha_bar(t) in float64 on the CPU, in the shape of t. t is −1…steps−1; alpha_bar(−1) = 1.

        Raise ValueError for a step outside the schedule.
        """
        steps = torch.as_tensor(t).cpu()
        if not (steps.min() >= -1 and steps.max() < self.steps):
            raise ValueError(f"step {t} is outside −1…{self.steps - 1}")
        return self._alpha_bars[steps + 1]

    def add_noise(self, x_0: Tensor, t: Tensor | int, noise: Tensor) -> Tensor:
        """Return x_t = √alpha_bar(t)·x_0 + √(1 − alpha_bar(t))·noise (Sec. 3).

        x_0 and noise are (B, C, H, W); t is (B,), or one step for all.
        """
        signal, spread = self.roots(t, x_0)
        return signal * x_0 + spread * noise

    def roots(self, t: Tensor | int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return √alpha_bar(t) and √(1 − alpha_bar(t)), both (B, 1, 1, 1), with the dtype and device of `like`.

        The tables of all steps are computed once for each dtype and device.
        """
        if (like.dtype, like.device) not in self._roots:
            signals, spreads = self._alpha_bars.sqrt(), (1 - self._alpha_bars).sqrt()
            tables = signals.to(like.dtype).to(like.device), spreads.to(like.dtype).to(like.device)
            self._roots[like.dtype, like.device] = tables
        signals, spreads = self._roots[like.dtype, like.device]
        return signals[t + 1].view(-1, 1, 1, 1), spreads[t + 1].view(-1, 1, 1, 1)


def noise_predictor(network: NoisePredictor, predicts: str | None, schedule: NoiseSchedule) -> NoisePredictor:
    """Return the noise predictor of a network whose output is x_0 (`predicts` is "x0") or the noise (None)."""

    def from_x_0(x_t: Tensor, t: Tensor, **others: Tensor) -> Tensor:
        signal, spread = schedule.roots(t, x_t)
        return (x_t - signal * network(x_t, t, **others)) / spread

    return network if predicts is None else from_x_0


def loss_weights(predicts: str | None, schedule: NoiseSchedule) -> Tensor | None:
    """Return weights (steps,) that turn the squared error of the noise into that of x_0; None if noise is predicted.

    They are the inverse of the signal-to-noise ratio alpha_bar / (1 − alpha_bar).
    """
    alpha_bar = schedule.alpha_bar(torch.arange(schedule.steps))
    return None if predicts is None else 1 / (alpha_bar / (1 - alpha_bar))


def noise_loss(
    unet: NoisePredictor, x_0: Tensor, t: Tensor, noise: Tensor, schedule: NoiseSchedule, weights: Tensor | None = None
) -> Tensor:
    """Return the mean over the batch of weights[t]·‖noise − unet(x_t, t)‖², a sum over channels and pixels (Sec. 3).

    x_0 and noise are (B, C, H, W), t is (B,), weights are (steps,) or None for 1.
    """
    predicted = unet(schedule.add_noise(x_0, t, noise), t)
    errors = (noise - predicted).square().sum(dim=(1, 2, 3))  # (B,)
    return (errors if weights is None else weights.to(errors)[t] * errors).mean()


@torch.no_grad()
def reconstruct(
    unet: NoisePredictor,
    x: Tensor,
    target: Tensor,
    *,
    schedule: NoiseSchedule,
    w: float,
    start: int = 250,
    skip: int | None = 25,
    eta: float = 1.0,
    draw: Callable[[], Tensor],
) -> Tensor:
    """Add noise of step `start` to x, then denoise it in strides of `skip` while pulling it to `target` (Algorithm 1).

    x and target are (B, C, H, W) in [−1, 1]. `draw()` returns noise of that shape: one call at the start, one per step.
    As published, the first network call has t = start − skip (if skip divides start) although x_t is at step `start`.
    With `skip` None one call at t = start predicts x_0 at once.
    The correction of eps by w changes x_0 to x_0 + w·(1 − alpha_bar(t))·(y_0 − x_0).
    """
    x_t, y_0 = schedule.add_noise(x, start, draw()), target
    for t, s in strides(start, skip):
        alpha_bar_t, alpha_bar_s = schedule.alpha_bars[t + 1], schedule.alpha_bars[s + 1]
        eps = unet(x_t, torch.full((len(x),), t, device=x.device)).to(x_t)  # a network may return bf16 or fp16
        y_t = math.sqrt(alpha_bar_t) * y_0 + math.sqrt(1 - alpha_bar_t) * eps
        eps = eps - w * math.sqrt(1 - alpha_bar_t) * (y_t - x_t)
        x_0 = (x_t - math.sqrt(1 - alpha_bar_t) * eps) / math.sqrt(alpha_bar_t)
        new_noise = eta * math.sqrt((1 - alpha_bar_t / alpha_bar_s) * (1 - alpha_bar_s) / (1 - alpha_bar_t))
        kept_noise = math.sqrt(1 - alpha_bar_s - new_noise**2)
        x_t = math.sqrt(alpha_bar_s) * x_0 + new_noise * draw() + kept_noise * eps
    return x_t


def strides(start: int, skip: int | None) -> list[tuple[int, int]]:
    """Return (t, s) of each step, highest t first: t is a multiple of `skip` below `start`, s the next t or −1."""
    if skip is None:
        return [(start, -1)]
    times = list(range(0, start, skip))[::-1]
    return list(zip(times, [*times[1:], -1], strict=True))


def gaussian_draws(shape: torch.Size, generator: torch.Generator) -> Callable[[], Tensor]:
    """Return a function that draws standard normal tensors of `shape` with the generator, on its device."""
    return lambda: torch.randn(shape, generator=generator, device=generator.device)


def seeded_draws(shape: torch.Size, seed: int, device: torch.device) -> Callable[[], Tensor]:
    """Return a function that draws noise (B, C, H, W), the same for each picture of any batch; `seed` alone decides."""
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape[1:], generator=generator).to(device).expand(shape)


def picture_draws(pictures: Tensor, seed: int, shape: Sequence[int] | None = None) -> Callable[[], Tensor]:
    """Return a function that draws noise for pictures; only `seed` and a picture's content decide its noise.

    So a picture gets the same noise in any batch, under any file name and on any device.
    pictures are (B, C, H, W) in [−1, 1], of 8-bit values. The noise is (B, *shape); `shape` None means (C, H, W).
    """
    device, size = pictures.device, list(pictures.shape[1:] if shape is None else shape)
    generators = [torch.Generator().manual_seed(content_seed(picture, seed)) for picture in pictures.cpu()]

    def draw() -> Tensor:
        noise = torch.stack([torch.randn(size, generator=each) for each in generators])
        if device.type == "cuda":  # from pinned memory, so that the host draws on while the device computes
            return noise.pin_memory().to(device, non_blocking=True)
        return noise.to(device)

    return draw


def content_seed(picture: Tensor, seed: int) -> int:
    """Return a seed of 56 bits that follows from `seed` and the 8-bit values of a picture (C, H, W) in [−1, 1]."""
    content = ((picture + 1) * 127.5).round().byte().cpu().contiguous().numpy().tobytes()
    return int.from_bytes(hashlib.sha256(f"{seed} {tuple(picture.shape)} ".encode() + content).digest()[:7], "big")
