"""Collect the inputs of a result for manifest.json, read the file, and compare the inputs of two results."""

import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

from dataset import Sample, picture_fingerprint
from reports.metric_summary import MISSING
from runtime.errors import MissingFileError, UserError
from storage.fingerprint import as_stored

MANIFEST, FORMAT = "manifest.json", "ddad-manifest-1"
PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "pillow")
# All that the metrics depend on; `thresholds_from` only after --recalibrate
INPUTS = ("settings", "versions", "git_commit", "device", "data", "weights", "thresholds_from")
KIB = 1024
TYPES = {"settings": dict, "versions": dict, "data": dict, "metrics": dict, "category": str, "data_set": str}


class Manifest(TypedDict):
    """The parts of a manifest.json that are read. `load_manifest` checks all but `seconds` and `weights`."""

    settings: dict[str, dict[str, object]]
    versions: dict[str, object]
    data: dict[str, object]
    metrics: dict[str, object]
    seconds: dict[str, float]
    category: str
    data_set: str
    weights: str


def result_inputs(
    settings: Mapping[str, object], data: Mapping[str, Iterable[Sample]], weights: str, device: str
) -> dict[str, object]:
    """Return all that the metrics depend on: `INPUTS`, with `data` by split and `weights` as their hash."""
    pictures = {split: picture_fingerprint(samples) for split, samples in data.items()}
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    code = {"versions": versions, "git_commit": git_commit()}
    return as_stored({"settings": settings, **code, "device": device, "data": pictures, "weights": weights})


def git_commit() -> str | None:
    """Return the commit of this code, with -dirty for changed files; None outside of a clone."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def peak_memory() -> int | None:
    """Return the peak memory of this process in bytes, where the system reports it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * KIB


def load_manifest(path: Path) -> Manifest:
    """Return the manifest at a path or in a folder. Raise MissingFileError, or UserError for another file."""
    path = path / MANIFEST if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFileError(f"no manifest at {path}; name a detection's results folder or its {MANIFEST}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a manifest: {error}; detection leaves one in its results folder") from error
    parts = content if isinstance(content, dict) else {}
    valid = parts.get("format") == FORMAT and all(isinstance(parts.get(name), kind) for name, kind in TYPES.items())
    if not valid or not all(isinstance(section, dict) for section in parts["settings"].values()):
        raise UserError(f"{path} is not a manifest of this version ({FORMAT}); run --detection again to have one")
    return content


def is_result_of(folder: Path, inputs: Mapping[str, object]) -> bool:
    """Return whether the folder holds the complete result of these inputs."""
    try:
        return not any(differences(load_manifest(folder), inputs))
    except (OSError, ValueError):
        return False


def differences(then: Mapping[str, object], now: Mapping[str, object]) -> Iterator[str]:
    """Yield what differs between the inputs of two results: 'model.w was 3, is 4'."""
    before, after = (dict(flatten_values("", {part: inputs.get(part) for part in INPUTS})) for inputs in (then, now))
    for name in {**before, **after}:
        if before.get(name) != after.get(name):
            short = name.removeprefix("settings.").removeprefix("versions.")
            yield f"{short} was {before.get(name)}, is {after.get(name)}"


def flatten_values(name: str, value: object) -> Iterator[tuple[str, object]]:
    """Yield nested values with their dotted names, which begin with `name`; records of a list have numbers from 1."""
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        value = dict(enumerate(value, start=1))
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flatten_values(f"{name}.{key}" if name else str(key), inner)
    else:
        yield name, value


def value_text(value: object) -> str:
    """Return a value of a manifest for a reader."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {value_text(part)}" for name, part in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(value_text, value))
    return f"{value:.6g}" if isinstance(value, float) else MISSING if value is None else str(value)
