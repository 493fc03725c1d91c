"""Compare an exported detector with the detector itself on real pictures, in onnxruntime and in OpenVINO.

    python -m benchmarks.export_parity CHECKPOINT_FOLDER DATA_DIR [--most 50]

Differences of scores are in units of the standard deviation of the calibration's normal scores. Both runtimes use as
many threads as torch (OMP_NUM_THREADS). OpenVINO gets fp32: on CPUs that have bf16 it would take that by itself.
"""

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dataset import ImageFolder
from detection.detector import Detection, Detector
from export.onnx_file import write_onnx
from images.read import read_picture

BOUND = 1e-3  # of the spread of normal scores, and of a map's values

Outputs = Mapping[str, Any]
Judge = Callable[[NDArray[np.uint8]], Outputs]  # (1, H, W, 3) → the outputs by name


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.export_parity",
        description="Compares an exported detector with the detector itself on real pictures.",
    )
    parser.add_argument("checkpoint_folder", type=Path, help="folder of the category that holds its calibration.json")
    parser.add_argument("data_dir", type=Path, help="folder that holds the category's pictures")
    parser.add_argument("--most", type=int, default=50, metavar="N", help="take N test pictures, evenly spread")
    options = parser.parse_args(arguments)
    detector, category = Detector.load(options.checkpoint_folder, "cpu"), options.checkpoint_folder.resolve().name
    test = ImageFolder(options.data_dir / category, "test", detector.view, masks=False)
    places = np.linspace(0, len(test) - 1, min(options.most, len(test))).round().astype(int)
    pictures = [read_picture(test.samples[place].picture) for place in places]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{category}.onnx"
        write_onnx(detector, path)
        detector.save(path.with_suffix(".ddad"))
        sizes = [f"{file.suffix} {file.stat().st_size / 1e6:.1f} MB" for file in sorted(Path(folder).iterdir())]
        print(f"{category}, {len(pictures)} pictures, torch {torch.__version__}, {', '.join(sizes)}; bound {BOUND}\n")
        print(
            "| runtime | score, largest | map, largest | changed verdicts | seconds a picture |\n|---|---|---|---|---|"
        )
        for line in table_rows(detector, path, pictures):
            print(line, flush=True)


def table_rows(detector: Detector, path: Path, pictures: Sequence[Image.Image]) -> Iterator[str]:
    """Yield the row of torch, and those of the runtimes that are installed."""
    began = time.perf_counter()
    expected = [detector(picture) for picture in pictures]
    yield f"| torch | – | – | – | {(time.perf_counter() - began) / len(pictures):.2f} |"
    spread = statistics.pstdev(detector.required_calibration.scores)
    for name, load in RUNTIMES.items():
        if importlib.util.find_spec(name):
            yield runtime_row(name, load(path), expected, pictures, spread)


def runtime_row(
    name: str, judge: Judge, expected: Sequence[Detection], pictures: Sequence[Image.Image], spread: float
) -> str:
    """Return the largest differences of a runtime's scores and maps, its changed verdicts and its time."""
    scores, maps, verdicts, seconds = [], [], 0, 0.0
    for detection, picture in zip(expected, pictures, strict=True):
        pixels, began = np.asarray(picture.convert("RGB"))[None], time.perf_counter()
        found = judge(pixels)
        seconds += time.perf_counter() - began
        scores.append(abs(float(found["score"]) - detection.score) / spread)
        maps.append(float(np.abs(found["anomaly_map"] - detection.map).max()))
        verdicts += bool(found["is_anomalous"]) != detection.is_anomalous
    count = len(pictures)
    return f"| {name} | {max(scores):.1g} | {max(maps):.1g} | {verdicts} of {count} | {seconds / count:.2f} |"


def load_onnxruntime(path: Path) -> Judge:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda pixels: dict(zip(names, session.run(names, {"picture": pixels}), strict=True))


def load_openvino(path: Path) -> Judge:
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    model = openvino.Core().compile_model(path, "CPU", hints)
    return lambda pixels: {output.any_name: value for output, value in model({"picture": pixels}).items()}


RUNTIMES: dict[str, Callable[[Path], Judge]] = {"onnxruntime": load_onnxruntime, "openvino": load_openvino}


if __name__ == "__main__":
    main()
