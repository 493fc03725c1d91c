"""Published data sets as they are downloaded, each planned into the MVTec AD layout (`layout.py`), and what is known of them.

A function here takes the folder that a download unpacks to, or one that holds it, and a seed for sets that have no split of their own.
Pictures stay as they are, under their own names. Raises FileNotFoundError or ValueError, naming what is missing, for another folder.
"""

import csv
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_tools.archives import relative_path
from data_tools.category_writer import TEST_GOOD, TRAIN_GOOD, CategoryPlan
from data_tools.similarity import drawn_apart, groups_of_pictures
from dataset import NORMAL, folders_in, masks_in, pictures_in
from images.read import SUFFIXES, read_full_mask
from runtime.errors import MissingFileError, UserError

COUNTS = Path(__file__).with_name("data_sets.csv")
DEEPEST = 2  # folders between what is named and what is looked for
BAD = "bad"  # kind of defect where a set names none
ONE_CLASS = (
    "1cls"  # VisA's split for learning from normal pictures alone; the others are 2cls_fewshot and 2cls_highshot
)
CSV_COLUMNS = {"object", "split", "label", "image", "mask"}
MTD_KINDS = {
    "MT_Blowhole": "blowhole",
    "MT_Break": "break",
    "MT_Crack": "crack",
    "MT_Fray": "fray",
    "MT_Uneven": "uneven",
}
MTD_FREE = "MT_Free"
KSDD_LABEL, KSDD2_LABEL = "_label", "_GT"
BY_NC_SA = "CC BY-NC-SA 4.0"


@dataclass(frozen=True)
class DataSetInfo:
    """A data set's name, where it is from, and its licence."""

    name: str
    source: str
    licence: str


MVTEC = DataSetInfo("MVTec AD", "https://www.mvtec.com/company/research/datasets/mvtec-ad", BY_NC_SA)
LOCO = DataSetInfo("MVTec LOCO AD", "https://www.mvtec.com/company/research/datasets/mvtec-loco", BY_NC_SA)
VISA = DataSetInfo("VisA", "https://github.com/amazon-science/spot-diff", "CC BY 4.0")
MTD = DataSetInfo(
    "MTD", "https://github.com/abin24/Magnetic-tile-defect-datasets.", "none stated; its authors ask to be cited"
)
BTAD = DataSetInfo("BTAD", "http://avires.dimi.uniud.it/papers/btad/btad.zip", BY_NC_SA)
KSDD = DataSetInfo("KolektorSDD", "https://www.vicos.si/resources/kolektorsdd", BY_NC_SA)
KSDD2 = DataSetInfo("KolektorSDD2", "https://www.vicos.si/resources/kolektorsdd2", BY_NC_SA)

PlannedCategories = Iterator[tuple[DataSetInfo, CategoryPlan]]


def plan_visa(root: Path, split: str = ONE_CLASS) -> PlannedCategories:
    """By the rows of split_csv/<split>.csv; the defective pictures that a 2-class split would train on are left out."""
    top = find_root(root, lambda folder: (folder / "split_csv").is_dir(), "split_csv, as VisA has")[0]
    tables = {table.stem: table for table in sorted((top / "split_csv").glob("*.csv"))}
    if split not in tables:
        raise MissingFileError(
            f"no split {split!r} in {top / 'split_csv'}; it holds {', '.join(tables) or 'no tables'}"
        )
    table = tables[split]
    plans: dict[str, CategoryPlan] = {}
    left_out = 0
    for place, row in split_rows(table):
        category, kind = row["object"], (row["split"], row["label"])
        if kind not in ((s, label) for s in ("train", "test") for label in ("normal", "anomaly")):
            raise UserError(
                f"{place}: split and label are {kind[0]!r} and {kind[1]!r}; they should be train or test, and normal or anomaly"
            )
        if len(relative_path(category, place).parts) != 1:
            raise UserError(
                f"{place}: object is {category!r}, which is not a category's name; restore the original table"
            )
        plan = plans.setdefault(category, CategoryPlan(category))
        picture = named_file(top, row["image"], place)
        if kind == ("test", "anomaly"):
            plan.picture(f"test/{BAD}", picture)
            plan.mask(BAD, picture.stem, named_file(top, row["mask"], place))
        elif kind == ("train", "anomaly"):
            left_out += 1
        else:
            plan.picture(f"{row['split']}/{NORMAL}", picture)
    if left_out:
        print(
            f"{left_out} defective pictures of {table.name} are to train on; DDAD trains on normal ones alone, and they are left out"
        )
    yield from ((VISA, plan) for plan in plans.values())


