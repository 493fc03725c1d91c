"""Time each part in two forms.

    python -m benchmarks.speed [--device cpu] [--repeats 5] [--processes 1] [--ablation] [ROW …]

Each row of the table times ours beside the plain form of benchmarks/plain_forms.py, with --ablation beside ours without
one speed-up. Each side has a process of its own, as ours keeps freed memory (runtime.device.keep_memory) and the plain
form does not; both alternate. How much a process pays for fresh memory differs: --processes 5 starts both five times.

Seconds are medians with the range of the repeats. Throughput counts the network's own operations (FlopCounterMode of
torch); its share is of the fastest convolution or matrix product measured in the same run.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import nn

from benchmarks.speed_rows import ABLATION, REFERENCE, count_operations, row_makers
from runtime.device import keep_memory, measure_peak_memory

GIGA = 1e9
OURS, PLAIN = "ours", "plain"
TIME, MEMORY = "time", "memory"  # what a side is asked for
TRIALS = 10  # of the fastest convolution and product
HEADINGS = {REFERENCE: ("plain", "ours"), ABLATION: ("without it", "with it")}


@dataclass(frozen=True)
class Run:
    """How rows are timed; `peak` is the fastest rate measured, in operations a second."""

    table: str
    repeats: int
    processes: int
    device: torch.device
    peak: float


def main() -> None:
    options = parse_arguments()
    device, table = torch.device(options.device), ABLATION if options.ablation else REFERENCE
    torch.backends.cudnn.allow_tf32 = False
    convolution, product = fastest_rates(device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    repeats = f"median (range) of {options.processes * options.repeats}, both sides alternating"
    print(f"torch {torch.__version__}, {device} ({where}); {repeats}")
    print(f"ceiling: convolution {convolution / GIGA:.0f} GFLOP/s, matrix product {product / GIGA:.0f} GFLOP/s\n")
    slow, fast = (f"{side}, s a picture" for side in HEADINGS[table])
    print(f"| | {slow} | {fast} | ratio | GFLOP/s | of the ceiling | peak MiB |\n|---|---|---|---|---|---|---|")
    run = Run(table, options.repeats, options.processes, device, max(convolution, product))
    for name in row_makers(table, device, Path()):
        if all(word in name for word in options.rows):
            print(table_row(name, run), flush=True)
    print("\nA loaded picture's and a map's share is of the whole set's time.")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description="Times each part in two forms.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--processes", type=int, default=1, help="start both sides this often, for --repeats each")
    parser.add_argument("--ablation", action="store_true", help="compare with ours without one speed-up, a row each")
    parser.add_argument("rows", nargs="*", help="words that must be in a row's name (all rows)")
    return parser.parse_args()


def table_row(name: str, run: Run) -> str:
    """Time both sides of a row; return its line of the table."""
    pairs = []
    for _ in range(run.processes):
        plain_side, our_side = (start_side(side, name, run) for side in (PLAIN, OURS))
        plain_side.recv()
        title, pictures, operations, most = our_side.recv()
        repeats = min(run.repeats, most or run.repeats)
        pairs += [(ask(plain_side, TIME), ask(our_side, TIME)) for _ in range(repeats)]
        memory, _ = ask(our_side, MEMORY), ask(plain_side, MEMORY)
    plain, ours = zip(*pairs, strict=True)
    ratios = spread([slow / fast for slow, fast in pairs])
    rate = operations / statistics.median(ours)
    rates = f"{rate / GIGA:.0f} | {rate / run.peak:.0%}" if rate else "– | –"
    return f"| {title} | {spread(plain, pictures)} | {spread(ours, pictures)} | {ratios}× | {rates} | {memory:.0f} |"


def start_side(side: str, name: str, run: Run) -> Connection:
    """Start the process of one side of a row; return its pipe, which raises EOFError where the process has died."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    spawn.Process(target=serve_side, args=(theirs, side, name, run.table, run.device), daemon=True).start()
    theirs.close()
    return ours


def serve_side(pipe: Connection, side: str, name: str, table: str, device: torch.device) -> None:
    """Send what a side of a row is, then seconds for each TIME, and at last the peak memory."""
    torch.backends.cudnn.allow_tf32 = False
    with tempfile.TemporaryDirectory() as folder:
        row = row_makers(table, device, Path(folder))[name]()
        if side == OURS or row.plain_keeps_memory:
            keep_memory()
        call = row.ours if side == OURS else row.plain
        call()
        pipe.send((row.name, row.pictures, row.operations, row.most_repeats))
        while pipe.recv() == TIME:
            pipe.send(measure_seconds(call, device))
        pipe.send(measure_peak_memory(call, device))


def ask(pipe: Connection, question: str) -> float:
    pipe.send(question)
    return float(pipe.recv())


def measure_seconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def fastest_rates(device: torch.device) -> tuple[float, float]:
    """Return operations a second of a convolution and of a matrix product, the fastest of TRIALS."""
    convolution = nn.Conv2d(128, 128, 3, padding=1).to(device).to(memory_format=torch.channels_last)
    x = torch.randn(16, 128, 64, 64, device=device).to(memory_format=torch.channels_last)
    a, b = torch.randn(2, 2048, 2048, device=device)

    def rate(call: Callable[[], object]) -> float:
        return count_operations(call) / min(measure_seconds(call, device) for _ in range(TRIALS))

    with torch.no_grad():
        return rate(lambda: convolution(x)), rate(lambda: a @ b)


def spread(values: Sequence[float], pictures: int = 1) -> str:
    """Return median and range of the values, for each picture."""
    middle, low, high = (value / pictures for value in (statistics.median(values), min(values), max(values)))
    return f"{middle:.3g} ({low:.3g}–{high:.3g})"


if __name__ == "__main__":
    main()
