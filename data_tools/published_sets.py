"""Plan the categories of published data sets from their downloads, and read their published counts.

A planner takes the folder that a download unpacks to, or one that holds it, and a seed where the data set has no split.
"""

import csv
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from data_tools.archives import relative_path
from data_tools.category_writer import TEST_GOOD, TRAIN_GOOD, UNNAMED_KIND, VALIDATION_GOOD, CategoryPlan, DataSetInfo
from data_tools.similarity import draw_test_groups, draw_test_pictures
from dataset import NORMAL, PRIVATE_SPLITS, folders_in, masks_in, pictures_in
from images.read import SUFFIXES, read_full_mask
from runtime.errors import MissingFileError, UserError

COUNTS = Path(__file__).with_name("data_sets.csv")
DEEPEST = 2  # folders between the given one and the data set
ONE_CLASS = "1cls"  # VisA's split with normal training pictures only; the others are 2cls_fewshot and 2cls_highshot
VISA_COLUMNS = {"object", "split", "label", "image", "mask"}
VISA_LABELS = {(split, label) for split in ("train", "test") for label in ("normal", "anomaly")}
MTD_FREE = "MT_Free"
MTD_KINDS = ("Blowhole", "Break", "Crack", "Fray", "Uneven")
KSDD_LABEL, KSDD2_LABEL = "_label", "_GT"
KSDD_LABELS, KSDD2_LABELS = f"kos*/Part*{KSDD_LABEL}.bmp", f"train/*{KSDD2_LABEL}.png"
PUBLIC = "test_public"  # the labelled test pictures of MVTec AD 2
REAL_IAD_TABLES, REAL_IAD_NORMAL = "realiad_jsons", "OK"
INCOMPLETE = "the download is incomplete, unpack it again"
RESTORE = "restore the original table"

BY_NC_SA = "CC BY-NC-SA 4.0"
MVTEC = DataSetInfo("MVTec AD", "https://www.mvtec.com/company/research/datasets/mvtec-ad", BY_NC_SA)
LOCO = DataSetInfo("MVTec LOCO AD", "https://www.mvtec.com/company/research/datasets/mvtec-loco", BY_NC_SA)
MVTEC_2 = DataSetInfo("MVTec AD 2", "https://www.mvtec.com/company/research/datasets/mvtec-ad-2", BY_NC_SA)
MPDD = DataSetInfo("MPDD", "https://github.com/stepanje/MPDD", "none stated there; its authors ask to be cited")
REAL_IAD_LICENCE = "see the terms of its authors, who give access on request"
REAL_IAD = DataSetInfo("Real-IAD", "https://realiad4ad.github.io/Real-IAD/", REAL_IAD_LICENCE)
VISA = DataSetInfo("VisA", "https://github.com/amazon-science/spot-diff", "CC BY 4.0")
MTD_LICENCE = "none stated; its authors ask to be cited"
MTD = DataSetInfo("MTD", "https://github.com/abin24/Magnetic-tile-defect-datasets.", MTD_LICENCE)
BTAD = DataSetInfo("BTAD", "http://avires.dimi.uniud.it/papers/btad/btad.zip", BY_NC_SA)
KSDD = DataSetInfo("KolektorSDD", "https://www.vicos.si/resources/kolektorsdd", BY_NC_SA)
KSDD2 = DataSetInfo("KolektorSDD2", "https://www.vicos.si/resources/kolektorsdd2", BY_NC_SA)


