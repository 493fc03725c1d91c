"""Judge all images of a folder with an exported detector: python judge_folder.py MODEL.onnx FOLDER

Needs numpy, pillow and onnxruntime; no torch, and nothing of this repository.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


def judge_folder(model: str, folder: str) -> None:
    """Print score, p-value and verdict of each image, and write its heat map beside it."""
    onnxruntime.set_default_logger_severity(3)  # errors only
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    for path in sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES):
        if path.stem.endswith("_heat"):
            continue
        image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        score, p_value, is_anomalous, anomaly_map, threshold = session.run(None, {"picture": np.asarray(image)[None]})
        print(f"{path}: {'anomalous' if is_anomalous else 'normal'}, score {score:.4f}, p = {p_value:.4f}")
        heat = (255 * anomaly_map / (2 * threshold)).clip(0, 255).astype(np.uint8)
        Image.fromarray(heat).save(path.with_name(f"{path.stem}_heat.png"))


if __name__ == "__main__":
    judge_folder(*sys.argv[1:3])
