import json
import math
import re

import pytest
import torch
from torch import nn

from benchmarks import draws, parts, plain, precision, regret, speed, speed_rows, stand_ins, steps
from config.keys import PARTS
from config.load import load_settings
from dataset import ImageFolder, View
from ddad import NoiseSchedule
from detection import reference, tune
from detection.comparison import Networks
from detection.detector import Detector, load_detector
from detection.threshold import PIXEL_RATES, Calibration
from detection.tune import Quality, check_tuning, measure_quality, prepare_bench, try_detector
from unet import UNet

CPU = torch.device("cpu")


def test_the_plain_reference_computes_the_same():
    torch.manual_seed(0)
    unet = UNet(16, 8, channel_multipliers=[1, 2], blocks_per_level=1, attention_sizes=(8,), heads=2).eval()
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, t = torch.randn(3, 3, 16, 16), torch.tensor([0, 10, 999])
    torch.testing.assert_close(plain.plain_unet(unet)(x, t), unet(x, t), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain.plain_alpha_bar(t, CPU), NoiseSchedule().alpha_bar(t))
    noise = torch.randn_like(x)
    torch.testing.assert_close(plain.PlainSchedule().add_noise(x, t, noise), NoiseSchedule().add_noise(x, t, noise))


def test_the_plain_loop_of_pro_is_the_published_one(golden):
    expected = golden("metrics")
    assert plain.plain_pro(expected["maps"], expected["masks"] > 0) == pytest.approx(
        float(expected["pro_200_thresholds"]), rel=1e-4
    )


def test_a_row_holds_both_times_and_their_ratio():
    cells = speed.measured("average", 2, 1, True, CPU, 1e9).strip("| ").split(" | ")
    plain, ours, ratio = (float(cell.split()[0]) for cell in cells[1:4])
    assert len(cells) == 7 and min(plain, ours, ratio) > 0  # which is faster is for the benchmark to say


@pytest.mark.parametrize(
    "make",
    [lambda folder: speed_rows.loading(3, 50, folder), lambda _: speed_rows.measuring(6, 64)],
    ids=["loading", "metrics"],
)
def test_both_sides_of_a_row_can_be_timed(make, tmp_path):
    row = make(tmp_path)
    assert min(speed.seconds(side, CPU) for side in (row.ours, row.plain)) > 0


