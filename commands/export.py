"""Write a trained detector into one file, to use it elsewhere."""

from collections.abc import Callable
from pathlib import Path

from config.keys import PER_IMAGE, Settings
from detection import bundle
from detection.calibrate import calibrate
from detection.detector import Detector, load_detector
from export import onnx_file
from runtime.device import choose_device
from runtime.errors import UserError

MEGABYTE = 1e6


def trained_detector(settings: Settings) -> Detector:
    """Return the detector that --input would use, calibrated first where its calibration is missing or stale."""
    if settings.score.protocol != PER_IMAGE:
        reason = "score.protocol is published, whose scores depend on the batch and have no threshold"
        raise UserError(f"{reason}; set score.protocol=per_image for --export")
    detector, settings, _ = load_detector(settings, settings.checkpoint_folder, choose_device(settings.model.device))
    return calibrate(detector, settings)


def check_ending(path: Path) -> None:
    """Raise UserError where no format has the ending of this file."""
    if path.suffix.lower() not in WRITERS:
        raise UserError(f"--export is {path}; its ending should be {' or '.join(WRITERS)}")


def export_detector(path: Path, detector: Detector) -> None:
    """Write the detector in the format of the file's ending, and print the file's size."""
    WRITERS[path.suffix.lower()](detector, path)
    print(f"{path}: {path.stat().st_size / MEGABYTE:.1f} MB", flush=True)


WRITERS: dict[str, Callable[[Detector, Path], None]] = {
    onnx_file.ENDING: onnx_file.write_onnx,
    bundle.ENDING: Detector.save,
}
