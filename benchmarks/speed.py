"""python -m benchmarks.speed [--device cpu] [--repeats 5] [--processes 1] [--ablation] [ROW …]: how fast each part is, beside a plain reference,
in one table.

The reference is benchmarks/plain.py. Each side of a row has a process of its own, as main.py keeps memory (runtime.keep_memory) and the reference
does not; both alternate. How often the reference's memory is cleared anew differs from process to process: --processes 5 starts both five times.

With --ablation each row takes one of these away from ours and leaves the others: what a change gains on its own.

Seconds are medians with the range of the repeats. Throughput counts the network's own operations (torch's FlopCounterMode), and the share
is of the fastest convolution or matrix product measured in the same run.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import nn

from benchmarks.speed_rows import operations, rows
from runtime.device import keep_memory

GIGA, MEBI = 1e9, 2**20
OURS, PLAIN = "ours", "plain"


def seconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def peak_memory(call: Callable[[], object], device: torch.device) -> float:
    """MiB: on CUDA what tensors took, elsewhere the process's resident memory; nan where the system does not tell."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) / MEBI
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        call()
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmHWM"].split()[0]) / 1024
    return float("nan")


def serve(pipe: Connection, side: str, name: str, ablation: bool, device: torch.device) -> None:
    """One side of a row: what it is, then the seconds that it takes, as often as asked, then its peak memory."""
    torch.backends.cudnn.allow_tf32 = False
    with tempfile.TemporaryDirectory() as folder:
        row = rows(ablation, device, Path(folder))[name]()
        if side == OURS or row.plain_keeps_memory:
            keep_memory()
        call = row.ours if side == OURS else row.plain
        call()
        pipe.send((row.name, row.pictures, row.operations, row.most))
        while pipe.recv():
            pipe.send(seconds(call, device))
        pipe.send(peak_memory(call, device))


def measured(name: str, repeats: int, processes: int, ablation: bool, device: torch.device, fastest: float) -> str:
    """The table's line of a row."""
    pairs = []
    for _ in range(processes):
        plain_side, our_side = (started(side, name, ablation, device) for side in (PLAIN, OURS))
        plain_side.recv()
        title, pictures, count, most = our_side.recv()
        pairs += [(told(plain_side, True), told(our_side, True)) for _ in range(min(repeats, most or repeats))]
        memory, _ = told(our_side, False), told(plain_side, False)
    plain, ours = zip(*pairs, strict=True)
    ratios = [slow / fast for slow, fast in pairs]
    rate = count / statistics.median(ours)
    rates = f"{rate / GIGA:.0f} | {rate / fastest:.0%}" if rate else "– | –"
    return f"| {title} | {spread(plain, pictures)} | {spread(ours, pictures)} | {spread(ratios)}× | {rates} | {memory:.0f} |"


def started(side: str, name: str, ablation: bool, device: torch.device) -> Connection:
    """The pipe to one side of a row. What is read from it raises EOFError where the process has died."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    spawn.Process(target=serve, args=(theirs, side, name, ablation, device), daemon=True).start()
    theirs.close()
    return ours


def told(pipe: Connection, question: bool) -> float:
    pipe.send(question)
    return float(pipe.recv())


def spread(values: tuple[float, ...] | list[float], of: int = 1) -> str:
    middle, low, high = (value / of for value in (statistics.median(values), min(values), max(values)))
    return f"{middle:.3g} ({low:.3g}–{high:.3g})"


def ceiling(device: torch.device) -> tuple[float, float]:
    """(convolution, matrix product) in operations a second: the fastest of ten."""
    convolution = nn.Conv2d(128, 128, 3, padding=1).to(device).to(memory_format=torch.channels_last)
    x = torch.randn(16, 128, 64, 64, device=device).to(memory_format=torch.channels_last)
    a, b = torch.randn(2, 2048, 2048, device=device)
    with torch.no_grad():
        calls = (lambda: convolution(x), lambda: a @ b)
        return tuple(operations(call) / min(seconds(call, device) for _ in range(10)) for call in calls)  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description="Times each part beside a plain reference."
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--processes", type=int, default=1, help="how often both sides are started, for as many repeats each"
    )
    parser.add_argument("--ablation", action="store_true", help="ours beside ours without one change, a row a change")
    parser.add_argument("rows", nargs="*", help="words that the names of the wanted rows hold (all)")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.backends.cudnn.allow_tf32 = False
    convolution, product = ceiling(device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(
        f"torch {torch.__version__}, {device} ({where}); median (range) of {options.processes * options.repeats}, both sides alternating"
    )
    print(f"ceiling: convolution {convolution / GIGA:.0f} GFLOP/s, matrix product {product / GIGA:.0f} GFLOP/s\n")
    sides = ("without it", "with it") if options.ablation else ("plain", "ours")
    print(
        f"| | {sides[0]}, s a picture | {sides[1]}, s a picture | ratio | GFLOP/s | of the ceiling | peak MiB |\n|---|---|---|---|---|---|---|"
    )
    for name in rows(options.ablation, device, Path()):
        if all(word in name for word in options.rows):
            print(
                measured(name, options.repeats, options.processes, options.ablation, device, max(convolution, product)),
                flush=True,
            )
    print("\nA loaded picture's and a map's share is of the whole set's time.")


if __name__ == "__main__":
    main()
