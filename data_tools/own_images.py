"""Own pictures, planned into the MVTec AD layout: a seeded split without near-duplicates on both sides, kinds of defects from folder names,
masks found by name or drawn from annotations (`annotations.py`)."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from data_tools.annotations import Annotation, read_annotations
from data_tools.category_writer import TEST_GOOD, TRAIN_GOOD, CategoryPlan, Mask, merge_masks
from data_tools.similarity import drawn_apart, groups_of_pictures
from dataset import NORMAL, is_hidden, is_picture
from images.read import open_upright
from runtime.errors import MissingFileError, UserError

BAD = "bad"  # kind of the defective pictures that are in no subfolder
MASK_ENDINGS = ("_mask", "_label", "_gt", "_GT")

MaskSource = Path | Annotation


def plan_own_images(category: str, normal: Path, defects: Path | None, masks: Path | None, seed: int) -> CategoryPlan:
    """The category of the pictures in `normal`, of which a fifth is to test with, and in `defects`, a subfolder a kind. Masks are searched in
    `masks` or, where that is not given, beside the defective pictures; there may be none at all.

    Raises FileNotFoundError or ValueError where pictures or some of the masks are missing, or where it is not clear which is whose.
    """
    plan = CategoryPlan(category)
    sound = list(own_pictures(normal, [defects, masks]))
    found = list(own_pictures(defects, [normal, masks if masks != defects else None])) if defects else []
    spoilt = [picture for picture in found if not is_mask_of_another(picture)]
    groups = groups_of_pictures(sound, spoilt)
    held = drawn_apart(
        {picture: groups[picture] for picture in sound}, normal, seed, {groups[picture] for picture in spoilt}
    )
    for picture, name in unique_names(sound, normal).items():
        plan.picture(TEST_GOOD if picture in held else TRAIN_GOOD, picture, name)
    if defects:
        add_defects(plan, spoilt, defects, mask_sources(masks, defects))
    return plan


def own_pictures(folder: Path, leave_out: Iterable[Path | None]) -> Iterator[Path]:
    """The pictures of a folder and its subfolders but for those of `leave_out`, where they lie in it, in order."""
    if not folder.is_dir():
        raise MissingFileError(f"no folder {folder}; name the one that holds the pictures")
    inner = (other.resolve() for other in leave_out if other)
    others = {other for other in inner if folder.resolve() in (other, *other.parents)}
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if is_picture(path)
        and not is_hidden(path, folder)
        and others.isdisjoint([path.resolve(), *path.resolve().parents])
    ]
    if not found:
        raise MissingFileError(f"no pictures in {folder}; name a folder that holds some")
    yield from found


def is_mask_of_another(picture: Path) -> bool:
    """Whether it is 000_mask.png beside 000.jpg."""
    partner = without_ending(picture.stem)
    return partner != picture.stem and any(
        other.stem == partner and is_picture(other) for other in picture.parent.iterdir()
    )


def without_ending(stem: str) -> str:
    return next((stem.removesuffix(ending) for ending in MASK_ENDINGS if stem.endswith(ending)), stem)


def unique_names(pictures: Iterable[Path], folder: Path) -> dict[Path, str]:
    """A file name for each, in one folder: its own, with its subfolders' in front; where two differ by the ending alone that is added."""
    short = {picture: "_".join(picture.relative_to(folder).with_suffix("").parts) for picture in pictures}
    count = Counter(short.values())
    stems = {
        picture: stem if count[stem] == 1 else f"{stem}_{picture.suffix[1:].lower()}" for picture, stem in short.items()
    }
    return {picture: stem + picture.suffix for picture, stem in stems.items()}


