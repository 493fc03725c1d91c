"""How a result was made: manifest.json beside it, enough to repeat it and to say what differs."""

import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dataset import Sample, picture_fingerprint
from runtime.errors import MissingFileError, UserError
from storage.atomic_file import atomic_write
from storage.fingerprint import as_stored

MANIFEST, FORMAT = "manifest.json", "ddad-manifest-1"
PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "pillow")
INPUTS = ("settings", "versions", "git_commit", "device", "data", "weights")  # all that the figures depend on
KIB = 1024


def result_inputs(
    settings: Mapping[str, Any], data: Mapping[str, Iterable[Sample]], weights: str, device: str
) -> dict[str, Any]:
    """All that the figures depend on: settings by section, pictures by split, hash of the weights, device, and versions of the code."""
    pictures = {split: picture_fingerprint(samples) for split, samples in data.items()}
    code = {"versions": versions(), "git_commit": git_commit()}
    return as_stored({"settings": settings, **code, "device": device, "data": pictures, "weights": weights})


def versions() -> dict[str, str]:
    there = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            there[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return there


def git_commit() -> str | None:
    """Of this code, with -dirty behind it where files were changed; None where it is not a clone."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def peak_memory() -> int | None:
    """Bytes that this process held at most so far, where the system tells."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * KIB


def write_manifest(
    folder: Path, made: Mapping[str, Any], *, seconds: Mapping[str, float], metrics: Mapping[str, Any], remedy: str
) -> None:
    """manifest.json of a result with these `metrics`."""
    data, model = made["settings"]["data"], made["settings"]["model"]
    content = {
        "format": FORMAT,
        "data_set": data["name"],
        "category": data["category"],
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seed": model["seed"],
        **made,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "peak_memory_bytes": peak_memory(),
        "metrics": metrics,
    }
    with atomic_write(folder / MANIFEST, remedy, "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")


def load_manifest(path: Path) -> dict[str, Any]:
    """A manifest, named itself or by its folder. Raises FileNotFoundError where there is none, ValueError where it is something else."""
    path = path / MANIFEST if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFileError(
            f"no manifest at {path}; detection leaves one in its results folder, and {MANIFEST} is its name"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a manifest: {error}; detection leaves one in its results folder") from error
    if not is_valid(content):
        raise UserError(f"{path} is not a manifest of this version ({FORMAT}); run --detection again to have one")
    return content


def is_valid(content: Any) -> bool:
    """Whether all parts are there and of the right kind, so that whoever reads them need not look."""
    parts = {"settings": dict, "versions": dict, "data": dict, "metrics": dict, "category": str, "data_set": str}
    if (
        not isinstance(content, dict)
        or content.get("format") != FORMAT
        or not all(isinstance(content.get(name), parts[name]) for name in parts)
    ):
        return False
    metrics, settings = content["metrics"], content["settings"]
    intervals = metrics.get("intervals", {})
    return (
        all(isinstance(section, dict) for section in settings.values())
        and all(isinstance(value, (dict, int, float)) for value in metrics.values())
        and isinstance(intervals, dict)
        and all(
            isinstance(ends, list) and len(ends) == 2 and all(isinstance(end, (int, float)) for end in ends)
            for ends in intervals.values()
        )
    )


def is_result_of(folder: Path, made: Mapping[str, Any]) -> bool:
    """Whether the folder holds the whole result of exactly this run."""
    try:
        there = load_manifest(folder)
    except (OSError, ValueError):
        return False
    return not list(differences(there, made))


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What two results were made with that is not the same: 'model.w was 3, is 4'."""
    before, after = (
        {name: value for part in INPUTS for name, value in leaves(part, made.get(part))} for made in (then, now)
    )
    for name in {**before, **after}:
        if before.get(name) != after.get(name):
            yield f"{name.removeprefix('settings.').removeprefix('versions.')} was {before.get(name)}, is {after.get(name)}"


def leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Nested values by their dotted names."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(f"{name}.{key}", inner)
    else:
        yield name, value