def plan_visa(root: Path, split: str = ONE_CLASS, wanted: Collection[str] = ()) -> list[CategoryPlan]:
    """Follow split_csv/<split>.csv, without the defective pictures that a 2-class split trains on.

    Leave out the categories that the download does not hold, unless they are `wanted`.
    """
    top = find_folders(root, lambda folder: (folder / "split_csv").is_dir(), "split_csv, as VisA has")[0]
    tables = {table.stem: table for table in sorted((top / "split_csv").glob("*.csv"))}
    if split not in tables:
        raise MissingFileError(f"no split {split!r} in {top / 'split_csv'}; it has {', '.join(tables) or 'no tables'}")
    rows = list(read_visa_rows(tables[split]))
    chosen = choose_visa_categories(top, tables[split], list(dict.fromkeys(row["object"] for _, row in rows)), wanted)
    plans: dict[str, CategoryPlan] = {}
    left_out = 0
    for line, row in rows:
        category = row["object"]
        if category not in chosen:
            continue
        plan = plans.setdefault(category, CategoryPlan(VISA, category))
        picture = find_named_file(top, row["image"], line)
        if row["label"] == "normal":
            plan.add_file(f"{row['split']}/{NORMAL}", picture)
        elif row["split"] == "test":
            plan.add_file(f"test/{UNNAMED_KIND}", picture)
            plan.add_mask(UNNAMED_KIND, picture.stem, find_named_file(top, row["mask"], line))
        else:
            left_out += 1
    if left_out:
        print(f"{left_out} defective training pictures of {split}.csv are left out: DDAD trains on normal ones")
    return list(plans.values())


def choose_visa_categories(top: Path, table: Path, names: Sequence[str], wanted: Collection[str]) -> list[str]:
    """Return the `wanted` categories, or those that `top` holds. Print the others. Raise UserError for missing ones."""
    chosen = choose_names(names, wanted, table)
    absent = [name for name in chosen if not (top / name).is_dir()]
    if absent and (wanted or len(absent) == len(chosen)):
        raise MissingFileError(f"no folder {top / absent[0]}; {INCOMPLETE}")
    if absent:
        print(f"{len(absent)} of {len(names)} categories are not in {top} and are left out: {', '.join(absent)}")
    return [name for name in chosen if name not in absent]


def choose_names(names: Sequence[str], wanted: Collection[str], place: Path) -> list[str]:
    """Return the `wanted` names, or all if none is named. Raise MissingFileError where one is not among them."""
    for unknown in set(wanted) - set(names):
        raise MissingFileError(f"no category {unknown!r} in {place}; change data.category to {' or '.join(names)}")
    return [name for name in names if name in wanted] if wanted else list(names)


