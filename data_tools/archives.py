"""Unpack a downloaded zip or tar safely: no file outside the folder, no links or devices, a limited total size."""

import bz2
import functools
import gzip
import hashlib
import io
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
from typing import IO, NamedTuple, cast

from images.read import SUFFIXES
from runtime.errors import MissingFileError, UserError
from storage.atomic_file import atomic_write

WANTED_SUFFIXES = SUFFIXES | {".csv", ".json", ".txt"}
MOST_FILES = 1_000_000
MOST_BYTES = 64 * 2**30  # unpacked; the largest known data set has about 6 GiB
MOST_RATIO = 200  # of unpacked to packed bytes; uniform masks as BMP reach about 20 beside their pictures
SLACK = 256 * 2**20  # bytes above the ratio, because a small archive of uniform pictures may exceed it
LONGEST_READ = 16 * 2**20  # bytes
DECOMPRESSORS: dict[bytes, Callable[[Path], io.BufferedIOBase]] = {  # by the first bytes of a file
    b"\x1f\x8b": gzip.GzipFile,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
    b"": lambda path: path.open("rb"),
}
DAMAGE = (  # what the libraries raise; RuntimeError stands for encryption and unknown methods
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, OSError, RuntimeError, ValueError, OverflowError),
)
REMEDY = "this is not the publisher's file; download it again"
OUTPUT_REMEDY = "choose another folder with --output"


class Member(NamedTuple):
    name: str  # as written
    size: int  # bytes
    kind: str  # "file", "folder" or another
    open: Callable[[], IO[bytes] | None]


@contextmanager
def open_source(source: Path, workspace: Path) -> Iterator[Path]:
    """Yield the folder `source`, or a hidden folder in `workspace` that holds the content of the archive `source`.

    The folder is removed afterwards, unless the user stops the run. Raise UserError for a damaged or hostile archive.
    """
    if source.is_dir():
        yield source
        return
    if not source.is_file():
        raise MissingFileError(f"no folder or archive at {source}; name the downloaded zip or tar, or its folder")
    status = source.stat()
    version = f"{source.name} {status.st_size} {status.st_mtime_ns}".encode(errors="surrogateescape")
    folder = workspace / f".unpacked-{hashlib.sha256(version).hexdigest()[:12]}"
    content = folder / source.name.partition(".")[0]  # names the category of an archive with train/good at its top
    try:
        unpack(source, content)
        yield content
    except Exception:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def unpack(source: Path, folder: Path) -> None:
    """Write the pictures, tables and texts of an archive into `folder`; complete files of an earlier call stay."""
    most_bytes = min(MOST_BYTES, SLACK + MOST_RATIO * source.stat().st_size)
    total, names = 0, set()
    print(f"unpacking {source}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    for member in archive_members(source):
        name = relative_path(member.name, str(source))
        if member.kind == "folder":
            continue
        if member.kind != "file":
            raise UserError(f"{source} holds {member.name!r}, a {member.kind}; {REMEDY}")
        if name in names:
            raise UserError(f"{source} holds {member.name!r} twice; {REMEDY}")
        names.add(name)
        total += member.size
        if total > most_bytes or len(names) > MOST_FILES:
            limits = f"{most_bytes:,} bytes or {MOST_FILES:,} files"
            raise UserError(f"{source} unpacks to more than {limits}; {REMEDY}, or unpack it yourself")
        hidden = any(part.startswith(".") or part == "__MACOSX" for part in name.parts)
        if name.suffix.lower() in WANTED_SUFFIXES and not hidden and not (folder / name).exists():
            with atomic_write(folder / name, OUTPUT_REMEDY) as file:
                file.writelines(member_content(member, source))


def relative_path(name: str, holder: str) -> PurePosixPath:
    """Return the name as a path. Raise UserError where it leaves its folder; `holder` says where the name stands."""
    path = PurePosixPath(name.replace("\\", "/"))
    if not name or path.is_absolute() or ".." in path.parts or PureWindowsPath(name).drive or "\0" in name:
        raise UserError(f"{holder} names {name!r}, which is not a path in its own folder; {REMEDY}")
    return path


def archive_members(source: Path) -> Iterator[Member]:
    """Yield the members in the archive's order. Open each one before the next is asked for."""
    with report_damage(source):
        yield from zip_members(source) if zipfile.is_zipfile(source) else tar_members(source)


def zip_members(source: Path) -> Iterator[Member]:
    with zipfile.ZipFile(source) as archive:
        for info in archive.infolist():
            mode = stat.S_IFMT(info.external_attr >> 16)  # Unix; 0 in archives of other systems
            kind = "folder" if info.is_dir() else "file" if mode in (0, stat.S_IFREG) else "link or device"
            yield Member(info.filename, info.file_size, kind, functools.partial(archive.open, info))


def tar_members(source: Path) -> Iterator[Member]:
    with source.open("rb") as file:
        start = file.read(6)
    decompress = next(opener for magic, opener in DECOMPRESSORS.items() if start.startswith(magic))
    with decompress(source) as plain:
        archive = tarfile.TarFile(fileobj=LimitedReads(plain))  # type: ignore[arg-type]
        while info := archive.next():
            kind = "folder" if info.isdir() else "file" if info.isreg() else "link or device"
            yield Member(info.name, info.size, kind, functools.partial(archive.extractfile, info))
            archive.members = []  # type: ignore[attr-defined]  # else tarfile keeps them all in memory


class LimitedReads:
    """A file for tarfile that refuses to read a header of gigabytes into memory."""

    def __init__(self, file: io.BufferedIOBase):
        self._file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= LONGEST_READ:
            raise tarfile.ReadError(f"one of its headers has {size:,} bytes")
        return self._file.read(size)


def member_content(member: Member, source: Path) -> Iterator[bytes]:
    """Yield the member's bytes, as many as its header states."""
    remaining = member.size
    with report_damage(source), cast(IO[bytes], member.open()) as file:
        while remaining:
            part = file.read(min(remaining, LONGEST_READ))
            if not part:
                raise EOFError(f"{member.name} is cut short")
            remaining -= len(part)
            yield part


@contextmanager
def report_damage(source: Path) -> Iterator[None]:
    """Raise UserError for what the libraries raise on a damaged archive."""
    try:
        yield
    except DAMAGE as error:
        reason = str(error) or type(error).__name__
        message = f"{source} can't be unpacked ({reason}); it should be a complete zip or tar"
        raise UserError(f"{message}: download it again") from error
