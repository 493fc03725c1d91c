"""Files written whole: under a temporary name in the same folder, then renamed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

TEMPORARY_SUFFIX = ".part"


def ensure_writable(folder: Path) -> None:
    """Make the folder, and raise OSError now rather than after hours of work where nothing can be written to it."""
    probe = folder / f".writable{TEMPORARY_SUFFIX}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(f"can't write to {folder}: {error.strerror}; change model.checkpoint_dir, or set model.save_model=False") from error


@contextmanager
def whole_file(path: Path, remedy: str, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file that appears under its name only when it is complete. Raises OSError with `remedy`, an earlier file untouched."""
    temporary = path.with_name(f".{path.name}{TEMPORARY_SUFFIX}")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "", "errors": "surrogateescape"}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open(mode, **text) as file:  # type: ignore[call-overload]
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OSError(f"can't write {path}: {error.strerror or error}; free some space or {remedy}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
