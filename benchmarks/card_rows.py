"""Measure a card, one row after the other: environment, golden numbers, ceilings, speed and memory.

    python -m benchmarks.card_rows FILE.jsonl [--device cuda] [--scale published|toy] [--seconds 200]

A finished row is a line of the file. Rows that the file holds are not measured again, so that a stopped run goes on. A
row that fails is a line with its error. No row begins that is expected to last longer than the seconds that are left.
benchmarks/card.py starts this program; its table is in docs/speed.md.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.golden import golden_shares, map_shares
from benchmarks.plain_forms import LEARNING_RATE, SCHEDULE, WEIGHT_DECAY
from benchmarks.speed import measure_seconds
from benchmarks.speed_rows import DDAD, DDAD_S, count_operations, seeded_unet, time_detection, training_step
from runtime.device import (
    DTYPES,
    MEBI,
    autocast,
    choose_device,
    compile_network,
    computes_in_bf16,
    device_name,
    measure_peak_memory,
)
from runtime.errors import one_line
from train import build_optimizer
from training.networks import prepare_network

ENVIRONMENT, GOLDEN, CEILING = "environment", "golden", "ceiling"
TRAINING, FORWARD, DETECTION = "training step", "forward", "detection"
PUBLISHED, TOY = "published", "toy"
COMPILED = "compiled"
REPEATS, LONGEST_REPEATS = 10, 3.0  # repeats of a row, and the seconds after which none begins
WARM_UP = 2  # calls before the repeats
EXPECTED = 15.0  # seconds of a row that nothing is known of
EXPECTED_COMPILING = 120.0  # seconds, of the first compiled row
TRIALS = 5  # of a ceiling
CEILING_SIDE = {"cuda": 8192}  # of the matrices; 1024 on other devices

Row = dict[str, Any]  # what a line of the file holds
Measure = Callable[[], Row]


@dataclass(frozen=True)
class Scale:
    """What is measured: networks with their batch sizes, number formats, and the networks with golden numbers."""

    batches: Mapping[str, int]
    precisions: tuple[str, ...]
    compiled: bool  # whether training is timed compiled, too
    golden: tuple[str, ...]
    trained: str  # the network that benchmarks/card.py trains, whose detection is measured


GOLDEN_NETWORKS = ("ddad_s_32", "ddad_s_64", "ddad_256")
SCALES = {
    PUBLISHED: Scale({DDAD: 32, DDAD_S: 16}, ("bf16", "fp32"), True, GOLDEN_NETWORKS, DDAD),
    TOY: Scale({DDAD_S: 1}, ("fp32",), False, (), DDAD_S),
}


def main(arguments: list[str] | None = None) -> int:
    """Measure the rows that fit; return 0 if all are measured, 1 if some need another run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.card_rows", description="Measures a card row by row.")
    parser.add_argument("file", type=Path, metavar="FILE.jsonl")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--scale", choices=SCALES, default=PUBLISHED)
    parser.add_argument("--seconds", type=float, default=600, help="no row begins that would end later")
    options = parser.parse_args(arguments)
    ends, device = time.monotonic() + options.seconds, choose_device(options.device)
    torch.backends.cudnn.allow_tf32 = False  # as torch has it for matrix products
    makers = row_makers(SCALES[options.scale], device)
    measure_rows(options.file, makers, ends)
    return 0 if makers.keys() <= load_rows(options.file).keys() else 1


def measure_rows(file: Path, makers: Mapping[str, Measure], ends: float) -> None:
    """Measure the rows that the file lacks and that fit before `ends` (time.monotonic); append each to the file."""
    done = load_rows(file)
    compiling = [row["first_seconds"] for name, row in done.items() if COMPILED in name and "first_seconds" in row]
    for name, measure in makers.items():
        expected = max(compiling, default=EXPECTED_COMPILING) if COMPILED in name else EXPECTED
        if name in done or time.monotonic() + expected > ends:
            continue
        began = time.monotonic()
        try:
            row = measure()
        except Exception as error:  # the other rows are worth their time
            row = {"error": f"{type(error).__name__}: {one_line(error)}"}
        row = {"row": name, **row, "seconds": round(time.monotonic() - began, 2)}
        if COMPILED in name and "first_seconds" in row:
            compiling.append(row["first_seconds"])
        with file.open("a", encoding="utf-8") as opened:
            opened.write(f"\n{json.dumps(row)}")  # a new line, as a killed run may have left half of one
        print(name, {key: value for key, value in row.items() if key != "row"}, flush=True)


def load_rows(file: Path) -> dict[str, Row]:
    """Return the complete rows of a file by name; failed ones too, as they would fail again."""
    rows: dict[str, Row] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        with suppress(ValueError):  # the last line of a run that was killed
            row = json.loads(line)
            rows[row["row"]] = row
    return rows


