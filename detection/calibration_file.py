"""Save and load a category's calibration: calibration.json, and memory banks in the file `references`."""

import json
from dataclasses import asdict, replace
from pathlib import Path

from PIL import Image

from detection.reference import DESCRIBED_BY, Reference, Scale
from detection.threshold import Calibration
from images.region import JudgedRegion
from runtime.errors import UserError
from storage.atomic_file import atomic_write
from storage.weights_file import read_state
from training.checkpoint import REMEDY, plain_values, save

CALIBRATION, CALIBRATION_FORMAT = "calibration.json", "ddad-calibration-13"
REFERENCES, REFERENCES_FORMAT = "references", "ddad-references-2"
REGION = "region.png"  # a copy of data.region


def save_calibration(folder: Path, calibration: Calibration) -> None:
    """Write the calibration, and its references beside it."""
    if calibration.references:
        tensors = {part: vars(reference) for part, reference in calibration.references.items()}
        content = {"format": REFERENCES_FORMAT, "made_with": calibration.made_with, "references": tensors}
        save(folder / REFERENCES, content)
    content = asdict(replace(calibration, references={}))
    del content["references"]
    with atomic_write(folder / CALIBRATION, REMEDY, "w") as file:
        json.dump({"format": CALIBRATION_FORMAT, **content}, file)


def save_region(folder: Path, region: JudgedRegion) -> None:
    """Write a copy of the region beside the calibration that it belongs to."""
    with atomic_write(folder / REGION, REMEDY) as file:
        Image.fromarray(region.mask).save(file, format="PNG")


def load_calibration(folder: Path) -> Calibration | None:
    """Return the calibration, None if no complete one of this format exists. Raise UserError for a damaged file."""
    path = folder / CALIBRATION
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format", None) != CALIBRATION_FORMAT:
            return None
        numbers = {name: float(content[name]) for name in ("feature", "pixel")}
        lists = {name: tuple(map(float, content[name])) for name in ("scores", "pixels")}
        scales = {part: Scale(float(mean), float(top)) for part, (mean, top) in content.get("scales", {}).items()}
        calibration = Calibration(**content | numbers | lists | {"scales": scales})
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} is damaged; remove it, and detection measures it again") from error
    if not set(calibration.scales) & set(DESCRIBED_BY):
        return calibration
    references = load_references(folder / REFERENCES, calibration)
    return replace(calibration, references=references) if references else None


def load_references(path: Path, calibration: Calibration) -> dict[str, Reference] | None:
    """Return the calibration's references, None if missing or of another one. Raise UserError for a damaged file."""
    if not path.is_file():
        return None
    content = read_state(path)
    made_with = content.get("made_with") if content.get("format") == REFERENCES_FORMAT else None
    if not isinstance(made_with, dict) or plain_values(path, made_with) != calibration.made_with:
        return None
    parts = [part for part in calibration.scales if part in DESCRIBED_BY]
    try:
        return {part: Reference(**content["references"][part]) for part in parts}
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise UserError(f"{path} is damaged; remove it, and detection learns it again") from error
