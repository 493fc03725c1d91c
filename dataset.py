"""Pictures and masks of a category on disk, in the MVTec AD layout, sorted by path.

<data_dir>/<category>/train/good/*                          normal pictures, the only ones for training
<data_dir>/<category>/test/good/*, test/<defect>/*
<data_dir>/<category>/ground_truth/<defect>/<stem>_mask.*   or <stem>.*
<data_dir>/<category>/validation/good/*                     normal pictures for thresholds, in few data sets
<data_dir>/<category>/test_private/*, test_private_mixed/*  pictures without labels (MVTec AD 2)

Pictures may also be in subfolders of these folders; masks are in subfolders of the same names.
"""

import copy
import difflib
import functools
import hashlib
import itertools
import math
import os
import statistics
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from images.bit_depth import DEEPEST, print_once, smallest_depth
from images.read import (
    SUFFIXES,
    Size,
    highest_value,
    is_marked,
    mask_levels,
    read_mask,
    read_mask_values,
    read_picture,
    read_reduced,
    read_size,
    reduction_factors,
    resize_mask,
)
from images.tiles import tile_corners
from runtime.errors import MissingFileError, UserError

NORMAL = "good"
VALIDATION = "validation"  # a split of normal pictures that few data sets have
PRIVATE_SPLITS = ("test_private", "test_private_mixed")  # their labels are on a server
MASK_ENDING = "_mask"
SQUARE, PROPORTIONS = "square", "proportions"  # ways to fit a picture to the networks
SQUARE_RATIO = 1.25  # of the sides; a category is resized to squares up to it
BEYOND = 0.1  # share of the pictures that must be beyond SQUARE_RATIO for proportions
STRIP_RATIO = 4  # of the sides; beyond it a picture is a strip, cut into tiles
LARGEST_RATIO = 50  # of the sides of a picture that keeps its proportions
NEAR = 1.1  # factor between two proportions up to which pictures have one shape
SIDES_PER_STEP = 16  # sides in proportions are multiples of about a 16th of a square's
MEASURED_AT_ONCE = 16  # pictures
HASH_DIGITS, HASHING_THREADS = 16, 2
PARTS = ("train", "test")
Key = TypeVar("Key")
Read = TypeVar("Read")


