"""Write files that are complete or absent: under a temporary name in the same folder, then renamed."""

import errno
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from runtime.errors import UserFileError
from storage import folder_lock

File = IO[Any]  # of text or bytes, as the mode says
POSIX = os.name == "posix"  # Windows neither renames nor removes an open file
TEMPORARY_SUFFIX = ".part"
SHARED_NAME = 40  # characters of the file's name in the temporary one; file systems take 255 bytes
STALE_AFTER = 24 * 3600  # seconds, on a file system without locks
REMEDIES = {  # remedy: names of its errors, not all of which exist on every system
    "free some space": ("ENOSPC", "EDQUOT", "EFBIG"),
    "give permission to write there": ("EACCES", "EPERM", "EROFS"),
    "bring the folder back": ("ENOENT", "ESTALE", "EIO", "ENOTCONN", "ENODEV", "ENXIO", "EHOSTDOWN", "ETIMEDOUT"),
    "shorten the name": ("ENAMETOOLONG",),
}


def write_error_text(error: OSError, remedy: str) -> str:
    """Return the reason of a failed write and two remedies: one for the reason, and `remedy`, another place."""
    first = [text for text, names in REMEDIES.items() if error.errno in [getattr(errno, name, -1) for name in names]]
    return f"{error.strerror or error}; {(first or ['check the disk'])[0]} or {remedy}"


def ensure_writable(folder: Path, remedy: str) -> None:
    """Create the folder. Raise UserFileError with `remedy` where it is not writable or another run writes into it."""
    probe = folder / f".writable{os.getpid()}{TEMPORARY_SUFFIX}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise UserFileError(f"can't write to {folder}: {error.strerror}; {remedy}") from error
    folder_lock.refuse_locked(folder, remedy)


@contextmanager
def atomic_write(path: Path, remedy: str, mode: str = "wb") -> Iterator[File]:
    """Yield a file that gets its name only when it is complete.

    Raise UserFileError with `remedy` where that fails; an earlier file of that name stays unchanged.
    """
    temporary: Path | None = None
    try:
        folder_lock.refuse_replaced(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, file = create_temporary(path, mode.replace("w", "x"))
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if POSIX:
                temporary.replace(path)  # while the lock on it still holds
        if not POSIX:
            temporary.replace(path)
    except OSError as error:
        raise UserFileError(f"can't write {path}: {write_error_text(error, remedy)}") from error
    finally:
        if temporary:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def create_temporary(path: Path, mode: str) -> tuple[Path, File]:
    """Create and open a temporary file beside `path`, locked where the file system has locks."""
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "", "errors": "surrogateescape"}
    while True:
        temporary = path.with_name(f".{path.name[:SHARED_NAME]}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
        file = temporary.open(mode, **text)  # type: ignore[call-overload]
        with suppress(OSError):  # without locks, `remove_stale` goes by age
            if not (folder_lock.try_lock(file) and folder_lock.is_at(temporary, file)):
                file.close()  # another run removed it before it was locked
                continue
        return temporary, file


def remove_stale(folder: Path, *below: str) -> None:
    """Remove killed runs' temporary files from `folder` itself and from anywhere in its subfolders `below`."""
    pattern = f".*{TEMPORARY_SUFFIX}"
    deeper = [path for subfolder in below for path in (folder / subfolder).rglob(pattern)]
    for path in [*folder.glob(pattern), *deeper]:
        with suppress(OSError):
            with path.open("r+b") as file:
                try:
                    is_stale = folder_lock.try_lock(file)
                except OSError:
                    is_stale = time.time() - path.stat().st_mtime >= STALE_AFTER
                if is_stale and POSIX:
                    path.unlink()
            if is_stale and not POSIX:
                path.unlink()
