"""Write a category in the MVTec AD layout: pictures as hard links or copies, masks drawn as PNG.

A category is planned file by file; the next run continues a stopped one. The originals are only read: a hard link
shares their content, so each file is written under a temporary name and renamed.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dataset import MASK_ENDING, NORMAL, PRIVATE_SPLITS, VALIDATION
from images.read import read_full_mask
from runtime.errors import UserError, UserFileError
from runtime.progress import count_progress
from storage import folder_lock
from storage.atomic_file import atomic_write, remove_stale

NOTE, MAKER = "preparation.json", "DDAD preparation"
REMEDY = "choose another folder with --output"
SPLITS = ("train", "test", "ground_truth", VALIDATION, *PRIVATE_SPLITS)
TRAIN_GOOD, TEST_GOOD, VALIDATION_GOOD = (f"{split}/{NORMAL}" for split in ("train", "test", VALIDATION))
UNNAMED_KIND = "bad"  # kind of defect where the data names none

Mask = NDArray[np.bool_]  # (H, W), true where defective


class DataSetInfo(NamedTuple):
    name: str
    source: str  # a page of the web, or a path
    licence: str


class PlannedFile(NamedTuple):
    """A file of the category: a copy of the only source or, with `draw`, a mask that depends on all sources."""

    sources: tuple[Path, ...]
    draw: Callable[[], Mask] | None = None
    detail: str = ""  # what the mask depends on besides the sources' names and sizes


@dataclass
class CategoryPlan:
    """The files of one category by their path in it."""

    data_set: DataSetInfo
    category: str
    files: dict[str, PlannedFile] = field(default_factory=dict)

    def add_file(self, folder: str, source: Path, name: str = "") -> None:
        """Copy a picture or mask into `folder`, such as test/crack, under its own name or `name`."""
        self._add(f"{folder}/{name or source.name}", PlannedFile((source,)))

    def add_mask(self, kind: str, stem: str, *sources: Path) -> None:
        """Draw the mask of test/<kind>/<stem>.*: the union of the masks `sources`."""
        self.add_drawn_mask(kind, stem, PlannedFile(sources, lambda: merge_masks(sources)))

    def add_drawn_mask(self, kind: str, stem: str, file: PlannedFile) -> None:
        self._add(f"ground_truth/{kind}/{stem}{MASK_ENDING}.png", file)

    def _add(self, path: str, file: PlannedFile) -> None:
        if path in self.files:
            sources = f"{self.files[path].sources[0]} and {file.sources[0]}"
            raise UserError(f"{sources} would both be {self.category}/{path}; rename or remove one")
        self.files[path] = file

    def counts(self) -> dict[str, int]:
        """Return the numbers of pictures in train/good, in test/good, and in all other folders of test."""
        folders = Counter("/".join(path.split("/")[:2]) for path in self.files)  # without subfolders of a kind
        train, test = folders.pop(TRAIN_GOOD, 0), folders.pop(TEST_GOOD, 0)
        defective = sum(count for folder, count in folders.items() if folder.startswith("test/"))
        return {"train normal": train, "test normal": test, "test defective": defective}

    def without_mask(self) -> list[str]:
        """Return the defective pictures that have no mask."""
        masks = {path.rpartition(".")[0] for path in self.files if path.startswith("ground_truth/")}
        defective = [path for path in self.files if path.startswith("test/") and not path.startswith(f"{TEST_GOOD}/")]
        stems = {path: path.replace("test", "ground_truth", 1).rpartition(".")[0] for path in defective}
        return [path for path, stem in stems.items() if masks.isdisjoint((stem, stem + MASK_ENDING))]

    def fingerprint(self) -> str:
        """Return a hash of all paths and of the names and sizes of their sources."""
        lines = [
            f"{path}\t{file.detail}\t" + "\t".join(f"{source.name} {source.stat().st_size}" for source in file.sources)
            for path, file in sorted(self.files.items())
        ]
        return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def merge_masks(sources: tuple[Path, ...]) -> Mask:
    """Return the union of the masks of one picture. Raise UserError where their sizes differ."""
    masks = [read_full_mask(source) for source in sources]
    for source, mask in zip(sources, masks, strict=True):
        if mask.shape != masks[0].shape:
            sizes = " and ".join(f"{width}×{height}" for height, width in (masks[0].shape, mask.shape))
            raise UserError(f"the masks {sources[0]} and {source} of one picture are {sizes} pixels; make them equal")
    return np.logical_or.reduce(masks)


def write_category(plan: CategoryPlan, folder: Path) -> None:
    """Write a category into `folder`, with a note of its origin; complete files of a stopped run stay."""
    data_set, fingerprint = plan.data_set, plan.fingerprint()
    origin = {"data set": data_set.name, "source": data_set.source, "licence": data_set.licence}
    note = {"made by": MAKER, **origin, "pictures": plan.counts(), "plan": fingerprint}
    refuse_other_content(folder, fingerprint)
    with folder_lock.locked(folder, REMEDY):
        remove_stale(folder, *SPLITS)
        write_plan_note(folder, {**note, "finished": False})
        files = sorted(plan.files.items())
        for path, file in count_progress(files, len(files), f"preparing {plan.category}", "file"):
            target = folder / path
            if file.draw and not target.exists():
                mask = Image.fromarray(file.draw().astype(np.uint8) * 255)
                with atomic_write(target, REMEDY) as opened:
                    mask.save(opened, format="PNG")
            elif not target.exists():
                link_or_copy(file.sources[0], target)
        write_plan_note(folder, {**note, "finished": True})


def link_or_copy(source: Path, target: Path) -> None:
    """Make a hard link, which takes no space, or a copy where the file system allows no link."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):
        os.link(source.resolve(), target)
        return
    try:
        original = source.open("rb")
    except OSError as error:
        raise UserFileError(f"can't read {source}: {error.strerror}; give permission, or unpack it again") from error
    with original, atomic_write(target, REMEDY) as copy:
        shutil.copyfileobj(original, copy)


def refuse_other_content(folder: Path, fingerprint: object) -> None:
    """Raise UserError where `folder` holds anything but this plan's files; remove another plan's unfinished files."""
    if is_new(folder):
        return
    note = read_note(folder / NOTE, MAKER)
    if note is None:
        raise UserError(f"{folder} holds files that no preparation wrote; {REMEDY}")
    if note.get("plan") == fingerprint:
        return
    origin = f"{folder} was prepared from other files, or with another split or seed"
    if note.get("finished") is not False:
        raise UserError(f"{origin}; remove it, or {REMEDY}")
    print(f"{origin}, and not finished; it is removed and prepared again", flush=True)
    shutil.rmtree(folder)


def read_note(path: Path, maker: str) -> dict[str, object] | None:
    """Return the note on a folder; None where it can't be read or is not by `maker`."""
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return note if isinstance(note, dict) and note.get("made by") == maker else None


def is_new(folder: Path) -> bool:
    """Return whether the folder holds nothing but hidden files: a killed run leaves its lock and a temporary note."""
    return not folder.exists() or (folder.is_dir() and all(path.name.startswith(".") for path in folder.iterdir()))


def write_plan_note(folder: Path, note: Mapping[str, object]) -> None:
    with atomic_write(folder / NOTE, REMEDY, "w") as file:
        json.dump(note, file, indent=2, ensure_ascii=False)
        file.write("\n")
