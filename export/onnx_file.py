"""Write a detector as an ONNX file."""

import copy
import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from config.keys import SEED
from detection.detector import Detector
from export.onnx_model import OUTPUTS, JudgeModel
from export.resize import translate_resize
from reports.manifest import git_commit
from runtime.errors import UserError
from storage.atomic_file import atomic_write

ENDING = ".onnx"
OPSET = 18  # the first whose Resize has antialiasing
PACKAGES = ("onnx", "onnxscript")  # of requirements-export.txt
PICTURE, THRESHOLD = "picture", "threshold"
EXAMPLE = (1, 37, 53, 3)  # a picture of any size
LICENCE = "MIT"  # of the code; the weights of the features and the pictures have their own


def write_onnx(detector: Detector, path: Path) -> None:
    """Write the detector as one ONNX file. Raise UserError for one that a graph can't express."""
    check_exportable(detector)
    model = JudgeModel(on_cpu(detector)).eval()
    threshold = torch.tensor(rounded_down(detector.threshold))
    example = (torch.zeros(EXAMPLE, dtype=torch.uint8), threshold)
    sizes = {1: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC}
    with torch.no_grad():
        model(*example)  # fills the tables of the noise schedule, which tracing would fill with its own tensors
        program: Any = torch.onnx.export(
            model,
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=[PICTURE, THRESHOLD],
            output_names=list(OUTPUTS),
            dynamic_shapes={PICTURE: sizes, THRESHOLD: None},
            custom_translation_table={torch.ops.aten._upsample_bilinear2d_aa.default: translate_resize},
            optimize=False,  # runtimes do it when they load the file; here it would take minutes
            verbose=False,
        )
    content = program.model_proto
    remove_traces(content.graph)
    set_default(content.graph, THRESHOLD, threshold)
    for name, value in describe_detector(detector).items():
        content.metadata_props.add(key=name, value=value)
    with atomic_write(path, "name another file") as file:
        file.write(content.SerializeToString())


def check_exportable(detector: Detector) -> None:
    """Raise UserError for what an ONNX file can't hold, or where a package is missing."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        remedy = "python -m pip install -r requirements-export.txt"
        raise UserError(f"--export to {ENDING} needs the package {missing[0]}; {remedy}")
    if detector.noise != SEED:
        reason = "score.noise is null: the noise follows from a hash of each picture, which no graph computes"
        raise UserError(f"{reason}; set score.noise=seed, which measures a new calibration, and export again")
    if detector.view.tiles is not None:
        raise UserError(f"data.tiles is {detector.view.tiles}; ONNX takes data.tiles=null, .ddad takes any")
    if detector.networks.precision != "fp32":
        remedy = "set speed.detection_precision=fp32"
        raise UserError(f"speed.detection_precision is {detector.networks.precision}, ONNX has fp32; {remedy}")


def on_cpu(detector: Detector) -> Detector:
    """Return the detector with copies of its networks on the CPU, in the memory layout of ONNX."""
    networks, cpu = copy.deepcopy(detector.networks), torch.device("cpu")
    for network in filter(None, (networks.unet, networks.extractor, networks.space)):
        network.to(cpu).to(memory_format=torch.contiguous_format)
    return replace(detector, networks=networks, device=cpu)


def rounded_down(threshold: float) -> float:
    """Return the largest number of float32 that is not above the threshold: the same scores exceed it."""
    nearest = torch.tensor(threshold)
    return nearest.item() if nearest.item() <= threshold else torch.nextafter(nearest, torch.tensor(-math.inf)).item()


def remove_traces(graph: Any) -> None:
    """Remove the exporter's notes, which hold lines and paths of this code and are as large as the weights."""
    for node in graph.node:
        node.ClearField("metadata_props")
        for attribute in node.attribute:
            if attribute.HasField("g"):
                remove_traces(attribute.g)
    for value in (*graph.value_info, *graph.input, *graph.output, *graph.initializer):
        value.ClearField("metadata_props")
    graph.ClearField("metadata_props")


def set_default(graph: Any, name: str, value: torch.Tensor) -> None:
    """Make an input optional: without it, the graph takes this value."""
    from onnx import numpy_helper

    graph.initializer.append(numpy_helper.from_array(value.numpy(), name))


def describe_detector(detector: Detector) -> dict[str, str]:
    """Return the metadata: what made the file, the settings, and the operating points as JSON."""
    settings: Any = detector.required_calibration.settings
    points = [row._asdict() for row in detector.operating_points]
    return {
        "name": settings["data"]["category"],
        "version": git_commit() or "unknown",
        "licence": LICENCE,
        "settings": json.dumps(settings),
        "operating_points": json.dumps(points),
        "pixel_threshold": repr(detector.pixel_threshold),
    }
