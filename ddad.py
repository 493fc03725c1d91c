"""Denoising diffusion conditioned on a target picture: schedule, training loss and reconstruction (sections 3 and 4.1 of the paper).

| symbol      | name           | meaning                                                     |
|-------------|----------------|-------------------------------------------------------------|
| x_t         | noisy picture  | x_0 noised for t steps, in [−1, 1] before the noise          |
| x_0         | reconstruction | the noise-free picture, given or predicted from x_t          |
| y_0         | target         | the picture that the reconstruction is pulled towards        |
| y_t         | noisy target   | y_0 under the noise that the network sees in x_t             |
| eps         | noise          | the noise in x_t as the network predicts it                  |
| alpha_bar   | signal share   | product of 1 − beta up to a step; 1 before the first         |
| w           | strength       | how hard the pull is; 0 is plain denoising                   |
| eta         | stochasticity  | 1 draws new noise at each step (DDPM), 0 none (DDIM)         |
| t, s        | steps          | the present step and the next, earlier one (−1: no noise)    |
"""

import hashlib
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

NoisePredictor = Callable[[Tensor, Tensor], Tensor]
LEAST_SIGNAL = 1e-12  # of alpha_bar; below it dividing by its root says nothing


class NoiseSchedule:
    """Linear beta schedule; alpha_bar is computed once, in float64.

    Raises ValueError unless steps ≥ 1 and 0 < beta_start ≤ beta_end < 1.
    """

    def __init__(self, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02):
        if steps < 1 or not 0 < beta_start <= beta_end < 1:
            raise ValueError(
                f"schedule of {steps} steps from {beta_start} to {beta_end}: need steps ≥ 1 and 0 < beta_start ≤ beta_end < 1"
            )
        self.steps = steps
        betas = torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)
        self._alpha_bars = torch.cat(
            [torch.ones(1, dtype=torch.float64), torch.cumprod(1 - betas, dim=0)]
        )  # index t + 1
        if self._alpha_bars[-1] < LEAST_SIGNAL:
            raise ValueError(
                f"schedule of {steps} steps from {beta_start} to {beta_end} leaves no signal; lower beta_end or the number of steps"
            )

    def alpha_bar(self, t: Tensor | int) -> Tensor:
        """alpha_bar at t = −1…steps−1, float64 on the CPU, of t's shape; alpha_bar(−1) = 1. Raises ValueError for a step outside."""
        steps = torch.as_tensor(t).cpu()
        if not (steps.min() >= -1 and steps.max() < self.steps):
            raise ValueError(f"step {t} is outside −1…{self.steps - 1}")
        return self._alpha_bars[steps + 1]

    def add_noise(self, x0: Tensor, t: Tensor | int, noise: Tensor) -> Tensor:
        """x_t = √alpha_bar(t)·x0 + √(1 − alpha_bar(t))·noise; x0 and noise (B, C, H, W), t (B,) or one step for all."""
        signal, spread = self.shares(t, x0)
        return signal * x0 + spread * noise

    def shares(self, t: Tensor | int, like: Tensor) -> tuple[Tensor, Tensor]:
        """√alpha_bar(t) and √(1 − alpha_bar(t)) of t (B,) or one step for all, both (B, 1, 1, 1) with dtype and device of a tensor."""
        tables = (
            table.to(like.dtype).to(like.device) for table in (self._alpha_bars.sqrt(), (1 - self._alpha_bars).sqrt())
        )
        signal, spread = (table[t + 1].view(-1, 1, 1, 1) for table in tables)
        return signal, spread


def noise_predictor(network: NoisePredictor, predicts: str | None, schedule: NoiseSchedule) -> NoisePredictor:
    """Return a predictor of the noise for a network that predicts x_0 (`predicts` is "x0"), or the noise already (None)."""

    def from_x_0(x_t: Tensor, t: Tensor) -> Tensor:
        signal, spread = schedule.shares(t, x_t)
        return (x_t - signal * network(x_t, t)) / spread

    return network if predicts is None else from_x_0


