"""Let one run at a time write into a folder. On a file system without locks, print a warning and continue.

The lock on the file `.lock` ends with the process. The file also holds a note on its owner, for error messages.
"""

import errno
import json
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO

from filelock import lock_descriptor

from runtime.errors import MissingFileError, UserFileError

LOCK = ".lock"
NOTE_START = 1  # byte; filelock locks byte 0, which on Windows nobody else may read then
LONGEST_COMMAND = 200  # characters of the command in the note
LOCKED: dict[Path, os.stat_result] = {}  # folders that this process has locked, as they were at that time
OpenFile = IO[str] | IO[bytes]


class FolderLockedError(UserFileError, BlockingIOError):
    """Another run writes into the folder."""


@contextmanager
def locked(folder: Path, remedy: str) -> Iterator[None]:
    """Keep other runs from writing into `folder`. Raise FolderLockedError with `remedy` where one does so already."""
    path, file = folder / LOCK, None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open_locked(path)
        write_owner(file)
    except BlockingIOError:
        raise FolderLockedError(locked_text(path, remedy)) from None
    except OSError as error:
        print(f"{folder} can't be locked ({error.strerror}); start no second run on it", flush=True)
    try:
        with suppress(OSError):
            LOCKED[folder] = folder.stat()
        yield
    finally:
        LOCKED.pop(folder, None)
        if file:
            remove_lock(path, file)


def refuse_locked(folder: Path, remedy: str) -> None:
    """Raise FolderLockedError where another run writes into `folder`; call it before hours of work."""
    if folder in LOCKED:
        return
    try:
        with open_lock(folder / LOCK, "r+") as file:
            is_free = try_lock(file)
    except OSError:
        return  # there is no lock, or locked() explains what is wrong with the folder
    if not is_free:
        raise FolderLockedError(locked_text(folder / LOCK, remedy))


def refuse_replaced(path: Path) -> None:
    """Raise MissingFileError where a locked folder around `path` is gone, or is another one, such as a mount point."""
    for folder, before in LOCKED.items():
        if folder in path.parents and not os.path.samestat(folder.stat(), before):
            raise MissingFileError(errno.ENOENT, "the folder is not the one that the run began with")


def try_lock(file: OpenFile) -> bool:
    """Lock an open file until it is closed, unless another process has. Raise OSError where there are no locks."""
    return lock_descriptor(file.fileno(), blocking=False)


def is_at(path: Path, file: OpenFile) -> bool:
    """Return whether `path` still names the open file."""
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    return False


def open_locked(path: Path) -> IO[str]:
    """Return the lock's file, open and locked. Raise BlockingIOError where another process has the lock."""
    while True:
        with ExitStack() as on_failure:
            file = on_failure.enter_context(open_lock(path, "a+"))
            if not try_lock(file):
                raise BlockingIOError
            if is_at(path, file):  # its last owner may have removed it meanwhile
                on_failure.pop_all()
                return file


def open_lock(path: Path, mode: str) -> IO[str]:
    """Open the lock's file, read-only if another user owns it: most file systems lock that too."""
    try:
        return path.open(mode, encoding="utf-8")
    except PermissionError:
        return path.open(encoding="utf-8")


def remove_lock(path: Path, file: IO[str]) -> None:
    """Remove the lock's file, then its lock."""
    if sys.platform == "win32":
        file.close()  # Windows removes no open file
    with suppress(OSError):
        if file.closed or is_at(path, file):
            path.unlink()
    file.close()


def write_owner(file: IO[str]) -> None:
    """Write the note on the owner: this process."""
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    if len(command) > LONGEST_COMMAND:
        command = command[:LONGEST_COMMAND] + "…"
    since = f"{datetime.now():%Y-%m-%d %H:%M}"
    note = {"host": socket.gethostname(), "pid": os.getpid(), "since": since, "command": command}
    with suppress(OSError):  # on a full disk the lock holds without the note
        file.truncate(0)
        file.write(" " * NOTE_START + json.dumps(note))
        file.flush()


def locked_text(path: Path, remedy: str) -> str:
    """Return the error message for a locked folder: its owner, where the note is readable, and what the user can do."""
    owner = "another run"
    with suppress(OSError, ValueError, RecursionError, LookupError, TypeError), path.open("rb") as file:
        file.seek(NOTE_START)
        note = json.loads(file.read())
        owner = f"{note['command']} (process {note['pid']} on {note['host']}, since {note['since']})"
    printable = "".join(sign if sign.isprintable() else "?" for sign in owner)  # anybody may have written the note
    return f"{path.parent} is being written by {printable}; wait for its end, or {remedy}"