def add_defects(plan: CategoryPlan, pictures: list[Path], defects: Path, sources: dict[str, list[MaskSource]]) -> None:
    """Defective pictures, and their masks where there are any."""
    by_folder: dict[Path, list[Path]] = {}
    for picture in pictures:
        by_folder.setdefault(picture.parent, []).append(picture)
    used: dict[int, Path] = {}
    for folder, members in by_folder.items():
        kind = "_".join(folder.relative_to(defects).parts) or BAD
        if kind == NORMAL:
            raise UserError(f"{folder} holds normal pictures by its name; move them to the normal ones, or rename it")
        for picture, name in unique_names(members, folder).items():
            plan.picture(f"test/{kind}", picture, name)
            if not sources:
                continue
            source = mask_source(picture, defects, sources)
            if id(source) in used:
                raise UserError(
                    f"{file_of(source)} would be the mask of both {used[id(source)]} and {picture}; name masks by folder and picture"
                )
            used[id(source)] = picture
            add_mask(plan, kind, PurePosixPath(name).stem, picture, source)


def add_mask(plan: CategoryPlan, kind: str, stem: str, picture: Path, source: MaskSource) -> None:
    if isinstance(source, Path):
        plan.mask(kind, stem, source, draw=lambda: mask_of_its_size(source, picture))
        return
    content = hashlib.sha256(source.file.read_bytes()).hexdigest()
    plan.mask(kind, stem, source.file, draw=lambda: source.mask(open_upright(picture).size), detail=content)


def mask_of_its_size(source: Path, picture: Path) -> Mask:
    mask, size = merge_masks((source,)), open_upright(picture).size
    if mask.shape[::-1] != size:
        raise UserError(
            f"mask {source} is {mask.shape[1]}×{mask.shape[0]}, its picture {picture} {size[0]}×{size[1]}; make them the same"
        )
    return mask


def mask_sources(masks: Path | None, defects: Path) -> dict[str, list[MaskSource]]:
    """All masks and annotations in a folder (or the one file) by the stem of their picture."""
    place = masks or defects
    if not place.exists():
        raise MissingFileError(f"no masks at {place}; name a folder of masks or annotations, or one JSON file")
    files = [place] if place.is_file() else [path for path in sorted(place.rglob("*")) if not is_hidden(path, place)]
    sources: dict[str, list[MaskSource]] = {}
    for path in files:
        if path.suffix.lower() == ".json":
            for annotation in read_annotations(path):
                sources.setdefault(annotation.picture.stem, []).append(annotation)
        elif is_picture(path) and (masks not in (None, defects) or is_mask_of_another(path)):
            for stem in {path.stem, without_ending(path.stem)}:
                sources.setdefault(stem, []).append(path)
    if masks and not sources:
        raise MissingFileError(
            f"no masks in {masks}; it should hold pictures named as the defective ones, or JSON of LabelMe, COCO or Label Studio"
        )
    return sources


def mask_source(picture: Path, defects: Path, sources: dict[str, list[MaskSource]]) -> MaskSource:
    """The mask or annotation of the picture's name; of several, the one whose folders are most like its own."""
    candidates = sources.get(picture.stem, [])
    if not candidates:
        raise MissingFileError(
            f"no mask for {picture}; add {picture.stem}_mask.png or an annotation, or leave all masks away"
        )
    folders = picture.relative_to(defects).parts[:-1]
    shared = [common_ending(folders, parents_of(candidate)) for candidate in candidates]
    best = [candidate for candidate, count in zip(candidates, shared, strict=True) if count == max(shared)]
    if len(best) > 1:
        files = " and ".join(str(file_of(candidate)) for candidate in best[:2])
        raise UserError(
            f"{files} may both be the mask of {picture}; put masks into folders named as the pictures', or remove one"
        )
    return best[0]


def parents_of(source: MaskSource) -> tuple[str, ...]:
    """The folders that tell whose mask it is: those a picture is listed under, and those of the file itself (LabelMe names no others)."""
    if isinstance(source, Annotation) and source.picture.parent.parts:
        return source.picture.parent.parts
    return file_of(source).parent.parts


def file_of(source: MaskSource) -> Path:
    return source if isinstance(source, Path) else source.file


def common_ending(ours: tuple[str, ...], theirs: tuple[str, ...]) -> int:
    """How many names are the same, from the last one on."""
    pairs = list(zip(reversed(ours), reversed(theirs), strict=False))
    return next((count for count, (our, their) in enumerate(pairs) if our != their), len(pairs))
