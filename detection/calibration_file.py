"""Save and load a category's calibration: calibration.json, and memory banks in the file `references`."""

import json
from dataclasses import asdict, replace
from pathlib import Path

from PIL import Image

from config.keys import Settings
from config.published import counts_centre
from detection.reference import COMPARED, Reference, Scale
from detection.threshold import Calibration, NormalSource
from images.region import JudgedRegion
from reports.reader import read_json_object
from runtime.errors import UserError
from storage.atomic_file import atomic_write
from storage.weights_file import read_state
from training.checkpoint import REMEDY, plain_values, save

CALIBRATION, CALIBRATION_FORMAT = "calibration.json", "ddad-calibration-14"
WHOLE_CALIBRATION = "calibration_whole.json"  # of whole pictures, where CALIBRATION is of their centre
REFERENCES, REFERENCES_FORMAT = "references", "ddad-references-2"
REGION = "region.png"  # a copy of data.region


def calibration_name(settings: Settings) -> str:
    """Return the name of the file: a detector that reproduces a published table has a second one, for --input."""
    has_two = counts_centre(settings.data.name, settings.score.protocol, settings.score.parts)
    return WHOLE_CALIBRATION if has_two and settings.metrics.centre_crop == 1 else CALIBRATION


def save_calibration(
    folder: Path, calibration: Calibration, name: str = CALIBRATION, region: JudgedRegion | None = None
) -> None:
    """Write the calibration, and its references and a copy of its region beside it."""
    if region:
        with atomic_write(folder / REGION, REMEDY) as file:
            Image.fromarray(region.mask).save(file, format="PNG")
    if calibration.references:
        tensors = {part: vars(reference) for part, reference in calibration.references.items()}
        content = {"format": REFERENCES_FORMAT, "made_with": calibration.made_with, "references": tensors}
        save(folder / REFERENCES, content)
    content = asdict(replace(calibration, references={}))
    del content["references"]
    with atomic_write(folder / name, REMEDY, "w") as file:
        json.dump({"format": CALIBRATION_FORMAT, **content}, file)


def load_widest_calibration(folder: Path) -> Calibration | None:
    """Return the calibration of whole pictures if the folder's detector has one, else the other."""
    usual, whole = load_calibration(folder), load_calibration(folder, WHOLE_CALIBRATION)
    if usual and whole and usual.staleness({**whole.made_with, "crop": usual.made_with.get("crop")}):
        return usual
    return whole or usual


def load_calibration(folder: Path, name: str = CALIBRATION) -> Calibration | None:
    """Return the calibration, None if no complete one of this format exists. Raise UserError for a damaged file."""
    path = folder / name
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format", None) != CALIBRATION_FORMAT:
            return None
        numbers = {name: float(content[name]) for name in ("feature", "pixel")}
        lists = {name: tuple(map(float, content[name])) for name in ("scores", "pixels")}
        pictures = tuple(map(str, content.get("pictures", ())))
        scales = {part: Scale(*map(float, scale)) for part, scale in content.get("scales", {}).items()}
        source = NormalSource(**content["source"]) if content.get("source") else None
        names = {"scales": scales, "pictures": pictures, "source": source}
        calibration = Calibration(**content | numbers | lists | names)
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} is damaged; remove it, and detection measures it again") from error
    if not set(calibration.scales) & set(COMPARED):
        return calibration
    references = load_references(folder / REFERENCES, calibration)
    return replace(calibration, references=references) if references else None


def stored_source(path: Path) -> object:
    """Return what --recalibrate stored about the pictures of the thresholds; None where they are of train/good."""
    return read_json_object(path).get("source")


def load_references(path: Path, calibration: Calibration) -> dict[str, Reference] | None:
    """Return the calibration's references, None if missing or of another one. Raise UserError for a damaged file."""
    if not path.is_file():
        return None
    content = read_state(path)
    made_with = content.get("made_with") if content.get("format") == REFERENCES_FORMAT else None
    if not isinstance(made_with, dict) or plain_values(path, made_with) != calibration.made_with:
        return None
    parts = [part for part in calibration.scales if part in COMPARED]
    try:
        return {part: Reference(**content["references"][part]) for part in parts}
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise UserError(f"{path} is damaged; remove it, and detection learns it again") from error
