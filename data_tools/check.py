"""Is a category fit to train and test on? What is wrong with its files, in a table: finding, count, examples, what it means, what to do.

`run` is `python main.py --check`; `examine` gives the findings of one category; `glance` is what training asks of pictures that it has decoded.
"""

import filecmp
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_tools import similarity
from data_tools.check_output import (
    ERROR,
    EXIT_CODES,
    NEARLY,
    NOTE,
    SAME,
    WARNING,
    Case,
    Finding,
    each,
    finding_table,
    write_contact_sheet,
)
from data_tools.image_facts import (
    AT_ONCE,
    DARK,
    ImageFacts,
    facts_of,
    grouped,
    match_masks,
    read_all_facts,
    read_mask_facts,
    thumbnails,
)
from dataset import MASK_ENDING, NORMAL, check_category, folders_in, is_picture, masks_in, read_ahead
from images.read import Size

FEW = 10  # normal pictures; published categories have 60 and more
GREY_SHARE = 0.25  # of what a mask marks
DOUBLED = 0.05  # share of the training pictures from which copies among them count
LEAK = ("test figures come out too good", "remove them from one of the two")
UNKNOWN = (0, 0)  # the size of what could not be read
MIDDLE = 4096  # bytes
SHEET_PICTURES = 10  # to a row
PASSED_OVER = {
    ".txt",
    ".json",
    ".csv",
    ".md",
    ".db",
    ".ini",
    ".yaml",
    ".xml",
}  # suffixes of what nobody takes for a picture


def check_categories(
    folders: Sequence[Path], *, masks: bool = True, workers: int = 2, sheet: Path | None = None
) -> int:
    """Print what is found in each of these categories; returns the exit code: 0, 1 (warnings) or 2 (errors).

    `sheet` takes a picture of the pictures, and of those of each finding; of several categories each has its own.
    """
    worst = 0
    for folder in folders:
        check_category(folder)
        began = time.monotonic()
        looks = read_all_facts(folder, workers)
        findings = examine_category(folder, masks=masks, workers=workers, looks=looks)
        print("\n".join([*category_overview(folder, looks), *finding_table(findings)]))
        worst = max([worst, *(EXIT_CODES[finding.level] for finding in findings)])
        if sheet is not None:
            place = sheet.with_stem(f"{sheet.stem}_{folder.name}") if len(folders) > 1 else sheet
            write_contact_sheet(place, folder, sheet_rows(looks, findings))
            print(f"contact sheet in {place}")
        print(f"checked {folder.name} in {time.monotonic() - began:.1f} s\n", flush=True)
    return worst


def examine_category(
    category_dir: Path, *, masks: bool = True, workers: int = 2, looks: Sequence[ImageFacts] | None = None
) -> list[Finding]:
    """All findings of a category, the worst first. `masks`: whether its defective pictures should have some; `looks`: if there are already."""
    looks = read_all_facts(category_dir, workers) if looks is None else looks
    seen = [look for look in looks if not look.problem]
    found = chain(
        layout_findings(category_dir, looks),
        content_findings(looks),
        mask_findings(category_dir, looks, masks, workers),
        likeness_findings(seen),
        mixture_findings([look for look in seen if look.split == "train"]),
    )
    return sorted(found, key=lambda finding: -EXIT_CODES[finding.level])


def quick_check(category_dir: Path, names: Sequence[str], shown: Sequence[NDArray[np.uint8]]) -> list[Finding]:
    """Errors and warnings of training pictures (C, H, W) that are decoded already: in a second, without reading a picture."""
    looks = []
    for name, pixels in zip(names, shown, strict=True):
        picture = Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, 2))
        looks.append(facts_of(ImageFacts(name, "train", NORMAL, picture.size), picture))
    found = chain(
        few_findings(count_of(category_dir / "train" / NORMAL)),
        content_findings(looks),
        apart_findings(looks),
        leak_of_files(category_dir),
    )
    return [finding for finding in found if finding.level != NOTE]


# Findings


