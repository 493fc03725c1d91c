"""Pictures as the network is shown them, decoded once and kept on disk, from where they are mapped into memory.

<speed.cache>/<key>.pixels   a list of pictures: their uint8 values one after the other, their shapes, and a checksum

The key follows from the path, size and time of each picture's file and from how it is shown, so that changed pictures and lists are other
entries. Those used longest ago make room for new ones. Where nothing can be kept a line says so, and pictures are decoded as without it.
"""

import hashlib
import json
import math
import os
import struct
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import PIL
import torch
from torch import Tensor

from dataset import ImageFolder, read_ahead
from runtime.errors import UserError
from storage.atomic_file import atomic_write, remove_stale

SUFFIX = ".pixels"
FORMAT = 1  # of an entry, and of what `View` makes of a picture
BYTES_PER_GB = 10**9
AT_ONCE = 64  # pictures decoded between two writes
TAIL = struct.Struct("<QI")  # bytes that the shapes take; CRC-32 of all before it
DAMAGED = (ValueError, LookupError, TypeError, RuntimeError, struct.error)
REMEDY = "change speed.cache"


class TooLargeError(Exception):
    """The pictures alone take more than all entries may."""


def cached_pixels(pictures: ImageFolder, workers: int, folder: Path | None, limit: float) -> Sequence[Tensor]:
    """`pictures.pixels(workers)`, kept in `folder` (None: nowhere), whose entries take `limit` GB at most."""
    if folder is None:
        return pictures.pixels(workers)
    path = folder / f"{entry_key(pictures)}{SUFFIX}"
    return load_pixels(path) or create_entry(path, pictures, workers, limit * BYTES_PER_GB) or pictures.pixels(workers)


def entry_key(pictures: ImageFolder) -> str:
    """Changes with any file of the list, and with what is made of it."""
    files = [
        (str(path.resolve()), status.st_size, status.st_mtime_ns)
        for path, status in ((s.picture, s.picture.stat()) for s in pictures.samples)
    ]
    content = json.dumps([FORMAT, PIL.__version__, asdict(pictures.view), files])
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def load_pixels(path: Path) -> list[Tensor]:
    """The pictures of an entry, each (C, H, W) uint8 in mapped memory; none where it can't be opened or is (said aloud) damaged."""
    try:
        whole = np.memmap(path, np.uint8, mode="c").data
        body, (length, checksum) = whole[: -TAIL.size], TAIL.unpack(whole[-TAIL.size :])
        if zlib.crc32(body) != checksum:
            raise UserError("its checksum is wrong")
        shapes = json.loads(body[-length:].tobytes())
        parts = torch.frombuffer(body[:-length], dtype=torch.uint8).split([math.prod(shape) for shape in shapes])
    except OSError:
        return []
    except DAMAGED as error:
        print(f"{path} is damaged and is made again: {error}", flush=True)
        return []
    with suppress(OSError):  # of another user
        os.utime(path)  # it is the one used last
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def create_entry(path: Path, pictures: ImageFolder, workers: int, limit: float) -> list[Tensor]:
    """The same of an entry that is written now; none where (said aloud) it can't be."""
    try:
        remove_stale(path.parent)
        write_entry(path, pictures, workers, limit)
    except (OSError, TooLargeError) as error:
        print(f"decoded pictures are not kept: {error}", flush=True)
        return []
    return load_pixels(path)


def write_entry(path: Path, pictures: ImageFolder, workers: int, limit: float) -> None:
    shapes: list[list[int]] = []
    written = checksum = 0
    with atomic_write(path, REMEDY) as file:
        for batch in read_ahead(
            lambda sample: pictures.view.read(sample.picture)[0], pictures.samples, AT_ONCE, workers
        ):
            content = b"".join(picture.numpy().tobytes() for picture in batch)
            shapes += [list(picture.shape) for picture in batch]
            written, checksum = written + len(content), zlib.crc32(content, checksum)
            make_room(path.parent, written, limit)
            file.write(content)
        index = json.dumps(shapes).encode()
        file.write(index + TAIL.pack(len(index), zlib.crc32(index, checksum)))


def make_room(folder: Path, size: int, limit: float) -> None:
    """Remove the entries used longest ago until `size` bytes and the rest are within `limit`. Raises TooLargeError where they can't be."""
    left = limit - size
    if left < 0:
        raise TooLargeError(
            f"{size / BYTES_PER_GB:.3g} GB of them are more than speed.cache_limit, {limit / BYTES_PER_GB:.3g} GB; raise it"
        )
    found = []
    for path in folder.glob(f"*{SUFFIX}"):
        with suppress(FileNotFoundError):  # removed by another run
            found.append((path.stat(), path))
    for status, path in sorted(found, key=lambda entry: -entry[0].st_mtime_ns):
        left -= status.st_size
        if left < 0:
            path.unlink(missing_ok=True)
