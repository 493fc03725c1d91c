"""Hostile files: weights that contain code, and names that attack a folder, a spreadsheet or a terminal."""

import csv
import importlib
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import fuzz
import numpy as np
import pytest
import torch

from feature_extractor import FeatureExtractor
from runtime.errors import UserError
from storage.safe_csv import FORMULA_SIGNS, unescape
from storage.weights_file import read_state
from training import checkpoint

NAMES = (
    *(
        "=cmd|' !A0.png",
        "-1\x1b[2J.png",
        "\t\n\r=.png",
        "a\\..\\..\\up.png",
        "c:%s{}.png",
        "x" * 251 + ".png",
        "ü" * 120 + ".png",
    ),
    os.fsdecode(b"'\xff....png"),
)


class Malicious:
    """Create a file named `owned` when unpickled."""

    def __reduce__(self):
        return os.system, ("touch owned",)


def as_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weights": Malicious()}))


def as_torch_file(path: Path) -> None:
    torch.save({"format": checkpoint.FORMAT, "weights": {"w": torch.zeros(1)}, "x": Malicious()}, path)


def as_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("2/data.pkl", pickle.dumps({"weights": Malicious()}, protocol=2))
        archive.writestr("2/version", "3\n")
        archive.writestr("2/byteorder", "little")


READERS = {
    "2": lambda path: checkpoint.load_unet(path, torch.nn.Linear(1, 1)),
    "2.zip": checkpoint.held_out_names,
    "3": lambda path: checkpoint.is_made_with(path.parent, 3, {}),
    "feat3": lambda path: checkpoint.restore_features(path.parent, 3, "resnet50"),
    "training.state": lambda path: checkpoint.load_training_state(path.parent, {}),
    "backbone.pth": lambda path: FeatureExtractor("resnet50", path),
    "any": read_state,
}


@pytest.mark.parametrize("make", [as_pickle, as_torch_file, as_zip])
@pytest.mark.parametrize("name", READERS)
def test_weights_files_run_no_code(tmp_path, monkeypatch, name, make):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / name)
    with pytest.raises(
        ValueError, match="is not a file of weights: it is damaged, or holds more than tensors; replace or remove it"
    ):
        READERS[name](tmp_path / name)
    assert not (tmp_path / "owned").exists()


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_hostile_file_names_pass_all_stages(run_main, category, tmp_path):
    """All new files are in the folders of results, each picture has its files, and tables restore the names."""
    good = category / "test" / "good"
    for name in NAMES:
        shutil.copy(good / "000.png", good / name)
    (good / "001.png").unlink()
    (good / "002.png").unlink()
    shutil.copytree(good, tmp_path / "new")
    few = [
        "metrics.raw_maps=True",
        "metrics.misclassifications=True",
        "data.test_batch_size=8",
        "model.skip=100",
        "metrics.resamples=0",
        "metrics.size=32",
        "metrics.visualisation=True",
    ]
    before = files_below(tmp_path)
    for arguments in (
        ["--train", "--detection"],
        ["--detection", "--input", str(tmp_path / "new"), "--output", str(tmp_path / "found")],
    ):
        code, _, err = run_main(*arguments, *few)
        assert code == 0, err
    left = files_below(tmp_path) - before
    assert {name.partition("/")[0] for name in left} == {"checkpoints", "results", "found"}
    pictures = len(NAMES) + 1
    for kind, count in (
        ("results/figures/good/", pictures),
        ("found/heatmaps/", pictures),
        ("found/anomaly_maps/nut/test/", pictures),
    ):
        assert len([name for name in left if name.startswith(kind)]) == count
    for table, prefix in (("results/scores.csv", "test/good/"), ("found/predictions.csv", "")):
        with (tmp_path / table).open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = list(csv.DictReader(file))
        assert all(not row["path"].startswith(FORMULA_SIGNS) and np.isfinite(float(row["score"])) for row in rows)
        assert {prefix + name for name in NAMES} <= {unescape(row["path"]) for row in rows}
    code, out, _ = run_main(
        "--detection", "--input", str(tmp_path / "new"), "--output", str(tmp_path / "found"), "--resume", *few
    )
    assert code == 0 and f"{pictures} of {pictures} pictures are done already" in out
    if importlib.util.find_spec("pandas"):
        import pandas

        table = pandas.read_csv(
            tmp_path / "results" / "scores.csv", encoding_errors="surrogateescape", lineterminator="\n"
        )
        assert len(table) == pictures + 3 and table["score"].dtype == float


def test_file_names_send_no_control_characters_to_the_terminal(run_main, category):
    (category / "train" / "good" / "\x1b[2J\x9b.png").write_bytes(b"")
    code, _, err = run_main("--train")
    assert code == 2 and err.count("\n") == 1 and "?[2J?.png can't be read: it is empty" in err and "\x1b" not in err


@pytest.mark.parametrize("kind", fuzz.kinds(), ids=lambda kind: kind.name)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_give_a_result_or_an_error_line(kind):
    """A small part of `make fuzz`."""
    shown: list[str] = []
    count = fuzz.fuzz(kind, seed=7, share=10 / kind.count, watch=fuzz.Watch(), shown=shown)
    assert (count.accepted + count.refused, count.crashes) == (10, 0), shown


def test_the_fuzzer_counts_crashes_and_refusals(tmp_path):
    watch, count = fuzz.Watch(), fuzz.Count()

    def read(path: Path) -> None:
        if path.read_bytes() == b"crash":
            raise KeyError("x")
        if path.read_bytes() == b"bug":
            raise ValueError("shapes do not match")
        if path.read_bytes() == b"refused":
            raise UserError("remove it")
        watch.note("open", (str(path.parent / ".." / "elsewhere"), "w", os.O_WRONLY))
        watch.note("open", (str(path), "w", os.O_WRONLY))
        watch.note("os.system", (b"ls",))

    kind = fuzz.Kind("any", 1, "file", [], fuzz.damage_bytes, read)
    faults = [
        fuzz.try_input(kind, content, tmp_path, watch, count) for content in (b"crash", b"bug", b"refused", b"outside")
    ]
    assert "KeyError" in faults[0] and "ValueError: shapes" in faults[1] and faults[2] == ""
    assert "elsewhere" in faults[3] and "os.system" in faults[3]
    assert count == fuzz.Count(accepted=1, refused=1, crashes=2, outside=2)
