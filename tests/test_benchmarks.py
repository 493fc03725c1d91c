import pytest
import torch

from benchmarks import precision, speed, steps
from ddad import NoiseSchedule
from unet import UNet

CPU = torch.device("cpu")


def test_the_plain_reference_computes_the_same():
    torch.manual_seed(0)
    unet = UNet(16, 8, channel_multipliers=[1, 2], blocks_per_level=1, attention_sizes=(8,), heads=2).eval()
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, t = torch.randn(3, 3, 16, 16), torch.tensor([0, 10, 999])
    torch.testing.assert_close(speed.plain_unet(unet)(x, t), unet(x, t), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(speed.plain_alpha_bar(t, CPU), NoiseSchedule().alpha_bar(t))


@pytest.mark.parametrize("make", [lambda folder: speed.loading(3, 50, folder), lambda _: speed.measuring(6, 64)], ids=["loading", "metrics"])
def test_a_row_holds_both_times_and_their_ratio(make, tmp_path):
    cells = speed.measured(make(tmp_path), 2, CPU, 1e9).strip("| ").split(" | ")
    plain, ours, ratio = (float(cell.split()[0]) for cell in cells[1:4])
    assert len(cells) == 7 and min(plain, ours, ratio) > 0  # which is faster is for the benchmark to say


def test_precision_and_steps_are_measured_on_a_trained_category(run_main, tmp_path, category, capsys, monkeypatch):
    monkeypatch.setattr(steps, "STRIDES", ((100, 50), (100, 100)))
    monkeypatch.setattr(steps, "STARTS", ())
    run_main("--train")
    run_main("--detection")
    places, log = [str(tmp_path / "checkpoints" / "nut"), str(category.parent)], tmp_path / "steps.jsonl"
    capsys.readouterr()
    precision.main([*places, "--every", "3"])
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    changes = {name: float(normal) for name, normal, *_ in lines}
    assert changes["fp16"] < changes["bf16"] < changes["another seed"]
    tables = []
    for _ in range(2):
        steps.main([*places, str(log)])
        tables.append([line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")])
    assert tables[0] == tables[1] and [line.split(" | ")[2] for line in tables[0]] == ["n", "2", "1"]
    assert len(log.read_text().splitlines()) == 2
