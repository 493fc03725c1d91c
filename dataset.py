"""Pictures and masks from disk, in order: the MVTec AD layout.

<data_dir>/<category>/train/good/*                 normal pictures, all that training sees
<data_dir>/<category>/test/good/*, test/<defect>/*
<data_dir>/<category>/ground_truth/<defect>/<stem>_mask.*  (or <stem>.*)
"""

import copy
import difflib
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
NORMAL = "good"
MASK_ENDING = "_mask"
SIXTEEN_TO_EIGHT_BIT = 257  # 65535 / 255
LARGEST_LABEL = 127  # masks with no value above it hold labels 0…n, of which any but 0 is a defect


class Item(NamedTuple):
    """One picture (C, H, W) in [−1, 1], its mask (H, W) or None where there is none, whether it is defective, and its path in the category."""

    picture: Tensor
    mask: NDArray[np.bool_] | None
    label: bool
    path: str


@dataclass(frozen=True)
class Sample:
    """Where a picture and its mask lie, and the folder (kind of defect, or good) that it is in."""

    picture: Path
    kind: str
    mask: Path | None = None


class ImageFolder:
    """The pictures of one split, sorted by path. Items are read when asked for.

    Raises FileNotFoundError where a folder, its pictures or a mask is missing, ValueError for a file that is not a picture.
    """

    def __init__(self, category_dir: Path, split: str, image_size: int, channels: int = 3, *, masks: bool = True):
        check_category(category_dir)
        self.category_dir, self.image_size, self.channels = category_dir, image_size, channels
        self.samples = list(train_samples(category_dir) if split == "train" else test_samples(category_dir, masks))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Item:
        sample = self.samples[index]
        picture = read_picture(sample.picture, self.channels)
        mask = None
        if sample.mask is not None:
            mask = read_mask(sample.mask, picture.size, sample.picture, self.image_size)
        resized = resize(picture, self.image_size)
        return Item(to_unit_range(resized), mask, sample.kind != NORMAL, sample.picture.relative_to(self.category_dir).as_posix())

    def thinned(self, count: int) -> "ImageFolder":
        """At most `count` of the pictures, evenly spaced."""
        fewer = copy.copy(self)
        fewer.samples = [self.samples[index * len(self) // count] for index in range(count)] if count < len(self) else self.samples
        return fewer

    def batches(self, size: int, workers: int) -> Iterator[list[Item]]:
        """Items in order, `size` at a time, decoded by `workers` threads one batch ahead."""
        with ThreadPoolExecutor(max(1, workers)) as pool:
            pending: list[list] = []
            for first in range(0, len(self), size):
                pending.append([pool.submit(self.__getitem__, index) for index in range(first, min(first + size, len(self)))])
                if len(pending) == 2:
                    yield [future.result() for future in pending.pop(0)]
            for batch in pending:
                yield [future.result() for future in batch]

    def pixels(self, workers: int) -> Tensor:
        """All pictures at image_size as one uint8 tensor (N, C, H, W), decoded by `workers` threads."""
        with ThreadPoolExecutor(max(1, workers)) as pool:
            return torch.stack(list(pool.map(lambda sample: resize(read_picture(sample.picture, self.channels), self.image_size), self.samples)))


def to_unit_range(pixels: Tensor) -> Tensor:
    """uint8 0…255 → float32 −1…1."""
    return pixels.float().div(127.5).sub(1)


def shuffled_batches(pixels: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Pictures in [−1, 1] on the generator's device, in a new order; the last incomplete batch is dropped. `pixels` (N, C, H, W) uint8."""
    order = torch.randperm(len(pixels), generator=generator, device=generator.device).cpu()
    for batch in order[: len(order) // size * size].split(size):
        yield to_unit_range(pixels[batch].to(generator.device))


def full_batches(pictures: int, size: int, key: str) -> int:
    """How many batches of `size` an epoch has. Raises ValueError where it has none; `key` names the setting."""
    if pictures < size:
        raise ValueError(f"{key} is {size}, but train/good holds {pictures} pictures; set {key}={pictures} or less")
    return pictures // size


def read_picture(path: Path, channels: int = 3) -> Image.Image:
    """The picture upright, as RGB or (channels = 1) grey, 8 bit; 16-bit values are scaled, transparency is put on white."""
    picture = open_upright(path)
    if picture.mode.startswith("I"):  # 16-bit grey, which Pillow opens as I;16 or I
        picture = Image.fromarray((np.asarray(picture, np.float32) / SIXTEEN_TO_EIGHT_BIT).clip(0, 255).round().astype(np.uint8))
    return on_background(picture, "white").convert("L" if channels == 1 else "RGB")


def open_upright(path: Path) -> Image.Image:
    """The picture as it is stored, turned as its EXIF says."""
    try:
        with Image.open(path) as opened:
            opened.load()
            picture = ImageOps.exif_transpose(opened)
    except FileNotFoundError:
        raise FileNotFoundError(f"no picture at {path}") from None
    except PermissionError:
        raise PermissionError(f"no permission to read {path}; change it and run again") from None
    except Image.DecompressionBombError:
        raise ValueError(f"{path} has more pixels than Pillow opens safely, {2 * (Image.MAX_IMAGE_PIXELS or 0):,}; make it smaller") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        reason = "it is empty" if path.stat().st_size == 0 else "it is cut short" if "truncated" in str(error) else "its content is not a picture"
        raise ValueError(f"{path} can't be read: {reason}; replace or remove it") from error
    if picture.mode == "F":
        raise ValueError(f"{path} can't be read: its pixels are floating-point numbers; save it with 8 or 16 bits")
    return picture


def on_background(picture: Image.Image, colour: str) -> Image.Image:
    if not picture.has_transparency_data:
        return picture
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, colour), picture)


def resize(picture: Image.Image, size: int) -> Tensor:
    """(C, size, size) uint8; bilinear, antialiased."""
    pixels = np.array(picture.resize((size, size), Image.Resampling.BILINEAR))
    return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1).contiguous()


def read_mask(path: Path, picture_size: tuple[int, int], picture_path: Path, size: int) -> NDArray[np.bool_]:
    """(size, size), true where defective; binary after the resize, not before."""
    picture = open_upright(path)
    labels = picture.mode == "P" or picture.mode.startswith("I")  # palette indices and deep values count as they are
    values = np.asarray(picture if labels else on_background(picture, "black").convert("L"))
    if values.shape[::-1] != picture_size:
        raise ValueError(
            f"mask {path} is {values.shape[1]}×{values.shape[0]}, its picture {picture_path} {picture_size[0]}×{picture_size[1]}; "
            "make them the same, or set data.mask=False"
        )
    grey = values if not labels and values.max() > LARGEST_LABEL else np.where(values > 0, 255, 0)
    resized = Image.fromarray(grey.astype(np.uint8)).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized) > LARGEST_LABEL


