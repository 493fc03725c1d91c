import signal

import numpy as np
import pytest
import torch
from golden_weights import assert_golden

import domain_adaptation
from dataset import View
from domain_adaptation import adaptation_loss, adaptation_steps
from feature_extractor import FeatureExtractor
from training import checkpoint


@pytest.mark.parametrize("distillation", [0.1, 0.01])
def test_the_loss_equals_the_published_one(distillation, golden):
    expected = golden("anomaly_map_resnet50_64")
    lists = [[torch.from_numpy(expected[f"da_{j}_{layer}"]) for layer in range(3)] for j in range(4)]
    assert_golden(adaptation_loss(*lists, distillation), expected[f"da_loss_{distillation}"])


def test_loss_is_zero_for_a_perfect_reconstruction_and_untouched_features():
    features = [torch.rand(2, 4, 8, 8), torch.rand(2, 8, 4, 4)]
    torch.testing.assert_close(
        adaptation_loss(features, features, features, features, 0.1), torch.tensor(0.0), rtol=0, atol=1e-6
    )


@pytest.fixture
def extractor():
    torch.manual_seed(0)
    extractor = FeatureExtractor("efficientnet_lite0")
    extractor.minimum_size = 0  # speed
    return extractor


def steps(extractor, rebuild, epochs):
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (5, 3, 64, 64), dtype=np.uint8))
    return list(
        adaptation_steps(
            extractor,
            rebuild,
            pixels,
            epochs=epochs,
            batch_size=4,
            view=View(64),
            distillation=0.1,
            generator=torch.Generator().manual_seed(0),
        )
    )


def test_the_first_half_of_a_batch_is_the_target_the_second_half_the_start(extractor, monkeypatch):
    seen = []

    def rebuild(start_from, target):
        seen.append((start_from, target))
        return target

    monkeypatch.setattr(torch, "randperm", lambda n, **_: torch.arange(n))
    pixels = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 64, 64).contiguous()
    next(
        adaptation_steps(
            extractor,
            rebuild,
            pixels,
            epochs=1,
            batch_size=4,
            view=View(64),
            distillation=0.1,
            generator=torch.Generator().manual_seed(0),
        )
    )
    start_from, target = seen[0]
    assert (
        ((target[:, 0, 0, 0] + 1) * 127.5).round().tolist(),
        ((start_from[:, 0, 0, 0] + 1) * 127.5).round().tolist(),
    ) == ([0, 1], [2, 3])


def test_adaptation_brings_the_features_of_reconstructions_closer(extractor):
    """Without a tie to the frozen network, and always the same pictures."""
    torch.manual_seed(1)
    pattern = 0.1 * torch.randn(1, 3, 64, 64)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (5, 3, 64, 64), dtype=np.uint8))[:4]
    generator = torch.Generator().manual_seed(0)
    rebuild = lambda start_from, target: (target + pattern).clamp(-1, 1)  # noqa: E731
    progress = list(
        adaptation_steps(
            extractor, rebuild, pixels, epochs=12, batch_size=4, view=View(64), distillation=0, generator=generator
        )
    )
    assert progress[-1].loss < 0.8 * progress[0].loss


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_adaptation_ends_after_its_step_and_says_what_is_lost(run_main, tmp_path, monkeypatch, number, code):
    assert run_main("--train")[0] == 0
    calls, loss = [], domain_adaptation.adaptation_loss

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            signal.raise_signal(number)
        return loss(*arguments)

    monkeypatch.setattr(domain_adaptation, "adaptation_loss", interrupted)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    found, out, err = run_main("--domain_adaptation", "--detection", "model.DA_epochs=2")
    assert (found, err) == (code, "stopped; all files written so far are complete\n") and len(calls) == 3
    assert (
        "stopped after step 3 of 4; feat0 to feat1 are saved, later steps are lost" in out and "image AUROC" not in out
    )
    folder = tmp_path / "checkpoints" / "nut"
    assert {path.name for path in folder.glob("feat*")} == {"feat0", "feat1", "featlatest"}
    assert checkpoint.latest_epoch(folder, "feat") == 1
    assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


def test_the_incomplete_batch_is_dropped_and_epochs_end(extractor):
    progress = steps(extractor, lambda start_from, target: target, epochs=2)  # 5 pictures, batches of 4
    assert [(p.step, p.epoch, p.epoch_ends) for p in progress] == [(1, 1, True), (2, 2, True)]


def test_the_tuned_network_is_in_train_mode_and_the_frozen_one_does_not_change(extractor, monkeypatch):
    before = {name: value.clone() for name, value in extractor.network.state_dict().items()}
    modes, loss = [], domain_adaptation.adaptation_loss
    originals = []

    def spy(tuned_reconstruction, tuned_target, frozen_target, frozen_reconstruction, distillation):
        modes.append(
            (
                extractor.training,
                [
                    f[0].requires_grad
                    for f in (tuned_reconstruction, tuned_target, frozen_target, frozen_reconstruction)
                ],
            )
        )
        originals.append(frozen_target[0].clone())
        return loss(tuned_reconstruction, tuned_target, frozen_target, frozen_reconstruction, distillation)

    monkeypatch.setattr(domain_adaptation, "adaptation_loss", spy)
    monkeypatch.setattr(torch, "randperm", lambda n, **_: torch.arange(n))
    steps(extractor, lambda start_from, target: target, epochs=2)
    assert modes == [(True, [True, True, False, False])] * 2
    torch.testing.assert_close(originals[0], originals[1], rtol=0, atol=0)
    after = extractor.network.state_dict()
    assert any((after[name] != before[name]).any() for name in before if name.endswith("running_mean"))
    changed = [(after[name] - before[name]).abs().max().item() for name in before if name.endswith("conv_pw.weight")]
    assert 0 < max(changed) <= 2.1e-4  # two steps of AdamW at 1e-4
