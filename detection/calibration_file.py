"""Save and load a category's calibration: calibration.json, and memory banks in the file `references`."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from PIL import Image

from config.keys import Settings
from config.published import counts_centre
from detection.reference import COMPARED, Reference, Scale
from detection.threshold import Calibration, NormalSource
from images.region import JudgedRegion
from runtime.errors import UserError
from storage.atomic_file import atomic_write
from storage.json_file import read_json_object
from storage.weights_file import read_state
from training.checkpoint import REMEDY, plain_values, save

CALIBRATION, CALIBRATION_FORMAT = "calibration.json", "ddad-calibration-14"
WHOLE_CALIBRATION = "calibration_whole.json"  # of whole pictures, where CALIBRATION is of their centre
REFERENCES, REFERENCES_FORMAT = "references", "ddad-references-4"
REGION = "region.png"  # a copy of data.region
DAMAGED = (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)  # of a damaged file


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
        tensors = reference_tensors(calibration)
        save(folder / REFERENCES, {"format": REFERENCES_FORMAT, "made_with": calibration.made_with, **tensors})
    with atomic_write(folder / name, REMEDY, "w") as file:
        json.dump(calibration_content(calibration), file)


def calibration_content(calibration: Calibration) -> dict[str, object]:
    """Return what calibration.json holds: plain values, without the references."""
    content = asdict(replace(calibration, references={}))
    del content["references"]
    return {"format": CALIBRATION_FORMAT, **content}


def reference_tensors(calibration: Calibration) -> dict[str, object]:
    """Return the tensors of the references by part and by name, as the entry `references` of a file."""
    return {"references": {part: vars(reference) for part, reference in calibration.references.items()}}


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
        calibration = parse_calibration(json.loads(path.read_text(encoding="utf-8")))
    except DAMAGED as error:
        raise UserError(f"{path} is damaged; remove it, and detection measures it again") from error
    if calibration is None or not set(calibration.scales) & set(COMPARED):
        return calibration
    references = load_references(folder / REFERENCES, calibration)
    return replace(calibration, references=references) if references else None


def parse_calibration(content: dict[str, Any]) -> Calibration | None:
    """Return the calibration of a `calibration_content`, None for another format. Raise one of DAMAGED."""
    if content.pop("format", None) != CALIBRATION_FORMAT:
        return None
    numbers = {name: float(content[name]) for name in ("feature", "pixel")}
    lists = {name: tuple(map(float, content[name])) for name in ("scores", "pixels")}
    pictures = tuple(map(str, content.get("pictures", ())))
    scales = {part: Scale(*map(float, scale)) for part, scale in content.get("scales", {}).items()}
    source = NormalSource(**content["source"]) if content.get("source") else None
    size = tuple(map(int, content.get("picture_size") or ())) or None
    others = {"scales": scales, "pictures": pictures, "source": source, "picture_size": size}
    return Calibration(**content | numbers | lists | others)


def parse_references(content: dict[str, Any], calibration: Calibration) -> dict[str, Reference]:
    """Return the references of a calibration's parts from the entry `references` of a file. Raise one of DAMAGED."""
    parts = [part for part in calibration.scales if part in COMPARED]
    return {part: Reference(**content["references"][part]) for part in parts}


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
    try:
        return parse_references(content, calibration)
    except DAMAGED as error:
        raise UserError(f"{path} is damaged; remove it, and detection learns it again") from error
