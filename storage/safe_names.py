"""Make safe file names from names in data and configuration; no file may leave its folder."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from runtime.errors import UserError

WINDOWS = os.name == "nt"
DEVICES = r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])"
RESERVED = re.compile(rf"{DEVICES}\s*(\..*)?", re.IGNORECASE)  # on Windows, in every folder
CONTROL = r"[\x00-\x1f\x7f]"
UNSAFE = re.compile(rf"{CONTROL}|[\\/]|^.:")  # ^.: is a drive
UNSAFE_ON_WINDOWS = re.compile(rf'{CONTROL}|[\\/<>:"|?*]|[. ]$')
OUTSIDE = re.compile(rf"{CONTROL}|^[\\/]|^.:|(^|[\\/])\.[. ]+($|[\\/])")  # absolute, a drive, `..` or `. .`
LONGEST = 230  # bytes, before suffixes such as .png.tiff; file systems take 255
HASH_DIGITS = 8


def stays_inside(name: str, windows: bool = WINDOWS) -> bool:
    """Return whether a path of one or more names stays inside the folder that it is joined to."""
    if OUTSIDE.search(name):
        return False
    parts = [part for part in re.split(r"[\\/]", name) if part not in ("", ".")]
    return not (windows and any(RESERVED.fullmatch(part) or UNSAFE_ON_WINDOWS.search(part) for part in parts))


def file_stems(names: Collection[str], windows: bool = WINDOWS) -> dict[str, str]:
    """Return a safe name for each picture's files: its stem, or its whole name where several pictures share the stem.

    Raise UserError for a name that no file can have, such as `.`.
    """
    for name in names:
        if not PurePosixPath(name).name:
            raise UserError(f"{name!r} is not the name of a picture; correct or remove the table that contains it")
    short = {name: str(PurePosixPath(name).with_suffix("")) for name in names}
    count = Counter(short.values())
    stems = {name: stem if count[stem] == 1 and stem not in short else name for name, stem in short.items()}
    return {name: safe_path(stem, windows) for name, stem in stems.items()}


def safe_path(path: str, windows: bool = WINDOWS) -> str:
    return "/".join(safe_part(part, windows) for part in path.split("/") if part)


def safe_part(part: str, windows: bool = WINDOWS) -> str:
    """Return the name itself if it is safe and short, else a similar one with a hash that keeps it unique."""
    similar = (UNSAFE_ON_WINDOWS if windows else UNSAFE).sub("_", part)
    if not similar.strip(". ") or (windows and RESERVED.fullmatch(similar)):
        similar = f"_{similar}"
    encoded = similar.encode("utf-8", "surrogateescape")
    if len(encoded) > LONGEST:
        similar = encoded[: LONGEST - HASH_DIGITS - 1].decode("utf-8", "ignore")
    if similar == part:
        return part
    digest = hashlib.sha256(part.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{similar}~{digest[:HASH_DIGITS]}"


def named_path(path: Path) -> Path:
    """Return the path; resolve it first where it ends with `.` or `..` and so has no name."""
    return path.resolve() if path.name in ("", "..") else path
