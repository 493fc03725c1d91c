"""Kill runs of every stage with kill -9 at seeded moments and repeat them; the results must equal an unbroken run's.

Half of the moments are times; the others are places where a file is opened for writing, renamed or removed. After each
kill every file is complete. After the repetition the folder equals the unbroken run's, byte for byte. `make faults`:

    python tests/kill.py [--kills 50] [--seed 0]
"""

import argparse
import contextlib
import functools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import numpy as np  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from conftest import BACKBONE, random_backbone  # noqa: E402
from PIL import Image  # noqa: E402

import commands.dispatch  # noqa: E402, F401
import main  # noqa: E402
from config.keys import LATEST  # noqa: E402
from data_tools.category_writer import NOTE  # noqa: E402
from reports.html import PAGE  # noqa: E402
from reports.manifest import MANIFEST  # noqa: E402
from training import checkpoint  # noqa: E402

CHANGING = (
    "seconds",
    "pictures_per_second",
    "created",
    "peak_memory_bytes",
)  # keys whose values depend on the clock and the machine
SIZE = 32  # pixels
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CONFIGURATION = {
    "data": {"name": "own", "data_dir": "data", "category": "nut", "image_size": 16}
    | {"batch_size": 4, "DA_batch_size": 4, "test_batch_size": 2},
    "model": {"checkpoint_dir": "weights", "feature_extractor": BACKBONE, "device": "cpu"}
    | {
        "backbone_weights": "backbone.pth",
        "base_channels": 8,
        "channel_multipliers": [1],
        "blocks_per_level": 1,
        "attention_sizes": [8],
        "heads": 1,
    }
    | {"dropout": 0, "epochs": 6, "load_chp": "latest", "DA_epochs": 2, "DA_chp": 0, "w": 3, "num_workers": 1}
    | {"test_trajectory_steps": 100, "test_trajectory_steps_DA": 100, "skip": 100, "skip_DA": 100},
    "training": {"checkpoint_epochs": 2, "checkpoint_minutes": 1e-6, "ema": 0.5},
    "score": {"draws": 1},
    "metrics": {"size": 32, "resamples": 5, "raw_maps": True, "misclassifications": True},
}


@dataclass(frozen=True)
class Stage:
    """A run: its arguments, the earlier stages that it needs, and the arguments that `again` adds after a kill."""

    name: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()
    again: tuple[str, ...] = ()


OWN = ("--defects", "data/nut/test/crack", "--masks", "data/nut/ground_truth/crack")
STAGES = (
    Stage("training", ("--train",), (), ("--resume",)),
    Stage("adaptation", ("--domain_adaptation",), ("training",)),
    Stage("detection", ("--detection", "--output", "found"), ("training",)),
    Stage("input", ("--detection", "--input", "data/nut/test", "--output", "found"), ("training",), ("--resume",)),
    Stage("download", ("--prepare_mvtec", "packed.tar", "--output", "found")),
    Stage("own pictures", ("--prepare_folder", "data/nut/train/good", *OWN, "--output", "found")),
)


@dataclass
class Tally:
    """The faults after a stage's kills; a `late` kill came after the end of the run."""

    kills: int = 0
    late: int = 0
    halves: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        return [*self.halves, *self.left, *self.differing, *self.failed]


def make_data(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for place, count in (("train/good", 6), ("test/good", 3), ("test/crack", 3), ("ground_truth/crack", 3)):
        (folder / place).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(60, 120, (SIZE, SIZE, 3), dtype=np.uint8)
            if "crack" in place:
                pixels[10:20, 12:24] = 255
            mask = np.zeros((SIZE, SIZE), np.uint8)
            mask[10:20, 12:24] = 255
            name = f"{number:03}{'_mask' if place.startswith('ground') else ''}.png"
            Image.fromarray(mask if place.startswith("ground") else pixels).save(folder / place / name)


def run(
    folder: Path, arguments: tuple[str, ...], kill_at: int | None = None, kill_after: float | None = None
) -> tuple[int, str, int]:
    """Run in a new process in `folder`; return exit code (−9: killed), output and number of writes.

    The process gets SIGKILL before write number `kill_at`, or after `kill_after` seconds.
    """
    (folder / "output").unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.chdir(folder)
            with (
                Path("output").open("w") as output,
                contextlib.redirect_stdout(output),
                contextlib.redirect_stderr(output),
            ):
                writes = count_writes(folder, kill_at)
                code = main.main([*arguments, "--config", "c.yaml"])
                output.write(f"\n{next(writes)}")
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    output = (
        (folder / "output").read_text() if (folder / "output").exists() else ""
    )  # a kill may come before the first output
    code = os.waitstatus_to_exitcode(status)
    return code, output, int(output.rpartition("\n")[2]) if code >= 0 and code != 99 else 0


def count_writes(folder: Path, kill_at: int | None) -> Iterator[int]:
    """Count changes of files below `folder`, by Python's audit events; each step yields the count so far."""
    count, inside = 0, str(folder)

    def note(event: str, arguments: tuple) -> None:
        nonlocal count
        written = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
        if written or event in ("os.rename", "os.remove", "os.mkdir", "os.truncate"):
            place = arguments[0]
            if isinstance(place, (str, os.PathLike)) and str(Path(place).absolute()).startswith(inside):
                count += 1
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(note)

    def so_far() -> Iterator[int]:
        while True:
            yield count

    return so_far()


def content_of(folder: Path) -> dict[str, bytes]:
    """Return all files of a run, without values that depend on the clock."""
    files = {
        path.relative_to(folder).as_posix(): path
        for part in ("weights", "found")
        for path in (folder / part).rglob("*")
        if path.is_file()
    }
    return {name: stable_content(path) for name, path in sorted(files.items())}


def stable_content(path: Path) -> bytes:
    """Return a file's content without values that depend on the clock and the memory."""
    if path.name == PAGE:
        return b"" if path.read_bytes().rstrip().endswith(b"</html>") else b"cut short"
    if path.suffix == ".jsonl" and path.name != "predictions.jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return json.dumps(
            [{name: value for name, value in row.items() if name not in CHANGING} for row in rows]
        ).encode()
    if path.name == MANIFEST:
        return json.dumps(
            {name: value for name, value in json.loads(path.read_text()).items() if name not in CHANGING}
        ).encode()
    return path.read_bytes()


