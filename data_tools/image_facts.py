"""Measure each picture and each mask of a category; `check.py` looks for problems in these facts."""

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image

from data_tools import similarity
from dataset import MASK_ENDING, NORMAL, folders_in, is_picture, masks_in, read_ahead
from images.bit_depth import UnusableError
from images.read import LARGEST_LABEL, Size, read_header, read_mask_values, read_reduced
from runtime.progress import count_progress

READ_AHEAD = 16  # pictures
GREY = (0.1, 0.9)  # of a mask's highest value: neither black nor white
DARK = 16  # grey levels; 99.9 % of the pixels of a nearly black picture are below
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
    problem: str = ""


class MaskFacts(NamedTuple):
    """A mask: its path, its picture's size, and what its file holds or why it is unreadable."""

    path: str
    picture_size: Size
    size: Size = UNKNOWN_SIZE
    marked: float = 1.0  # share of the pixels that are not black
    grey: float = 0.0  # share of the marked pixels that are not white
    problem: str = ""


def read_image_facts(category_dir: Path, workers: int) -> list[ImageFacts]:
    """Return the facts of all pictures in train/good and test, in order."""
    folders = [category_dir / "train" / NORMAL, *subfolders(category_dir / "test")]
    paths = [path for folder in folders for path in picture_files(folder)]
    files = [(path, ImageFacts(path_in(category_dir, path), path.parts[-3], path.parts[-2])) for path in paths]
    batches = read_ahead(lambda file: read_picture_facts(*file), files, READ_AHEAD, workers)
    return list(count_progress(chain.from_iterable(batches), len(files), f"checking {category_dir.name}"))


def read_picture_facts(path: Path, place: ImageFacts) -> ImageFacts:
    try:
        picture, size = read_reduced(path, 3, lambda width, height: (similarity.SIDE, similarity.SIDE))
    except (ValueError, OSError) as error:
        return place._replace(problem=describe_problem(error))
    header = read_header(path)
    return measure_picture(place._replace(size=size, mode=header[1] if header else "deep TIFF"), picture)


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
    constant, dark = brightest - darkest < CONSTANT, brightest < DARK
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
    return facts._replace(size=values.shape[::-1], marked=marked / values.size, grey=grey / max(marked, 1))


def match_masks(
    category_dir: Path, pictures: Sequence[ImageFacts]
) -> tuple[list[tuple[Path, MaskFacts]], list[str], list[str]]:
    """Return the masks with a picture, the defective pictures without a mask, the masks without a picture."""
    with_picture, without_mask, without_picture = list[tuple[Path, MaskFacts]](), list[str](), list[str]()
    members = group_by_key((image.kind, image) for image in pictures if image.split == "test" and image.kind != NORMAL)
    kinds = {folder.name for folder in subfolders(category_dir / "ground_truth")} - {NORMAL}
    for kind in sorted(kinds | members.keys()):
        masks = masks_in(category_dir / "ground_truth" / kind)
        for image in members.get(kind, ()):
            stem = Path(image.path).stem
            mask = masks.pop(stem + MASK_ENDING, None) or masks.pop(stem, None)
            if mask:
                with_picture.append((mask, MaskFacts(path_in(category_dir, mask), image.size)))
            else:
                without_mask.append(image.path)
        without_picture += [path_in(category_dir, path) for path in masks.values()]
    return with_picture, without_mask, without_picture


def stack_thumbnails(pictures: Sequence[ImageFacts]) -> similarity.Thumbnails:
    """Return the thumbnails of the readable pictures, (N, SIDE, SIDE)."""
    return np.stack([image.thumbnail for image in pictures if image.thumbnail is not None])


def subfolders(folder: Path) -> list[Path]:
    return folders_in(folder) if folder.is_dir() else []


def picture_files(folder: Path) -> list[Path]:
    return sorted(filter(is_picture, folder.iterdir())) if folder.is_dir() else []


def path_in(category_dir: Path, path: Path) -> str:
    return path.relative_to(category_dir).as_posix()


def group_by_key(pairs: Iterable[tuple[Key, Value]]) -> dict[Key, tuple[Value, ...]]:
    """Return the values of each key, in the order in which the keys first appear."""
    groups: dict[Key, list[Value]] = defaultdict(list)
    for key, value in pairs:
        groups[key].append(value)
    return {key: tuple(values) for key, values in groups.items()}
