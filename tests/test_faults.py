"""Existing files survive a disk that is full, turns read-only or disappears, and runs that are killed."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import train
from config.load import load_settings
from data_tools import sample_set
from data_tools.category_writer import write_plan_note
from data_tools.sample_set import MAKER, NOTE, ensure_sample_set, write_sample_note
from dataset import ImageFolder, View
from detection.calibration_file import save_calibration
from detection.threshold import PIXEL_RATES, Calibration
from reports import tables
from reports.drawing import ColourScale, Panel
from reports.html import PAGE, write_page
from reports.predictions import Predictions
from reports.writer import Writer
from storage import folder_lock
from training import checkpoint
from training.log import TRAINING, Log, log_path
from training.pace import Pace
from training.pixel_cache import cached_pixels
from training.resume import restore_trainer
from unet import UNet

ROOT = Path(__file__).parents[1]
SHAPE = {
    "image_size": 8,
    "base_channels": 8,
    "channel_multipliers": (1,),
    "blocks_per_level": 1,
    "attention_sizes": (),
    "heads": 1,
}


class Disk:
    """A small file system that a test fills, write-protects or removes."""

    def __init__(self, place: Path):
        self.place, self.folder = place, place / "nut"

    def mount(self) -> None:
        self.place.mkdir(parents=True)
        mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(self.place)]
        if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("only root may mount a small file system")
        self.folder.mkdir()

    def fill(self) -> None:
        with (self.place / "filler").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 4096)
            except OSError:
                pass

    def turn_read_only(self) -> None:
        subprocess.run(["mount", "-o", "remount,ro", str(self.place)], check=True)

    def go_away(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.place)], check=True)

    def content(self) -> dict[str, bytes]:
        return {
            path.name: path.read_bytes()
            for path in self.folder.rglob("*")
            if path.is_file() and path.name != folder_lock.LOCK
        }


@pytest.fixture
def disk(tmp_path):
    disk = Disk(tmp_path / "disk")
    disk.mount()
    yield disk
    subprocess.run(["umount", "--lazy", str(disk.place)], capture_output=True)


class Extractor(nn.Module):
    """The part of a feature extractor that its file stores."""

    name = "resnet50"
    network = nn.Linear(2, 2)


def many_rows(add: Callable[[], None]) -> None:
    """Add thousands of rows: one row still fits into the last block of a full disk."""
    for _ in range(5000):
        add()


def panel() -> Panel:
    grey, ramp = np.full((8, 8, 3), 90, np.uint8), np.zeros((8, 8))
    return Panel("p", 0.5, grey, grey, ramp, ramp, ramp, None, (8, 8))


def a_calibration() -> Calibration:
    return Calibration(1.0, 2.0, (0.1,), (0.5,) * PIXEL_RATES.size, True, {}, {})


def predictions_row() -> dict:
    return {"path": "p.png", "verdict": "normal", "score": 0.5, "p_value": 1.0, "regions": [], "error": ""}


def spool(folder: Path) -> None:
    with Writer(folder).spool() as maps:
        many_rows(lambda: maps.add(np.zeros(1000, np.float32)))


def a_report(folder: Path) -> None:
    """Write the report of a results folder on another disk."""
    with tempfile.TemporaryDirectory() as other:
        Writer(Path(other)).scores(["test/good/p"], [False], [0.5])
        write_page(folder / PAGE, [Path(other)])


MADE = {"settings": {"data": {"name": "own", "category": "nut"}, "model": {"seed": 0}}}
CHECKPOINTS, RESULTS = "change model.checkpoint_dir", "choose another folder with --output"
WRITES: dict[
    str, tuple[Callable[[Path], object], str]
] = {  # file: the call that writes it, and the remedy in its error message
    "2": (lambda folder: checkpoint.save_unet(folder / "2", UNet(**SHAPE)), CHECKPOINTS),
    "training.state": (lambda folder: checkpoint.save_training_state(folder, {"made_with": {}}), CHECKPOINTS),
    "feat1": (lambda folder: checkpoint.save_features(folder / "feat1", Extractor()), CHECKPOINTS),
    "calibration.json": (lambda folder: save_calibration(folder, a_calibration()), CHECKPOINTS),
    "training.jsonl": (lambda folder: many_rows(lambda: log_of(folder).add(1, 1, 1.0, 1.0, 1)), CHECKPOINTS),
    "scores.csv": (lambda folder: Writer(folder).scores(["p"], [True], [0.5]), RESULTS),
    "metrics.json": (lambda folder: Writer(folder).metrics({"pro": 0.5}), RESULTS),
    "misclassifications.csv": (
        lambda folder: Writer(folder).misclassifications(["p"], ["missed"], [0.5], 1.0),
        RESULTS,
    ),
    "figures/p.png": (lambda folder: Writer(folder).figure("p", panel(), ColourScale(1, 1, 1)), RESULTS),
    "anomaly_maps/nut/p.tiff": (
        lambda folder: Writer(folder).raw_map("p", np.zeros((9, 9), np.float32), "nut"),
        RESULTS,
    ),
    "outlines/p.png": (lambda folder: Writer(folder).picture("p.png", Image.new("L", (9, 9)), "outlines"), RESULTS),
    "predictions.json": (lambda folder: Predictions(folder, {}), RESULTS),
    "predictions.jsonl": (lambda folder: many_rows(lambda: rows_of(folder).add(predictions_row())), RESULTS),
    "maps": (spool, RESULTS),
    "curves.json": (lambda folder: Writer(folder).curves({}), RESULTS),
    "manifest.json": (lambda folder: Writer(folder).manifest(MADE, {}, {}), RESULTS),
    "gallery/picture/p.webp": (lambda folder: Writer(folder).gallery("p", panel(), ColourScale(1, 1, 1)), RESULTS),
    "report.html": (a_report, RESULTS),
    "summary.md": (lambda folder: tables.write_summary(folder, [tables.Outcome("nut", None, "gone")]), RESULTS),
    "preparation.json": (lambda folder: write_plan_note(folder, {}), RESULTS),
    "sample.json": (lambda folder: write_sample_note(folder, {"made by": MAKER}), "change data.data_dir"),
}
GROWING = ("training.jsonl", "predictions.jsonl", "maps")


def log_of(folder: Path) -> Log:
    """Return the existing log; the constructor would start a new one."""
    log = Log.__new__(Log)
    log.path, log._board, log._logged_at, log._logged_step = log_path(folder, TRAINING), None, 0.0, 0
    return log


def rows_of(folder: Path) -> Predictions:
    rows = Predictions.__new__(Predictions)
    rows._lines, rows._table = folder / "predictions.jsonl", folder / "predictions.csv"
    return rows


def write_earlier_file(name: str, folder: Path) -> None:
    if name not in GROWING:
        WRITES[name][0](folder)
    else:
        (folder / name).write_text('{"step": 1}\n')


def lines_of(content: dict[str, bytes]) -> dict[str, bytes]:
    """Return the first line of each file; growing files may have more lines."""
    return {name: body.partition(b"\n")[0] for name, body in content.items()}


@pytest.mark.parametrize("name", WRITES)
def test_a_full_disk_gives_an_error_line_and_keeps_existing_files(disk, name):
    write_earlier_file(name, disk.folder)
    before = disk.content()
    disk.fill()
    with pytest.raises(OSError, match="can't (write|keep maps)") as caught:
        WRITES[name][0](disk.folder)
    print(f"{name}: {caught.value}")
    for words in (str(disk.folder), "No space left on device; free some space or", WRITES[name][1]):
        assert words in str(caught.value)
    assert not list(disk.place.rglob("*.part"))
    after = disk.content()
    assert after == before if name not in GROWING else lines_of(before).items() <= lines_of(after).items()


@pytest.mark.parametrize("name", [name for name in WRITES if name != "maps"])
def test_a_read_only_disk_gives_an_error_line_and_keeps_existing_files(disk, name):
    write_earlier_file(name, disk.folder)
    before = disk.content()
    disk.turn_read_only()
    with pytest.raises(OSError, match="can't write") as caught:
        WRITES[name][0](disk.folder)
    assert (
        "Read-only file system; " in str(caught.value) and str(disk.folder) in str(caught.value)
    ) or "--output" in str(caught.value)
    assert disk.content() == before


@pytest.mark.parametrize("name", [name for name in WRITES if name not in ("maps", "predictions.json")])
def test_nothing_is_written_into_the_mount_point_of_a_lost_network_folder(disk, name):
    """Files in the empty mount point would be hidden when the folder comes back."""
    with folder_lock.locked(disk.folder, ""):
        write_earlier_file(name, disk.folder)
        disk.go_away()
        with pytest.raises(OSError, match="can't write .*; bring the folder back or") as caught:
            if (
                name.partition(".")[0] in ("scores", "metrics", "misclassifications", "curves", "manifest")
                or "/" in name
            ):
                writer = Writer.__new__(Writer)
                writer.folder, writer._written = disk.folder, {}
                writer.metrics({})
            else:
                WRITES[name][0](disk.folder)
    assert "No such file or directory" in str(caught.value) and not list(disk.place.iterdir())


def test_a_full_disk_while_the_sample_set_is_made(disk, monkeypatch):
    """The next run completes it."""
    monkeypatch.setattr(sample_set, "TEXTURES", ("brick", "grass"))
    with pytest.raises(
        OSError, match="can't make the sample set in .*No space left on device; free some space or change data.data_dir"
    ):
        ensure_sample_set(disk.folder, seed=1)
    assert json.loads((disk.folder / NOTE).read_text()) == {"made by": MAKER}
    assert not list(disk.folder.glob(".*"))


def test_a_full_disk_disables_the_pixel_cache(disk, category, capsys):
    pictures = ImageFolder(category, "train", View(32))
    disk.fill()
    found = cached_pixels(pictures, workers=1, folder=disk.folder, limit=1)
    torch.testing.assert_close(found, pictures.pixels(1), rtol=0, atol=0)
    assert (
        "No space left on device; free some space or change speed.cache" in capsys.readouterr().out
        and not disk.content()
    )


def test_a_read_only_disk_stops_a_stage_before_it_starts(disk, run_main):
    disk.turn_read_only()
    for arguments in (["--train"], ["--domain_adaptation"]):
        code, out, err = run_main(*arguments, f"model.checkpoint_dir={disk.place}")
        assert (
            code == 2
            and err.count("\n") == 1
            and f"can't write to {disk.folder}: Read-only file system; change model.checkpoint_dir" in err
        )
        assert "Training" not in out and "Adapting" not in out


def test_a_calibration_that_cannot_be_saved_gives_a_warning(run_main, tmp_path, disk):
    """Detection only needs to read the checkpoint folder."""
    assert run_main("--train")[0] == 0
    shutil.copytree(tmp_path / "checkpoints" / "nut", disk.folder, dirs_exist_ok=True)
    disk.turn_read_only()
    code, out, err = run_main("--detection", f"model.checkpoint_dir={disk.place}")
    assert code == 0 and "the calibration is not kept: can't write" in out and "Read-only file system" in out, err


def test_killed_runs_leave_complete_files_and_can_be_repeated():
    """Run three kills of `make faults`, which takes minutes."""
    if not hasattr(os, "fork"):
        pytest.skip("kill.py forks")
    command = [sys.executable, "tests/kill.py", "--kills", "3", "--seed", "3", "--only", "training", "input"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0 and len(re.findall(r"^(training|input) +[12] ", done.stdout, re.MULTILINE)) == 2, (
        done.stdout + done.stderr
    )


def test_damaged_rows_of_a_log_do_not_hide_the_others(tmp_path):
    log = Log(tmp_path, TRAINING, "jsonl")
    for step in (1, 2, 3):
        log.add(step, step, 1.0, 1.0, 1)
    damaged = log.path.read_text().splitlines()
    for line in ('{"step": 2, "ep', "[]", '{"step": "2"}', "\udcff"):
        log.path.write_text("\n".join([damaged[0], line, damaged[2]]) + "\n", errors="surrogateescape")
        Log(tmp_path, TRAINING, "jsonl", 3)
        assert log.path.read_text().splitlines() == [damaged[0], damaged[2]]
    rows = Predictions(tmp_path, {})
    for name in ("a", "b", "c"):
        rows.add(predictions_row() | {"path": name})
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
    for line in (
        lines[1][:-9],
        "1",
        '{"path": "b"}',
        lines[1].replace("0.5", '"x"'),
        lines[1].replace('"b"', '"\\ud800"'),
        "[" * 100_000,
    ):
        (tmp_path / "predictions.jsonl").write_text("\n".join([lines[0], line, lines[2]]) + "\n")
        assert Predictions(tmp_path, {}).done == {"a", "c"}


DAMAGED_STATES: dict[str, Callable[[dict], object]] = {
    "no rate": lambda state: state["trainer"].pop("rate"),
    "a missing weight": lambda state: state["trainer"]["unet"].popitem(),
    "a moment of another shape": lambda state: state["trainer"]["optimizer"]["state"][0].update(exp_avg=torch.zeros(1)),
    "a moment of no weight": lambda state: state["trainer"]["optimizer"]["state"].update(
        {10**6: {"step": torch.zeros(())}}
    ),
    "a missing picture": lambda state: state["trainer"].update(order=[10**6]),
    "a step before the first": lambda state: state["trainer"].update(step=-1),
    "losses that are not finite": lambda state: state.update(losses=[float("nan"), [1.0]]),
    "no losses": lambda state: state.update(losses=[1.0, []]),
    "losses missing": lambda state: state.pop("losses"),
    "a text for a number": lambda state: state["trainer"]["rate"].update(last_epoch="x"),
}


def test_a_training_state_that_does_not_fit_is_refused_with_its_name(run_main, tiny_config, tmp_path, monkeypatch):
    """A damaged or edited state gives one error line and stays unchanged."""
    arguments, path = (
        ["model.epochs=200", "training.checkpoint_minutes=0.0001"],
        tmp_path / "checkpoints" / "nut" / checkpoint.TRAINING_STATE,
    )
    save = checkpoint.save_training_state

    def stop_after(folder, state):
        save(folder, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_training_state", stop_after)
        assert run_main("--train", *arguments)[0] == 130
    settings = load_settings(tiny_config, arguments)
    for name, damage in DAMAGED_STATES.items():
        state = torch.load(path, weights_only=True)
        damage(state)
        pace = Pace.of_steps(400)
        trainer = train.build_trainer(settings, pace, torch.device("cpu"))
        with pytest.raises(ValueError, match="is damaged: .*remove it to start again"):
            restore_trainer(trainer, state, path, pictures=8, pace=pace)
            pytest.fail(name)
    torch.save(state, path)
    before = path.read_bytes()
    code, _, err = run_main("--train", "--resume", *arguments)
    assert (
        code == 2
        and f"{path} is damaged: rate.last_epoch has another type or shape than in this training; remove it" in err
        and err.count("\n") == 1
    )
    assert path.read_bytes() == before