def row_makers(scale: Scale, device: torch.device) -> dict[str, Measure]:
    """Return what measures each row, by name, the most important rows first."""
    formats = [each for each in scale.precisions if each == "fp32" or computes_in_bf16(device)]
    makers: dict[str, Measure] = {ENVIRONMENT: partial(describe_environment, device)}
    makers |= {f"{CEILING} {each}": partial(measure_ceiling, DTYPES[each], device) for each in formats}
    makers |= {f"{GOLDEN} {each}": partial(golden_network, each, device) for each in scale.golden}
    makers[f"{GOLDEN} maps"] = partial(golden_maps, device)
    works = {f"{kind} {each}": (kind, batch, each) for each in formats for kind, batch in scale.batches.items()}
    timed: dict[str, Measure] = {}
    for name, work in works.items():
        timed[f"{TRAINING} {name}"] = partial(measure_training, *work, False, device)
        timed[f"{FORWARD} {name}"] = partial(measure_forward, *work, device)
    timed[f"{DETECTION} {scale.trained}"] = partial(measure_detection, scale.trained, device)
    for name, work in works.items() if scale.compiled else ():
        timed[f"{TRAINING} {name} {COMPILED}"] = partial(measure_training, *work, True, device)
    trained = [f"{TRAINING} {scale.trained} {formats[0]}", f"{FORWARD} {scale.trained} {formats[-1]}"]
    first = [*trained, f"{trained[0]} {COMPILED}"]  # the time of a run on a category follows from these
    return makers | {name: timed[name] for name in first if name in timed} | timed


def describe_environment(device: torch.device) -> Row:
    """Return what the figures depend on: the device, versions, and processors."""
    facts: Row = {"device": device_name(device), "torch": torch.__version__, "python": platform.python_version()}
    facts |= {"machine": platform.platform(), "processors": os.cpu_count()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        facts |= {"multiprocessors": properties.multi_processor_count}
        facts["memory_mib"] = round(properties.total_memory / MEBI)
        facts["compute_capability"] = f"{properties.major}.{properties.minor}"
    return facts


def golden_network(network: str, device: torch.device) -> Row:
    return golden_row(golden_shares(network, device))


def golden_maps(device: torch.device) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        return golden_row(map_shares(device, Path(folder)))


def golden_row(shares: Iterable[tuple[str, float, float]]) -> Row:
    """Return the differences from golden numbers by name, each with its bound, and whether all keep it."""
    differences = {name: {"share": share, "bound": bound} for name, share, bound in shares}
    return {"differences": differences, "passed": all(each["share"] <= each["bound"] for each in differences.values())}


def measure_ceiling(dtype: torch.dtype, device: torch.device) -> Row:
    """Return the fastest matrix product and convolution, in operations a second."""
    side = CEILING_SIDE.get(device.type, 1024)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    convolution = nn.Conv2d(256, 256, 3, padding=1).to(device, dtype).to(memory_format=torch.channels_last)
    x = torch.randn(side // 256, 256, 64, 64, device=device, dtype=dtype).to(memory_format=torch.channels_last)

    def rate(call: Callable[[], object]) -> float:
        operations = count_operations(call)
        return operations / min(measure_seconds(call, device) for _ in range(TRIALS))

    with torch.no_grad():
        return {"product": rate(lambda: a @ b), "convolution": rate(lambda: convolution(x))}


def measure_training(kind: str, batch: int, precision: str, compiled: bool, device: torch.device) -> Row:
    """Return seconds, operations and memory of a training step, as train.py does it."""
    unet, size = seeded_unet(kind, device)
    unet = unet.train().to(memory_format=torch.channels_last) if device.type == "cuda" else unet.train()
    x_0 = torch.randn(batch, 3, size, size, device=device)
    optimizer, network = build_optimizer(unet, "adam", LEARNING_RATE, WEIGHT_DECAY), autocast(unet, precision, device)
    operations = count_operations(training_step(network, optimizer, SCHEDULE, x_0))
    step = training_step(compile_network(network, compiled, device), optimizer, SCHEDULE, x_0)
    return {"size": size, "pictures": batch, **measure_call(step, operations, device)}


def measure_forward(kind: str, batch: int, precision: str, device: torch.device) -> Row:
    """Return seconds, operations and memory of a forward pass, as detection does it."""
    unet, size = seeded_unet(kind, device)
    network = autocast(prepare_network(unet, device), precision, device)
    x, t = torch.randn(batch, 3, size, size, device=device), torch.full((batch,), 100, device=device)

    @torch.no_grad()
    def forward() -> Tensor:
        return network(x, t)

    return {"size": size, "pictures": batch, **measure_call(forward, count_operations(forward), device)}


def measure_detection(kind: str, device: torch.device) -> Row:
    """Return seconds of the whole detection of one picture: one reconstruction, features and map."""
    pair = time_detection(kind, 1, device)
    return {"pictures": pair.pictures, **measure_call(pair.ours, pair.operations, device)}


def measure_call(call: Callable[[], object], operations: float, device: torch.device) -> Row:
    """Return the seconds of the first call, which compiles, and of the repeats, with operations and peak memory."""
    first = measure_seconds(call, device)
    for _ in range(WARM_UP if first < LONGEST_REPEATS else 0):
        call()
    repeats = list(repeat(call, device))
    seconds = {"median": statistics.median(repeats), "low": min(repeats), "high": max(repeats), "repeats": len(repeats)}
    memory = measure_peak_memory(call, device)
    return {"first_seconds": round(first, 3), **seconds, "operations": operations, "peak_mib": round(memory)}


def repeat(call: Callable[[], object], device: torch.device) -> Iterator[float]:
    """Yield the seconds of up to REPEATS calls; none begins after LONGEST_REPEATS seconds."""
    began = time.monotonic()
    for _ in range(REPEATS):
        yield measure_seconds(call, device)
        if time.monotonic() - began > LONGEST_REPEATS:
            return


if __name__ == "__main__":
    sys.exit(main())
