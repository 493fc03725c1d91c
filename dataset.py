"""Pictures and masks from disk, in order: the MVTec AD layout.

<data_dir>/<category>/train/good/*                 normal pictures, all that training sees
<data_dir>/<category>/test/good/*, test/<defect>/*
<data_dir>/<category>/ground_truth/<defect>/<stem>_mask.*  (or <stem>.*)
"""

import copy
import difflib
import functools
import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from images.read import SUFFIXES, Size, read_mask, read_shown, reduction
from runtime.errors import MissingFileError, UserError

NORMAL = "good"
MASK_ENDING = "_mask"
NARROWEST = 50  # length in widths of the narrowest picture that is tiled
HASH_DIGITS, HASHED_AT_ONCE, HASHING_THREADS = 16, 2**20, 2

Key = TypeVar("Key")
Read = TypeVar("Read")


@dataclass(frozen=True)
class View:
    """How the network is shown a picture: squashed to a square of `size` pixels, or, with `tiles`, in its own proportions, as many tiles
    of that size along the shorter side as `tiles` says (and overlapping ones from there)."""

    size: int
    channels: int = 3
    tiles: int | None = None

    def shape(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) at which a picture of that size is shown. Raises ValueError for one too narrow to be tiled."""
        if self.tiles is None:
            return self.size, self.size
        if max(width, height) > NARROWEST * min(width, height):
            raise UserError(
                f"a picture of {width}×{height} is too narrow for data.tiles; cut it, or set data.tiles=null"
            )
        shorter = self.size * self.tiles
        return max(shorter, round(width * shorter / min(width, height))), max(
            shorter, round(height * shorter / min(width, height))
        )

    def read(self, path: Path) -> tuple[Tensor, Size]:
        """`pixels` of a file, and the picture's own (width, height); a large one is never in memory as a whole but as it is stored."""
        picture, own = read_shown(path, self.channels, self.shape)
        return self.resized(picture, self.shape(*own)), own

    def pixels(self, picture: Image.Image) -> Tensor:
        """(C, H, W) uint8 of an upright 8-bit picture; resized bilinearly, antialiased."""
        shown = self.shape(*picture.size)
        factors = reduction(picture.size, shown)
        return self.resized(picture if factors == (1, 1) else picture.reduce(factors), shown)

    def resized(self, picture: Image.Image, shown: Size) -> Tensor:
        pixels = np.array(picture.resize(shown, Image.Resampling.BILINEAR))
        return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1).contiguous()


class Item(NamedTuple):
    """One picture as the network is shown it (C, H, W) in [−1, 1], its mask (S, S) or None where there is none, its kind (of defect, or
    good), its path in the category and its own (width, height)."""

    picture: Tensor
    mask: NDArray[np.bool_] | None
    kind: str
    path: str
    size: tuple[int, int]

    @property
    def label(self) -> bool:
        """Whether it is defective."""
        return self.kind != NORMAL


@dataclass(frozen=True)
class Sample:
    """Where a picture and its mask lie, and the folder (kind of defect, or good) that it is in."""

    picture: Path
    kind: str
    mask: Path | None = None


class ImageFolder:
    """The pictures of one split, sorted by path. Items are read when asked for; masks are squares of `mask_size` (or the view's) pixels.

    Raises FileNotFoundError where a folder, its pictures or a mask is missing, ValueError for a file that is not a picture.
    """

    def __init__(self, category_dir: Path, split: str, view: View, *, masks: bool = True, mask_size: int | None = None):
        check_category(category_dir)
        self.category_dir, self.view, self.mask_size = category_dir, view, mask_size or view.size
        self.samples = list(train_samples(category_dir) if split == "train" else test_samples(category_dir, masks))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Item:
        sample = self.samples[index]
        pixels, size = self.view.read(sample.picture)
        mask = None
        if sample.mask is not None:
            mask = read_mask(sample.mask, size, sample.picture, self.mask_size)
        return Item(to_unit_range(pixels), mask, sample.kind, self.name(sample), size)

    def name(self, sample: Sample) -> str:
        """The picture's path in the category."""
        return sample.picture.relative_to(self.category_dir).as_posix()

    def names(self) -> list[str]:
        return [self.name(sample) for sample in self.samples]

    def only(self, names: Collection[str]) -> "ImageFolder":
        """The pictures of these names, of those that are here."""
        fewer, wanted = copy.copy(self), set(names)
        fewer.samples = [sample for sample in self.samples if self.name(sample) in wanted]
        return fewer

    def without(self, names: Collection[str]) -> "ImageFolder":
        """All pictures but these."""
        return self.only(set(self.names()) - set(names))

    def split(self, share: float, most: int, seed: int) -> tuple["ImageFolder", "ImageFolder"]:
        """(pictures to learn from, pictures held out): the latter `share` of all, `most` at most, drawn by a hash of seed and name, so that
        one more picture changes the choice by one at most."""
        kept = self.sample(held_out_count(len(self), share, most), seed)
        return self.without(kept.names()), kept

    def sample(self, count: int, seed: int) -> "ImageFolder":
        """`count` of the pictures, or all there are."""
        return self.only(
            sorted(self.names(), key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())[:count]
        )

    def batches(self, size: int, workers: int) -> Iterator[list[Item]]:
        """Items in order, `size` at a time."""
        return read_ahead(self.__getitem__, range(len(self)), size, workers)

    def pixels(self, workers: int) -> list[Tensor]:
        """All pictures as the network is shown them, each (C, H, W) uint8, decoded by `workers` threads."""
        with ThreadPoolExecutor(max(1, workers)) as pool:
            return list(pool.map(lambda sample: self.view.read(sample.picture)[0], self.samples))