def check_category(category_dir: Path) -> None:
    if category_dir.is_dir():
        return
    data_dir = category_dir.parent
    if not data_dir.is_dir():
        raise FileNotFoundError(f"no data at {data_dir}; set data.data_dir to the folder that holds the categories")
    there = [folder.name for folder in folders_in(data_dir)]
    close = difflib.get_close_matches(category_dir.name, there, n=1)
    hint = f"did you mean {close[0]}?" if close else f"it holds {', '.join(there[:20]) or 'no folders'}"
    raise FileNotFoundError(f"no category {category_dir.name!r} in {data_dir}; {hint}")


def train_samples(category_dir: Path) -> Iterator[Sample]:
    for path in pictures_in(category_dir / "train" / NORMAL):
        yield Sample(path, NORMAL)


def test_samples(category_dir: Path, masks: bool) -> Iterator[Sample]:
    test_dir = category_dir / "test"
    if not test_dir.is_dir():
        raise FileNotFoundError(f"no test pictures: {test_dir} is not a folder; put good and defective pictures in its subfolders")
    kinds = folders_in(test_dir)
    if not kinds:
        raise FileNotFoundError(
            f"{test_dir} has no subfolders; put normal pictures in {test_dir / NORMAL}, defective ones in folders named after the defect"
        )
    for folder in kinds:
        truth = masks_in(category_dir / "ground_truth" / folder.name) if masks and folder.name != NORMAL else {}
        for path in pictures_in(folder):
            yield Sample(path, folder.name, mask_of(path, category_dir, truth) if masks and folder.name != NORMAL else None)


def masks_in(folder: Path) -> dict[str, Path]:
    """Mask files by stem."""
    return {path.stem: path for path in sorted(folder.iterdir()) if is_picture(path)} if folder.is_dir() else {}


def mask_of(picture: Path, category_dir: Path, truth: dict[str, Path]) -> Path:
    mask = truth.get(picture.stem + MASK_ENDING) or truth.get(picture.stem)
    if mask is None:
        wanted = Path("ground_truth") / picture.parent.name / f"{picture.stem}{MASK_ENDING}.png"
        raise FileNotFoundError(
            f"no mask for {picture.relative_to(category_dir).as_posix()} in {category_dir}; looked for {wanted.as_posix()}; "
            "add it, or set data.mask=False"
        )
    return mask


def pictures_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; put the pictures there")
    found = sorted(path for path in folder.iterdir() if is_picture(path))
    if not found:
        raise FileNotFoundError(f"no pictures in {folder}; it should hold {', '.join(sorted(SUFFIXES))}")
    return found


def folders_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
