"""A calibrated detector in one file, `.ddad`: weights, calibration, settings and region, without any code."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from config.keys import Settings
from config.load import build_settings
from detection.calibration_file import (
    DAMAGED,
    calibration_content,
    parse_calibration,
    parse_references,
    reference_tensors,
)
from detection.comparison import Networks
from detection.threshold import Calibration
from feature_extractor import RANDOM, FeatureExtractor
from images.region import JudgedRegion
from runtime.errors import UserError
from storage.fingerprint import as_stored
from storage.weights_file import copy_into, read_state
from training.checkpoint import save
from training.feature_space import FeatureSpace
from training.networks import Denoiser, build_unet

ENDING, FORMAT = ".ddad", "ddad-detector-3"
REMEDY = "export the detector again, or name its checkpoint folder"


@dataclass(frozen=True, eq=False)
class Bundle:
    """All that a detector needs. data.region of the settings is None, as the bundle holds the region itself."""

    settings: Settings
    unet: Denoiser
    extractor: FeatureExtractor
    space: FeatureSpace | None
    calibration: Calibration
    region: JudgedRegion | None = None


def write_bundle(path: Path, networks: Networks, calibration: Calibration, region: JudgedRegion | None) -> None:
    """Write the file as a whole or not at all. `calibration.settings` are those of the detector."""
    content = {"calibration": as_stored(calibration_content(calibration)), **reference_tensors(calibration)}
    modules = {"unet": networks.unet, "extractor": networks.extractor, "space": networks.space}
    weights = {name: module.state_dict() for name, module in modules.items() if module is not None}
    mask = torch.from_numpy(region.mask) if region else None
    save(path, {"format": FORMAT, **content, **weights, "region": mask}, "name another file")


def read_bundle(path: Path) -> Bundle:
    """Return the bundle at `path`. Raise UserError where it is damaged, or where another version wrote it."""
    content = read_state(path)
    if content.get("format") != FORMAT:
        raise UserError(f"{path} is no detector of this version; {REMEDY}")
    try:
        calibration = parse_calibration(content["calibration"])
        if calibration is None:
            raise UserError(f"{path} holds the calibration of another version; {REMEDY}")
        calibration = replace(calibration, references=parse_references(content, calibration))
        settings = build_settings(calibration.settings)
        settings = replace(settings, data=replace(settings.data, region=None))
        unet, extractor = build_unet(settings), FeatureExtractor(settings.model.feature_extractor, RANDOM)
        copy_into(unet, content["unet"], path)
        copy_into(extractor, content["extractor"], path)
        space = FeatureSpace.restore(content["space"]) if settings.learns_features else None
        region = None if content["region"] is None else parse_region(content["region"], path)
    except UserError:
        raise
    except DAMAGED as error:
        raise UserError(f"{path} is damaged; {REMEDY}") from error
    return Bundle(settings, unet, extractor, space, calibration, region)


def parse_region(mask: Tensor, path: Path) -> JudgedRegion:
    """Return the region of a mask (H, W) in the file at `path`. Raise one of DAMAGED for anything else."""
    if mask.ndim != 2 or mask.dtype != torch.bool or not mask.any():
        raise ValueError("a region is a mask (H, W) that is somewhere true")
    return JudgedRegion(path, mask.numpy())