def held_out_count(pictures: int, share: float, most: int) -> int:
    """How many of so many are held out: `share`, `most` at most; where two are there and share is not 0, one at least and not all."""
    return min(max(1, round(share * pictures)), most, pictures - 1) if share else 0


def picture_fingerprint(samples: Iterable[Sample]) -> dict[str, Any]:
    """How many pictures and masks, and a hash of their names and contents."""
    files = [path for sample in samples for path in (sample.picture, sample.mask) if path is not None]
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        listed = pool.map(lambda path: f"{path.parent.name}/{path.name} {content_hash(path)}", files)
        return {
            "files": len(files),
            "hash": hashlib.sha256("\n".join(listed).encode(errors="surrogateescape")).hexdigest()[:HASH_DIGITS],
        }


def content_hash(path: Path) -> str:
    there = path.stat()
    return hash_of_version(path, there.st_size, there.st_mtime_ns)


@functools.lru_cache(maxsize=2**17)
def hash_of_version(path: Path, size: int, changed: int) -> str:
    """Of a file of this size and time, which is read once."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASHED_AT_ONCE):
            digest.update(block)
    return digest.hexdigest()


def read_ahead(read: Callable[[Key], Read], keys: Sequence[Key], size: int, workers: int) -> Iterator[list[Read]]:
    """What `read` gives for each key, in order and `size` at a time; `workers` threads are one batch ahead."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        pending: list[list[Future[Read]]] = []
        for first in range(0, len(keys), size):
            pending.append([pool.submit(read, key) for key in keys[first : first + size]])
            if len(pending) == 2:
                yield [future.result() for future in pending.pop(0)]
        for batch in pending:
            yield [future.result() for future in batch]


def to_unit_range(pixels: Tensor) -> Tensor:
    """uint8 0…255 → float32 −1…1."""
    return pixels.float().div_(127.5).sub_(1)


def shuffled_batches(pixels: Sequence[Tensor], size: int, window: int, generator: torch.Generator) -> Iterator[Tensor]:
    """`random_squares` of all pictures, `size` at a time and in a new order; the last incomplete batch is dropped."""
    order = shuffled_order(len(pixels), size, generator)
    for first in range(0, len(order), size):
        yield random_squares([pixels[index] for index in order[first : first + size]], window, generator)


