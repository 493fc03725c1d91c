"""The region of a fixed camera's pictures that counts (data.region); what lies outside is never judged."""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from images.annotations import read_annotations
from images.read import Size, check_pixels, naming_file, open_upright, read_full_mask, read_header
from runtime.errors import MissingFileError, UserError

DRAWING = ".json"  # polygons of a labelling tool; any other file is a picture
HALF = 128  # of 255: a pixel of a resized region counts if half of it is covered
HASH_DIGITS = 16
SIZES_KEPT = 16  # of resized regions


@dataclass(frozen=True, eq=False)
class JudgedRegion:
    """A mask (H, W) in the size of the pictures, true where they are judged, and the file that it came from."""

    path: Path
    mask: NDArray[np.bool_]

    @property
    def size(self) -> Size:
        """Return (width, height)."""
        return self.mask.shape[1], self.mask.shape[0]

    @property
    def hash(self) -> str:
        """Return a hash of size and mask, the same for a drawing and for a picture of it."""
        content = f"{self.size}".encode() + np.packbits(self.mask).tobytes()
        return hashlib.sha256(content).hexdigest()[:HASH_DIGITS]

    def resized(self, height: int, width: int) -> Tensor:
        """Return the region (height, width) for maps of this size; it is never empty."""
        return resize_region(self, height, width)

    def select(self, maps: Tensor) -> Tensor:
        """Return the values of maps (…, H, W) inside the region, (…, P)."""
        return maps[..., self.resized(maps.shape[-2], maps.shape[-1]).to(maps.device)]

    def check_size(self, size: Size, picture: str) -> None:
        """Raise UserError unless `size` (width, height) is the region's. `picture` stands in the message."""
        if size != self.size:
            own, other = (f"{width}×{height}" for width, height in (self.size, size))
            remedy = "draw it on a picture of this camera, or set data.region=null"
            raise UserError(f"data.region {self.path} is {own} pixels, {picture} is {other}; {remedy}")

    def check_file(self, path: Path) -> None:
        """Raise UserError unless the picture at `path` has the region's size."""
        header = read_header(path)
        if header is None or header[0] != self.size:  # its header may not say how it is turned
            self.check_size(open_upright(path).size, str(path))


@functools.lru_cache(maxsize=SIZES_KEPT)
def resize_region(region: JudgedRegion, height: int, width: int) -> Tensor:
    levels = np.asarray(Image.fromarray(region.mask).convert("L").resize((width, height), Image.Resampling.BOX))
    return torch.from_numpy(levels >= min(HALF, int(levels.max())))


def read_region(path: Path) -> JudgedRegion:
    """Return the region of a picture (white: judged) or of a drawing: LabelMe, COCO or Label Studio.

    Raise MissingFileError if there is no file, UserError if it cannot be read or holds no judged pixel.
    """
    if not path.is_file():
        raise MissingFileError(f"no data.region at {path}; name a picture, white where pictures are judged, or null")
    mask = draw_region(path) if path.suffix.lower() == DRAWING else read_full_mask(path)
    if not mask.any():
        raise UserError(f"data.region {path} is all black, so nothing is judged; paint white what counts")
    return JudgedRegion(path, mask)


def draw_region(path: Path) -> NDArray[np.bool_]:
    """Return the union (H, W) of the shapes of a drawing. Raise UserError unless it is of one picture."""
    drawings = read_annotations(path)
    if len(drawings) != 1:
        raise UserError(f"data.region {path} has shapes on {len(drawings)} pictures; draw the region on one")
    size = drawings[0].size
    if size is None or min(size) < 1:
        raise UserError(f"data.region {path} does not state the size of its picture; export it again, or use a PNG")
    with naming_file(path):
        check_pixels(size)
    return drawings[0].mask(size)
