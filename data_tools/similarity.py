"""Find near-duplicates and outliers in a set of pictures, and split a set so that near-duplicates stay together.

All comparisons use thumbnails, (SIDE, SIDE) grey levels. Pictures of one object or surface differ in a few ways, such
as light, position or phase of a pattern. Near-duplicates agree in the rest, so the mean and the principal components of
the set are removed from each thumbnail. Residuals of unrelated pictures hardly correlate, those of copies almost fully.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from dataset import measure_bits, read_ahead
from images.bit_depth import DEEPEST
from images.read import read_reduced
from runtime.errors import UserError
from runtime.progress import count_progress

SIDE = 64  # pixels of a thumbnail
MOST_COMPONENTS = 30  # principal components that are removed, at most
PICTURES_PER_COMPONENT = 4  # pictures that it takes to estimate one component
LARGEST_SAMPLE = 500  # pictures that the components are estimated from, at most
NEAR_DUPLICATE = 0.95  # correlation of residuals; a JPEG of quality 75 or a copy of half the size reaches 0.98
FLAT = 1.0  # standard deviation in grey levels; a flatter thumbnail has no content to compare
ROWS_AT_ONCE = 512  # of the matrix of all pairs
READ_AHEAD, WORKERS = 32, 2  # pictures, threads
TEST_SHARE = 0.2  # of the normal pictures, where a data set has no split of its own

FEWEST = 30  # pictures among which an outlier can be found
TAIL = 5  # percent of the pictures, on each side, beyond one unit: a set that varies much has no outliers
OUTLIER = 5  # units from the median: 8 standard deviations of a normal distribution, 12 means of an exponential one
BLOCKS = 16  # blocks on each side of a thumbnail
DIM = 16  # grey levels; brightness is compared by ratio, because exposures differ, but not below this level
NEIGHBOUR = 3  # the distance to this neighbour counts, so that two equal outliers do not hide each other
MAD_TO_DEVIATION = 1.4826  # from the median absolute deviation to the standard deviation of a normal distribution
NOISE = 2  # grey levels

Thumbnails = NDArray[np.float32]  # (N, SIDE, SIDE), or (SIDE, SIDE) for one
Residuals = NDArray[np.float32]  # (N, SIDE²)
Distances = NDArray[np.floating]  # (N,)


def make_thumbnail(picture: Image.Image) -> Thumbnails:
    """Return the grey levels of a thumbnail, (SIDE, SIDE)."""
    # a box filter averages 6 or 7 pixels where a side is no multiple of SIDE, so that copies of half the size differ
    return np.asarray(picture.convert("L").convert("F").resize((SIDE, SIDE), Image.Resampling.HAMMING), np.float32)


class CommonContent:
    """The mean and the principal components of a set of thumbnails (N, SIDE, SIDE)."""

    def __init__(self, thumbnails: Thumbnails):
        sample = standardise(thumbnails[:: -(-len(thumbnails) // LARGEST_SAMPLE)])
        self.mean = sample.mean(0)
        centred = sample - self.mean
        values, vectors = np.linalg.eigh(centred @ centred.T)
        count = min(MOST_COMPONENTS, len(sample) // PICTURES_PER_COMPONENT)
        smallest = 1e-6 * max(values.max(), 1e-12)
        strongest = [index for index in np.argsort(values)[::-1][:count] if values[index] > smallest]
        self.components = (centred.T @ vectors[:, strongest]) / np.sqrt(values[strongest])  # (SIDE², count)

    def residuals(self, thumbnails: Thumbnails) -> Residuals:
        """Return thumbnails without mean and components, (N, SIDE²), each of length 1, or 0 without content."""
        residuals = standardise(thumbnails) - self.mean
        residuals -= (residuals @ self.components) @ self.components.T
        length = np.linalg.norm(residuals, axis=1, keepdims=True)
        has_content = (thumbnails.std((1, 2)) > FLAT)[:, None] & (length > 1e-3)
        return np.where(has_content, residuals / np.maximum(length, 1e-12), 0).astype(np.float32)


def standardise(thumbnails: Thumbnails) -> Residuals:
    """Return (N, SIDE²) of mean 0 and standard deviation 1: brightness and contrast are no content."""
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    return (flat - flat.mean(1, keepdims=True)) / np.maximum(flat.std(1, keepdims=True), 1e-6)


def pairs_within(residuals: Residuals) -> Iterator[tuple[int, int]]:
    """Yield (i, j), i < j, for each picture j with a near-duplicate before it: the closest one."""
    for first in range(0, len(residuals), ROWS_AT_ONCE):
        correlation = np.tril(residuals[first : first + ROWS_AT_ONCE] @ residuals.T, first - 1)
        yield from ((i, first + j) for i, j in closest_pairs(correlation))


def pairs_between(residuals: Residuals, others: Residuals) -> Iterator[tuple[int, int]]:
    """Yield (i, j) for each picture j of `others` with a near-duplicate i in `residuals`: the closest one."""
    for first in range(0, len(others), ROWS_AT_ONCE):
        yield from ((i, first + j) for i, j in closest_pairs(others[first : first + ROWS_AT_ONCE] @ residuals.T))


def closest_pairs(correlation: NDArray[np.floating]) -> Iterator[tuple[int, int]]:
    """Yield (column, row) of the highest value of each row that is above NEAR_DUPLICATE."""
    best = correlation.argmax(1)
    for row in np.flatnonzero(correlation[np.arange(len(correlation)), best] > NEAR_DUPLICATE):
        yield int(best[row]), int(row)


def group_thumbnails(thumbnails: Thumbnails, common: CommonContent) -> list[int]:
    """Return for each thumbnail the index of the first one that a chain of near-duplicates connects it with."""
    residuals, indices, seen = common.residuals(thumbnails), np.arange(len(thumbnails)), dict[bytes, int]()
    first_of = np.array([seen.setdefault(thumbnails[index].tobytes(), index) for index in range(len(thumbnails))], int)
    for first in range(0, len(residuals), ROWS_AT_ONCE):
        rows, columns = np.nonzero(residuals[first : first + ROWS_AT_ONCE] @ residuals.T > NEAR_DUPLICATE)
        edges = np.concatenate([indices, rows + first]), np.concatenate([first_of, columns])
        graph = coo_matrix((np.ones(len(edges[0]), bool), edges), shape=(len(residuals), len(residuals)))
        labels = connected_components(graph, directed=False)[1]
        first_of = np.unique(labels, return_index=True)[1][labels]
    return first_of.tolist()


def group_near_duplicates(normal: Sequence[Path], defective: Sequence[Path] = ()) -> dict[Path, int]:
    """Return the group of each picture; the normal ones define the common content."""
    paths = [*normal, *defective]
    if not normal:
        return {path: index for index, path in enumerate(paths)}
    _, bits = measure_bits(normal, WORKERS)
    read = chain.from_iterable(read_ahead(lambda path: read_thumbnail(path, bits), paths, READ_AHEAD, WORKERS))
    thumbnails = np.stack(list(count_progress(read, len(paths), "comparing")))
    return dict(zip(paths, group_thumbnails(thumbnails, CommonContent(thumbnails[: len(normal)])), strict=True))


def read_thumbnail(path: Path, bits: int = DEEPEST) -> Thumbnails:
    return make_thumbnail(read_reduced(path, 3, lambda width, height: (SIDE, SIDE), bits)[0])


def draw_test_pictures(normal: Sequence[Path], defective: Sequence[Path], root: Path, seed: int) -> set[Path]:
    """Return the normal pictures to test with; near-duplicates of a defective picture are among them."""
    groups = group_near_duplicates(normal, defective)
    return draw_test_groups({path: groups[path] for path in normal}, root, seed, {groups[path] for path in defective})


def draw_test_groups(group_of: Mapping[Path, int], root: Path, seed: int, required: Iterable[int] = ()) -> set[Path]:
    """Return the pictures to test with: whole groups, about TEST_SHARE of all pictures, the groups `required` first."""
    members: dict[int, list[Path]] = {}
    for picture in sorted(group_of):
        members.setdefault(group_of[picture], []).append(picture)
    chosen = [picture for group in sorted(set(required)) for picture in members.pop(group, [])]
    names = {path: f"{seed} {path.relative_to(root).as_posix()}".encode(errors="surrogateescape") for path in group_of}
    shuffled = sorted(members.values(), key=lambda group: hashlib.sha256(names[group[0]]).digest())
    most = max(1, round(TEST_SHARE * len(group_of)))
    for group in shuffled:
        if len(chosen) + len(group) <= most:
            chosen += group
    if not chosen and len(shuffled) > 1:
        chosen = min(shuffled, key=len)
    if not chosen or len(chosen) == len(group_of):
        reason = f"near-duplicates stay together, and {len(shuffled)} groups differ from the defective pictures"
        problem = f"{len(group_of)} normal pictures can't be split into training and test pictures: {reason}"
        raise UserError(f"{problem}; add normal pictures that differ")
    return set(chosen)


def find_outliers(thumbnails: Thumbnails) -> dict[int, str]:
    """Return the indices of pictures far from the median, the farthest first, each with the measure that says so."""
    if len(thumbnails) < FEWEST:
        return {}
    measures = measure_distances(thumbnails)
    names, distances = list(measures), np.stack(list(measures.values()))  # (measures, N)
    farthest = distances.max(0)
    outliers = sorted(map(int, np.flatnonzero(farthest > OUTLIER)), key=lambda index: -farthest[index])
    return {index: names[distances[:, index].argmax()] for index in outliers}


def measure_distances(thumbnails: Thumbnails) -> dict[str, Distances]:
    """Return the distances from the median, (N,), in each measure; logarithms, because spreads are skewed."""
    detail = thumbnails - gaussian_filter(thumbnails, (0, 1, 1))
    blocks = thumbnails.reshape(-1, BLOCKS, SIDE // BLOCKS, BLOCKS, SIDE // BLOCKS).mean((2, 4))
    difference = np.abs(blocks - np.median(blocks, 0))
    largest = (difference / (MAD_TO_DEVIATION * np.median(difference, 0) + NOISE)).max((1, 2))
    neighbour = distances_to_neighbour(blocks.reshape(len(blocks), -1))
    brightest, darkest = (np.percentile(thumbnails, percent, axis=(1, 2)) for percent in (99.5, 0.5))
    return {
        "brightness": on_both_sides(np.log(thumbnails.mean((1, 2)) + DIM), 0.03),
        "its brightest part": on_both_sides(np.log(brightest + DIM), 0.05),
        "its darkest part": on_both_sides(np.log(darkest + DIM), 0.05),
        "contrast": on_both_sides(np.log(thumbnails.std((1, 2)) + 1), 0.05),
        "sharpness": on_both_sides(np.log(detail.std((1, 2)) + 0.5), 0.05),
        "a sharp spot": above_median(np.log(np.abs(detail).max((1, 2)) + 1), 0.1),
        "one region": above_median(np.log(largest + 1), 0.1),
        "its content": above_median(np.log(neighbour + 1), 0.05),
    }


def above_median(values: Distances, smallest_unit: float) -> Distances:
    median = np.median(values)
    return (values - median) / max(np.percentile(values, 100 - TAIL) - median, smallest_unit)


def on_both_sides(values: Distances, smallest_unit: float) -> Distances:
    return np.maximum(above_median(values, smallest_unit), above_median(-values, smallest_unit))


def distances_to_neighbour(vectors: NDArray[np.floating]) -> Distances:
    """Return the distance of each vector to its NEIGHBOUR-th nearest other, (N,)."""
    squares = (vectors.astype(np.float64) ** 2).sum(1)
    distances = np.empty(len(vectors))
    for first in range(0, len(vectors), ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        table = squares[rows, None] + squares - 2 * vectors[rows].astype(np.float64) @ vectors.T.astype(np.float64)
        distances[rows] = np.sqrt(np.partition(table, NEIGHBOUR, axis=1)[:, NEIGHBOUR].clip(0))  # the 0th is itself
    return distances
