"""Measure each picture and each mask of a category; `check.py` looks for problems in these facts."""

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image

from data_tools import similarity
from dataset import NORMAL, Sample, files_below, folders_in, is_picture, match_masks, measure_bits, read_ahead
from images.bit_depth import DEEPEST, UnusableError
from images.read import LARGEST_LABEL, Size, highest_value, mask_levels, read_header, read_mask_values, read_reduced
from runtime.progress import count_progress

READ_AHEAD = 16  # pictures
GREY = (0.1, 0.9)  # of a mask's highest value: neither black nor white
DARK = 16  # grey levels; 99.9 % of the pixels of a nearly black picture are not above
CONSTANT = 3  # grey levels; 99.8 % of the pixels of a constant picture differ by less
IGNORED_SHARE = 0.001  # of the darkest and of the brightest pixels
UNKNOWN_SIZE = (0, 0)  # of an unreadable picture

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class ImageFacts(NamedTuple):
    """A picture: its path in the category, split and kind, and what its file holds or why it is unreadable."""

    path: str
    split: str
    kind: str
    size: Size = UNKNOWN_SIZE
    mode: str = ""  # Pillow's
    digest: bytes = b""  # of its pixels
    thumbnail: similarity.Thumbnails | None = None
    constant: bool = False
    dark: bool = False
    highest: int | None = None  # value of a file of 16 bits that does not declare fewer
    problem: str = ""


class MaskFacts(NamedTuple):
    """A mask: its path and kind, its picture's size, and what its file holds or why it is unreadable."""

    path: str
    kind: str
    picture_size: Size
    size: Size = UNKNOWN_SIZE
    marked: float = 1.0  # share of the pixels that are not black
    covered: float = 0.0  # share of the pixels that count as defective
    grey: float = 0.0  # share of the marked pixels that are not white
    problem: str = ""


class MaskPairs(NamedTuple):
    """How masks and defective pictures belong together; all paths are in the category but those of `masks`."""

    masks: list[tuple[Path, MaskFacts]]  # with a picture
    without_mask: list[str]
    without_picture: list[str]
    shared: dict[str, list[str]]  # masks of several pictures


def measure_depth(category_dir: Path, workers: int) -> int:
    """Return the bits that train/good holds in files of 16 bits."""
    return measure_bits(picture_files(category_dir / "train" / NORMAL), workers)[1]


def read_image_facts(category_dir: Path, workers: int, bits: int = DEEPEST) -> list[ImageFacts]:
    """Return the facts of all pictures in train/good and test, in order; `bits` are in use in files of 16."""
    folders = [category_dir / "train" / NORMAL, *subfolders(category_dir / "test")]
    paths = [path for folder in folders for path in picture_files(folder)]
    names = [path_in(category_dir, path) for path in paths]
    parts = [PurePosixPath(name).parts for name in names]
    places = [ImageFacts(name, split, kind) for name, (split, kind, *_) in zip(names, parts, strict=True)]
    files = list(zip(paths, places, strict=True))
    batches = read_ahead(lambda file: read_picture_facts(*file, bits), files, READ_AHEAD, workers)
    return list(count_progress(chain.from_iterable(batches), len(files), f"checking {category_dir.name}"))


def read_picture_facts(path: Path, place: ImageFacts, bits: int) -> ImageFacts:
    try:
        picture, size = read_reduced(path, 3, lambda width, height: (similarity.SIDE, similarity.SIDE), bits)
        highest = highest_value(path) if bits < DEEPEST else None
    except (ValueError, OSError) as error:
        return place._replace(problem=describe_problem(error))
    header = read_header(path)
    mode = header[1] if header else "deep TIFF"
    return measure_picture(place._replace(size=size, mode=mode, highest=highest), picture)


def describe_problem(error: ValueError | OSError) -> str:
    """Return the problem of a file without its name, so that files with the same problem can be grouped."""
    if isinstance(error, UnusableError):
        return error.reason
    return "no permission to read it" if isinstance(error, PermissionError) else str(error)