def layout_findings(category_dir: Path, looks: Sequence[ImageFacts]) -> Iterator[Finding]:
    yield from few_findings(sum(look.split == "train" for look in looks))
    kinds = Counter(look.kind for look in looks if look.split == "test")
    if not kinds:
        yield Finding(
            NOTE,
            "no test pictures",
            each(["test"]),
            "nothing can be measured, only --input works",
            "put pictures in test/good, test/<defect>",
        )
    elif not kinds[NORMAL] or set(kinds) == {NORMAL}:
        missing = "test/<defect>" if kinds[NORMAL] else "test/good"
        yield Finding(
            WARNING,
            f"nothing in {missing}",
            each([missing]),
            "AUROC needs normal and defective pictures",
            f"put pictures in {missing}",
        )
    empty = [
        f"test/{folder.name}"
        for folder in (folders_in(category_dir / "test") if kinds else [])
        if folder.name not in kinds
    ]
    if empty:
        yield Finding(
            ERROR,
            "test folders without a picture",
            each(empty),
            "detection stops there",
            "put pictures in them, or remove them",
        )
    train = category_dir / "train"
    other = [f"train/{folder.name}" for folder in folders_in(train) if folder.name != NORMAL] if train.is_dir() else []
    if other:
        yield Finding(
            NOTE, "folders beside train/good", each(other), "they are not read", "move normal pictures into train/good"
        )
    places = sorted({category_dir / Path(look.path).parent for look in looks})
    strange = [
        path.relative_to(category_dir).as_posix()
        for place in places
        for path in sorted(place.iterdir())
        if path.is_file()
        and not is_picture(path)
        and not path.name.startswith(".")
        and path.suffix.lower() not in PASSED_OVER
    ]
    if strange:
        yield Finding(
            NOTE,
            "files that are passed over",
            each(strange),
            "their suffix is not of a picture that is read",
            "save them as PNG, if wanted",
        )


def few_findings(count: int) -> Iterator[Finding]:
    where = each([f"train/{NORMAL}"])
    if count == 0:
        yield Finding(
            ERROR,
            "no training pictures",
            where,
            "there is nothing to learn from",
            f"put normal pictures in train/{NORMAL}",
        )
    elif count < FEW:
        meaning = "they show little of what is normal, and promise little about false alarms"
        yield Finding(
            WARNING,
            f"only {count} training pictures",
            where,
            meaning,
            "add normal pictures; published categories have 60 and more",
        )


def content_findings(looks: Sequence[ImageFacts]) -> Iterator[Finding]:
    for problem, files in grouped((look.problem, look.path) for look in looks if look.problem):
        yield Finding(
            ERROR,
            f"unreadable pictures ({problem})",
            each(files),
            "the stage that reads them stops",
            "replace or remove them",
        )
    seen = [look for look in looks if not look.problem]
    even = [look.path for look in seen if look.even]
    if even:
        yield Finding(
            WARNING,
            "constant pictures",
            each(even),
            "they show nothing: a failed exposure or export",
            "replace or remove them",
        )
    meaning = f"all is below {DARK} of 255, so that 8 bits leave hardly any levels"
    for deep, files in grouped((look.deep, look.path) for look in seen if look.dark and not look.even):
        remedy = (
            "multiply the values by 16, if the camera has 12 bits"
            if deep
            else "replace them, or brighten all by the same factor"
        )
        yield Finding(WARNING, f"nearly black {'16-bit ' * deep}pictures", each(files), meaning, remedy)
    yield from copy_findings(seen)


def copy_findings(looks: Sequence[ImageFacts]) -> Iterator[Finding]:
    """Pictures of the same pixels, whatever their files."""
    copies = [same for _, same in grouped((look.digest, look) for look in looks if not look.even) if len(same) > 1]
    within = [same for same in ([look for look in same if look.split == "train"] for same in copies) if len(same) > 1]
    total = sum(look.split == "train" for look in looks)
    yield from doubled([[look.path for look in same] for same in within], total, "identical training pictures", SAME)
    across = [
        Case(tuple(look.path for look in same), SAME) for same in copies if len({look.split for look in same}) > 1
    ]
    if across:
        yield Finding(WARNING, "identical pictures in train and test", tuple(across), *LEAK)
    labels = [
        Case(tuple(look.path for look in same), SAME)
        for same in copies
        if len({look.kind for look in same if look.split == "test"}) > 1
    ]
    if labels:
        yield Finding(
            WARNING,
            "one test picture, two kinds",
            tuple(labels),
            "one of the labels is wrong",
            "remove it from one of the folders",
        )