class Layers(nn.Module):
    """Three feature maps of any picture."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1) for channels in (3, 6, 12)
        )

    def forward(self, x):
        return [x := layer(x) for layer in self.layers]


def test_less_exact_numbers_move_scores_more(category):
    torch.manual_seed(0)
    unet = UNet(16, 8, channel_multipliers=[1, 2], blocks_per_level=1, attention_sizes=(8,), heads=2).eval()
    for parameter in unet.parameters():
        nn.init.normal_(parameter, std=0.1)
    networks = Networks(unet, Layers().eval(), NoiseSchedule(), w=3, start=100, skip=50, eta=1)
    kept = Calibration(1.0, 1.0, (0.5, 0.6, 0.7), (0.3,) * len(PIXEL_RATES), True, {}, {})
    detector = Detector(
        networks, View(16), v=1, blur_sigma=0.5, crop=1, seed=0, batch_size=4, device=CPU, calibration=kept
    )
    lines = [
        line.strip("| ").split(" | ")
        for line in precision.rows(detector, ImageFolder(category, "test", detector.view, masks=False))
    ]
    changes = {name: float(normal) for name, normal, *_ in lines}
    assert 0 < changes["fp16"] < changes["bf16"] < changes["another seed"] and all(
        cells[-1].endswith("of 6") for cells in lines
    )


def test_a_stopped_measurement_of_steps_goes_on(run_main, tmp_path, category, capsys, monkeypatch):
    monkeypatch.setattr(steps, "STRIDES", ((100, 50), (100, 100)))
    monkeypatch.setattr(steps, "STARTS", ())
    run_main("--train")
    run_main("--detection")
    log = tmp_path / "steps.jsonl"
    tables = []
    for _ in range(2):
        capsys.readouterr()
        steps.main([str(tmp_path / "checkpoints" / "nut"), str(category.parent), str(log)])
        tables.append([line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")])
    assert tables[0] == tables[1] and [line.split(" | ")[2] for line in tables[0]] == ["n", "2", "1"]
    assert len(log.read_text().splitlines()) == 2


def test_the_regret_is_of_what_detection_would_have_found(run_main, tiny_config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tune, "RECONSTRUCTION_SETTINGS", {"model.w": (1.0,)})
    monkeypatch.setattr(tune, "SCORE_SETTINGS", {"model.v": (4.0,)})
    run_main("--train")
    run_main("--detection")
    capsys.readouterr()
    regret.judge(load_settings(tiny_config), 1)
    *lines, last = [line for line in capsys.readouterr().out.splitlines() if re.match("[|] (present|model)|nut", line)]
    figures = [float(line.strip("| ").split(" | ")[-1]) for line in lines]
    taken = [figure for line, figure in zip(lines, figures, strict=True) if "| yes |" in line]
    assert len(lines) == 3 and figures[0] == pytest.approx(
        100 * json.loads((tmp_path / "results" / "metrics.json").read_text())["image_auroc"], abs=0.05
    )
    assert last == f"nut: chosen {taken[-1]:.1f}, best {max(figures):.1f}, regret {max(figures) - taken[-1]:.1f}"


def test_other_constants_and_parts_are_those_there_are():
    for name, otherwise in parts.OTHERWISE.items():
        assert all(hasattr(reference, constant) for constant in otherwise.constants) and set(otherwise.anew) <= set(
            PARTS
        ), name


OTHERWISE = {
    "pixel is no blurred part": parts.OTHERWISE["pixel is no blurred part"],
    "2 neighbours": parts.OTHERWISE["2 neighbours"],
    "features of 96 pixels": parts.OTHERWISE["features of 256 pixels"]._replace(side=96),
    "sum of the units": parts.OTHERWISE["sum of the units"],
    "squares beyond the top": parts.OTHERWISE["squares beyond the top"],
    "lifted 2 times as far, tops 2 deviations above": parts.OTHERWISE["lifted 2 times as far, tops 2 deviations above"],
    "blur times 2": parts.OTHERWISE["blur times 2"],
}  # one of each kind


def test_sets_of_parts_are_judged_as_tuning_judges_them(run_main, tiny_config, monkeypatch):
    monkeypatch.setattr(parts, "OTHERWISE", OTHERWISE)
    monkeypatch.setattr(parts, "ROWS", [*map(", ".join, parts.SETS), *OTHERWISE])
    small = "model.unet_size=16"
    run_main("--train", small)
    settings = load_settings(tiny_config, [small, "score.parts=[memory]"])
    _, pictures, unseen = check_tuning(settings)
    bench = prepare_bench(pictures, unseen, settings)
    detector, *_ = load_detector(settings, settings.checkpoint_folder, CPU)
    found = dict(parts.judged(settings, ["memory", "memory, pixel", *parts.OTHERWISE]))
    assert found["memory"] == measure_quality(try_detector(detector, bench, settings), bench)
    qualities = {name: quality._asdict() for name, quality in found.items()}
    first, *rest = list(
        parts.table({"nut 0": qualities, "nut 1": qualities, "bolt 0": qualities | {"pixel": qualities["memory"]}})
    )
    assert "| nut | bolt |" in first and len(rest) == len(found) == 2 + len(parts.OTHERWISE)
    kinds, *by_kind = list(parts.kinds_table({"nut 0": qualities}))
    assert "stain, faint" in kinds and len(by_kind) == len(found)
    means = [float(line.split(" | ")[1]) for line in rest]
    assert means == sorted(means, reverse=True) and len(set(means)) > 2


def test_units_are_put_together_by_any_power():
    units = {"memory": torch.tensor([3.0, -1, 2]), "patch_memory": torch.tensor([4.0, 2, -5])}
    lengths = {power: parts.length(power)(units).sqrt().tolist() for power in (1, 2, math.inf)}
    assert lengths == {1: pytest.approx([7, 2, 2]), 2: pytest.approx([5, 2, 2]), math.inf: pytest.approx([4, 2, 2])}
    assert torch.allclose(parts.length(2)(units), reference.sum_of_weights(units))


def test_weights_may_be_otherwise():
    units = torch.tensor([0.5, 1, 4])
    squares = {part: parts.square(part, units).tolist() for part in ("memory", "pixel", "whole_memory")}
    assert squares == {"memory": [0.25, 1, 16], "pixel": [0.125, 0.5, 8], "whole_memory": [0.125, 0.5, 8]}
    assert all(torch.equal(parts.square(part, units[:2]), reference.part_weight(part, units[:2])) for part in squares)
    assert (
        parts.lifting(2, 1)("whole_memory", units).tolist() == [0.25, 1, 1]
        and parts.lifting()("whole_memory", units)[2] == 2
    )
    assert torch.equal(parts.lifting(2, 1)("pixel", units), reference.part_weight("pixel", units))


def test_the_choice_of_parts_goes_on_where_it_was_stopped(tmp_path, category, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(
        parts, "judged", lambda _, rows: asked.append(rows) or ((row, Quality({"pit": 0.9}, 0.7)) for row in rows)
    )
    for rows in (["memory"], ["memory", "pixel"]):
        arguments = [
            str(tmp_path),
            str(category),
            "--work",
            str(tmp_path / "work"),
            "--seeds",
            "3",
            "4",
            "--rows",
            *rows,
        ]
        monkeypatch.setattr("sys.argv", ["parts", *arguments])
        parts.main()
    assert asked == [["memory"], ["memory"], ["pixel"], ["pixel"]]
    *_, memory, pixel, _, _, _, memory_by_kind, pixel_by_kind = capsys.readouterr().out.splitlines()
    assert (memory, pixel) == ("| memory | 80.00 | 80.0 |", "| pixel | 80.00 | 80.0 |")
    assert (memory_by_kind, pixel_by_kind) == ("| memory | 90.00 | 90.0 |", "| pixel | 90.00 | 90.0 |")


def test_the_table_of_draws_holds_what_detection_finds(run_main, tiny_config, tmp_path, category, capsys):
    run_main("--train")
    wanted = []
    for settings in (["score.protocol=published", "data.test_batch_size=16"], ["score.draws=2"]):
        run_main("--detection", *settings)
        found = json.loads((tmp_path / "results" / "metrics.json").read_text())
        wanted.append([100 * found[key] for key in ("image_auroc", "pixel_auroc", "pro")])
    capsys.readouterr()
    draws.main([str(category), str(tmp_path / "checkpoints"), "--config", str(tiny_config)])
    row = (
        next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| nut, "))
        .strip("| ")
        .split(" | ")
    )
    for cell, figures in zip((row[1], row[4]), wanted, strict=True):
        assert [float(value.split()[0]) for value in cell.split(" / ")] == pytest.approx(figures, abs=0.051)
    assert (
        len(row) == 3 + len(draws.DRAWS) + len(draws.RATES)
        and row[-1].startswith(tuple("0123"))
        and " of 3 (" in row[-1]
    )


def test_stand_ins_are_categories_whose_masks_are_what_differs(tmp_path, monkeypatch):
    for name, value in {"SIDE": 96, "TRAINING": 1, "NORMAL": 1, "OF_A_KIND": 2}.items():
        monkeypatch.setattr(stand_ins, name, value)
    for name, category in stand_ins.CATEGORIES.items():
        stand_ins.make(tmp_path / name, category, seed=0)
        assert len(ImageFolder(tmp_path / name, "train", View(96))) == 1
        test = ImageFolder(tmp_path / name, "test", View(96), masks=True, mask_size=96)
        masks = {item.path: item.mask for item in next(test.batches(8, 0))}
        assert {path.split("/")[1] for path in masks} == {"good", *category.kinds} and len(masks) == 1 + 2 * len(
            category.kinds
        )
        for path, mask in masks.items():
            assert mask is None if "/good/" in path else 0 < mask.mean() < 0.1
