"""One writer a folder: a lock that says who holds it and that a killed run lets go of by itself.

It is the system's lock (flock; on Windows that of a byte) on the file `.lock` in the folder; the file's content is a note on the owner, for
the message alone. A note without a lock is a dead run's and is written over. Where a network folder has no locks a word is said and the run
goes on.
"""

import errno
import json
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK = ".lock"
FAR = 2**30  # the byte that is locked on Windows, where a locked one can't be read: far behind the note
LONGEST_COMMAND = 200  # characters of it that the note holds


HELD: dict[Path, os.stat_result] = {}  # the folders that this process writes into, as they were when it began


@contextmanager
def held(folder: Path, remedy: str) -> Iterator[None]:
    """No other run writes into `folder` within. Raises BlockingIOError that names the owner, and `remedy`, where another run does."""
    path = folder / LOCK
    file = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = claimed(path)
        write_note(file)
    except BlockingIOError:
        raise BlockingIOError(busy(folder, remedy)) from None
    except OSError as error:
        print(f"{folder} can't be locked ({error.strerror}); start no second run on it", flush=True)
    try:
        with suppress(OSError):
            HELD[folder] = folder.stat()
        yield
    finally:
        HELD.pop(folder, None)
        if file:
            release(path, file)


def release(path: Path, file: IO[str]) -> None:
    if sys.platform == "win32":
        file.close()  # an open file can't be removed there
    with suppress(OSError):
        if sys.platform == "win32" or is_at(path, file):
            path.unlink()
    file.close()


def check_there(path: Path) -> None:
    """Raises FileNotFoundError where a folder held by this process, in which `path` lies, is gone or another one: what is written into the
    place of an unmounted network folder is hidden as soon as that is back."""
    for folder, before in HELD.items():
        if folder in path.parents and not os.path.samestat(folder.stat(), before):
            raise FileNotFoundError(errno.ENOENT, "the folder is another one than when the run began")


def refuse_held(folder: Path, remedy: str) -> None:
    """Raises BlockingIOError where another run writes into `folder`: to be found before hours of work."""
    path = folder / LOCK
    try:
        taken = folder not in HELD and path.exists() and is_locked(path)
    except OSError:
        return  # held() says what is wrong with the folder
    if taken:
        raise BlockingIOError(busy(folder, remedy))


def is_locked(path: Path) -> bool:
    """Whether a living process has the lock on an existing file. Raises OSError where the file system has no locks."""
    with opened(path, "r+") as file:
        try:
            claim(file)
        except BlockingIOError:
            return True
    return False


def claimed(path: Path) -> IO[str]:
    """The file at `path`, made where there is none, with its lock.

    Raises BlockingIOError where a living process has it, OSError where the file system has no locks or nothing can be written.
    """
    while True:
        file = opened(path, "a+")
        try:
            claim(file)
            if is_at(path, file):  # the one before us removes it when it is done
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def opened(path: Path, mode: str) -> IO[str]:
    """The file, to be read alone where it is another user's: that is enough for a lock, if not on all network folders."""
    try:
        return path.open(mode, encoding="utf-8")
    except PermissionError:
        return path.open(encoding="utf-8")


def claim(file: IO[Any]) -> None:
    """Take the system's lock on an open file; it is let go of when the file is closed or the process ends, however it does.

    Raises BlockingIOError where a living process has it, OSError where the file system has no locks.
    """
    if sys.platform == "win32":
        place = file.tell()
        try:
            os.lseek(file.fileno(), FAR, os.SEEK_SET)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError:
            raise BlockingIOError from None
        finally:
            os.lseek(file.fileno(), place, os.SEEK_SET)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_at(path: Path, file: IO[Any]) -> bool:
    """Whether the open file still has this name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def write_note(file: IO[str]) -> None:
    note = {"host": socket.gethostname(), "pid": os.getpid(), "since": f"{datetime.now():%Y-%m-%d %H:%M}", "command": command()}
    with suppress(OSError):  # on a full disk the lock holds without it
        file.seek(0)
        file.truncate()
        json.dump(note, file)
        file.flush()


def command() -> str:
    words = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return words if len(words) <= LONGEST_COMMAND else words[:LONGEST_COMMAND] + "…"


def read_note(path: Path) -> dict[str, object]:
    """What the owner says of itself; nothing where the note is not there or damaged."""
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}


def busy(folder: Path, remedy: str) -> str:
    note = read_note(folder / LOCK)
    owner = f"{note.get('command')} (process {note.get('pid')} on {note.get('host')}, since {note.get('since')})" if note else "another run"
    printable = "".join(sign if sign.isprintable() else "?" for sign in owner)  # anybody may have written the note
    return f"{folder} is being written by {printable}; wait for its end, or {remedy}"
