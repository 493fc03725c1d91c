import math

import pytest
import torch

from benchmarks import map_variants
from config.keys import PARTS
from config.load import load_settings
from detection import reference
from detection.detector import load_detector
from detection.tune import Quality, check_tuning, measure_quality, prepare_bench, try_detector

CHANGES = {
    **{
        name: map_variants.CHANGES[name]
        for name in (
            "diffusion is no blurred part",
            "2 neighbours",
            "sum of the units",
            "squares beyond the top",
            "boost times 2, top at 2 deviations",
            "blur times 2",
        )
    },
    "features of 96 pixels": map_variants.Change(relearnt=map_variants.MEMORIES, side=96),
}  # one of each kind


def test_changes_name_constants_and_parts_that_exist():
    for name, change in map_variants.CHANGES.items():
        assert all(hasattr(reference, constant) for constant in change.constants), name
        assert set(change.relearnt) <= set(PARTS), name


def test_maps_are_measured_as_tuning_measures_them(run_main, tiny_config, monkeypatch):
    monkeypatch.setattr(map_variants, "CHANGES", CHANGES)
    monkeypatch.setattr(map_variants, "ROWS", [*map(", ".join, map_variants.PART_SETS), *CHANGES])
    small = ["model.unet_size=16", "model.predicts=x0", "score.space=features", "score.parts=[memory]"]
    small += ["model.network=patch", "model.epochs=40"]
    run_main("--train", *small)
    settings = load_settings(tiny_config, small)
    _, pictures, unseen = check_tuning(settings, tiny_config.parent / "tuned")
    bench = prepare_bench(pictures, unseen, settings)
    detector, *_ = load_detector(settings, settings.checkpoint_folder, torch.device("cpu"))
    qualities = dict(map_variants.measure_maps(settings, ["memory", "memory, diffusion", *CHANGES]))
    assert qualities["memory"] == measure_quality(try_detector(detector, bench, settings), bench)
    runs = {"nut 0": qualities, "nut 1": qualities, "bolt 0": qualities | {"diffusion": qualities["memory"]}}
    heading, *rows = list(map_variants.objective_table(runs))
    assert "| nut | bolt |" in heading and len(rows) == len(qualities) == 2 + len(CHANGES)
    kinds, *rows_by_kind = list(map_variants.kinds_table({"nut 0": qualities}))
    assert "stain, faint" in kinds and len(rows_by_kind) == len(qualities)
    means = [float(row.split(" | ")[1]) for row in rows]
    assert means == sorted(means, reverse=True) and len(set(means)) > 2


def test_units_are_joined_by_any_power():
    units = {"memory": torch.tensor([3.0, -1, 2]), "patch_memory": torch.tensor([4.0, 2, -5])}
    lengths = {power: map_variants.power_sum(power)(units).sqrt().tolist() for power in (1, 2, math.inf)}
    assert lengths == {1: pytest.approx([7, 2, 2]), 2: pytest.approx([5, 2, 2]), math.inf: pytest.approx([4, 2, 2])}
    assert torch.allclose(map_variants.power_sum(2)(units), reference.sum_contributions(units))


def test_other_weights_differ_only_where_they_should():
    units = torch.tensor([0.5, 1, 4])
    parts = ("memory", "pixel", "whole_memory")
    squares = {part: map_variants.unlimited_square(part, units) for part in parts}
    expected = {"memory": [0.25, 1, 16], "pixel": [0.125, 0.5, 8], "whole_memory": [0.125, 0.5, 8]}
    assert {part: values.tolist() for part, values in squares.items()} == expected
    assert all(torch.equal(squares[part][:2], reference.contribution(part, units[:2])) for part in parts)
    assert map_variants.other_boost(2, 1)("whole_memory", units).tolist() == [0.25, 1, 1]
    assert map_variants.other_boost()("whole_memory", units)[2] == 2
    assert torch.equal(map_variants.other_boost(2, 1)("pixel", units), reference.contribution("pixel", units))


def test_a_stopped_measurement_of_maps_goes_on(tmp_path, category, monkeypatch, capsys):
    measured = []

    def measure_maps(settings, names):
        measured.append(names)
        return ((name, Quality({"pit": 0.9}, 0.7)) for name in names)

    monkeypatch.setattr(map_variants, "measure_maps", measure_maps)
    for rows in (["memory"], ["memory", "diffusion"]):
        work = str(tmp_path / "work")
        map_variants.main([str(tmp_path), str(category), "--work", work, "--seeds", "3", "4", "--rows", *rows])
    assert measured == [["memory"], ["memory"], ["diffusion"], ["diffusion"]]
    *_, memory, pixel, _, _, _, memory_by_kind, pixel_by_kind = capsys.readouterr().out.splitlines()
    assert (memory, pixel) == ("| memory | 80.00 | 80.0 |", "| diffusion | 80.00 | 80.0 |")
    assert (memory_by_kind, pixel_by_kind) == ("| memory | 90.00 | 90.0 |", "| diffusion | 90.00 | 90.0 |")
