"""Plan a category from the user's own pictures, with masks that are found by name or drawn from annotations."""

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from data_tools.archives import relative_path
from data_tools.category_writer import TEST_GOOD, TRAIN_GOOD, UNNAMED_KIND, CategoryPlan, DataSetInfo, PlannedFile
from data_tools.image_facts import group_by_key
from data_tools.similarity import draw_test_pictures
from dataset import NORMAL, is_hidden, is_picture, pictures_below
from images.annotations import Annotation, Mask, read_annotations
from images.read import open_upright, read_full_mask
from runtime.errors import MissingFileError, UserError

ENDING = re.compile(r"(_mask|_label|_gt|_GT)\Z")  # of a mask's stem


class MaskSource(NamedTuple):
    """A mask file or an annotation, and the folders of the picture that it belongs to."""

    file: Path
    folders: tuple[str, ...]
    annotation: Annotation | None = None


MaskSources = Mapping[str, Sequence[MaskSource]]  # by the stem of their picture


def plan_own_images(
    category: str, normal: Path, source: Path, defects: Path | None, masks: Path | None, seed: int
) -> CategoryPlan:
    """Plan the pictures in `normal` and in `defects` (one kind per subfolder) with `masks`; the note names `source`."""
    relative_path(category, "data.category")
    plan = CategoryPlan(DataSetInfo("own pictures", str(source), "your own"), category)
    normal_pictures = find_pictures(normal, [defects, masks])
    candidates = find_pictures(defects, [normal, masks if masks != defects else None]) if defects else []
    defective_pictures = [picture for picture in candidates if not is_mask_beside(picture)]
    test = draw_test_pictures(normal_pictures, defective_pictures, normal, seed)
    for picture, name in unique_names(normal_pictures, normal).items():
        plan.add_file(TEST_GOOD if picture in test else TRAIN_GOOD, picture, name)
    if defects:
        add_defects(plan, defective_pictures, defects, find_mask_sources(masks, defects))
    return plan


def find_pictures(folder: Path, excluded: Iterable[Path | None]) -> list[Path]:
    """Return the pictures in a folder and its subfolders, without those in the folders `excluded` inside it."""
    if not folder.is_dir():
        raise MissingFileError(f"no folder {folder}; name the one that holds the pictures")
    others = [other.resolve() for other in excluded if other]
    inside = [other for other in others if folder.resolve() in (other, *other.parents)]
    return [path for path in pictures_below(folder, inside) if path.resolve() not in inside]


def is_mask_beside(picture: Path) -> bool:
    """Return whether the file is the mask of a picture beside it, such as 000_mask.png beside 000.jpg."""
    stem = ENDING.sub("", picture.stem)
    return stem != picture.stem and any(other.stem == stem and is_picture(other) for other in picture.parent.iterdir())


def unique_names(pictures: Iterable[Path], folder: Path) -> dict[Path, str]:
    """Return a file name for each picture: subfolders and stem, with the suffix in the stem where two names collide."""
    stems = {picture: "_".join(picture.relative_to(folder).with_suffix("").parts) for picture in pictures}
    count = Counter(stems.values())
    return {
        picture: (stem if count[stem] == 1 else f"{stem}_{picture.suffix[1:].lower()}") + picture.suffix
        for picture, stem in stems.items()
    }


def add_defects(plan: CategoryPlan, pictures: Iterable[Path], defects: Path, sources: MaskSources) -> None:
    """Add defective pictures and, where there are any `sources`, their masks."""
    used: dict[MaskSource, Path] = {}
    for folder, members in group_by_key((picture.parent, picture) for picture in pictures).items():
        kind = "_".join(folder.relative_to(defects).parts) or UNNAMED_KIND
        if kind == NORMAL:
            raise UserError(f"{folder} is named as normal pictures; move them to the normal ones, or rename it")
        for picture, name in unique_names(members, folder).items():
            plan.add_file(f"test/{kind}", picture, name)
            if not sources:
                continue
            source = choose_mask_source(picture, defects, sources)
            if source in used:
                both = f"{used[source]} and {picture}"
                raise UserError(f"{source.file} would be the mask of both {both}; name masks by folder and picture")
            used[source] = picture
            plan.add_drawn_mask(kind, PurePosixPath(name).stem, plan_mask(source, picture))


def plan_mask(source: MaskSource, picture: Path) -> PlannedFile:
    annotation = source.annotation
    if annotation is None:
        return PlannedFile((source.file,), lambda: read_mask_of(source.file, picture))
    content = hashlib.sha256(source.file.read_bytes()).hexdigest()
    return PlannedFile((source.file,), lambda: annotation.mask(open_upright(picture).size), content)


def read_mask_of(source: Path, picture: Path) -> Mask:
    """Return the mask of a picture. Raise UserError where their sizes differ."""
    mask, (width, height) = read_full_mask(source), open_upright(picture).size
    if mask.shape != (height, width):
        sizes = f"is {mask.shape[1]}×{mask.shape[0]}, its picture {picture} {width}×{height}"
        raise UserError(f"mask {source} {sizes}; make them the same size")
    return mask


def find_mask_sources(masks: Path | None, defects: Path) -> dict[str, list[MaskSource]]:
    """Return all masks and annotations in a folder or file, or beside the defects, by the stem of their picture."""
    place = masks or defects
    if not place.exists():
        raise MissingFileError(f"no masks at {place}; name a folder of masks or annotations, or one JSON file")
    files = [place] if place.is_file() else [path for path in sorted(place.rglob("*")) if not is_hidden(path, place)]
    sources: dict[str, list[MaskSource]] = defaultdict(list)
    for path in files:
        if path.suffix.lower() == ".json":
            for annotation in read_annotations(path):
                folders = annotation.picture.parent.parts or path.parent.parts  # LabelMe names no folders
                sources[annotation.picture.stem].append(MaskSource(path, folders, annotation))
        elif is_picture(path) and (masks not in (None, defects) or is_mask_beside(path)):
            source = MaskSource(path, path.parent.parts)
            for stem in {path.stem, ENDING.sub("", path.stem)}:
                sources[stem].append(source)
    if masks and not sources:
        remedy = "name masks as the defective pictures, or add JSON of LabelMe, COCO or Label Studio"
        raise MissingFileError(f"no masks in {masks}; {remedy}")
    return sources


def choose_mask_source(picture: Path, defects: Path, sources: MaskSources) -> MaskSource:
    """Return the mask or annotation with the picture's name; of several, the one with the most folders in common."""
    candidates = sources.get(picture.stem, [])
    if not candidates:
        mask = f"{picture.stem}_mask.png"
        raise MissingFileError(f"no mask for {picture}; add {mask} or an annotation, or remove all masks")
    folders = picture.relative_to(defects).parent.parts[::-1]  # the innermost first
    pairs = [(folders, candidate.folders[::-1]) for candidate in candidates]
    shared = [len(os.path.commonprefix(pair)) for pair in pairs]  # noqa: RUF071 (of names, not of characters)
    best = [candidate for candidate, count in zip(candidates, shared, strict=True) if count == max(shared)]
    if len(best) > 1:
        files = f"{best[0].file} and {best[1].file}"
        remedy = "put masks into folders named as the pictures', or remove one"
        raise UserError(f"{files} may both be the mask of {picture}; {remedy}")
    return best[0]
