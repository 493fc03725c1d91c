"""Find pictures that are alike or stand apart by their thumbnails; split a set with near-duplicates on one side.

Pictures of one object or surface all look alike. They differ in a few ways: light, position, phase of a pattern. Two takes
of one thing agree beyond that. So this module removes from each thumbnail what the set has in common (its mean and the ways
in which most of it varies), and compares the rest. Unrelated pictures correlate little in it; copies that were saved again
or rescaled correlate nearly fully.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from dataset import read_ahead
from images.read import read_reduced
from runtime.errors import UserError
from runtime.progress import count_progress

SIDE = 64  # pixels of a thumbnail
COMMON = 30  # ways of varying that are taken out, at most
PER_WAY = 4  # pictures that it takes to know one
LEARNT_FROM = 500  # pictures at most
ALIKE = 0.95  # correlation of what is left: copies saved as JPEG of quality 75, or at half the size, have 0.98
FLAT = 1.0  # grey levels of deviation; a flatter thumbnail tells nothing
AT_ONCE = 512  # rows of the table of all pairs
READ_AHEAD, WORKERS = 32, 2  # pictures that are read ahead, and threads that read them
TEST_SHARE = 0.2  # of normal pictures, where a data set has no split of its own

FEWEST = 30  # pictures of which one can be said to stand apart
TAIL = 5  # percent that lie beyond the fence's unit on each side
FENCE = (
    5  # units from the median: 8 standard deviations of a normal distribution, 12 times the mean of an exponential one
)
BLOCKS = 16  # to a side
DIM = 16  # grey levels; light is compared by ratio, as lamps and exposures differ, but not below
NEIGHBOUR = 3  # which near picture tells how far one is from the set; two pictures alike are apart from it still

Thumbnails = NDArray[np.float32]


class Apart(NamedTuple):
    """A picture that stands apart: its place in the set, in what it does so, and how many times the fence's unit from the median."""

    place: int
    what: str
    distance: float


def thumbnail(picture: Image.Image) -> Thumbnails:
    """Return the picture's grey levels, (SIDE, SIDE).

    A box filter would take 6 or 7 pixels in turn where a side is no multiple of SIDE: half-size copies would differ.
    """
    return np.asarray(picture.convert("L").convert("F").resize((SIDE, SIDE), Image.Resampling.HAMMING), np.float32)