def split_rows(table: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a split, each with its place for an error."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = CSV_COLUMNS - set(reader.fieldnames or ())
            if missing:
                raise UserError(f"{table} has no column {', '.join(sorted(missing))}; restore the original table")
            for row in reader:
                yield f"{table} line {reader.line_num}", {name: (row[name] or "").strip() for name in CSV_COLUMNS}
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{table} can't be read: {error}; restore the original table") from error


def named_file(top: Path, name: str, place: str) -> Path:
    """The picture that a table names. Raises ValueError where it leaves `top` or is none, FileNotFoundError where it is missing."""
    path = top / relative_path(name, place)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{place} names {name!r}, which is no picture; restore the original table")
    if not path.is_file():
        raise MissingFileError(f"no file {path}, which {place} names; the download is incomplete, unpack it again")
    if not path.resolve().is_relative_to(top.resolve()):
        raise UserError(f"{place} names {name!r}, a link that leaves {top}; put the file itself there")
    return path


def plan_mvtec(root: Path) -> PlannedCategories:
    """All categories of MVTec AD or MVTec LOCO AD. The latter's masks, many to a picture, become one; its validation/good goes beside
    train/good, not into it, so that scores compare with published ones (thresholds come from pictures held out of train/good)."""
    for folder in find_root(
        root, lambda folder: (folder / TRAIN_GOOD).is_dir(), "category with train/good, as MVTec AD has"
    ):
        plan = CategoryPlan(folder.name)
        validation = folder / "validation" / NORMAL
        if not (folder / "test").is_dir():
            raise MissingFileError(f"no folder {folder / 'test'}; the download is incomplete, unpack it again")
        parts = [folder / TRAIN_GOOD, *([validation] if validation.is_dir() else []), *folders_in(folder / "test")]
        for part in parts:
            for picture in pictures_in(part):
                plan.picture(part.relative_to(folder).as_posix(), picture)
        truth = folder / "ground_truth"
        for kind in folders_in(truth) if truth.is_dir() else []:
            for mask in masks_in(kind).values():
                plan.mask_file(kind.name, mask.name, mask)
            for many in folders_in(kind):
                plan.mask(kind.name, many.name, *pictures_in(many))
        yield LOCO if validation.is_dir() else MVTEC, plan


def plan_mtd(root: Path, seed: int) -> PlannedCategories:
    """A fifth of MT_Free is to test with; exposures of one tile, found as near-duplicates, are on one side with it."""
    top = find_root(root, lambda folder: (folder / MTD_FREE).is_dir(), f"{MTD_FREE}, as MTD has")[0]
    plan = CategoryPlan("magnetic_tile")
    free = dict.fromkeys(mtd_pictures(top / MTD_FREE), NORMAL)
    pictures = free | {picture: kind for name, kind in MTD_KINDS.items() for picture in mtd_pictures(top / name)}
    spoilt = [picture for picture in pictures if picture not in free]
    groups = groups_of_pictures(list(free), spoilt)
    spoken_for = {groups[picture] for picture in spoilt}
    held = drawn_apart({picture: groups[picture] for picture in free}, top, seed, spoken_for)
    for picture, kind in pictures.items():
        plan.picture(TRAIN_GOOD if kind == NORMAL and picture not in held else f"test/{kind}", picture)
        mask = picture.with_suffix(".png")
        if kind != NORMAL and mask.is_file():
            plan.mask(kind, picture.stem, mask)
    yield MTD, plan


def mtd_pictures(folder: Path) -> list[Path]:
    """The JPEG files of a kind; the PNG files beside them are masks."""
    inner = folder / "Imgs"
    return [
        path for path in pictures_in(inner if inner.is_dir() else folder) if path.suffix.lower() in (".jpg", ".jpeg")
    ]


def plan_btad(root: Path) -> PlannedCategories:
    """Products 01, 02 and 03: ok becomes good, ko stays a kind of defect."""
    for folder in find_root(
        root, lambda folder: (folder / "train" / "ok").is_dir(), "product with train/ok, as BTAD has"
    ):
        plan = CategoryPlan(folder.name)
        for part, place in (("train/ok", TRAIN_GOOD), ("test/ok", TEST_GOOD), ("test/ko", "test/ko")):
            for picture in pictures_in(folder / part):
                plan.picture(place, picture)
        for mask in masks_in(folder / "ground_truth" / "ko").values():
            plan.mask("ko", mask.stem, mask)
        yield BTAD, plan


def plan_kolektor(root: Path, seed: int) -> PlannedCategories:
    """KolektorSDD (kos01/Part0.jpg …) or KolektorSDD2 (train/10000.png …)."""
    what = "kos01 with Part0_label.bmp, or train with *_GT.png, as KolektorSDD and KolektorSDD2 have"
    top = find_root(root, lambda folder: is_ksdd(folder) or is_ksdd2(folder), what)[0]
    yield (KSDD, plan_ksdd(top, seed)) if is_ksdd(top) else (KSDD2, plan_ksdd2(top))


def is_ksdd(folder: Path) -> bool:
    return any(folder.glob(f"kos*/Part*{KSDD_LABEL}.bmp"))


def is_ksdd2(folder: Path) -> bool:
    return (folder / "test").is_dir() and any((folder / "train").glob(f"*{KSDD2_LABEL}.png"))


def plan_ksdd(top: Path, seed: int) -> CategoryPlan:
    """The normal parts of a fifth of the items are to test with: no item is normal on both sides. A part is defective if its label marks any
    pixel."""
    plan = CategoryPlan("commutator")
    parts = {
        part: is_marked(mask) for item in sorted(top.glob("kos*")) for part, mask in labelled_pairs(item, KSDD_LABEL)
    }
    items = {folder: number for number, folder in enumerate(sorted({part.parent for part in parts}))}
    held = drawn_apart({part: items[part.parent] for part, marked in parts.items() if not marked}, top, seed)
    for part, marked in parts.items():
        name = f"{part.parent.name}_{part.name}"
        plan.picture(f"test/{BAD}" if marked else TEST_GOOD if part in held else TRAIN_GOOD, part, name)
        if marked:
            plan.mask(BAD, Path(name).stem, part.with_name(f"{part.stem}{KSDD_LABEL}.bmp"))
    return plan


def plan_ksdd2(top: Path) -> CategoryPlan:
    """By its own split; the defective pictures of train are left out."""
    plan, left_out = CategoryPlan("surface"), 0
    for split in ("train", "test"):
        for picture, mask in labelled_pairs(top / split, KSDD2_LABEL):
            marked = is_marked(mask)
            if marked and split == "train":
                left_out += 1
                continue
            plan.picture(f"{split}/{BAD if marked else NORMAL}", picture)
            if marked:
                plan.mask(BAD, picture.stem, mask)
    print(f"{left_out} defective pictures of train are left out: DDAD trains on normal ones alone")
    return plan


def labelled_pairs(folder: Path, ending: str) -> Iterator[tuple[Path, Path]]:
    """Each picture of a folder with its label, which has the same name but for the ending."""
    labels = {path.stem.removesuffix(ending): path for path in pictures_in(folder) if path.stem.endswith(ending)}
    for picture in pictures_in(folder):
        if ending in picture.stem:  # also the stray copies of labels that KolektorSDD2 holds
            continue
        if picture.stem not in labels:
            raise MissingFileError(
                f"no label {picture.stem}{ending} beside {picture}; the download is incomplete, unpack it again"
            )
        yield picture, labels[picture.stem]


def is_marked(mask: Path) -> bool:
    return bool(read_full_mask(mask).any())


def find_root(root: Path, sign: Callable[[Path], bool], what: str) -> list[Path]:
    """The uppermost folders, the root among them, that have the sign. Raises FileNotFoundError where there are none."""
    level = [root]
    for _ in range(DEEPEST + 1):
        there = [folder for folder in level if sign(folder)]
        if there:
            return there
        level = [inner for folder in level for inner in folders_in(folder)]
    raise MissingFileError(f"no {what} in {root}; name the download of that data set, or the folder it unpacks to")


@functools.cache
def published_counts() -> dict[tuple[str, str], tuple[int, int | None, int]]:
    """(data set, category) → normal pictures, those of them to train on (None where the split is ours), defective ones to test with."""
    with COUNTS.open(encoding="utf-8", newline="") as file:
        return {
            (row["data_set"], row["category"]): (
                int(row["normal"]),
                int(row["train"]) if row["train"] else None,
                int(row["defective"]),
            )
            for row in csv.DictReader(file)
        }
