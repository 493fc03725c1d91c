"""Time how long a calibrated detector takes to judge a picture, and what each part of the work costs.

    python -m benchmarks.judging CHECKPOINT_FOLDER DATA_DIR [--every 20] [--repeats 5]

Each row shows one variant of the detector: the median time over pictures in each repeat, then the median and range of
these. The variants take turns on each picture, so that other work on the machine touches all of them alike. Reading the
file is not timed.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from unittest.mock import patch

import torch
from PIL import Image

from benchmarks.shared import add_detector_arguments, every_nth
from dataset import ImageFolder
from detection import reference
from detection.detector import Detector
from detection.reference import DESCRIBED_BY, WHOLE, Reference, Scale
from images.read import read_picture
from runtime.device import keep_memory

CALLS = (1, 2, 3, 5, 10)  # of the network, to time beside the detector's own number, from the same starting step
BANKS = (2_500, 10_000, 20_000)  # rows of a memory bank
PATCHES = "memory"

Judge = Callable[[Image.Image], object]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.judging", description="Times a detector's verdicts.")
    add_detector_arguments(parser)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    keep_memory()  # as main.py does
    detector = Detector.load(options.checkpoint_folder, options.device)
    folder = ImageFolder(
        options.data_dir / options.checkpoint_folder.resolve().name, "test", detector.view, masks=False
    )
    names = every_nth(folder, options.every).samples
    pictures = [read_picture(sample.picture, detector.view.channels) for sample in names]
    forms = forms_of(detector)
    times: dict[str, list[list[float]]] = {name: [] for name in forms}
    for form in forms.values():
        form(pictures[0])
    for _ in range(options.repeats):
        for name in forms:
            times[name].append([])
        for picture in pictures:
            for name, form in forms.items():
                began = time.perf_counter()
                form(picture)
                times[name][-1].append(time.perf_counter() - began)
    print(
        f"{len(pictures)} pictures, {torch.get_num_threads()} threads, torch {torch.__version__}, {detector.device}\n"
    )
    print("| variant | seconds a picture (range over repeats) | relative to the first |\n|---|---|---|")
    first = statistics.median(map(statistics.median, next(iter(times.values()))))
    for name, repeats in times.items():
        medians = [statistics.median(seconds) for seconds in repeats]
        median = statistics.median(medians)
        print(f"| {name} | {median:.3f} ({min(medians):.3f}–{max(medians):.3f}) | {median / first:.2f} |", flush=True)


def forms_of(detector: Detector) -> dict[str, Judge]:
    """Return variants that change one thing; they are not calibrated again, so their verdicts may be wrong."""
    networks, references = detector.networks, detector.required_calibration.references
    parts = ", ".join(references)
    forms: dict[str, Judge] = {f"as calibrated: {parts}": detector}
    for count in CALLS:
        changed = replace(networks, skip=networks.start // count)
        forms[f"network calls: {count}"] = replace(detector, networks=changed)
    forms["networks in bf16"] = replace(detector, networks=replace(networks, precision="bf16"))
    banks = {part: bank for part, bank in references.items() if DESCRIBED_BY.get(part, WHOLE) != WHOLE}
    for rows in BANKS:
        sized = {part: resize_bank(bank, rows) for part, bank in banks.items()}
        forms[f"memory banks of {rows} rows"] = with_references(detector, references | sized)
    forms["memory banks searched in fp32"] = in_fp32(detector)
    for part in references:
        forms[f"{part} alone"] = with_references(detector, {part: references[part]})
    if PATCHES in banks:
        plain = {PATCHES: replace(banks[PATCHES], spacing=None)}
        forms["plain patch memory of the same features"] = with_references(detector, plain)
    return forms


def in_fp32(detector: Detector) -> Judge:
    """Return the detector as on a CPU without bf16."""

    def judge(picture: Image.Image) -> object:
        with patch.object(reference, "computes_in_bf16", lambda _: False):
            return detector(picture)

    return judge


def resize_bank(bank: Reference, rows: int) -> Reference:
    """Return the memory bank with its first rows, repeated where it has fewer."""
    places = torch.arange(rows) % len(bank.bank)
    return replace(bank, bank=bank.bank[places], spacing=None if bank.spacing is None else bank.spacing[places])


def with_references(detector: Detector, references: dict[str, Reference]) -> Detector:
    """Return the detector with these references alone, and with their parts in its map."""
    calibration = detector.required_calibration
    scales: dict[str, Scale] = {part: calibration.scales[part] for part in references}
    calibration = replace(calibration, references=references, scales=scales)
    return replace(detector, parts=tuple(references), calibration=calibration)


if __name__ == "__main__":
    main()
