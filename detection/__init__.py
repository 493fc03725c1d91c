"""Stage 3: the detector, its calibration, and its use on test pictures and on new ones."""

from detection.detector import Detection, Detector

__all__ = ["Detection", "Detector"]
