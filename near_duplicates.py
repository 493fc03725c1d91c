"""Pictures that are alike: a perceptual hash, groups of near-duplicates, and a seeded draw that keeps each group together.

Near-duplicates are copies in another size, format or brightness and further exposures of one piece. Two pieces of one kind are not: half of
the bottles of MVTec AD lie less than 8 of the usual 63 bits apart, which is why this hash is finer.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

import runtime
from dataset import read_ahead
from pictures import read_picture

SIDE = 64  # pixels, of the grey picture that is hashed
FREQUENCIES = 16  # of its cosine transform, in each direction: 255 bits
NEAR = 20  # bits; copies as JPEG, smaller, brighter or noisy lie below it, other pieces of one kind from 14 (bottle) or 76 (capsules) on
BATCH, WORKERS = 32, 2  # pictures that are read ahead, and threads that do it
ROWS = 1024  # of the table of distances, in memory at once
TEST_SHARE = 0.2  # of normal pictures, where a data set has no split of its own


def perceptual_hash(picture: Image.Image) -> NDArray[np.int8]:
    """(255,) of ±1: which low frequencies of the grey picture are above their median."""
    grey = np.asarray(picture.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS), np.float32)
    low = dctn(grey, norm="ortho")[:FREQUENCIES, :FREQUENCIES].ravel()[1:]  # without the mean
    return np.where(low > np.median(low), 1, -1).astype(np.int8)


def near_duplicates(hashes: Sequence[NDArray[np.int8]]) -> list[int]:
    """For each hash the number of its group: those that are near each other, directly or by others between."""
    signs = np.array(hashes, np.float32)
    pairs = [np.zeros((2, 0), int)]
    for first in range(0, len(signs), ROWS):
        differing = (signs.shape[1] - signs[first : first + ROWS] @ signs.T) / 2
        near, other = np.nonzero(differing <= NEAR)
        pairs.append(np.stack([near + first, other]))
    rows, columns = np.concatenate(pairs, axis=1)
    graph = coo_matrix((np.ones(len(rows), bool), (rows, columns)), shape=(len(signs), len(signs)))
    return connected_components(graph, directed=False)[1].tolist()


def groups_of_pictures(paths: Iterable[Path]) -> dict[Path, int]:
    """Each picture's group of near-duplicates. Raises ValueError for what is no picture."""
    paths = list(paths)
    batches = read_ahead(lambda path: perceptual_hash(read_picture(path, 1)), paths, BATCH, WORKERS)
    hashes = list(runtime.count((one for batch in batches for one in batch), len(paths), "comparing"))
    return dict(zip(paths, near_duplicates(hashes), strict=True))


def drawn_apart(group_of: Mapping[Path, int], root: Path, seed: int, spoken_for: Iterable[int] = ()) -> set[Path]:
    """The pictures that go to test: of whole groups, about TEST_SHARE of all, drawn by a hash of seed and path in `root`; the groups
    `spoken_for` first. Raises ValueError where nothing would be left to train on, or nothing to test."""
    members: dict[int, list[Path]] = {}
    for picture in sorted(group_of):
        members.setdefault(group_of[picture], []).append(picture)
    chosen = [picture for group in sorted(set(spoken_for)) for picture in members.pop(group, [])]
    order = sorted(members.values(), key=lambda pictures: drawing_lot(pictures[0].relative_to(root).as_posix(), seed))
    wanted = max(1, round(TEST_SHARE * len(group_of)))
    for pictures in order:
        if len(chosen) + len(pictures) <= wanted:
            chosen += pictures
    if not chosen and len(order) > 1:
        chosen = min(order, key=len)
    if not chosen or len(chosen) == len(group_of):
        raise ValueError(
            f"{len(group_of)} normal pictures can't be divided into those to train on and those to test: near-duplicates stay together, "
            f"and make {len(order)} groups beside those of defective pictures; add normal pictures that differ"
        )
    return set(chosen)


def drawing_lot(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {name}".encode(errors="surrogateescape")).digest()