def doubled(groups: Sequence[Sequence[str]], total: int, what: str, sign: str) -> Iterator[Finding]:
    if groups:
        level = WARNING if sum(len(group) - 1 for group in groups) > DOUBLED * total else NOTE
        meaning = "they count double, and where one is held out for calibration, thresholds come out too low"
        yield Finding(level, what, tuple(Case(tuple(group), sign) for group in groups), meaning, "keep one of each")


def mask_findings(category_dir: Path, looks: Sequence[ImageFacts], wanted: bool, workers: int) -> Iterator[Finding]:
    """Of the masks that are there, and, where they are wanted, of those that are not."""
    pairs, without, unused = match_masks(category_dir, looks)
    if wanted and without:
        meaning, remedy = (
            "detection stops at the first one",
            f"add ground_truth/<kind>/<picture>{MASK_ENDING}.png, or set data.mask=False",
        )
        yield Finding(ERROR, "defective pictures without a mask", each(without), meaning, remedy)
    if unused:
        meaning = "no picture has that name (000_mask.png or 000.png is of 000.*), or another mask serves"
        yield Finding(WARNING, "masks without a picture", each(unused), meaning, "rename or remove them")
    if not wanted:
        return
    seen = [
        mask for batch in read_ahead(lambda pair: read_mask_facts(*pair), pairs, AT_ONCE, workers) for mask in batch
    ]
    sizes = {look.path: look.size for look in looks}
    for problem, files in grouped((mask.problem, mask.path) for mask in seen if mask.problem):
        yield Finding(
            ERROR,
            f"unreadable masks ({problem})",
            each(files),
            "detection stops there",
            "replace them, or set data.mask=False",
        )
    seen = [mask for mask in seen if not mask.problem]
    other = [
        Case((mask.path,), remark=f"{by(mask.size)}, picture {by(sizes[mask.picture])}")
        for mask in seen
        if sizes[mask.picture] not in (mask.size, UNKNOWN)
    ]
    if other:
        yield Finding(
            ERROR,
            "masks of another size than their picture",
            tuple(other),
            "detection stops there",
            "export them anew in the picture's size",
        )
    empty = [mask.path for mask in seen if mask.marked == 0]
    if empty:
        meaning = "the picture counts as defective, its pixels as normal: pixel figures suffer"
        yield Finding(WARNING, "empty masks", each(empty), meaning, "mark the defect, or move the picture to test/good")
    grey = [mask.path for mask in seen if mask.grey > GREY_SHARE]
    if grey:
        meaning = f"more than {GREY_SHARE:.0%} of what they mark is neither black nor white; what is above half counts as defective"
        yield Finding(
            WARNING,
            "masks that are not black and white",
            each(grey),
            meaning,
            "save them with two values, not as JPEG or overlay",
        )


def likeness_findings(looks: Sequence[ImageFacts]) -> Iterator[Finding]:
    """Pictures that are nearly the same, and normal ones that stand apart."""
    train, test = ([look for look in looks if look.split == split] for split in ("train", "test"))
    if len(train) < 2:
        return
    common = similarity.Common(thumbnails(train))
    own = common.own(thumbnails(train))
    near = [(train[i], train[j]) for i, j in similarity.pairs_within(own)]
    yield from doubled(
        [(a.path, b.path) for a, b in near if a.digest != b.digest],
        len(train),
        "nearly identical training pictures",
        NEARLY,
    )
    if test:
        near = [(train[i], test[j]) for i, j in similarity.pairs_between(own, common.own(thumbnails(test)))]
        leaks = tuple(Case((a.path, b.path), NEARLY) for a, b in near if a.digest != b.digest)
        if leaks:
            meaning = "two takes or copies of one thing: test figures come out too good"
            yield Finding(
                WARNING,
                "nearly identical pictures in train and test",
                leaks,
                meaning,
                "keep all takes of a thing on one side",
            )
    yield from apart_findings(train)


def apart_findings(train: Sequence[ImageFacts]) -> Iterator[Finding]:
    train = [look for look in train if not (look.even or look.dark or look.problem)]
    apart = similarity.standing_apart(thumbnails(train)) if train else []
    if apart:
        strange = tuple(Case((train[one.place].path,), remark=one.what) for one in apart)
        meaning = "they stand apart from all others: a defect, another thing, or a failed exposure; what is learnt is called normal"
        yield Finding(WARNING, "strange normal pictures", strange, meaning, "look at them; remove what is not normal")


