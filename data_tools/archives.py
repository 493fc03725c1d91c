"""Downloads unpacked with care: nothing leaves the folder, no links or devices, sizes bounded, each file whole.

A hostile archive is refused with one line that names the member. What was unpacked before a run was stopped is not unpacked again.
"""

import bz2
import gzip
import hashlib
import lzma
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, NamedTuple

from images.read import SUFFIXES
from runtime.errors import MissingFileError, UserError
from storage.atomic_file import atomic_write

KEPT = SUFFIXES | {".csv", ".json", ".txt"}  # endings of what a data set is prepared from
MOST_FILES = 1_000_000
MOST_BYTES = 64 * 2**30  # unpacked, the largest of the known sets is some 6 GiB
MOST_RATIO = 200  # unpacked to packed bytes; plain masks as BMP reach some 20 beside their pictures
SLACK = 256 * 2**20  # bytes allowed above the ratio: a small archive of plain pictures may well be packed better
LONGEST_READ = 16 * 2**20  # bytes, of a tar's header and of a copy's step
COMPRESSIONS: dict[bytes, Callable[..., Any]] = {  # by the first bytes of a file
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
DAMAGE = (  # what reading a spoilt archive raises
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,  # encrypted, or of an unknown method (NotImplementedError)
    ValueError,
    OverflowError,
)
REMEDY = "it is not what the publisher gives; download it again"


class Member(NamedTuple):
    """One entry of an archive: its name as written, its size in bytes, what it is where that is no file, and how it is opened."""

    name: str
    size: int
    other: str | None
    open: Callable[[], IO[bytes]]


@contextmanager
def open_source(source: Path, workspace: Path) -> Iterator[Path]:
    """The folder that `source` is or, for an archive, holds: the latter in a hidden folder of `workspace`, which is gone afterwards and stays
    only where the run is stopped. Raises FileNotFoundError, and ValueError for what is no archive, a damaged or a hostile one."""
    if source.is_dir():
        yield source
        return
    if not source.is_file():
        raise MissingFileError(
            f"no folder or archive at {source}; name the download, a zip or tar, or the folder that it unpacks to"
        )
    about = source.stat()
    key = hashlib.sha256(
        f"{source.name} {about.st_size} {about.st_mtime_ns}".encode(errors="surrogateescape")
    ).hexdigest()[:12]
    folder = workspace / f".unpacked-{key}"
    inner = (
        folder / source.name.partition(".")[0]
    )  # the category's name where the archive holds train/good and no folder around it
    try:
        unpack(source, inner)
        yield inner
    except Exception:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def unpack(source: Path, folder: Path) -> None:
    """Pictures, tables and texts of an archive into `folder`; those that are there, whole, from an earlier call are passed over."""
    most = min(MOST_BYTES, SLACK + MOST_RATIO * source.stat().st_size)
    total, seen = 0, set()
    print(f"unpacking {source}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    for member in archive_members(source):
        name = relative_path(member.name, str(source))
        if member.other == "a folder":
            continue
        if member.other:
            raise UserError(f"{source} holds {member.name!r}, {member.other}; {REMEDY}")
        if name in seen:
            raise UserError(f"{source} holds {member.name!r} twice; {REMEDY}")
        seen.add(name)
        total += member.size
        if total > most or len(seen) > MOST_FILES:
            raise UserError(
                f"{source} unpacks to more than {most:,} bytes or {MOST_FILES:,} files; {REMEDY}, or unpack it yourself"
            )
        target = folder / name
        if is_wanted(name) and not target.exists():
            with atomic_write(target, "choose another folder with --output") as file:
                for part in member_content(member, source):
                    file.write(part)


def is_wanted(name: PurePosixPath) -> bool:
    """Whether it may be part of a data set: of a known ending, and neither hidden nor left there by macOS."""
    return name.suffix.lower() in KEPT and not any(part.startswith(".") or part == "__MACOSX" for part in name.parts)


def relative_path(name: str, holder: str) -> PurePosixPath:
    """The name as a path in its folder. Raises ValueError where it leaves it; `holder` says what names it."""
    path = PurePosixPath(name.replace("\\", "/"))
    if not name or path.is_absolute() or ".." in path.parts or PureWindowsPath(name).drive or "\0" in name:
        raise UserError(f"{holder} names {name!r}, which is not a path in its own folder; {REMEDY}")
    return path


def archive_members(source: Path) -> Iterator[Member]:
    with as_damage(source):
        yield from zip_members(source) if zipfile.is_zipfile(source) else tar_members(source)


def zip_members(source: Path) -> Iterator[Member]:
    with zipfile.ZipFile(source) as archive:
        for info in archive.infolist():
            mode = info.external_attr >> 16
            other = "a folder" if info.is_dir() else other_than_file(mode)
            yield Member(info.filename, info.file_size, other, lambda info=info: archive.open(info))  # type: ignore[misc]


def other_than_file(mode: int) -> str | None:
    """What a Unix mode stands for, where that is no file; archives made elsewhere have no mode."""
    if stat.S_ISLNK(mode):
        return "a link"
    return None if stat.S_IFMT(mode) in (0, stat.S_IFREG) else "a device"


class ShortReads:
    """A file to take headers from, none of which can bring gigabytes into memory."""

    def __init__(self, file: IO[bytes]):
        self._file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= LONGEST_READ:
            raise tarfile.ReadError(f"one of its headers has {size:,} bytes")
        return self._file.read(size)


def tar_members(source: Path) -> Iterator[Member]:
    """In the order of the archive, which is read once; a member is opened before the next is asked for."""
    with source.open("rb") as file:
        start = file.read(6)
    decompress: Callable[..., Any] = next((how for sign, how in COMPRESSIONS.items() if start.startswith(sign)), open)
    with decompress(source, "rb") as plain, tarfile.open(fileobj=ShortReads(plain), mode="r:") as archive:  # type: ignore[call-overload]
        while info := archive.next():
            other = (
                "a folder"
                if info.isdir()
                else None
                if info.isreg()
                else "a link"
                if info.issym() or info.islnk()
                else "a device"
            )
            yield Member(info.name, info.size, other, lambda info=info: archive.extractfile(info))  # type: ignore[misc]
            archive.members = []  # which would keep a million of them


def member_content(member: Member, source: Path) -> Iterator[bytes]:
    """The member's bytes, as many as it announces."""
    left = member.size
    with as_damage(source), member.open() as file:
        while left:
            part = file.read(min(left, LONGEST_READ))
            if not part:
                raise EOFError(f"{member.name} is cut short")
            left -= len(part)
            yield part


@contextmanager
def as_damage(source: Path) -> Iterator[None]:
    """What goes wrong within it is the archive's fault."""
    try:
        yield
    except DAMAGE as error:
        said = str(error) or type(error).__name__
        raise UserError(
            f"{source} can't be unpacked ({said}); it should be a whole zip or tar: download it again"
        ) from error