def read_visa_rows(table: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the checked rows of a split, each with its line for an error message."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = VISA_COLUMNS - set(reader.fieldnames or ())
            if missing:
                raise UserError(f"{table} has no column {', '.join(sorted(missing))}; {RESTORE}")
            for values in reader:
                line = f"{table} line {reader.line_num}"
                row = {name: (values[name] or "").strip() for name in VISA_COLUMNS}
                if (row["split"], row["label"]) not in VISA_LABELS:
                    labels = f"{row['split']!r} and {row['label']!r}"
                    raise UserError(f"{line}: split and label are {labels}, not train or test, and normal or anomaly")
                if len(relative_path(row["object"], line).parts) != 1:
                    raise UserError(f"{line}: object is {row['object']!r}, which is not a category's name; {RESTORE}")
                yield line, row
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{table} can't be read: {error}; {RESTORE}") from error


def find_named_file(top: Path, name: str, line: str) -> Path:
    """Return the picture that a table names. Raise UserError where it is no picture inside `top`."""
    path = top / relative_path(name, line)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{line} names {name!r}, which is no picture; {RESTORE}")
    if not path.is_file():
        raise MissingFileError(f"no file {path}, which {line} names; {INCOMPLETE}")
    if not path.resolve().is_relative_to(top.resolve()):
        raise UserError(f"{line} names {name!r}, a link that leaves {top}; put the file itself there")
    return path


def plan_mvtec(root: Path, wanted: Collection[str] = ()) -> Iterator[CategoryPlan]:
    """Yield all categories of MVTec AD or MVTec LOCO AD."""
    for folder in find_mvtec_folders(root, "MVTec AD", wanted):
        # LOCO's validation stays beside train/good, as published scores have it
        yield plan_mvtec_folder(folder, LOCO if (folder / VALIDATION_GOOD).is_dir() else MVTEC)


def plan_mpdd(root: Path, wanted: Collection[str] = ()) -> Iterator[CategoryPlan]:
    """Yield all categories of MPDD, which has the layout of MVTec AD."""
    for folder in find_mvtec_folders(root, "MPDD", wanted):
        yield plan_mvtec_folder(folder, MPDD)


def find_mvtec_folders(root: Path, name: str, wanted: Collection[str]) -> list[Path]:
    what = f"category with train/good, as {name} has"
    return find_categories(root, lambda folder: (folder / TRAIN_GOOD).is_dir(), what, wanted)


def plan_mvtec_folder(folder: Path, data_set: DataSetInfo) -> CategoryPlan:
    """Plan a category in the layout of MVTec AD. Where a picture has several masks, they become one."""
    plan, validation = CategoryPlan(data_set, folder.name), folder / VALIDATION_GOOD
    if not (folder / "test").is_dir():
        remedy = "prepare MVTec AD 2 with --prepare_mvtec2" if (folder / PUBLIC).is_dir() else INCOMPLETE
        raise MissingFileError(f"no folder {folder / 'test'}; {remedy}")
    parts = [folder / TRAIN_GOOD, *([validation] if validation.is_dir() else []), *folders_in(folder / "test")]
    for part in parts:
        for picture in pictures_in(part):
            plan.add_file(picture.parent.relative_to(folder).as_posix(), picture)
    truth = folder / "ground_truth"
    for kind in folders_in(truth) if truth.is_dir() else []:
        for mask in masks_in(kind).values():
            plan.add_file(f"ground_truth/{kind.name}", mask)
        for masks in folders_in(kind):
            if (folder / "test" / kind.name / masks.name).is_dir():  # not LOCO's masks of one picture
                for mask in pictures_in(masks):
                    plan.add_file(mask.parent.relative_to(folder).as_posix(), mask)
            else:
                plan.add_mask(kind.name, masks.name, *pictures_in(masks))
    return plan


def plan_mvtec2(root: Path, wanted: Collection[str] = ()) -> Iterator[CategoryPlan]:
    """Yield all categories of MVTec AD 2: test_public becomes test, the splits without labels stay as they are."""
    what = f"category with {PUBLIC}, as MVTec AD 2 has"
    for folder in find_categories(root, lambda folder: (folder / PUBLIC).is_dir(), what, wanted):
        plan, public = CategoryPlan(MVTEC_2, folder.name), folder / PUBLIC
        parts = {TRAIN_GOOD: folder / TRAIN_GOOD, VALIDATION_GOOD: folder / VALIDATION_GOOD}
        parts |= {f"test/{kind}": public / kind for kind in (NORMAL, UNNAMED_KIND)}
        parts |= {split: folder / split for split in PRIVATE_SPLITS if (folder / split).is_dir()}
        for target, part in parts.items():
            for picture in pictures_in(part):
                plan.add_file(target, picture)
        for mask in masks_in(public / "ground_truth" / UNNAMED_KIND).values():
            plan.add_file(f"ground_truth/{UNNAMED_KIND}", mask)
        yield plan


def plan_real_iad(root: Path, wanted: Collection[str] = ()) -> Iterator[CategoryPlan]:
    """Follow realiad_jsons/<category>.json, without the defective pictures that a table trains on."""
    tables = find_below(root, f"{REAL_IAD_TABLES}*/*.json")
    if not tables:
        what = f"{REAL_IAD_TABLES} with a JSON file for each category, as Real-IAD has"
        raise MissingFileError(f"no {what}, in {root}; unpack it beside the folders of pictures")
    of_all_views = min((table.parent for table in tables), key=lambda folder: len(folder.name))  # others have endings
    by_name = {table.stem: table for table in tables if table.parent == of_all_views}
    for name in choose_names(list(by_name), wanted, of_all_views):
        plan, table, left_out = CategoryPlan(REAL_IAD, name), by_name[name], 0
        folder = find_real_iad_pictures(root, table.stem)
        for split, entry in read_real_iad_entries(table):
            picture, kind = find_named_file(folder, entry["image_path"], str(table)), entry["anomaly_class"]
            if kind == REAL_IAD_NORMAL:
                plan.add_file(f"{split}/{NORMAL}", picture)
            elif split == "test":
                plan.add_file(f"test/{kind.lower()}", picture)
                if entry.get("mask_path"):
                    mask = find_named_file(folder, entry["mask_path"], str(table))
                    plan.add_mask(kind.lower(), picture.stem, mask)
            else:
                left_out += 1
        if left_out:
            print(f"{left_out} defective training pictures of {table} are left out: DDAD trains on normal ones")
        yield plan


def find_real_iad_pictures(root: Path, category: str) -> Path:
    """Return the folder of a category's pictures, the largest ones: realiad_1024 before realiad_256."""
    folders = [path.parent for path in find_below(root, f"{category}/{REAL_IAD_NORMAL}") if path.is_dir()]
    if not folders:
        missing = f"no folder {category} with {REAL_IAD_NORMAL} in {root}"
        raise MissingFileError(f"{missing}; unpack the pictures of {category} too, or remove its JSON file")
    return max(folders, key=lambda folder: int("0" + "".join(filter(str.isdigit, folder.parent.name))))


def read_real_iad_entries(table: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the checked entries of a table, each with its split."""
    try:
        content = json.loads(table.read_text(encoding="utf-8"))
        for split in ("train", "test"):
            for entry in content[split]:
                for name in ("image_path", "anomaly_class"):
                    relative_path(entry[name], str(table))
                yield split, {name: str(value) for name, value in entry.items() if value is not None}
    except (LookupError, TypeError, AttributeError, RecursionError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{table} can't be read as a table of Real-IAD: {error}; {RESTORE}") from error


def plan_mtd(root: Path, seed: int) -> CategoryPlan:
    """Draw a fifth of MT_Free to test with; exposures of one tile are near-duplicates and stay together."""
    top = find_folders(root, lambda folder: (folder / MTD_FREE).is_dir(), f"{MTD_FREE}, as MTD has")[0]
    normal = find_mtd_pictures(top / MTD_FREE)
    kinds = {picture: name.lower() for name in MTD_KINDS for picture in find_mtd_pictures(top / f"MT_{name}")}
    test = draw_test_pictures(normal, list(kinds), top, seed)
    plan = CategoryPlan(MTD, "magnetic_tile")
    for picture in normal:
        plan.add_file(TEST_GOOD if picture in test else TRAIN_GOOD, picture)
    for picture, kind in kinds.items():
        plan.add_file(f"test/{kind}", picture)
        mask = picture.with_suffix(".png")
        if mask.is_file():
            plan.add_mask(kind, picture.stem, mask)
    return plan


def find_mtd_pictures(folder: Path) -> list[Path]:
    """Return the JPEG files of a kind; the PNG files beside them are masks."""
    inner = folder / "Imgs"
    pictures = pictures_in(inner if inner.is_dir() else folder)
    return [path for path in pictures if path.suffix.lower() in (".jpg", ".jpeg")]


def plan_btad(root: Path, wanted: Collection[str] = ()) -> Iterator[CategoryPlan]:
    """Yield the products 01, 02 and 03: ok becomes good, ko stays a kind of defect."""
    what = "product with train/ok, as BTAD has"
    for folder in find_categories(root, lambda folder: (folder / "train" / "ok").is_dir(), what, wanted):
        plan = CategoryPlan(BTAD, folder.name)
        for part, target in (("train/ok", TRAIN_GOOD), ("test/ok", TEST_GOOD), ("test/ko", "test/ko")):
            for picture in pictures_in(folder / part):
                plan.add_file(target, picture)
        for mask in masks_in(folder / "ground_truth" / "ko").values():
            plan.add_mask("ko", mask.stem, mask)
        yield plan


def plan_kolektor(root: Path, seed: int) -> CategoryPlan:
    """Plan KolektorSDD (kos01/Part0.jpg …) or KolektorSDD2 (train/10000.png …)."""
    what = "kos01 with Part0_label.bmp, or train with *_GT.png, as KolektorSDD and KolektorSDD2 have"
    top = find_folders(root, lambda folder: any(folder.glob(KSDD_LABELS)) or any(folder.glob(KSDD2_LABELS)), what)[0]
    return plan_ksdd(top, seed) if any(top.glob(KSDD_LABELS)) else plan_ksdd2(top)


def plan_ksdd(top: Path, seed: int) -> CategoryPlan:
    """Draw a fifth of the items and test with their normal parts: no item has normal parts in train and in test."""
    plan = CategoryPlan(KSDD, "commutator")
    labels = {part: mask for item in sorted(top.glob("kos*")) for part, mask in labelled_pairs(item, KSDD_LABEL)}
    marked = {part for part, mask in labels.items() if read_full_mask(mask).any()}
    items = {folder: number for number, folder in enumerate(sorted({part.parent for part in labels}))}
    test = draw_test_groups({part: items[part.parent] for part in labels if part not in marked}, top, seed)
    for part, mask in labels.items():
        name = f"{part.parent.name}_{part.name}"
        if part in marked:
            plan.add_file(f"test/{UNNAMED_KIND}", part, name)
            plan.add_mask(UNNAMED_KIND, Path(name).stem, mask)
        else:
            plan.add_file(TEST_GOOD if part in test else TRAIN_GOOD, part, name)
    return plan


def plan_ksdd2(top: Path) -> CategoryPlan:
    """Follow the data set's own split, without the defective pictures of train."""
    plan, left_out = CategoryPlan(KSDD2, "surface"), 0
    for split in ("train", "test"):
        for picture, mask in labelled_pairs(top / split, KSDD2_LABEL):
            if not read_full_mask(mask).any():
                plan.add_file(f"{split}/{NORMAL}", picture)
            elif split == "test":
                plan.add_file(f"test/{UNNAMED_KIND}", picture)
                plan.add_mask(UNNAMED_KIND, picture.stem, mask)
            else:
                left_out += 1
    print(f"{left_out} defective training pictures are left out: DDAD trains on normal ones")
    return plan


def labelled_pairs(folder: Path, ending: str) -> Iterator[tuple[Path, Path]]:
    """Yield each picture of a folder with its label: the file of the same stem and the ending."""
    labels = {path.stem.removesuffix(ending): path for path in pictures_in(folder) if path.stem.endswith(ending)}
    for picture in [path for path in pictures_in(folder) if ending not in path.stem]:  # KSDD2 has copies of labels
        if picture.stem not in labels:
            raise MissingFileError(f"no label {picture.stem}{ending} beside {picture}; {INCOMPLETE}")
        yield picture, labels[picture.stem]


def find_categories(root: Path, accepts: Callable[[Path], bool], what: str, wanted: Collection[str]) -> list[Path]:
    """Return the accepted folders that are `wanted`, or all. Raise MissingFileError where one is missing."""
    folders = find_folders(root, accepts, what)
    chosen = choose_names([folder.name for folder in folders], wanted, root)
    return [folder for folder in folders if folder.name in chosen]


def find_folders(root: Path, accepts: Callable[[Path], bool], what: str) -> list[Path]:
    """Return the accepted folders of the uppermost level that has any. Raise MissingFileError where none has."""
    level = [root]
    for _ in range(DEEPEST + 1):
        accepted = [folder for folder in level if accepts(folder)]
        if accepted:
            return accepted
        level = [inner for folder in level for inner in folders_in(folder)]
    raise MissingFileError(f"no {what} in {root}; name the download of that data set, or the folder it unpacks to")


def find_below(root: Path, pattern: str) -> list[Path]:
    """Return the sorted paths that match at most DEEPEST folders below `root`; there are too many files to see all."""
    return sorted(path for depth in range(DEEPEST + 1) for path in root.glob("*/" * depth + pattern))


def published_counts() -> dict[tuple[str, str], dict[str, int]]:
    """Return numbers of pictures by data set and category; no training pictures where the split is ours."""
    with COUNTS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    keys = [(row.pop("data_set"), row.pop("category")) for row in rows]
    return {key: {name: int(text) for name, text in row.items() if text} for key, row in zip(keys, rows, strict=True)}