def incomplete_files(folder: Path, unbroken_files: dict[str, bytes]) -> Iterator[str]:
    """Yield a fault for each file that is neither complete nor a growing one."""
    for path in (path for part in ("weights", "found") for path in (folder / part).rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in Path(name).parts):
            continue
        if path.name == checkpoint.TRAINING_STATE:
            try:
                checkpoint.read_state(path)
            except ValueError as error:
                yield str(error)
        elif path.name.endswith(LATEST):
            int(path.read_text())
        elif path.name == NOTE:  # it first says that it is incomplete
            json.loads(path.read_text())
        elif path.suffix == ".jsonl":
            if (
                path.read_bytes().count(b"\n")
                > unbroken_files[name].count(b"\n") + unbroken_files[name].count(b"}, {") + 1
            ):
                yield f"{name} has too many rows"
        elif path.name != "predictions.csv" and stable_content(path) != unbroken_files.get(name):
            yield f"{name} is half-written"


def restore(folder: Path, base: Path, stage: Stage, unbroken: dict[str, Path]) -> Path:
    """Fill `folder` with the files that the stage starts from, and return it."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder)
    for need in stage.needs:
        shutil.copytree(unbroken[need], folder, dirs_exist_ok=True)
    return folder


def break_and_repeat(
    work: Path,
    stage: Stage,
    unbroken_files: dict[str, bytes],
    kill: Callable[[], tuple[int, str, int]],
    code: int,
    tally: Tally,
) -> None:
    moment = f"{stage.name}, kill {tally.kills}"
    tally.kills += 1
    tally.late += kill()[0] != -signal.SIGKILL
    tally.halves += [f"{moment}: {fault}" for fault in incomplete_files(work, unbroken_files)]
    again, output, _ = run(work, (*stage.arguments, *stage.again))
    if again != code:
        tally.failed.append(f"{moment}: exit code {again}: {output[-500:]}")
        return
    found = content_of(work)
    tally.left += [f"{moment}: {name} is left over" for name in found.keys() - unbroken_files.keys()]
    tally.differing += [
        f"{moment}: {name} differs" for name in unbroken_files if found.get(name) != unbroken_files[name]
    ]


def kill_stage(
    stage: Stage, kills: int, rng: random.Random, base: Path, work: Path, unbroken: dict[str, Path]
) -> Tally:
    tally = Tally()
    restore(work, base, stage, unbroken)
    began = time.monotonic()
    code, output, writes = run(work, stage.arguments)
    seconds = time.monotonic() - began
    if code:
        raise SystemExit(f"{stage.name} fails without a kill: {output}")
    unbroken_files = content_of(work)
    unbroken[stage.name] = base.parent / f"unbroken {stage.name}"
    shutil.copytree(work, unbroken[stage.name])
    for number in range(kills):
        restore(work, base, stage, unbroken)
        at, after = rng.randint(1, writes), rng.uniform(0, seconds)
        place: dict[str, float | int] = {"kill_at": at} if number % 2 == 0 else {"kill_after": after}
        kill = functools.partial(run, work, stage.arguments, **place)  # type: ignore[arg-type]
        break_and_repeat(work, stage, unbroken_files, kill, code, tally)
    return tally


def run_all() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="STAGE", help="names of stages")
    options = parser.parse_args()
    stages = [stage for stage in STAGES if options.only is None or stage.name in options.only]
    torch.set_num_threads(1)
    rng, faults = random.Random(options.seed), []
    columns = ("half-written", "left over", "differing", "failed")
    print(f"{'stage':14}{'kills':>7}{'late':>6}{''.join(f'{name:>14}' for name in columns)}{'seconds':>9}")
    with tempfile.TemporaryDirectory() as temporary:
        base, work, unbroken = Path(temporary).resolve() / "base", Path(temporary).resolve() / "work", {}
        make_data(base / "data" / "nut")
        shutil.make_archive(str(base / "packed"), "tar", base / "data")
        (base / "backbone.pth").write_bytes(random_backbone())
        (base / "c.yaml").write_text(yaml.safe_dump(CONFIGURATION), encoding="utf-8")
        for number, stage in enumerate(stages):
            began = time.monotonic()
            kills = options.kills // len(stages) + (number < options.kills % len(stages))
            tally = kill_stage(stage, kills, rng, base, work, unbroken)
            faults += tally.faults
            counts = (len(tally.halves), len(tally.left), len(tally.differing), len(tally.failed))
            seconds = time.monotonic() - began
            print(f"{stage.name:14}{tally.kills:7}{tally.late:6}{''.join(f'{n:14}' for n in counts)}{seconds:9.0f}")
            sys.stdout.flush()
    print("\n".join(faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(run_all())
