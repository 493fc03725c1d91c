import numpy as np
import pytest
import torch
from golden_weights import assert_golden

import checkpoint
import domain_adaptation
from domain_adaptation import adaptation_loss, adaptation_steps, fit_statistics
from feature_extractor import FeatureExtractor


@pytest.mark.parametrize("distillation", [0.1, 0.01])
def test_loss_is_the_published_one(distillation, golden):
    expected = golden("anomaly_map_resnet50_64")
    lists = [[torch.from_numpy(expected[f"da_{j}_{layer}"]) for layer in range(3)] for j in range(4)]
    assert_golden(adaptation_loss(*lists, distillation), expected[f"da_loss_{distillation}"])


def test_loss_is_zero_for_a_perfect_reconstruction_and_untouched_features():
    features = [torch.rand(2, 4, 8, 8), torch.rand(2, 8, 4, 4)]
    torch.testing.assert_close(adaptation_loss(features, features, features, features, 0.1), torch.tensor(0.0), rtol=0, atol=1e-6)


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
            extractor, rebuild, pixels, epochs=epochs, batch_size=4, window=64, distillation=0.1, generator=torch.Generator().manual_seed(0)
        )
    )


def test_the_first_half_of_a_batch_is_the_target_the_second_the_start(extractor, monkeypatch):
    seen = []

    def rebuild(start_from, target):
        seen.append((start_from, target))
        return target

    monkeypatch.setattr(torch, "randperm", lambda n, **_: torch.arange(n))
    pixels = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 64, 64).contiguous()
    next(
        adaptation_steps(extractor, rebuild, pixels, epochs=1, batch_size=4, window=64, distillation=0.1, generator=torch.Generator().manual_seed(0))
    )
    start_from, target = seen[0]
    assert (((target[:, 0, 0, 0] + 1) * 127.5).round().tolist(), ((start_from[:, 0, 0, 0] + 1) * 127.5).round().tolist()) == ([0, 1], [2, 3])


def test_adaptation_brings_the_features_of_reconstructions_closer(extractor):
    """Without a tie to the frozen network, and always the same pictures."""
    torch.manual_seed(1)
    pattern = 0.1 * torch.randn(1, 3, 64, 64)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (5, 3, 64, 64), dtype=np.uint8))[:4]
    generator = torch.Generator().manual_seed(0)
    rebuild = lambda start_from, target: (target + pattern).clamp(-1, 1)  # noqa: E731
    progress = list(adaptation_steps(extractor, rebuild, pixels, epochs=12, batch_size=4, window=64, distillation=0, generator=generator))
    assert progress[-1].loss < 0.8 * progress[0].loss


def test_the_incomplete_batch_is_dropped_and_epochs_end(extractor):
    progress = steps(extractor, lambda start_from, target: target, epochs=2)  # 5 pictures, batches of 4
    assert [(p.step, p.epoch, p.epoch_ends) for p in progress] == [(1, 1, True), (2, 2, True)]


def test_the_tuned_network_is_in_train_mode_and_the_frozen_one_stays_as_it_was(extractor, monkeypatch):
    before = {name: value.clone() for name, value in extractor.network.state_dict().items()}
    modes, loss = [], domain_adaptation.adaptation_loss
    originals = []

    def spy(tuned_reconstruction, tuned_target, frozen_target, frozen_reconstruction, distillation):
        modes.append((extractor.training, [f[0].requires_grad for f in (tuned_reconstruction, tuned_target, frozen_target, frozen_reconstruction)]))
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


@pytest.mark.parametrize("share", [0.5, 1])
def test_statistics_come_to_lie_between_the_pretrained_ones_and_those_of_normal_pictures(share):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(2), torch.nn.Dropout(), torch.nn.BatchNorm2d(2))
    weights = {name: values.detach().clone() for name, values in network.named_parameters()}
    batches = [torch.randn(4, 2, 8, 8) * scale + 3 for scale in (1, 2)]
    fit_statistics(network, batches, share)
    first, _, second = network
    means = torch.stack([batch.mean(dim=(0, 2, 3)) for batch in batches]).mean(dim=0)
    variances = torch.stack([batch.var(dim=(0, 2, 3)) for batch in batches]).mean(dim=0)
    torch.testing.assert_close(first.running_mean, share * means)
    torch.testing.assert_close(first.running_var, (1 - share) + share * variances)
    torch.testing.assert_close(second.running_mean, torch.zeros(2), atol=1e-5, rtol=0)  # of what the first one and its batch make, without dropout
    torch.testing.assert_close(second.running_var, torch.ones(2), atol=0.01, rtol=0)
    assert all(torch.equal(weights[name], values) for name, values in network.named_parameters())
    assert not any(module.training for module in network.modules())


def test_a_network_without_batch_norm_has_no_statistics_to_learn():
    with pytest.raises(ValueError, match="no batch norm; set it to weights"):
        fit_statistics(torch.nn.Conv2d(3, 3, 1), [torch.zeros(1, 3, 8, 8)], 1)


def test_stage_2_learns_statistics_without_a_step_of_the_weights(run_main, tmp_path):
    statistics = ("model.DA_learns=statistics", "model.DA_epochs=1", "data.DA_batch_size=2")
    assert run_main("--train")[0] == 0
    code, out, err = run_main("--detection", *statistics, "model.DA_chp=latest")
    assert code == 0 and "not adapted (--domain_adaptation True does it)" in out, err
    code, out, err = run_main("--domain_adaptation", *statistics)
    assert code == 0 and "Adapting statistics of efficientnet_lite0 to nut" in out and "statistics of " in out, err
    folder = tmp_path / "checkpoints" / "nut"
    untouched, learnt = (checkpoint.read_state(folder / name)["weights"] for name in ("feat0", "feat1"))
    changed = {name.rpartition(".")[2] for name, values in untouched.items() if not torch.equal(values, learnt[name])}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}
    assert "nut is adapted" in run_main("--train", "--domain_adaptation", "--resume", *statistics)[1]
    code, out, err = run_main("--detection", *statistics, "model.DA_chp=latest")
    assert code == 0 and "feat1" in out and "not adapted" not in out, err
    code, _, err = run_main("--domain_adaptation", *statistics, "model.DA_epochs=2")
    assert code == 2 and "model.DA_epochs is 2, but batch norm's statistics are learnt at once; set it to 1" in err
