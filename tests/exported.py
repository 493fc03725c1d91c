"""Calibrated detectors of tiny networks, and pictures for them."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from tiny_networks import make_detector

from config.keys import SEED
from dataset import to_unit_range
from detection import reference
from detection.calibrate import build_calibration, image_descriptors, parts_of_batch
from export.onnx_file import write_onnx

MEMORIES = ("memory", "wide_memory", "whole_memory", "pixel")


def calibrated(parts=(), **changes):
    """Return a detector of tiny networks that is calibrated on six random pictures."""
    unet_size = changes.pop("unet_size", None)
    detector = make_detector(calibration=None, parts=parts, noise=SEED, **changes)
    detector = replace(detector, networks=replace(detector.networks, size=unet_size))
    shape = (6, detector.view.channels, 32, 32)
    pictures = to_unit_range(torch.randint(256, shape, dtype=torch.uint8))
    described = image_descriptors(detector, pictures) if reference.descriptor_kinds(parts) else {}
    samples = {kind: [values.flatten(1).T for values in maps] for kind, maps in described.items()}
    references = {
        part: memory.reference for part, memory in reference.build_memories(samples, parts, area=6, seed=0).items()
    }
    measured = [parts_of_batch(detector, picture[None], [references])[0] for picture in pictures]
    calibration = build_calibration(detector, measured, references)
    return replace(detector, calibration=replace(calibration, settings={"data": {"category": "nut"}}))


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Return a detector with memories, its ONNX file and a folder of two pictures."""
    pytest.importorskip("onnxscript", reason="onnxscript is missing; python -m pip install -r requirements-export.txt")
    torch.manual_seed(0)  # the detector is the same in each test process
    detector, pictures = calibrated(MEMORIES, unet_size=12), tmp_path_factory.mktemp("exported") / "pictures"
    path = common_folder(tmp_path_factory) / "nut.onnx"
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            write_onnx(detector, path)
    pictures.mkdir()
    for number, pixels in enumerate(random_pictures((32, 32), (48, 60))[:2]):
        Image.fromarray(pixels).save(pictures / f"{number}.png")
    return detector, path, pictures


def common_folder(tmp_path_factory):
    """Return the temporary folder that all test processes of this run have in common."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def random_pictures(*sizes):
    """Return pictures (H, W, 3) of 8 bits; the first is flat, thus less anomalous than the others."""
    rng = np.random.default_rng(0)
    flat = np.full((*sizes[0], 3), 90, np.uint8)
    return [flat, *(rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes)]
