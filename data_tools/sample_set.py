"""Make the sample set: real textures with synthetic defects in the MVTec AD layout, from a seed, without a download.

The textures are photographs of scikit-image, 512 pixels square. Each is cut into 4 × 4 blocks. The seed draws one block
of each row and column for the test pictures; training pictures are crops of the other twelve, and their names tell the
block. No crop crosses the edge of a block: pictures of two blocks share no pixel, and two training blocks differ like a
training and a test block. Masks mark exactly the pixels that a defect may change.
"""

import json
import math
import shutil
from itertools import chain
from pathlib import Path

import numpy as np
import skimage.data
from numpy.typing import NDArray
from PIL import Image

from data_tools.category_writer import is_new, read_note
from images.synthetic_defects import DEFECTS
from runtime.errors import UserError, UserFileError
from storage import folder_lock
from storage.atomic_file import atomic_write, write_error_text

TEXTURES = ("brick", "grass", "gravel")
CROP = 96  # pixels
BLOCKS = 4  # in a row, and in a column, of the photograph
TRAINING_PICTURES, NORMAL_PICTURES, PICTURES_PER_DEFECT = 240, 32, 12
NOTE, MAKER = "sample.json", "DDAD sample set"
REMEDY = "change data.data_dir"
VERSION = 2  # of the generator; a set of another version is replaced

Grey = NDArray[np.float32]


def ensure_sample_set(data_dir: Path, seed: int) -> None:
    """Make the sample set in `data_dir`; an unfinished one, or one of another seed or version, is replaced."""
    note = {"made by": MAKER, "version": VERSION, "seed": seed}
    earlier = read_sample_note(data_dir)
    if earlier == note:
        return
    if (version := earlier.get("version", VERSION)) != VERSION:
        print(f"the sample set of version {version} is replaced by version {VERSION}; train again on its pictures")
    count = TRAINING_PICTURES + NORMAL_PICTURES + len(DEFECTS) * PICTURES_PER_DEFECT
    textures = ", ".join(TEXTURES)
    print(f"making the sample set in {data_dir} (seed {seed}): {textures}, {count} pictures each", flush=True)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with folder_lock.locked(data_dir, REMEDY):
            write_sample_note(data_dir, {"made by": MAKER})  # marks an unfinished sample set
            for index, texture in enumerate(TEXTURES):
                if (data_dir / texture).exists():
                    shutil.rmtree(data_dir / texture)
                write_sample_category(data_dir / texture, texture, np.random.default_rng([seed, index]))
            write_sample_note(data_dir, note)
    except OSError as error:
        if error.errno is None:  # its message names the remedy already
            raise
        message = f"can't make the sample set in {data_dir}: {write_error_text(error, REMEDY)}"
        raise UserFileError(message) from error


def write_sample_note(data_dir: Path, note: dict[str, object]) -> None:
    with atomic_write(data_dir / NOTE, REMEDY, "w") as file:
        json.dump(note, file)


def read_sample_note(data_dir: Path) -> dict[str, object]:
    """Return the note on the sample set in `data_dir`, empty for a new folder. Raise UserError for other content."""
    if is_new(data_dir):
        return {}
    path, remedy = data_dir / NOTE, "name a new folder with data.data_dir"
    if not path.is_file():
        raise UserError(f"{data_dir} holds other files than the sample set; {remedy}, or change data.name")
    note = read_note(path, MAKER)
    if note is None:
        raise UserError(f"{path} is unreadable, damaged or another program's; {remedy}")
    return note


def write_sample_category(folder: Path, texture: str, rng: np.random.Generator) -> None:
    training, testing = divide_blocks(load_photograph(texture), rng)
    others = [load_photograph(other) for other in TEXTURES if other != texture]
    for name, block in enumerate(training, start=1):
        for number, picture in enumerate(spread_crops(block, TRAINING_PICTURES // len(training), rng)):
            save_picture(folder / "train" / "good" / f"block{name:02}_{number:02}.png", picture)
    per_block = math.ceil((NORMAL_PICTURES + len(DEFECTS) * PICTURES_PER_DEFECT) / len(testing))
    unseen = chain(*zip(*(spread_crops(block, per_block, rng) for block in testing), strict=True))  # from all in turn
    for number in range(NORMAL_PICTURES):
        save_picture(folder / "test" / "good" / f"{number:03}.png", next(unseen))
    for kind, add_defect in DEFECTS.items():
        for number in range(PICTURES_PER_DEFECT):
            picture, mask = add_defect(next(unseen), others[number % len(others)], rng)
            save_picture(folder / "test" / kind / f"{number:03}.png", picture)
            save_picture(folder / "ground_truth" / kind / f"{number:03}_mask.png", mask.astype(np.float32))


def divide_blocks(photograph: Grey, rng: np.random.Generator) -> tuple[list[Grey], list[Grey]]:
    """Return the blocks of a photograph for training, and those for testing, one of each row and column."""
    for_testing = rng.permutation(BLOCKS)  # of each row, the column
    training: list[Grey] = []
    testing: list[Grey] = []
    for row, band in enumerate(np.array_split(photograph, BLOCKS, axis=0)):
        for column, block in enumerate(np.array_split(band, BLOCKS, axis=1)):
            (testing if column == for_testing[row] else training).append(block)
    return training, testing


def spread_crops(block: Grey, count: int, rng: np.random.Generator) -> list[Grey]:
    """Return `count` squares of CROP pixels from places that are spread over a block, so that none is a near copy."""
    grid = math.ceil(math.sqrt(count))
    cells = np.stack(np.divmod(rng.permutation(grid**2)[:count], grid), axis=1)  # one place in each
    free = np.array(block.shape) - CROP + 1
    places = ((cells + rng.random((count, 2))) / grid * free).astype(int)
    return [block[top : top + CROP, left : left + CROP] for top, left in places]


def load_photograph(texture: str) -> Grey:
    return getattr(skimage.data, texture)().astype(np.float32) / 255


def save_picture(path: Path, picture: Grey) -> None:
    """Write grey values of 0…1 as 8 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8)).save(path)
