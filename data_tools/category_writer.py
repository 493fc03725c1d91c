"""A category in the MVTec AD layout, planned file by file and then made: of hard links or copies, and of masks that are drawn.

Making it can be stopped at any time and started again, to the same end. The originals are read alone: a hard link shares their content,
and nothing here opens a file of the layout for writing; it is written beside it and renamed.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dataset import MASK_ENDING, NORMAL
from images.read import read_full_mask
from runtime.errors import UserError, UserFileError
from runtime.progress import count_progress
from storage import folder_lock
from storage.atomic_file import atomic_write, remove_stale

NOTE, MAKER = "preparation.json", "DDAD preparation"
REMEDY = "choose another folder with --output"
SPLITS = ("train", "test", "ground_truth", "validation")
TRAIN_GOOD, TEST_GOOD = f"train/{NORMAL}", f"test/{NORMAL}"

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class PlannedFile:
    """Where a file of the layout comes from: `sources` holds the one that it is, or those that `draw` makes a mask of."""

    sources: tuple[Path, ...]
    draw: Callable[[], Mask] | None = None
    detail: str = ""  # what the mask depends on besides its sources' names and sizes


@dataclass
class CategoryPlan:
    """One category: its name, and its files by their place in it."""

    category: str
    files: dict[str, PlannedFile] = field(default_factory=dict)

    def picture(self, folder: str, source: Path, name: str = "") -> None:
        """The picture as it is, in a folder such as test/crack, under its own name or another."""
        self._add(f"{folder}/{name or source.name}", PlannedFile((source,)))

    def mask(
        self, kind: str, stem: str, *sources: Path, draw: Callable[[], Mask] | None = None, detail: str = ""
    ) -> None:
        """The mask of test/<kind>/<stem>.*, drawn (black and white) from the sources: by default what any of them marks."""
        self._add(
            f"ground_truth/{kind}/{stem}{MASK_ENDING}.png",
            PlannedFile(sources, draw or (lambda: merge_masks(sources)), detail),
        )

    def mask_file(self, kind: str, name: str, source: Path) -> None:
        """A mask as it is."""
        self._add(f"ground_truth/{kind}/{name}", PlannedFile((source,)))

    def _add(self, place: str, file: PlannedFile) -> None:
        if place in self.files:
            sources = " and ".join(str(one.sources[0]) for one in (self.files[place], file))
            raise UserError(f"{sources} would both be {self.category}/{place}; rename or remove one")
        self.files[place] = file

    def count(self, folder: str) -> int:
        """How many pictures are in train/good, test/good, or (test) in all its other folders."""
        within = [str(PurePosixPath(place).parent) for place in self.files]
        if folder == "test":
            return sum(1 for parent in within if parent.startswith("test/") and parent != TEST_GOOD)
        return within.count(folder)

    def without_mask(self) -> list[str]:
        """Defective pictures that have no mask."""
        masks = {str(PurePosixPath(place).with_suffix("")) for place in self.files if place.startswith("ground_truth/")}
        found = []
        for place in map(PurePosixPath, self.files):
            wanted = f"ground_truth/{place.parent.name}/{place.stem}"
            if (
                place.parts[0] == "test"
                and place.parent.name != NORMAL
                and masks.isdisjoint({wanted, wanted + MASK_ENDING})
            ):
                found.append(str(place))
        return found

    def fingerprint(self) -> str:
        """A hash of all places and what stands there, by names and sizes."""
        lines = [
            f"{place}\t{file.detail}\t" + "\t".join(f"{source.name} {source.stat().st_size}" for source in file.sources)
            for place, file in sorted(self.files.items())
        ]
        return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def merge_masks(sources: tuple[Path, ...]) -> Mask:
    """(H, W), true where any of the masks marks a defect. Raises ValueError where they are not of one size."""
    masks = [read_full_mask(source) for source in sources]
    for source, mask in zip(sources, masks, strict=True):
        if mask.shape != masks[0].shape:
            sizes = " and ".join(f"{one.shape[1]}×{one.shape[0]}" for one in (masks[0], mask))
            raise UserError(
                f"the masks {sources[0]} and {source} of one picture are {sizes} pixels; they should be of one size"
            )
    return np.logical_or.reduce(masks)


def write_category(plan: CategoryPlan, folder: Path, about: Mapping[str, object]) -> None:
    """The category in `folder`, with a note of what it is (`about`). Files that are there from an earlier, stopped call are kept: each is whole.

    Raises ValueError where the folder holds anything else, OSError where it can't be written or another run writes there.
    """
    note = {"made by": MAKER, **about, "plan": plan.fingerprint()}
    prepare_folder(folder, note["plan"])
    with folder_lock.locked(folder, REMEDY):
        remove_stale(folder, *SPLITS)
        write_plan_note(folder, {**note, "finished": False})
        for place, file in count_progress(
            sorted(plan.files.items()), len(plan.files), f"preparing {plan.category}", "file"
        ):
            if not (folder / place).exists():
                write_planned_file(folder / place, file)
        write_plan_note(folder, {**note, "finished": True})


def write_planned_file(target: Path, file: PlannedFile) -> None:
    if not file.draw:
        return link_or_copy(file.sources[0], target)
    picture = Image.fromarray(file.draw().astype(np.uint8) * 255)
    with atomic_write(target, REMEDY) as opened:
        picture.save(opened, format="PNG")


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link, which appears whole and takes no space, or, across file systems and where none is allowed, a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):
        os.link(source.resolve(), target)
        return
    try:
        original = source.open("rb")
    except OSError as error:
        raise UserFileError(
            f"can't read {source}: {error.strerror}; change its permissions, or unpack it again"
        ) from error
    with original, atomic_write(target, REMEDY) as copy:
        shutil.copyfileobj(original, copy)


def prepare_folder(folder: Path, plan: object) -> None:
    """Leave what this plan began or made, remove what another one began. Raises ValueError for what another one made, and for other files."""
    if not folder.exists() or (folder.is_dir() and all(path.name.startswith(".") for path in folder.iterdir())):
        return
    try:  # hidden files are a killed run's lock and unfinished note
        note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        note = None
    if not isinstance(note, dict) or note.get("made by") != MAKER:
        raise UserError(f"{folder} holds files that no preparation made; {REMEDY}")
    if note.get("plan") == plan:
        return
    if note.get("finished") is not False:
        raise UserError(
            f"{folder} was prepared from other files, or with another split or seed; remove it, or {REMEDY}"
        )
    print(
        f"{folder} was begun from other files, or with another split or seed, and not finished; it is made anew",
        flush=True,
    )
    shutil.rmtree(folder)


def write_plan_note(folder: Path, note: Mapping[str, object]) -> None:
    with atomic_write(folder / NOTE, REMEDY, "w") as file:
        json.dump(note, file, indent=2, ensure_ascii=False)
        file.write("\n")
