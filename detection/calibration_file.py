"""Split off checkpoint.py."""

import json
from dataclasses import asdict, replace
from pathlib import Path

from detection.reference import DESCRIBED_BY, Reference, Scale
from detection.threshold import Calibration
from runtime.errors import UserError
from storage.atomic_file import atomic_write
from storage.weights_file import read_state
from training.checkpoint import REMEDY, plain_values, save

CALIBRATION, CALIBRATION_FORMAT = "calibration.json", "ddad-calibration-13"
REFERENCES, REFERENCES_FORMAT = "references", "ddad-references-2"


def save_calibration(folder: Path, calibration: Calibration) -> None:
    if calibration.references:
        tensors = {part: vars(one) for part, one in calibration.references.items()}
        save(
            folder / REFERENCES,
            {"format": REFERENCES_FORMAT, "made_with": calibration.made_with, "references": tensors},
        )
    content = asdict(replace(calibration, references={}))
    del content["references"]
    with atomic_write(folder / CALIBRATION, REMEDY, "w") as file:
        json.dump({"format": CALIBRATION_FORMAT, **content}, file)


def load_calibration(folder: Path) -> Calibration | None:
    """The category's calibration, if it has one of this format. Raises ValueError where the file is damaged."""
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
        kept = Calibration(**content | numbers | lists | {"scales": scales})
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} is damaged; remove it, and detection measures it again") from error
    if not set(kept.scales) & set(DESCRIBED_BY):
        return kept
    references = load_references(folder / REFERENCES, kept)
    return replace(kept, references=references) if references else None


def load_references(path: Path, calibration: Calibration) -> dict[str, Reference] | None:
    """Those that belong to the calibration, if they are there. Raises ValueError where the file is damaged."""
    if not path.is_file():
        return None
    content = read_state(path)
    made_with = content.get("made_with")
    if (
        content.get("format") != REFERENCES_FORMAT
        or not isinstance(made_with, dict)
        or plain_values(path, made_with) != calibration.made_with
    ):
        return None
    wanted = [part for part in calibration.scales if part in DESCRIBED_BY]
    try:
        return {part: Reference(**content["references"][part]) for part in wanted}
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise UserError(f"{path} is damaged; remove it, and detection learns it again") from error
