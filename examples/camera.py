"""Judge the frames of a camera with an exported detector: python camera.py MODEL.onnx [CAMERA]

Needs numpy, onnxruntime and opencv-python. CAMERA is a number (default 0), a video file or the address of a stream.
The window shows the frames with the anomaly map in red; press q to stop.
"""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnxruntime


def judge_frames(session: Any, camera: Any) -> Iterator[tuple[np.ndarray, float, bool, np.ndarray]]:
    """Yield (frame, score, verdict, heat) of each frame; a frame is (H, W, 3), blue first, as OpenCV reads it."""
    while True:
        is_read, frame = camera.read()
        if not is_read:
            return
        picture = np.ascontiguousarray(frame[None, ..., ::-1])  # red first
        score, _, is_anomalous, anomaly_map, threshold = session.run(None, {"picture": picture})
        heat = frame.copy()
        heat[..., 2] = np.maximum(frame[..., 2], (255 * anomaly_map / (2 * threshold)).clip(0, 255).astype(np.uint8))
        yield frame, float(score), bool(is_anomalous), heat


def main(model: str, source: str = "0") -> None:
    """Show the heat of each frame in a window, and the verdict in its title."""
    import cv2

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    camera = cv2.VideoCapture(int(source) if source.isdigit() else source)
    cv2.namedWindow("detector")
    for _, score, is_anomalous, heat in judge_frames(session, camera):
        cv2.setWindowTitle("detector", f"{'ANOMALOUS' if is_anomalous else 'normal'} {score:.3f}")
        cv2.imshow("detector", heat)
        if cv2.waitKey(1) == ord("q"):
            break
    camera.release()


if __name__ == "__main__":
    main(*sys.argv[1:])
