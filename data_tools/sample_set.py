"""The embedded sample set: real textures with made defects, in the MVTec AD layout, from a seed and without a download.

The textures are scikit-image's photographs brick, grass and gravel, 512 pixels square. Training pictures are crops of the left part,
test pictures of the right part: they share no pixel of the photograph. Masks mark exactly the pixels that a defect may change.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import skimage.data
from numpy.typing import NDArray
from PIL import Image

from images.synthetic_defects import DEFECTS, random_crop
from runtime.errors import UserError, UserFileError
from storage import folder_lock
from storage.atomic_file import atomic_write, write_error_text

TEXTURES = ("brick", "grass", "gravel")
CROP = 128  # pixels
DIVIDE = 304  # column of the photograph where training ends and testing begins
TRAINING_PICTURES, NORMAL_PICTURES, PICTURES_PER_DEFECT = 240, 32, 12
NOTE, MAKER = "sample.json", "DDAD sample set"
REMEDY = "change data.data_dir"
VERSION = 1  # of the generator; a set of another version is made again

Grey = NDArray[np.float32]


def ensure_sample_set(data_dir: Path, seed: int) -> None:
    """Make the sample set in `data_dir`, unless it holds the one of this seed; one that was not finished, or of another seed, is replaced.

    Raises ValueError where the folder holds something else, OSError where it can't be written.
    """
    note = {"made by": MAKER, "version": VERSION, "seed": seed}
    if read_sample_note(data_dir) == note:
        return
    count = TRAINING_PICTURES + NORMAL_PICTURES + len(DEFECTS) * PICTURES_PER_DEFECT
    print(
        f"making the sample set in {data_dir} (seed {seed}): {', '.join(TEXTURES)}, {count} pictures each", flush=True
    )
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with folder_lock.locked(data_dir, REMEDY):
            write_sample_note(data_dir, {"made by": MAKER})  # ours, but not finished
            for index, texture in enumerate(TEXTURES):
                if (data_dir / texture).exists():
                    shutil.rmtree(data_dir / texture)
                make_sample_category(data_dir / texture, texture, np.random.default_rng([seed, index]))
            write_sample_note(data_dir, note)
    except OSError as error:
        if error.errno is None:  # it says already what helps
            raise
        raise UserFileError(f"can't make the sample set in {data_dir}: {write_error_text(error, REMEDY)}") from error


def write_sample_note(data_dir: Path, note: dict[str, object]) -> None:
    with atomic_write(data_dir / NOTE, REMEDY, "w") as file:
        json.dump(note, file)


def read_sample_note(data_dir: Path) -> dict[str, object]:
    """What the sample set in `data_dir` says of itself; nothing where there is no folder, or an empty one."""
    if not data_dir.exists() or (data_dir.is_dir() and all(path.name.startswith(".") for path in data_dir.iterdir())):
        return {}  # hidden ones are a killed run's lock and unfinished note
    path = data_dir / NOTE
    if not path.is_file():
        raise UserError(
            f"data.data_dir is {data_dir}, which holds other files; name a new folder for the sample set, or change data.name"
        )
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        note = None
    if not isinstance(note, dict) or note.get("made by") != MAKER:
        raise UserError(f"{path} is damaged or another program's; name a new folder with data.data_dir")
    return note


def make_sample_category(folder: Path, texture: str, rng: np.random.Generator) -> None:
    photograph = getattr(skimage.data, texture)().astype(np.float32) / 255
    training, testing = photograph[:, :DIVIDE], photograph[:, DIVIDE:]
    others = [getattr(skimage.data, other)().astype(np.float32) / 255 for other in TEXTURES if other != texture]
    for number in range(TRAINING_PICTURES):
        save_picture(folder / "train" / "good" / f"{number:03}.png", crop_texture(training, rng))
    for number in range(NORMAL_PICTURES):
        save_picture(folder / "test" / "good" / f"{number:03}.png", crop_texture(testing, rng))
    for kind, spoil in DEFECTS.items():
        for number in range(PICTURES_PER_DEFECT):
            picture, mask = spoil(crop_texture(testing, rng), others[number % len(others)], rng)
            save_picture(folder / "test" / kind / f"{number:03}.png", picture)
            save_picture(folder / "ground_truth" / kind / f"{number:03}_mask.png", mask.astype(np.float32))


def crop_texture(photograph: Grey, rng: np.random.Generator) -> Grey:
    return random_crop(photograph, CROP, rng)


def save_picture(path: Path, picture: Grey) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8)).save(path)
