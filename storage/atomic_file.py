"""Files written whole: under a temporary name in the same folder, then renamed. What killed runs leave of them is swept away."""

import errno
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from runtime.errors import UserFileError
from storage import folder_lock

TEMPORARY_SUFFIX = ".part"
LONGEST_NAME = 200  # bytes; file systems take 255, of which the temporary name needs some more than the file's own
DEAD_AFTER = 24 * 3600  # seconds, where the file system has no locks by which a living run's files are known
ADVICE = {  # first steps, by the names of errno that this system has
    "free some space": ("ENOSPC", "EDQUOT", "EFBIG"),
    "give permission to write there": ("EACCES", "EPERM", "EROFS"),
    "bring the folder back": ("ENOENT", "ESTALE", "EIO", "ENOTCONN", "ENODEV", "ENXIO", "EHOSTDOWN", "ETIMEDOUT"),
    "shorten the name": ("ENAMETOOLONG",),
}


def write_error_text(error: OSError, remedy: str) -> str:
    """What went wrong with a write, what helps, and `remedy`, where to write instead."""
    advice = next(
        (words for words, names in ADVICE.items() if error.errno in [getattr(errno, name, -1) for name in names]),
        "check the disk",
    )
    return f"{error.strerror or error}; {advice} or {remedy}"


def ensure_writable(folder: Path, remedy: str) -> None:
    """Make the folder, and raise OSError with `remedy`, now rather than after hours of work, where it can't be written to or another run does."""
    probe = folder / f".writable{os.getpid()}{TEMPORARY_SUFFIX}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise UserFileError(f"can't write to {folder}: {error.strerror}; {remedy}") from error
    folder_lock.refuse_locked(folder, remedy)


@contextmanager
def atomic_write(path: Path, remedy: str, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file that appears under its name only when it is complete. Raises OSError with `remedy`, an earlier file untouched."""
    temporary: Path | None = None
    try:
        folder_lock.refuse_replaced(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, file = new_temporary(path, mode.replace("w", "x"))
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if os.name == "posix":
                temporary.replace(path)  # while its lock keeps sweepers off
        if os.name != "posix":
            temporary.replace(path)  # where an open file can be neither renamed nor swept
    except OSError as error:
        raise UserFileError(f"can't write {path}: {write_error_text(error, remedy)}") from error
    finally:
        if temporary:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def new_temporary(path: Path, mode: str) -> tuple[Path, IO[Any]]:
    """A file beside `path` that no other run writes to, locked as long as it is open, where the file system has locks."""
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "", "errors": "surrogateescape"}
    encoded = os.fsencode(path.name)
    name = path.name if len(encoded) <= LONGEST_NAME else hashlib.sha256(encoded).hexdigest()
    while True:
        temporary = path.with_name(f".{name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
        file = temporary.open(mode, **text)  # type: ignore[call-overload]
        try:
            ours = folder_lock.try_lock(file)
        except OSError:
            ours = True  # without locks, sweepers go by age
        if ours and folder_lock.is_at(temporary, file):  # else a run that starts just now sweeps it away
            return temporary, file
        file.close()


def remove_stale(folder: Path, *below: str) -> None:
    """Remove the temporary files that killed runs left in `folder`, and anywhere in its subfolders `below`; a living run's stay."""
    pattern = f".*{TEMPORARY_SUFFIX}"
    found = [path for part in below for path in (folder / part).rglob(pattern)]
    for path in [*folder.glob(pattern), *found]:
        with suppress(OSError):
            remove_dead(path)


def remove_dead(path: Path) -> None:
    """Remove a temporary file that no living run writes to."""
    with path.open("r+b") as file:
        try:
            dead = folder_lock.try_lock(file)
        except OSError:
            dead = time.time() - path.stat().st_mtime >= DEAD_AFTER
        if not dead:
            return
        if os.name == "posix":
            path.unlink()
    if os.name != "posix":
        path.unlink()
