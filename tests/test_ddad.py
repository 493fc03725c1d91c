import json
import math
import re

import numpy as np
import pytest
import torch
from golden_weights import (
    GOLDEN_SHARE,
    PUBLISHED,
    assert_golden,
    normal,
    published_unet,
    rounding_share,
    state_dict,
    stream,
    uniform,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from ddad import (
    NoiseSchedule,
    loss_weights,
    noise_loss,
    noise_predictor,
    picture_draws,
    reconstruct,
    seeded_draws,
    strides,
)
from runtime.device import autocast, resolve_dtype

SCHEDULE = NoiseSchedule()
properties = settings(deadline=None, derandomize=True, max_examples=20)


@pytest.fixture(params=["ddad_s_32", "ddad_s_64"])
def network(request, golden):
    unet = published_unet(request.param).eval()
    unet.load_state_dict(state_dict(golden("unet_state_dict")[request.param]))
    return unet, PUBLISHED[request.param][0], golden(f"diffusion_{request.param}")


def test_alpha_bar_is_the_product_of_one_minus_beta():
    betas = np.linspace(1e-4, 0.02, 1000)
    expected = torch.from_numpy(np.concatenate([[1.0], np.cumprod(1 - betas)]))
    torch.testing.assert_close(SCHEDULE.alpha_bar(torch.arange(-1, 1000)), expected, rtol=1e-12, atol=0)
    assert SCHEDULE.alpha_bar(-1) == 1


class CopyRecorder(TorchFunctionMode):
    """Records the size of each tensor that `sqrt` computes, or `to` copies to another dtype or device."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function in (torch.Tensor.sqrt, torch.Tensor.to) and result is not args[0]:
            self.sizes.append(result.numel())
        return result


def test_the_second_step_neither_builds_nor_copies_a_table_of_square_roots():
    schedule, x_0, t = NoiseSchedule(), uniform(1, 2, 3, 8, 8), torch.tensor([3, 700])
    with CopyRecorder() as first:
        x_t = schedule.add_noise(x_0, t, x_0)
    with CopyRecorder() as second:
        again = schedule.add_noise(x_0, t, x_0)
        schedule.roots(0, x_0)
    assert sum(size > schedule.steps for size in first.sizes) == 4 and not second.sizes
    assert torch.equal(x_t, again)


def test_tables_of_square_roots_have_the_dtype_of_the_picture():
    schedule, x_0 = NoiseSchedule(), uniform(1, 2, 3, 8, 8)
    expected = schedule.alpha_bar(5).sqrt()
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        signal, spread = schedule.roots(5, x_0.to(dtype))
        assert signal.dtype == spread.dtype == dtype and signal.item() == expected.to(dtype).item()


@pytest.mark.parametrize("t", [-2, 1000])
def test_a_step_outside_the_schedule_is_refused(t):
    with pytest.raises(ValueError, match=f"step {t}"):
        SCHEDULE.alpha_bar(t)


def test_loss_and_gradients_have_the_golden_values(network):
    unet, size, expected = network
    loss = noise_loss(
        unet, uniform(13, 2, 3, size, size), torch.tensor([3, 612]), normal(14, 2, 3, size, size), SCHEDULE
    )
    loss.backward()
    assert_golden(loss.detach(), expected["loss"])
    norms = json.loads(str(expected["grad_norms"]))
    actual = torch.stack([parameter.grad.norm() for parameter in unet.parameters()])
    assert_golden(actual, np.array([norms[name] for name, _ in unet.named_parameters()], np.float32))


@pytest.mark.parametrize(
    ("layout", "precision", "checkpointing"),
    [
        (torch.channels_last, "fp32", False),
        (torch.contiguous_format, "fp32", True),
        (torch.contiguous_format, "bf16", False),
        (torch.channels_last, "fp16", True),
    ],
)
def test_output_loss_and_gradients_have_the_golden_values_in_every_mode(golden, layout, precision, checkpointing):
    unet, expected = published_unet("ddad_s_32"), golden("diffusion_ddad_s_32")
    unet.load_state_dict(state_dict(golden("unet_state_dict")["ddad_s_32"]))
    unet.to(memory_format=layout).checkpointing = checkpointing
    t, x = torch.tensor([7, 430]), normal(12, 2, 3, 32, 32)
    share = GOLDEN_SHARE if precision == "fp32" else rounding_share(unet, resolve_dtype(precision, x.device))
    network = autocast(unet, precision, torch.device("cpu"))
    with torch.no_grad():
        assert_golden(network(x, t).float(), golden("unet_ddad_s_32")["y"], share)
    loss = noise_loss(network, uniform(13, 2, 3, 32, 32), torch.tensor([3, 612]), normal(14, 2, 3, 32, 32), SCHEDULE)
    loss.backward()
    assert_golden(loss.detach(), expected["loss"], share)
    norms = json.loads(str(expected["grad_norms"]))
    actual = torch.stack([parameter.grad.norm() for parameter in unet.parameters()])
    assert_golden(actual, np.array([norms[name] for name, _ in unet.named_parameters()], np.float32), share)


def test_reconstructions_have_the_golden_values(network):
    unet, _, expected = network
    cases = [name for name in expected if name.startswith("rec_")]
    assert len(cases) == 5
    for name in cases:
        w, eta, skip, start = (
            float(number) for number in re.fullmatch(r"rec_w(.+)_eta(.+)_skip(.+)_T(.+)", name).groups()
        )
        y_0 = uniform(15, *expected[name].shape)
        x = uniform(16, *expected[name].shape) if w == 4 else y_0
        actual = reconstruct(
            unet, x, y_0, schedule=SCHEDULE, w=w, start=int(start), skip=int(skip), eta=eta, draw=stream(17, y_0.shape)
        )
        assert_golden(actual, expected[name])


def test_strides_are_the_published_ones():
    assert strides(250, 25) == [(t, t - 25) for t in range(225, 0, -25)] + [(0, -1)]
    assert strides(250, 30)[:2] == [(240, 210), (210, 180)]


@properties
@given(w=st.floats(0, 12), eta=st.floats(0, 1), start=st.integers(2, 900), divisor=st.integers(1, 10))
def test_a_perfect_denoiser_gives_the_picture_back(w, eta, start, divisor):
    picture = uniform(1, 2, 3, 8, 8).double()

    def perfect(x_t, t):
        alpha_bar = SCHEDULE.alpha_bar(t).view(-1, 1, 1, 1)
        return (x_t - alpha_bar.sqrt() * picture) / (1 - alpha_bar).sqrt()

    rng = np.random.default_rng(2)
    draw = lambda: torch.from_numpy(rng.standard_normal(picture.shape))  # noqa: E731
    back = reconstruct(
        perfect,
        picture,
        picture,
        schedule=SCHEDULE,
        w=w,
        start=start,
        skip=max(1, start // divisor),
        eta=eta,
        draw=draw,
    )
    torch.testing.assert_close(back, picture, rtol=0, atol=1e-9)


@properties
@given(w=st.floats(0, 12), t=st.integers(1, 900))
def test_the_pull_moves_the_predicted_picture_towards_the_target(w, t):
    """One step from t: x_0 ← x_0 + w·(1 − alpha_bar)·(y_0 − x_0)."""
    y_0, eps = uniform(3, 1, 3, 8, 8).double(), normal(4, 1, 3, 8, 8).double()
    noise = normal(5, 1, 3, 8, 8).double()
    start = t + 1
    x_t = SCHEDULE.add_noise(y_0, start, noise)
    alpha_bar = float(SCHEDULE.alpha_bar(0))
    single = reconstruct(
        lambda x, t: eps, y_0, y_0, schedule=SCHEDULE, w=w, start=start, skip=start, eta=1, draw=lambda: noise
    )
    x_0 = (x_t - math.sqrt(1 - alpha_bar) * eps) / math.sqrt(alpha_bar)
    torch.testing.assert_close(single, x_0 + w * (1 - alpha_bar) * (y_0 - x_0), rtol=1e-9, atol=1e-9)


def test_noise_is_drawn_once_at_the_start_and_once_a_step():
    drawn = []

    def draw():
        drawn.append(1)
        return torch.zeros(1, 3, 8, 8)

    reconstruct(lambda x, t: x * 0, torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), schedule=SCHEDULE, w=0, draw=draw)
    assert len(drawn) == 11


def test_the_network_is_called_with_the_published_steps():
    steps = []

    def unet(x, t):
        steps.extend(t.tolist())
        return x * 0

    zeros = torch.zeros(1, 3, 8, 8)
    reconstruct(unet, zeros, zeros, schedule=SCHEDULE, w=0, draw=lambda: zeros)
    assert steps == [225, 200, 175, 150, 125, 100, 75, 50, 25, 0]


def test_a_picture_has_the_same_noise_in_any_batch():
    pictures = uniform(6, 3, 3, 8, 8)
    together, alone, reversed_ = (
        picture_draws(pictures, 1),
        picture_draws(pictures[1:2], 1),
        picture_draws(pictures.flip(0), 1),
    )
    for _ in range(3):
        batch = together()
        torch.testing.assert_close(alone(), batch[1:2], rtol=0, atol=0)
        torch.testing.assert_close(reversed_().flip(0), batch, rtol=0, atol=0)
        assert (batch[0] != batch[1]).any()
    assert (picture_draws(pictures, 2)() != picture_draws(pictures, 1)()).any()


def test_seeded_noise_is_the_same_for_all_pictures_of_all_batches():
    batch, alone, other = (
        seeded_draws(torch.Size((size, 3, 8, 8)), seed, torch.device("cpu")) for size, seed in ((4, 1), (1, 1), (1, 2))
    )
    first, second, of_one = batch(), batch(), alone()
    torch.testing.assert_close(first, of_one.expand(first.shape), rtol=0, atol=0)
    assert (first != second).any() and (of_one != other()).any()


@pytest.mark.parametrize("predicts", [None, "x0"])
def test_a_network_may_predict_the_picture_instead_of_the_noise(predicts):
    x_0, noise, t = uniform(31, 3, 3, 8, 8).double(), normal(32, 3, 3, 8, 8).double(), torch.tensor([0, 250, 999])
    right = x_0 if predicts else noise
    x_t = SCHEDULE.add_noise(x_0, t, noise)
    torch.testing.assert_close(noise_predictor(lambda x, t: right, predicts, SCHEDULE)(x_t, t), noise)

    wrong = right + normal(33, 3, 3, 8, 8)  # the loss is the error of what is predicted
    predictor = noise_predictor(lambda x, t: wrong, predicts, SCHEDULE)
    loss = noise_loss(predictor, x_0, t, noise, SCHEDULE, loss_weights(predicts, SCHEDULE))
    torch.testing.assert_close(loss, (wrong - right).square().sum(dim=(1, 2, 3)).mean())