def shuffled_order(count: int, size: int, generator: torch.Generator) -> list[int]:
    """0…count − 1 in a random order, as many as fill batches of `size`."""
    return torch.randperm(count, generator=generator, device=generator.device).tolist()[: count // size * size]


def random_squares(pictures: Sequence[Tensor], window: int, generator: torch.Generator) -> Tensor:
    """(N, C, window, window) in [−1, 1] on the generator's device, of pictures (C, H, W) uint8: of larger ones a random square."""
    if any(picture.shape[1:] != (window, window) for picture in pictures):
        places = torch.rand(len(pictures), 2, generator=generator, device=generator.device).tolist()
        pictures = [cut_square(picture, window, *place) for picture, place in zip(pictures, places, strict=True)]
    return to_unit_range(torch.stack(list(pictures)).to(generator.device))


def augment(squares: Tensor, augmentation: str | None, generator: torch.Generator) -> Tensor:
    """Squares (N, C, S, S), each mirrored left to right or not, by chance (`flip`), and turned by a multiple of 90° as well (`rotate`)."""
    if augmentation is None:
        return squares
    mirrored, turns = (
        torch.randint(most, (len(squares),), generator=generator, device=generator.device).tolist() for most in (2, 4)
    )
    if augmentation == "flip":
        turns = [0] * len(squares)
    turned = [one.rot90(times, (1, 2)) for one, times in zip(squares, turns, strict=True)]
    return torch.stack([one.flip(2) if mirror else one for one, mirror in zip(turned, mirrored, strict=True)])


def cut_square(picture: Tensor, side: int, down: float, across: float) -> Tensor:
    """The square of `side` pixels whose corner lies at these shares, 0…1, of the way that there is."""
    top, left = (
        int(share * (extent - side + 1)) for share, extent in zip((down, across), picture.shape[1:], strict=True)
    )
    return picture[:, top : top + side, left : left + side]


def full_batches(pictures: int, size: int, key: str) -> int:
    """How many batches of `size` an epoch has. Raises ValueError where it has none; `key` names the setting."""
    if pictures < size:
        raise UserError(
            f"{key} is {size}, but train/good holds {pictures} pictures to learn from; set {key}={pictures} or less"
        )
    return pictures // size


def categories_in(data_dir: Path) -> list[str]:
    """Names of the folders that hold train or test. Raises FileNotFoundError where there is none."""
    if not data_dir.is_dir():
        raise MissingFileError(f"no data at {data_dir}; set data.data_dir to the folder that holds the categories")
    there = [
        folder.name for folder in folders_in(data_dir) if any((folder / split).is_dir() for split in ("train", "test"))
    ]
    if not there:
        raise MissingFileError(f"no categories in {data_dir}; each is a folder that holds train/good and test")
    return there


def check_category(category_dir: Path) -> None:
    if category_dir.is_dir():
        return
    data_dir = category_dir.parent
    if not data_dir.is_dir():
        raise MissingFileError(f"no data at {data_dir}; set data.data_dir to the folder that holds the categories")
    there = [folder.name for folder in folders_in(data_dir)]
    close = difflib.get_close_matches(category_dir.name, there, n=1)
    hint = f"did you mean {close[0]}?" if close else f"it holds {', '.join(there[:20]) or 'no folders'}"
    raise MissingFileError(f"no category {category_dir.name!r} in {data_dir}; {hint}")


def train_samples(category_dir: Path) -> Iterator[Sample]:
    for path in pictures_in(category_dir / "train" / NORMAL):
        yield Sample(path, NORMAL)


def test_samples(category_dir: Path, masks: bool) -> Iterator[Sample]:
    test_dir = category_dir / "test"
    if not test_dir.is_dir():
        raise MissingFileError(
            f"no test pictures: {test_dir} is not a folder; put good and defective pictures in its subfolders"
        )
    kinds = folders_in(test_dir)
    if not kinds:
        raise MissingFileError(
            f"{test_dir} has no subfolders; put normal pictures in {test_dir / NORMAL}, defective ones in folders named after the defect"
        )
    for folder in kinds:
        truth = masks_in(category_dir / "ground_truth" / folder.name) if masks and folder.name != NORMAL else {}
        for path in pictures_in(folder):
            yield Sample(
                path, folder.name, mask_of(path, category_dir, truth) if masks and folder.name != NORMAL else None
            )


def masks_in(folder: Path) -> dict[str, Path]:
    """Mask files by stem."""
    return {path.stem: path for path in sorted(folder.iterdir()) if is_picture(path)} if folder.is_dir() else {}


def mask_of(picture: Path, category_dir: Path, truth: dict[str, Path]) -> Path:
    mask = truth.get(picture.stem + MASK_ENDING) or truth.get(picture.stem)
    if mask is None:
        wanted = Path("ground_truth") / picture.parent.name / f"{picture.stem}{MASK_ENDING}.png"
        raise MissingFileError(
            f"no mask for {picture.relative_to(category_dir).as_posix()} in {category_dir}; looked for {wanted.as_posix()}; "
            "add it, or set data.mask=False"
        )
    return mask


def pictures_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise MissingFileError(f"no folder {folder}; put the pictures there")
    found = sorted(path for path in folder.iterdir() if is_picture(path))
    if not found:
        raise MissingFileError(f"no pictures in {folder}; it should hold {', '.join(sorted(SUFFIXES))}")
    return found


def pictures_below(source: Path, leave_out: Collection[Path]) -> list[Path]:
    """All pictures in a folder and its subfolders, but for those in the folders `leave_out`, in order; or the one picture that `source` is.

    Raises FileNotFoundError where there is none.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise MissingFileError(f"no picture or folder at {source}; check --input")
    others = {folder.resolve() for folder in leave_out}
    found = sorted(
        path
        for path in source.rglob("*")
        if is_picture(path) and not is_hidden(path, source) and others.isdisjoint(path.resolve().parents)
    )
    if not found:
        raise MissingFileError(f"no pictures in {source}; it should hold {', '.join(sorted(SUFFIXES))}")
    return found


def is_hidden(path: Path, source: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(source).parts)


def folders_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
