"""Stage 3: detectors, what they compare with, thresholds, and what becomes of test pictures and new ones."""

from detection.detector import Detection, Detector

__all__ = ["Detection", "Detector"]