class Common:
    """What a set of thumbnails (N, SIDE, SIDE) has in common."""

    def __init__(self, thumbnails: Thumbnails):
        learnt = normalised(thumbnails[:: -(-len(thumbnails) // LEARNT_FROM)])
        self.mean = learnt.mean(0)
        centred = learnt - self.mean
        values, vectors = np.linalg.eigh(centred @ centred.T)
        ways = min(COMMON, len(learnt) // PER_WAY)
        strongest = [
            index for index in np.argsort(values)[::-1][:ways] if values[index] > 1e-6 * max(values.max(), 1e-12)
        ]
        self.ways = (centred.T @ vectors[:, strongest]) / np.sqrt(values[strongest])  # (SIDE², ways), orthonormal

    def own(self, thumbnails: Thumbnails) -> Thumbnails:
        """(N, SIDE²) of length 1: what each has of its own; zeros where it has no content."""
        left = normalised(thumbnails) - self.mean
        left -= (left @ self.ways) @ self.ways.T
        length = np.linalg.norm(left, axis=1, keepdims=True)
        seen = (thumbnails.std((1, 2)) > FLAT)[:, None] & (length > 1e-3)
        return np.where(seen, left / np.maximum(length, 1e-12), 0).astype(np.float32)


def normalised(thumbnails: Thumbnails) -> Thumbnails:
    """(N, SIDE²) of mean 0 and deviation 1: light and contrast of a picture say nothing of what it shows."""
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    return (flat - flat.mean(1, keepdims=True)) / np.maximum(flat.std(1, keepdims=True), 1e-6)


def pairs_within(own: Thumbnails) -> Iterator[tuple[int, int]]:
    """(i, j), i < j, for each picture j that is like an earlier one: the most alike."""
    for first in range(0, len(own), AT_ONCE):
        table = np.tril(own[first : first + AT_ONCE] @ own.T, first - 1)
        yield from ((i, first + j) for i, j in most_alike(table))


def pairs_between(own: Thumbnails, others: Thumbnails) -> Iterator[tuple[int, int]]:
    """(i, j) for each picture j of `others` that is like one of `own`: the most alike."""
    for first in range(0, len(others), AT_ONCE):
        yield from ((i, first + j) for i, j in most_alike(others[first : first + AT_ONCE] @ own.T))


def most_alike(table: NDArray[np.floating]) -> Iterator[tuple[int, int]]:
    """(column, row) of the highest value of each row, where that is enough."""
    best = table.argmax(1)
    for row in np.flatnonzero(table[np.arange(len(table)), best] > ALIKE):
        yield int(best[row]), int(row)


def groups_of_pictures(normal: Sequence[Path], others: Sequence[Path] = ()) -> dict[Path, int]:
    """Return the group of near-duplicates of each picture; what is common comes from the `normal` ones.

    Raise ValueError for a picture that can't be read.
    """
    if not normal:
        return {path: number for number, path in enumerate(others)}
    paths = [*normal, *others]
    batches = read_ahead(read_thumbnail, paths, READ_AHEAD, WORKERS)
    thumbnails = np.stack(list(count_progress((one for batch in batches for one in batch), len(paths), "comparing")))
    return dict(zip(paths, groups_of(thumbnails, Common(thumbnails[: len(normal)])), strict=True))


def read_thumbnail(path: Path) -> Thumbnails:
    return thumbnail(read_reduced(path, 3, lambda width, height: (SIDE, SIDE))[0])


def groups_of(thumbnails: Thumbnails, common: Common) -> list[int]:
    """Return for each thumbnail the first one of its group.

    A group holds thumbnails that are equal or alike, directly or by others between.
    """
    own, every, seen = common.own(thumbnails), np.arange(len(thumbnails)), dict[bytes, int]()
    first_of = np.array([seen.setdefault(one.tobytes(), number) for number, one in enumerate(thumbnails)], int)
    for top in range(0, len(own), AT_ONCE):
        rows, columns = np.nonzero(own[top : top + AT_ONCE] @ own.T > ALIKE)
        pairs = np.concatenate([every, rows + top]), np.concatenate([first_of, columns])
        graph = coo_matrix((np.ones(len(pairs[0]), bool), pairs), shape=(len(own), len(own)))
        labels = connected_components(graph, directed=False)[1]
        first_of = np.unique(labels, return_index=True)[1][labels]
    return first_of.tolist()


def standing_apart(thumbnails: Thumbnails) -> list[Apart]:
    """Pictures that stand apart from all others in light, contrast, sharpness or in what they show, each with what it does so most in.

    The fence is the set's own: FENCE times the distance from the median at which TAIL percent lie, so that a set that varies much, or in which
    many pictures are strange, has none.
    """
    if len(thumbnails) < FEWEST:
        return []
    found: dict[int, Apart] = {}
    for what, (values, least, below) in measures(thumbnails).items():
        median = np.median(values)
        over = (values - median) / max(np.percentile(values, 100 - TAIL) - median, least)
        under = (median - values) / max(median - np.percentile(values, TAIL), least) if below else np.zeros_like(values)
        distance = np.maximum(over, under)
        for index in np.flatnonzero(distance > FENCE):
            if int(index) not in found or found[int(index)].distance < distance[index]:
                found[int(index)] = Apart(int(index), what, float(distance[index]))
    return sorted(found.values(), key=lambda apart: -apart.distance)


def measures(thumbnails: Thumbnails) -> dict[str, tuple[NDArray[np.floating], float, bool]]:
    """By name: a value a picture (logarithms, as spreads are skewed), the least that counts as a unit, and whether too little is strange too."""
    detail = thumbnails - gaussian_filter(thumbnails, (0, 1, 1))
    blocks = thumbnails.reshape(-1, BLOCKS, SIDE // BLOCKS, BLOCKS, SIDE // BLOCKS).mean((2, 4))
    usual = np.median(blocks, 0)
    from_usual = np.abs(blocks - usual)
    strangest = (from_usual / (1.4826 * np.median(from_usual, 0) + 2)).max(
        (1, 2)
    )  # 1.4826: as a standard deviation; 2 grey levels are noise
    return {
        "light": (np.log(thumbnails.mean((1, 2)) + DIM), 0.03, True),
        "its brightest part": (np.log(np.percentile(thumbnails, 99.5, axis=(1, 2)) + DIM), 0.05, True),
        "its darkest part": (np.log(np.percentile(thumbnails, 0.5, axis=(1, 2)) + DIM), 0.05, True),
        "contrast": (np.log(thumbnails.std((1, 2)) + 1), 0.05, True),
        "sharpness": (np.log(detail.std((1, 2)) + 0.5), 0.05, True),
        "a sharp spot": (np.log(np.abs(detail).max((1, 2)) + 1), 0.1, False),
        "one place": (np.log(strangest + 1), 0.1, False),
        "what it shows": (np.log(distance_to_neighbour(blocks.reshape(len(blocks), -1)) + 1), 0.05, False),
    }


def distance_to_neighbour(vectors: NDArray[np.floating]) -> NDArray[np.floating]:
    """The distance of each to its NEIGHBOUR-th nearest other."""
    squares = (vectors.astype(np.float64) ** 2).sum(1)
    distances = np.empty(len(vectors))
    for first in range(0, len(vectors), AT_ONCE):
        rows = slice(first, first + AT_ONCE)
        table = squares[rows, None] + squares - 2 * vectors[rows].astype(np.float64) @ vectors.T.astype(np.float64)
        distances[rows] = np.sqrt(np.partition(table, NEIGHBOUR, axis=1)[:, NEIGHBOUR].clip(0))  # the 0th is itself
    return distances


def drawn_apart(group_of: Mapping[Path, int], root: Path, seed: int, spoken_for: Iterable[int] = ()) -> set[Path]:
    """Return the pictures to test with: whole groups, about TEST_SHARE of all pictures.

    A hash of the seed and the path in `root` draws them. The groups `spoken_for` come first.
    Raise ValueError where nothing would be left to train on, or nothing to test with.
    """
    members: dict[int, list[Path]] = {}
    for picture in sorted(group_of):
        members.setdefault(group_of[picture], []).append(picture)
    chosen = [picture for group in sorted(set(spoken_for)) for picture in members.pop(group, [])]
    order = sorted(members.values(), key=lambda group: drawing_lot(group[0].relative_to(root).as_posix(), seed))
    wanted = max(1, round(TEST_SHARE * len(group_of)))
    for pictures_alike in order:
        if len(chosen) + len(pictures_alike) <= wanted:
            chosen += pictures_alike
    if not chosen and len(order) > 1:
        chosen = min(order, key=len)
    if not chosen or len(chosen) == len(group_of):
        raise UserError(
            f"{len(group_of)} normal pictures can't be divided into those to train on and those to test: near-duplicates stay together, "
            f"and make {len(order)} groups beside those of defective pictures; add normal pictures that differ"
        )
    return set(chosen)


def drawing_lot(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {name}".encode(errors="surrogateescape")).digest()