def mixture_findings(train: Sequence[ImageFacts]) -> Iterator[Finding]:
    ratios = [look.size[0] / look.size[1] for look in train]
    if ratios and max(ratios) > 1.1 * min(ratios):
        meaning = "squashed to squares, the same thing is shown in different proportions"
        extremes = each(train[index].path for index in (int(np.argmin(ratios)), int(np.argmax(ratios))))
        yield Finding(
            NOTE, "training pictures of several proportions", extremes, meaning, "cut them alike, or set data.tiles"
        )
    modes = Counter(look.colour for look in train)
    if len(modes) > 1:
        rare = min(modes, key=lambda mode: modes[mode])
        odd = each(look.path for look in train if look.colour == rare)
        yield Finding(
            NOTE,
            f"{rare} pictures among others",
            odd,
            "grey and colour are both learnt as normal",
            "save all alike, or set data.input_channel=1",
        )


def leak_of_files(category_dir: Path) -> Iterator[Finding]:
    """Test files that are byte for byte training files. Only files with the same length and middle are read whole."""
    train, test = category_dir / "train" / NORMAL, category_dir / "test"
    by_middle = dict(grouped((middle(path), path) for path in sorted(train.iterdir()) if is_picture(path)))
    same = [
        Case(tuple(path.relative_to(category_dir).as_posix() for path in (other, file)), SAME)
        for folder in (folders_in(test) if test.is_dir() else [])
        for file in sorted(folder.iterdir())
        if is_picture(file)
        for other in by_middle.get(middle(file), ())
        if filecmp.cmp(other, file, shallow=False)
    ]
    if same:
        yield Finding(WARNING, "identical files in train and test", tuple(same), *LEAK)


def middle(path: Path) -> tuple[int, bytes]:
    """The file's length, and some bytes of its middle."""
    length = path.stat().st_size
    with path.open("rb") as file:
        file.seek(length // 2)
        return length, file.read(MIDDLE)


# Words and pictures


def category_overview(category_dir: Path, looks: Sequence[ImageFacts]) -> list[str]:
    """A line a folder: how many pictures and masks, of which sizes and modes."""
    lines = [f"{category_dir}: {len(looks)} pictures", f"  {'folder':28}{'pictures':>9}{'masks':>7}  sizes and modes"]
    for (split, kind), members in grouped(((look.split, look.kind), look) for look in looks):
        masks = len(masks_in(category_dir / "ground_truth" / kind)) if split == "test" and kind != NORMAL else 0
        sizes, modes = (
            Counter(by(look.size) for look in members if not look.problem),
            Counter(look.mode for look in members if not look.problem),
        )
        spread = f"{', '.join(most(sizes))}; {', '.join(most(modes))}"
        lines.append(f"  {split + '/' + kind:28}{len(members):9}{masks or '':>7}  {spread}")
    return lines


def sheet_rows(looks: Sequence[ImageFacts], findings: Sequence[Finding]) -> dict[str, list[str]]:
    """Pictures by caption: of each folder some evenly spread over it, of each finding the first ones."""
    rows: dict[str, list[str]] = {}
    for (split, kind), members in grouped(((look.split, look.kind), look.path) for look in looks if not look.problem):
        rows[f"{split}/{kind} ({len(members)})"] = list(members[:: -(-len(members) // SHEET_PICTURES)])
    readable = {look.path for look in looks if not look.problem}
    for finding in findings:
        names = [name for case in finding.cases for name in case.files if name in readable]
        rows[f"{finding.level}: {finding.what} ({len(finding.cases)})"] = names[:SHEET_PICTURES]
    return {caption: names for caption, names in rows.items() if names}


def count_of(folder: Path) -> int:
    return sum(is_picture(path) for path in folder.iterdir()) if folder.is_dir() else 0


def most(counts: "Counter[str]") -> list[str]:
    """The three most frequent, and how many others there are."""
    common = counts.most_common(3)
    return [f"{name} ({number})" if len(counts) > 1 else name for name, number in common] + [
        f"{len(counts) - 3} more"
    ] * (len(counts) > 3)


def by(size: Size) -> str:
    return f"{size[0]}×{size[1]}"