def loss_weights(predicts: str | None, schedule: NoiseSchedule) -> Tensor | None:
    """Return the weights (steps,) that turn the squared error of the noise into that of x_0; None where the network predicts the noise.

    The weight is the inverse of the signal-to-noise ratio, alpha_bar / (1 − alpha_bar).
    """
    alpha_bar = schedule.alpha_bar(torch.arange(schedule.steps))
    return None if predicts is None else 1 / (alpha_bar / (1 - alpha_bar))


def noise_loss(
    unet: NoisePredictor, x0: Tensor, t: Tensor, noise: Tensor, schedule: NoiseSchedule, weights: Tensor | None = None
) -> Tensor:
    """Mean over the batch of ‖noise − unet(x_t, t)‖², summed over channels and pixels, times `weights` (steps,) at t, where there are any;
    x0, noise (B, C, H, W), t (B,)."""
    predicted = unet(schedule.add_noise(x0, t, noise), t)
    errors = (noise - predicted).square().sum(dim=(1, 2, 3))
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
    skip: int = 25,
    eta: float = 1.0,
    draw: Callable[[], Tensor],
) -> Tensor:
    """Noise x to step `start`, then denoise it in strides of `skip` while pulling it towards `target` (Algorithm 1).

    x and target are (B, C, H, W) in [−1, 1]; `draw()` gives noise of that shape: once at the start, then once a step.
    As published, the first network call is told start − skip (for a multiple of it) although x was noised to `start`.
    Pulling eps by w is the same as moving the predicted x_0 towards the target by w·(1 − alpha_bar).
    """
    x_t, y_0 = schedule.add_noise(x, start, draw()), target
    for t, s in strides(start, skip):
        alpha_bar_t, alpha_bar_s = schedule.alpha_bar(t).item(), schedule.alpha_bar(s).item()
        eps = unet(x_t, torch.full((len(x),), t, device=x.device)).to(x_t)  # from a reduced precision, if it was in one
        y_t = math.sqrt(alpha_bar_t) * y_0 + math.sqrt(1 - alpha_bar_t) * eps
        eps = eps - w * math.sqrt(1 - alpha_bar_t) * (y_t - x_t)
        x_0 = (x_t - math.sqrt(1 - alpha_bar_t) * eps) / math.sqrt(alpha_bar_t)
        new_noise = eta * math.sqrt((1 - alpha_bar_t / alpha_bar_s) * (1 - alpha_bar_s) / (1 - alpha_bar_t))
        kept_noise = math.sqrt(1 - alpha_bar_s - new_noise**2)
        x_t = math.sqrt(alpha_bar_s) * x_0 + new_noise * draw() + kept_noise * eps
    return x_t


def gaussian_draws(shape: torch.Size, generator: torch.Generator) -> Callable[[], Tensor]:
    """draw() for `reconstruct`: standard normal tensors of `shape` from one stream, on the generator's device."""
    return lambda: torch.randn(shape, generator=generator, device=generator.device)


def picture_draws(pictures: Tensor, seed: int, shape: Sequence[int] | None = None) -> Callable[[], Tensor]:
    """draw() for `reconstruct`: each picture (of a batch (B, C, H, W) in [−1, 1], of 8-bit values) has a stream of its own, which follows from
    `seed` and its content alone, so that its noise, of `shape` (C, H, W) or its own, is the same in any batch, under any name and on any device."""
    generators = [torch.Generator().manual_seed(content_seed(picture, seed)) for picture in pictures]
    wanted = list(pictures.shape[1:] if shape is None else shape)
    return lambda: torch.stack([torch.randn(wanted, generator=generator) for generator in generators]).to(
        pictures.device
    )


def content_seed(picture: Tensor, seed: int) -> int:
    content = ((picture + 1) * 127.5).round().byte().cpu().contiguous().numpy().tobytes()
    return int.from_bytes(hashlib.sha256(f"{seed} {tuple(picture.shape)} ".encode() + content).digest()[:7], "big")


def strides(start: int, skip: int) -> list[tuple[int, int]]:
    """(t, s) of each denoising step, latest first: the multiples of `skip` below `start`; s = −1 ends. n = start / skip steps."""
    times = list(range(0, start, skip))[::-1]
    return list(zip(times, [*times[1:], -1], strict=True))