@dataclass(frozen=True)
class View:
    """The form in which the networks get a picture: resized to a square of `size` pixels, if `fit` is square.

    If `fit` is proportions, it gets as many pixels in its own proportions, or in the usual ones, `ratio`, if it has
    nearly these. Beyond STRIP_RATIO it is a strip: it keeps its scale, and the UNet sees it in tiles.
    With `tiles` a picture keeps its proportions; its shorter side becomes `tiles` · `size` pixels long, and the UNet
    sees it in square tiles.
    """

    size: int
    channels: int = 3
    tiles: int | None = None
    fit: str = SQUARE
    bits: int = DEEPEST  # in use in files of 16 bits
    ratio: float | None = None  # width / height of the category's usual pictures

    @property
    def step(self) -> int:
        """Return the power of 2 that sides in proportions are multiples of: coarse, for few different shapes."""
        return math.gcd(self.size // 2, 1 << max(0, (self.size // SIDES_PER_STEP).bit_length() - 1))

    def shape(self, width: int, height: int) -> Size:
        """Return the (width, height) to which a picture is resized. Raise UserError if it is too narrow."""
        if self.tiles is None and self.fit == SQUARE:
            return self.size, self.size
        short, long = sorted((width, height))
        if long > LARGEST_RATIO * short:
            key, other = ("data.fit", SQUARE) if self.tiles is None else ("data.tiles", "null")
            raise UserError(f"a picture of {width}×{height} is too narrow for {key}; crop it, or set {key}={other}")
        if self.tiles is not None:
            shorter = self.size * self.tiles
            across, down = (max(shorter, round(side * shorter / short)) for side in (width, height))
            return across, down
        if self.ratio and is_near(self.ratio, width / height) and is_near(self.ratio, 1, STRIP_RATIO):
            return shape_in_proportions(self.size, self.ratio, 1, self.step)
        if long <= STRIP_RATIO * short:
            return shape_in_proportions(self.size, width, height, self.step)
        shorter = nearest_multiple(min(max(short, self.size // STRIP_RATIO), self.size), self.step)
        across, down = (self.step * math.ceil(side * shorter / short / self.step) for side in (width, height))
        return across, down

    def tile(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) of the tiles in which the UNet sees a resized picture, or those of the picture."""
        if self.tiles is not None:
            return self.size, self.size
        if max(height, width) <= STRIP_RATIO * min(height, width):
            return height, width
        return min(height, self.size), min(width, self.size)

    def scaled_shape(self, tile: Sequence[int], size: int, factor: int) -> tuple[int, int]:
        """Return the (height, width), multiples of `factor`, of a tile for a UNet whose squares have `size` pixels."""
        height, width = (side * size / self.size for side in tile)
        return nearest_shape((height, width), factor)

    def seen_shape(self, extent: Sequence[int], size: int, factor: int) -> tuple[int, int]:
        """Return the (height, width) of a whole resized picture at the scale at which the UNet sees its tiles."""
        tile = self.tile(*extent)
        small = self.scaled_shape(tile, size, factor)
        height, width = (round(side * less / more) for side, less, more in zip(extent, small, tile, strict=True))
        return height, width

    def measured_shape(self, width: int, height: int, size: int) -> Size:
        """Return the (width, height) at which maps and masks of a picture are measured: `size` · `size` pixels."""
        if self.fit == SQUARE:
            return size, size
        return shape_in_proportions(size, *self.shape(width, height))

    def squares(self, width: int, height: int) -> int:
        """Return how many squares of the view have the pixels of a picture that keeps its proportions, at least 1."""
        return 1 if self.fit == SQUARE else max(1, round(math.prod(self.shape(width, height)) / self.size**2))

    def describe(self, width: int, height: int) -> str:
        """Return in words what happens to a picture, such as '11 tiles of 512×256'."""
        across, down = self.shape(width, height)
        tile = self.tile(down, across)
        resized = "" if (across, down) == (width, height) else f"resized to {across}×{down}, "
        if tile == (down, across):
            return resized.removesuffix(", ") or "as they are"
        return f"{resized}{len(tile_corners((down, across), tile))} tiles of {tile[1]}×{tile[0]}"

    def read(self, path: Path) -> tuple[Tensor, Size]:
        """Return the `pixels` of a file and the picture's own (width, height)."""
        reduced, own = read_reduced(path, self.channels, self.shape, self.bits)
        return self.resized(reduced, self.shape(*own)), own

    def pixels(self, picture: Image.Image) -> Tensor:
        """Return an upright 8-bit picture as (C, H, W) uint8, resized bilinearly with antialiasing."""
        size = self.shape(*picture.size)
        return self.resized(picture.reduce(reduction_factors(picture.size, size)), size)

    def resized(self, picture: Image.Image, size: Size) -> Tensor:
        pixels = np.array(picture.resize(size, Image.Resampling.BILINEAR))
        return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1).contiguous()


def choose_fit_of(sizes: Iterable[Size]) -> str:
    """Return `proportions` if more than BEYOND of these sizes are beyond SQUARE_RATIO, else `square`."""
    elongations = [max(size) / min(size) for size in sizes] or [1.0]
    return PROPORTIONS if np.quantile(elongations, 1 - BEYOND) > SQUARE_RATIO else SQUARE


def usual_ratio(sizes: Iterable[Size]) -> float:
    """Return the median of width / height; it is that of one of the pictures."""
    return statistics.median_low(width / height for width, height in sizes)


def is_near(ratio: float, other: float, factor: float = NEAR) -> bool:
    """Return whether two ratios differ at most by this factor."""
    return max(ratio, other) <= factor * min(ratio, other)


def shape_in_proportions(size: int, width: float, height: float, step: int = 1) -> tuple[int, int]:
    """Return multiples of `step` with about `size`² pixels in the proportions width : height."""
    root = math.sqrt(width / height)
    return nearest_shape((size * root, size / root), step)


def nearest_shape(wanted: tuple[float, float], step: int) -> tuple[int, int]:
    """Return multiples of `step` near both sides, with nearly their number of pixels and their proportions."""
    across, down = (max(step, math.floor(side / step) * step) for side in wanted)

    def error(sides: tuple[int, int]) -> float:
        first, second = (math.log(side / goal) for side, goal in zip(sides, wanted, strict=True))
        return max(abs(first + second), abs(first - second))  # of the number of pixels, of the proportions

    return min(itertools.product((across, across + step), (down, down + step)), key=error)


def nearest_multiple(length: float, step: int) -> int:
    return max(1, round(length / step)) * step


class Item(NamedTuple):
    """One picture as the network gets it, with its mask, kind and file."""

    picture: Tensor  # (C, H, W) in [−1, 1]
    mask: NDArray[np.bool_] | None  # (H, W), true where defective
    kind: str  # of defect, or `good`
    path: str  # within the category's folder
    size: Size  # (width, height) of the file

    @property
    def label(self) -> bool:
        """Return whether the picture is defective."""
        return self.kind != NORMAL


@dataclass(frozen=True)
class Sample:
    """The files of a picture and its mask, its kind of defect, or `good`, and its subfolder of the kind's folder."""

    picture: Path
    kind: str
    mask: Path | None = None
    subfolder: Path = Path()

    def files(self) -> list[Path]:
        return [path for path in (self.picture, self.mask) if path is not None]

    def name(self, file: Path) -> str:
        """Return the kind, the subfolder and the name of one of the files."""
        return (self.kind / self.subfolder / file.name).as_posix()


class ImageFolder:
    """The pictures of one split, sorted by path. An item is read when it is indexed.

    Masks have `mask_size`² pixels, by default the view's size, in the shape of `View.measured_shape`.
    Raise MissingFileError if a folder, its pictures or a mask is missing, UserError for a file that is not a picture.
    """

    def __init__(self, category_dir: Path, split: str, view: View, *, masks: bool = True, mask_size: int | None = None):
        check_category(category_dir)
        self.category_dir, self.view, self.mask_size = category_dir, view, mask_size or view.size
        if split == "test":
            self.samples = list(find_test_samples(category_dir, masks))
        else:
            folder = category_dir / split
            self.samples = list(find_samples(folder if split in PRIVATE_SPLITS else folder / NORMAL, NORMAL))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Item:
        sample = self.samples[index]
        pixels, size = self.view.read(sample.picture)
        shape = self.view.measured_shape(*size, self.mask_size)
        mask = read_mask(sample.mask, size, sample.picture, shape) if sample.mask else None
        return Item(to_unit_range(pixels), mask, sample.kind, self.name(sample), size)

    def name(self, sample: Sample) -> str:
        """Return the picture's path within the category's folder."""
        return sample.picture.relative_to(self.category_dir).as_posix()

    def names(self) -> list[str]:
        return [self.name(sample) for sample in self.samples]

    def sizes(self) -> list[Size]:
        """Return the upright (width, height) of the pictures."""
        paths = [sample.picture for sample in self.samples]
        return [read_size(path) or read_picture(path).size for path in paths]

    def squares(self) -> dict[str, int]:
        """Return by name how many squares each picture has the pixels of: see `View.squares`."""
        sizes = self.sizes() if self.view.fit != SQUARE else [(1, 1)] * len(self)
        return {name: self.view.squares(*size) for name, size in zip(self.names(), sizes, strict=True)}

    def only(self, names: Collection[str]) -> "ImageFolder":
        """Return a folder of those pictures whose names are among `names`."""
        selected, chosen = copy.copy(self), set(names)
        selected.samples = [sample for sample in self.samples if self.name(sample) in chosen]
        return selected

    def without(self, names: Collection[str]) -> "ImageFolder":
        """Return a folder of all pictures but those of `names`."""
        return self.only(set(self.names()) - set(names))

    def split(self, share: float, most: int, seed: int) -> tuple["ImageFolder", "ImageFolder"]:
        """Return (training set, held-out set): the latter is `share` of all pictures, at most `most`."""
        held_out = self.sample(held_out_count(len(self), share, most), seed)
        return self.without(held_out.names()), held_out

    def sample(self, count: int, seed: int) -> "ImageFolder":
        """Return a folder of `count` pictures that `seed` chooses, or of all if there are fewer."""
        # a hash of seed and name chooses, so that one more picture changes the choice by one at most
        hashes = {name: hashlib.sha256(f"{seed} {name}".encode()).digest() for name in self.names()}
        return self.only(sorted(hashes, key=hashes.__getitem__)[:count])

    def least_mask_sizes(self, sizes: Sequence[int], workers: int) -> list[int]:
        """Return, for each mask that marks a defect, the first of `sizes` at which it still does, else the last."""

        def least_size(sample: Sample) -> int | None:
            levels = mask_levels(*read_mask_values(sample.mask)) if sample.mask else np.zeros((1, 1), np.uint8)
            height, width = levels.shape
            shapes = {size: self.view.measured_shape(width, height, size) for size in sizes}
            marked = (size for size, shape in shapes.items() if resize_mask(levels, shape).any())
            return next(marked, sizes[-1]) if is_marked(levels).any() else None

        with ThreadPoolExecutor(max(1, workers)) as pool:
            return [size for size in pool.map(least_size, self.samples) if size is not None]

    def batches(self, size: int, workers: int) -> Iterator[list[Item]]:
        """Yield the items in order, `size` at a time."""
        return read_ahead(self.__getitem__, range(len(self)), size, workers)

    def pixels(self, workers: int) -> list[Tensor]:
        """Return all pictures as the network gets them, each (C, H, W) uint8, decoded by `workers` threads."""
        with ThreadPoolExecutor(max(1, workers)) as pool:
            return list(pool.map(lambda sample: self.view.read(sample.picture)[0], self.samples))


def held_out_count(total: int, share: float, most: int) -> int:
    """Return the number of held-out pictures: `share` of `total`, from 1 to `most`, or 0 if `share` is 0."""
    return min(max(1, round(share * total)), most, total - 1) if share else 0  # one stays for training


def picture_fingerprint(samples: Iterable[Sample]) -> dict[str, int | str]:
    """Return the number of pictures and masks, and a hash of their names and contents."""
    owners = [(path, sample) for sample in samples for path in sample.files()]
    hashes = zip(owners, hash_files([path for path, _ in owners]), strict=True)
    lines = [f"{owner.name(path)} {file_hash}" for (path, owner), file_hash in hashes]
    digest = hashlib.sha256("\n".join(lines).encode(errors="surrogateescape"))
    return {"files": len(owners), "hash": digest.hexdigest()[:HASH_DIGITS]}


def hash_files(paths: Sequence[Path]) -> list[str]:
    """Return the hash of each file's content."""
    facts = [path.stat() for path in paths]
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        return list(pool.map(hash_file, paths, (fact.st_size for fact in facts), (fact.st_mtime_ns for fact in facts)))


@functools.lru_cache(maxsize=2**17)
def hash_file(path: Path, size: int, changed: int) -> str:
    """Return the hash of a file's content; read it again only if its size or time of change differs."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_ahead(read: Callable[[Key], Read], keys: Sequence[Key], size: int, workers: int) -> Iterator[list[Read]]:
    """Yield `read(key)` for all keys in order, `size` at a time; `workers` threads read one batch ahead."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        pending: list[list[Future[Read]]] = []
        for first in range(0, len(keys), size):
            pending.append([pool.submit(read, key) for key in keys[first : first + size]])
            if len(pending) == 2:
                yield [future.result() for future in pending.pop(0)]
        for batch in pending:
            yield [future.result() for future in batch]


def measure_bits(pictures: Sequence[Path], workers: int) -> tuple[int, int]:
    """Return the highest value of the pictures of 16 bits, as far as it matters, and the fewest bits that hold it."""
    highest = 0
    for batch in read_ahead(value_if_deep, pictures, MEASURED_AT_ONCE, workers):
        highest = max(highest, *batch)
        if smallest_depth(highest) == DEEPEST and highest:
            break  # no picture can change it
    return highest, smallest_depth(highest)


def value_if_deep(path: Path) -> int:
    try:
        return highest_value(path) or 0
    except (ValueError, OSError):  # reported when its pixels are read
        return 0


def to_unit_range(pixels: Tensor) -> Tensor:
    """Return uint8 pixels of 0…255 as float32 in [−1, 1]."""
    return pixels.float().div_(127.5).sub_(1)


def to_pixels(picture: Tensor) -> Tensor:
    """Return a picture in [−1, 1] as uint8 pixels."""
    return ((picture + 1) * 127.5).round().byte()


def categories_in(data_dir: Path) -> list[str]:
    """Return the names of the folders that hold a folder train or test. Raise MissingFileError if there is none."""
    names = [name for name in folder_names(data_dir) if any((data_dir / name / part).is_dir() for part in PARTS)]
    if not names:
        raise MissingFileError(f"no categories in {data_dir}; each is a folder that holds train/good and test")
    return names


def check_category(category_dir: Path) -> None:
    """Raise MissingFileError, with the nearest name, if there is no such folder."""
    if category_dir.is_dir():
        return
    names = folder_names(category_dir.parent)
    close = difflib.get_close_matches(category_dir.name, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"it holds {', '.join(names[:20]) or 'no folders'}"
    raise MissingFileError(f"no category {category_dir.name!r} in {category_dir.parent}; {hint}")


def folder_names(data_dir: Path) -> list[str]:
    if not data_dir.is_dir():
        raise MissingFileError(f"no data at {data_dir}; set data.data_dir to the folder that holds the categories")
    return [folder.name for folder in folders_in(data_dir)]


def find_test_samples(category_dir: Path, masks: bool) -> Iterator[Sample]:
    test_dir = category_dir / "test"
    if not test_dir.is_dir():
        raise MissingFileError(f"no test pictures: {test_dir} is not a folder; put them in subfolders of it")
    folders = folders_in(test_dir)
    if not folders:
        raise MissingFileError(f"{test_dir} has no subfolders; put normal pictures in {NORMAL}, others in <defect>")
    for folder in folders:
        samples = list(find_samples(folder, folder.name))
        yield from find_masks(category_dir, samples) if masks and folder.name != NORMAL else samples


def find_samples(folder: Path, kind: str) -> Iterator[Sample]:
    """Yield the pictures of a folder and its subfolders as of a kind, without masks."""
    for path in pictures_in(folder):
        yield Sample(path, kind, subfolder=path.parent.relative_to(folder))


def find_masks(category_dir: Path, samples: Sequence[Sample]) -> Iterator[Sample]:
    """Yield the samples with their masks. Raise UserError where a mask is missing or belongs to two pictures."""
    matched, owners = match_masks(category_dir, samples), dict[Path, Sample]()
    for sample in matched:
        name = sample.name(sample.picture)
        if sample.mask is None:
            remedy = f"add ground_truth/{name.rpartition('.')[0]}{MASK_ENDING}.png, or set data.mask=False"
            raise MissingFileError(f"no mask for test/{name} in {category_dir}; {remedy}")
        if owner := owners.get(sample.mask):
            problem = f"test/{owner.name(owner.picture)} and test/{name} in {category_dir} have one mask"
            remedy = "rename one of them and give it a mask of its own, or set data.mask=False"
            raise UserError(f"{problem}, ground_truth/{sample.name(sample.mask)}; {remedy}")
        owners[sample.mask] = sample
        yield sample


def match_masks(category_dir: Path, samples: Iterable[Sample]) -> Iterator[Sample]:
    """Yield the samples with the masks of their names: <stem>_mask.*, else <stem>.*, where there is one."""
    masks_of = functools.cache(masks_in)
    for sample in samples:
        masks, stem = masks_of(category_dir / "ground_truth" / sample.kind / sample.subfolder), sample.picture.stem
        yield replace(sample, mask=masks.get(stem + MASK_ENDING) or masks.get(stem))


def masks_in(folder: Path) -> dict[str, Path]:
    """Return the mask files of a folder by stem."""
    return {path.stem: path for path in sorted(folder.iterdir()) if is_picture(path)} if folder.is_dir() else {}


def pictures_in(folder: Path) -> list[Path]:
    """Return the pictures of a folder and its subfolders, sorted. Raise MissingFileError if there is none."""
    if not folder.is_dir():
        raise MissingFileError(f"no folder {folder}; put the pictures there")
    files = files_below(folder)
    report_dangling(files)
    return check_pictures(folder, list(filter(is_picture, files)))


def files_below(folder: Path) -> list[Path]:
    """Return all files but hidden ones in a folder and its subfolders, sorted; a linked folder counts once."""
    seen, files = {folder.resolve()}, list[Path]()
    for parent, folders, names in os.walk(folder, followlinks=True):
        inner = {Path(parent, name).resolve(): name for name in sorted(folders) if not name.startswith(".")}
        folders[:] = [name for place, name in inner.items() if place not in seen]
        files += [Path(parent, name) for name in names if not name.startswith(".")]
        seen |= inner.keys()
    return sorted(files)


def is_dangling(path: Path) -> bool:
    """Return whether a path is a link to a file or folder that does not exist."""
    return path.is_symlink() and not path.exists()


def report_dangling(files: Iterable[Path]) -> None:
    if dangling := list(filter(is_dangling, files)):
        more = f" and {len(dangling) - 1} more" if len(dangling) > 1 else ""
        print_once(
            f"left out, as what they link to does not exist: {dangling[0]}{more}; restore it, or remove the link"
        )


def pictures_below(source: Path, leave_out: Collection[Path]) -> list[Path]:
    """Return `source` if it is a file, else all pictures below it, sorted, but none in a folder of `leave_out`."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise MissingFileError(f"no picture or folder at {source}; check --input")
    others = {folder.resolve() for folder in leave_out}
    visible = [path for path in sorted(source.rglob("*")) if not is_hidden(path, source)]
    report_dangling(visible)
    pictures = [path for path in visible if is_picture(path) and others.isdisjoint(path.resolve().parents)]
    return check_pictures(source, pictures)


def check_pictures(folder: Path, pictures: list[Path]) -> list[Path]:
    if not pictures:
        raise MissingFileError(f"no pictures in {folder}; it should hold {', '.join(sorted(SUFFIXES))}")
    return pictures


def is_hidden(path: Path, source: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(source).parts)


def folders_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
