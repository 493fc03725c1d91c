"""What is seen of a category's pictures and masks, file by file, for `doctor.py` to judge."""

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
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

AT_ONCE = 16  # pictures that are read ahead
GREY = (0.1, 0.9)  # of a mask's highest value: neither black nor white
GREY_MODES = ("1", "L", "LA", "F")
DARK, EVEN = (
    16,
    3,
)  # grey levels: all but 0.1 % of a nearly black picture is below DARK, a constant one spans less than EVEN
LEFT_OUT = 0.001  # share of a picture's pixels that its darkest and its brightest grey leave out

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


@dataclass(frozen=True)
class ImageFacts:
    """What is seen of one picture: where it is, (width, height), the file's mode, a digest of its pixels, a thumbnail, darkest and brightest
    grey (but for 0.1 % of the pixels), or what is wrong with it."""

    path: str
    split: str
    kind: str
    size: Size = (0, 0)
    mode: str = ""
    digest: bytes = b""
    thumbnail: similarity.Thumbnails | None = None
    span: tuple[float, float] = (0, 255)
    problem: str = ""

    @property
    def even(self) -> bool:
        """Whether it is of one grey."""
        return self.span[1] - self.span[0] < EVEN

    @property
    def dark(self) -> bool:
        return self.span[1] < DARK

    @property
    def deep(self) -> bool:
        """Whether it holds 16 bits."""
        return self.mode.startswith("I")

    @property
    def colour(self) -> str:
        return "grey" if self.deep or self.mode in GREY_MODES else "colour"


class MaskFacts(NamedTuple):
    """What is seen of one mask: its file and its picture's, its size, the share that it marks and how much of that is grey, or a problem."""

    path: str
    picture: str
    size: Size = (0, 0)
    marked: float = 1.0
    grey: float = 0.0
    problem: str = ""


def read_all_facts(category_dir: Path, workers: int) -> list[ImageFacts]:
    """Every picture of train/good and test, in order."""
    folders = [("train", category_dir / "train" / NORMAL)]
    if (category_dir / "test").is_dir():
        folders += [("test", folder) for folder in folders_in(category_dir / "test")]
    files = [
        (path, ImageFacts(path.relative_to(category_dir).as_posix(), split, folder.name))
        for split, folder in folders
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if is_picture(path)
    ]
    batches = read_ahead(lambda file: read_facts(*file), files, AT_ONCE, workers)
    return list(count_progress(chain.from_iterable(batches), len(files), f"checking {category_dir.name}"))


def read_facts(path: Path, look: ImageFacts) -> ImageFacts:
    try:
        picture, size = read_reduced(path, 3, lambda width, height: (similarity.SIDE, similarity.SIDE))
    except (ValueError, OSError) as error:
        return ImageFacts(look.path, look.split, look.kind, problem=problem_of(error))
    seen = read_header(path)
    return facts_of(ImageFacts(look.path, look.split, look.kind, size, seen[1] if seen else "deep TIFF"), picture)


def problem_of(error: ValueError | OSError) -> str:
    """Return what is wrong with a file, without its name, so that files of one problem can stand together."""
    if isinstance(error, UnusableError):
        return error.reason
    return "no permission to read it" if isinstance(error, PermissionError) else str(error)


def facts_of(look: ImageFacts, picture: Image.Image) -> ImageFacts:
    grey = np.asarray(picture.convert("L"))
    levels = np.cumsum(np.bincount(grey.ravel(), minlength=256)) / grey.size
    span = (float(np.searchsorted(levels, LEFT_OUT)), float(np.searchsorted(levels, 1 - LEFT_OUT)))
    digest = hashlib.sha256(f"{look.size}".encode() + picture.tobytes()).digest()
    return ImageFacts(
        look.path, look.split, look.kind, look.size, look.mode, digest, similarity.thumbnail(picture), span
    )


def read_mask_facts(path: Path, name: str, picture: ImageFacts) -> MaskFacts:
    try:
        values, labels = read_mask_values(path)
    except (ValueError, OSError) as error:
        return MaskFacts(name, picture.path, problem=problem_of(error))
    top, marked = int(values.max()), int(np.count_nonzero(values))
    low, high = (share * top for share in GREY)
    grey = 0 if labels or top <= LARGEST_LABEL else int(np.count_nonzero((values > low) & (values < high)))
    return MaskFacts(
        name, picture.path, (values.shape[1], values.shape[0]), marked / values.size, grey / max(marked, 1)
    )


def match_masks(
    category_dir: Path, looks: Sequence[ImageFacts]
) -> tuple[list[tuple[Path, str, ImageFacts]], list[str], list[str]]:
    """(masks with their names and pictures, pictures without one, masks without a picture)."""
    pairs, without, unused = [], [], []
    truth_dir = category_dir / "ground_truth"
    folders = {folder.name for folder in folders_in(truth_dir)} if truth_dir.is_dir() else set()
    kinds = grouped((look.kind, look) for look in looks if look.split == "test" and look.kind != NORMAL)
    by_kind = dict.fromkeys(folders - {NORMAL}, ()) | dict(kinds)
    for kind, members in sorted(by_kind.items()):
        left = masks_in(truth_dir / kind)
        for look in members:
            stem = Path(look.path).stem
            mask = left.pop(stem + MASK_ENDING, None) or left.pop(stem, None)
            if mask is None:
                without.append(look.path)
            else:
                pairs.append((mask, mask.relative_to(category_dir).as_posix(), look))
        unused += [path.relative_to(category_dir).as_posix() for path in left.values()]
    return pairs, without, unused


def thumbnails(looks: Sequence[ImageFacts]) -> similarity.Thumbnails:
    """(N, SIDE, SIDE) of those that could be read."""
    return np.stack([look.thumbnail for look in looks if look.thumbnail is not None])


def grouped(pairs: Iterable[tuple[Key, Value]]) -> list[tuple[Key, tuple[Value, ...]]]:
    """Each key with its values, in the order of their first ones."""
    groups: dict[Key, list[Value]] = defaultdict(list)
    for key, value in pairs:
        groups[key].append(value)
    return [(key, tuple(values)) for key, values in groups.items()]
