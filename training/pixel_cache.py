"""Decode pictures once and keep their pixels on disk, from where they are mapped into memory.

<speed.cache>/<key>.pixels   a list of pictures: uint8 values one after the other, then shapes and a checksum
<speed.cache>/<key>.features the space of features and those of the pictures, as torch saves them

The key is a hash of path, size and time of each file, of the view, and of the network of features. New entries replace
those used longest ago.
"""

import hashlib
import io
import json
import math
import os
import struct
import zlib
from collections.abc import Callable, Sequence
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
from storage.weights_file import read_state
from training.checkpoint import State

SUFFIX, FEATURES_SUFFIX = ".pixels", ".features"
FORMAT = 1  # raise it when the format of an entry changes, or what `View` does to a picture
BYTES_PER_GB = 10**9
AT_ONCE = 64  # pictures decoded between two writes
TAIL = struct.Struct("<QI")  # number of bytes of the shapes; CRC-32 of all before it
DAMAGED = (ValueError, LookupError, TypeError, RuntimeError, struct.error)
REMEDY = "change speed.cache"


class TooLargeError(Exception):
    """These pictures alone take more space than all entries may."""


def cached_pixels(pictures: ImageFolder, workers: int, folder: Path | None, limit: float) -> Sequence[Tensor]:
    """Return `pictures.pixels(workers)`, kept in `folder` (None: nowhere) within `limit` GB."""
    if folder is None:
        return pictures.pixels(workers)
    path = folder / f"{entry_key(pictures)}{SUFFIX}"
    pixels = load_pixels(path)
    if not pixels:
        try:
            remove_stale(folder)
            write_entry(path, pictures, workers, limit * BYTES_PER_GB)
            pixels = load_pixels(path)
        except (OSError, TooLargeError) as error:
            print(f"decoded pictures are not kept: {error}", flush=True)
    return pixels or pictures.pixels(workers)


def cached_features(
    pictures: ImageFolder, network: str, compute: Callable[[], State], folder: Path | None, limit: float
) -> State:
    """Return `compute()`, the features of these pictures by a network, kept in `folder` within `limit` GB."""
    if folder is None:
        return compute()
    path = folder / f"{entry_key(pictures, network)}{FEATURES_SUFFIX}"
    with suppress(OSError, UserError):  # UserError: it is damaged
        stored = read_state(path)
        os.utime(path)  # now it is the one used last
        return stored
    features = compute()
    try:
        content = io.BytesIO()
        torch.save(features, content)
        with atomic_write(path, REMEDY) as file:
            make_room(folder, content.tell(), limit * BYTES_PER_GB)
            file.write(content.getbuffer())
    except (OSError, TooLargeError) as error:
        print(f"features are not kept: {error}", flush=True)
    return features


def entry_key(pictures: ImageFolder, network: str = "") -> str:
    """Return a hash that changes with every file of the list, with the view and with the network of features."""
    paths = [sample.picture for sample in pictures.samples]
    files = [(str(path.resolve()), (found := path.stat()).st_size, found.st_mtime_ns) for path in paths]
    content = json.dumps([FORMAT, PIL.__version__, asdict(pictures.view), files, *([network] if network else [])])
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def load_pixels(path: Path) -> list[Tensor]:
    """Return the pictures of an entry, (C, H, W) uint8 each; none where it is missing or damaged."""
    try:
        content = np.memmap(path, np.uint8, mode="c").data
        body, (length, checksum) = content[: -TAIL.size], TAIL.unpack(content[-TAIL.size :])
        if zlib.crc32(body) != checksum:
            raise ValueError("its checksum is wrong")
        shapes = json.loads(body[-length:].tobytes())
        parts = torch.frombuffer(body[:-length], dtype=torch.uint8).split([math.prod(shape) for shape in shapes])
    except OSError:
        return []
    except DAMAGED as error:
        print(f"{path} is damaged and is made again: {error}", flush=True)
        return []
    with suppress(OSError):  # another user's file
        os.utime(path)  # now it is the one used last
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def write_entry(path: Path, pictures: ImageFolder, workers: int, limit: float) -> None:
    """Decode the pictures and write them; older entries make room."""
    shapes: list[list[int]] = []
    written = checksum = 0
    paths, view = [sample.picture for sample in pictures.samples], pictures.view
    with atomic_write(path, REMEDY) as file:
        for batch in read_ahead(view.read, paths, AT_ONCE, workers):
            content = b"".join(picture.numpy().tobytes() for picture, _ in batch)
            shapes += [list(picture.shape) for picture, _ in batch]
            written, checksum = written + len(content), zlib.crc32(content, checksum)
            make_room(path.parent, written, limit)
            file.write(content)
        index = json.dumps(shapes).encode()
        file.write(index + TAIL.pack(len(index), zlib.crc32(index, checksum)))


def make_room(folder: Path, size: int, limit: float) -> None:
    """Remove the entries used longest ago until `size` bytes fit. Raise TooLargeError if they can't."""
    free = limit - size
    if free < 0:
        needed, allowed = f"{size / BYTES_PER_GB:.3g} GB", f"{limit / BYTES_PER_GB:.3g} GB"
        raise TooLargeError(f"they take {needed}, speed.cache_limit is {allowed}; raise it")
    entries = []
    for path in [path for path in folder.iterdir() if path.suffix in (SUFFIX, FEATURES_SUFFIX)]:
        with suppress(FileNotFoundError):  # another run has removed it
            entries.append((path.stat(), path))
    for status, path in sorted(entries, key=lambda entry: -entry[0].st_mtime_ns):
        free -= status.st_size
        if free < 0:
            path.unlink(missing_ok=True)
