"""Names that data and configuration bring along and that become names of our files: none leaves the folder that it is put in.

The same on all systems, but for what Windows alone can't have (reserved names, some signs, trailing dots and spaces).
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Collection
from pathlib import PurePosixPath

WINDOWS = os.name == "nt"
RESERVED = re.compile(
    r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])\s*(\..*)?", re.IGNORECASE
)  # devices, in every folder
CONTROL = r"[\x00-\x1f\x7f]"
UNSAFE = re.compile(rf"{CONTROL}|[\\/]|^.:")  # ^.: is a drive
UNSAFE_ON_WINDOWS = re.compile(rf'{CONTROL}|[\\/<>:"|?*]|[. ]$')
LEAVES = re.compile(
    rf"{CONTROL}|^[\\/]|^.:|(^|[\\/])\.[. ]+($|[\\/])"
)  # control characters, absolute, a drive, .. and what Windows takes for it
LONGEST = 230  # bytes of a name without what is put behind it (.png.tiff); file systems take 255
HASH_DIGITS = 8


def stays_inside(name: str, windows: bool = WINDOWS) -> bool:
    """Whether a name, of one or more folders, stays in the folder that it is put in, on this system and on a Windows that reads its files."""
    if LEAVES.search(name):
        return False
    parts = [part for part in re.split(r"[\\/]", name) if part not in ("", ".")]
    return not (windows and any(RESERVED.fullmatch(part) or UNSAFE_ON_WINDOWS.search(part) for part in parts))


def file_stems(names: Collection[str], windows: bool = WINDOWS) -> dict[str, str]:
    """For each picture the name, without ending, of the files made of it: its own stem, or where others share that its whole name; made safe."""
    short = {name: str(PurePosixPath(name).with_suffix("")) for name in names}
    count = Counter(short.values())
    stems = {name: stem if count[stem] == 1 and stem not in short else name for name, stem in short.items()}
    return {name: safe_path(stem, windows) for name, stem in stems.items()}


def safe_path(path: str, windows: bool = WINDOWS) -> str:
    return "/".join(safe_part(part, windows) for part in path.split("/") if part)


def safe_part(part: str, windows: bool = WINDOWS) -> str:
    """The name itself where it is one of a file in its folder and not too long; else one like it, with a hash that keeps two of them apart."""
    like = (UNSAFE_ON_WINDOWS if windows else UNSAFE).sub("_", part)
    if not like.strip(". ") or (windows and RESERVED.fullmatch(like)):
        like = f"_{like}"
    encoded = like.encode("utf-8", "surrogateescape")
    if len(encoded) > LONGEST:
        like = encoded[: LONGEST - HASH_DIGITS - 1].decode("utf-8", "ignore")
    return (
        part
        if like == part
        else f"{like}~{hashlib.sha256(part.encode('utf-8', 'surrogateescape')).hexdigest()[:HASH_DIGITS]}"
    )