def measure_picture(facts: ImageFacts, picture: Image.Image) -> ImageFacts:
    """Return `facts` with the measurements of the pixels."""
    grey = np.asarray(picture.convert("L"))
    shares = np.cumsum(np.bincount(grey.ravel(), minlength=256)) / grey.size
    darkest, brightest = (int(np.searchsorted(shares, share)) for share in (IGNORED_SHARE, 1 - IGNORED_SHARE))
    digest = hashlib.sha256(f"{facts.size}".encode() + picture.tobytes()).digest()
    thumbnail = similarity.make_thumbnail(picture)
    constant, dark = brightest - darkest < CONSTANT, brightest <= DARK
    return facts._replace(digest=digest, thumbnail=thumbnail, constant=constant, dark=dark)


def read_mask_facts(masks: Sequence[tuple[Path, MaskFacts]], workers: int) -> list[MaskFacts]:
    """Return the facts of all masks, in order."""
    return list(chain.from_iterable(read_ahead(lambda mask: measure_mask(*mask), masks, READ_AHEAD, workers)))


def measure_mask(path: Path, facts: MaskFacts) -> MaskFacts:
    try:
        values, is_label = read_mask_values(path)
    except (ValueError, OSError) as error:
        return facts._replace(problem=describe_problem(error))
    highest, marked = int(values.max()), int(np.count_nonzero(values))
    low, high = (share * highest for share in GREY)
    black_and_white = is_label or highest <= LARGEST_LABEL
    grey = 0 if black_and_white else int(np.count_nonzero((values > low) & (values < high)))
    covered = float((mask_levels(values, is_label) > LARGEST_LABEL).mean())
    width, height = values.shape[::-1]
    share, grey_share = marked / values.size, grey / max(marked, 1)
    return facts._replace(size=(width, height), marked=share, covered=covered, grey=grey_share)


def pair_masks(category_dir: Path, pictures: Sequence[ImageFacts]) -> MaskPairs:
    """Return how masks and defective pictures belong together, by the rule of detection."""
    defective = [image for image in pictures if image.split == "test" and image.kind != NORMAL]
    kinds = {folder.name for folder in subfolders(category_dir / "ground_truth")} - {NORMAL}
    spare = {path for kind in kinds for path in picture_files(category_dir / "ground_truth" / kind)}
    samples = [sample_of(category_dir, image) for image in defective]
    owners = group_by_key(zip((sample.mask for sample in match_masks(category_dir, samples)), defective, strict=True))
    without_mask = [image.path for image in owners.pop(None, ())]
    masks = {mask: images for mask, images in owners.items() if mask}
    names = {mask: path_in(category_dir, mask) for mask in masks}
    facts = [(mask, MaskFacts(names[mask], images[0].kind, images[0].size)) for mask, images in masks.items()]
    shared = {names[mask]: [image.path for image in images] for mask, images in masks.items() if len(images) > 1}
    return MaskPairs(facts, without_mask, sorted(path_in(category_dir, path) for path in spare - masks.keys()), shared)


def sample_of(category_dir: Path, image: ImageFacts) -> Sample:
    folder = category_dir / image.split / image.kind
    picture = category_dir / image.path
    return Sample(picture, image.kind, subfolder=picture.parent.relative_to(folder))


def stack_thumbnails(pictures: Sequence[ImageFacts]) -> similarity.Thumbnails:
    """Return the thumbnails of the readable pictures, (N, SIDE, SIDE)."""
    return np.stack([image.thumbnail for image in pictures if image.thumbnail is not None])


def subfolders(folder: Path) -> list[Path]:
    return folders_in(folder) if folder.is_dir() else []


def picture_files(folder: Path) -> list[Path]:
    return list(filter(is_picture, files_below(folder)))


def path_in(category_dir: Path, path: Path) -> str:
    return path.relative_to(category_dir).as_posix()


def group_by_key(pairs: Iterable[tuple[Key, Value]]) -> dict[Key, tuple[Value, ...]]:
    """Return the values of each key, in the order in which the keys first appear."""
    groups: dict[Key, list[Value]] = defaultdict(list)
    for key, value in pairs:
        groups[key].append(value)
    return {key: tuple(values) for key, values in groups.items()}
