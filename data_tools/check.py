"""Check whether a category is fit for training and testing: files, labels, masks, duplicates, unusual pictures.

`python main.py --check` calls `check_categories`; training calls `quick_check` on the pictures that it has decoded.
Each function `…_findings` yields findings. Its callers drop the findings without cases.
"""

import filecmp
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms.functional import center_crop

from data_tools import check_output, image_facts, similarity
from data_tools.check_output import NOTE, SAME, SHARED, SIMILAR, WARNING, Case, Finding, make_finding, size_text
from data_tools.image_facts import ImageFacts, group_by_key, path_in, picture_files, stack_thumbnails, subfolders
from dataset import (
    LARGEST_RATIO,
    NORMAL,
    PRIVATE_SPLITS,
    SQUARE,
    SQUARE_RATIO,
    STRIP_RATIO,
    VALIDATION,
    check_category,
    choose_fit_of,
    files_below,
    is_dangling,
    is_picture,
)
from images.bit_depth import DEEPEST, white_of
from images.read import COVERED
from images.region import read_region
from runtime.errors import UserError

FEW = 10  # normal pictures; published categories have 60 and more
GREY_SHARE = 0.25  # of the marked pixels of a mask
DUPLICATE_SHARE = 0.05  # of the training pictures; more duplicates are a warning
GREY_MODES = ("1", "L", "LA", "F", "I")  # Pillow's, without the bits as in I;16
SAME_RATIO = 1.1  # of the largest to the smallest aspect ratio
COMPARED_BYTES = 4096
OTHER_SUFFIXES = {".txt", ".json", ".csv", ".md", ".db", ".ini", ".yaml", ".xml"}  # nobody takes them for pictures


class CheckRequest(NamedTuple):
    """How to check a category: the settings that matter, threads, and the file of a contact sheet, if any."""

    masks: bool = True  # whether defective pictures need masks
    squared: bool | None = True  # whether pictures become squares; None: as train/good, with data.fit: auto, decides
    bit_depth: int | None = None  # None: measured in train/good
    workers: int = 2
    sheet: Path | None = None


def check_categories(folders: Sequence[Path], request: CheckRequest) -> int:
    """Print the findings of each category and return the exit code: 0, 1 (warnings) or 2 (errors)."""
    exit_code = 0
    for folder in folders:
        check_category(folder)
        began = time.monotonic()
        bits = request.bit_depth or image_facts.measure_depth(folder, request.workers)
        pictures = image_facts.read_image_facts(folder, request.workers, bits)
        findings = examine_category(folder, pictures, request._replace(bit_depth=bits))
        print("\n".join(check_output.report_lines(folder, pictures, findings)))
        exit_code = max([exit_code, *(check_output.EXIT_CODES[finding.level] for finding in findings)])
        if sheet := request.sheet:
            path = sheet.with_stem(f"{sheet.stem}_{folder.name}") if len(folders) > 1 else sheet
            check_output.write_contact_sheet(path, folder, check_output.sheet_rows(pictures, findings), bits)
            print(f"contact sheet in {path}")
        print(f"checked {folder.name} in {time.monotonic() - began:.1f} s\n", flush=True)
    return exit_code


def check_region(path: Path | None, category_dir: Path, centre_crop: float = 1.0) -> None:
    """Raise UserError where data.region does not fit the pictures of a category, or leaves nothing to score."""
    if path is None:
        return
    region = read_region(path)
    height, width = region.mask.shape
    if not center_crop(torch.from_numpy(region.mask), [round(centre_crop * side) for side in (height, width)]).any():
        place = f"outside the centre that metrics.centre_crop={centre_crop} measures"
        raise UserError(f"data.region {path} lies {place}; set metrics.centre_crop=1")
    normal = [category_dir / split / NORMAL for split in ("train", VALIDATION)]
    private = [category_dir / split for split in PRIVATE_SPLITS]
    for folder in (*normal, *private, *subfolders(category_dir / "test")):
        for picture in picture_files(folder):
            region.check_file(picture)


def examine_category(category_dir: Path, pictures: Sequence[ImageFacts], request: CheckRequest) -> list[Finding]:
    """Return the findings of a category, the worst first."""
    readable = [image for image in pictures if not image.problem]
    train, test = ([image for image in readable if image.split == split] for split in ("train", "test"))
    findings = [*count_findings(pictures), *folder_findings(category_dir, pictures), *picture_findings(pictures)]
    findings += [*mask_findings(category_dir, pictures, request), *near_duplicate_findings(train, test)]
    findings += [*outlier_findings(train), *mixed_mode_findings(train), *depth_findings(readable, request.bit_depth)]
    squared = request.squared
    if choose_fit_of(image.size for image in train) == SQUARE if squared is None else squared:
        findings += [*squash_findings(readable), *mixed_ratio_findings(train)]
    else:
        findings += narrow_findings(readable)
    findings = [finding for finding in findings if finding.cases]
    return sorted(findings, key=lambda finding: check_output.EXIT_CODES[finding.level], reverse=True)


def quick_check(category_dir: Path, names: Sequence[str], pixels: Sequence[NDArray[np.uint8]]) -> list[Finding]:
    """Return errors and warnings of decoded training pictures (C, H, W), in a second, without reading a picture."""
    pictures = []
    for name, values in zip(names, pixels, strict=True):
        picture = Image.fromarray(values[0] if len(values) == 1 else np.moveaxis(values, 0, 2))
        pictures.append(image_facts.measure_picture(ImageFacts(name, "train", NORMAL, picture.size), picture))
    findings = [*training_count_findings(len(picture_files(category_dir / "train" / NORMAL)))]
    findings += [*picture_findings(pictures), *outlier_findings(pictures), *identical_file_findings(category_dir)]
    return [finding for finding in findings if finding.cases and finding.level != NOTE]


def count_findings(pictures: Sequence[ImageFacts]) -> Iterator[Finding]:
    yield from training_count_findings(sum(image.split == "train" for image in pictures))
    kinds = {image.kind for image in pictures if image.split == "test"}
    if not kinds:
        yield make_finding("no test pictures", ["test"])
    elif NORMAL not in kinds or kinds == {NORMAL}:
        folder = "test/<defect>" if NORMAL in kinds else f"test/{NORMAL}"
        yield make_finding("no pictures in {folder}", [folder], folder=folder)


def training_count_findings(count: int) -> Iterator[Finding]:
    if count < FEW:
        name = "only {count} training pictures" if count else "no training pictures"
        yield make_finding(name, [f"train/{NORMAL}"], count=count)


def folder_findings(category_dir: Path, pictures: Sequence[ImageFacts]) -> Iterator[Finding]:
    used = {f"{image.split}/{image.kind}" for image in pictures}
    test = subfolders(category_dir / "test") if any(image.split == "test" for image in pictures) else []
    empty = [path_in(category_dir, folder) for folder in test if path_in(category_dir, folder) not in used]
    yield make_finding("test folders without a picture", empty)
    train = [f"train/{folder.name}" for folder in subfolders(category_dir / "train") if folder.name != NORMAL]
    yield make_finding("folders beside train/good", train)
    files = [path for folder in sorted(used) for path in files_below(category_dir / folder)]
    yield make_finding("links that lead nowhere", [path_in(category_dir, path) for path in files if is_dangling(path)])
    ignored = [path for path in files if path.is_file() and not is_picture(path)]
    ignored = [path for path in ignored if path.suffix.lower() not in OTHER_SUFFIXES]
    yield make_finding("ignored files", [path_in(category_dir, path) for path in ignored])


def picture_findings(pictures: Sequence[ImageFacts]) -> Iterator[Finding]:
    for problem, files in group_by_key((image.problem, image.path) for image in pictures if image.problem).items():
        yield make_finding("unreadable pictures ({problem})", files, problem=problem)
    readable = [image for image in pictures if not image.problem]
    yield make_finding("constant pictures", [image.path for image in readable if image.constant])
    varied = [image for image in readable if not image.constant]
    dark = group_by_key((image.mode.startswith("I"), image.path) for image in varied if image.dark)
    yield make_finding("nearly black pictures", dark.get(False, ()), dark=image_facts.DARK)
    yield make_finding("nearly black 16-bit pictures", dark.get(True, ()), dark=image_facts.DARK)
    # digests are of pixels, so that copies in other lossless formats are found too
    copies = [group for group in group_by_key((image.digest, image) for image in varied).values() if len(group) > 1]
    train = [[image for image in group if image.split == "train"] for group in copies]
    count = sum(image.split == "train" for image in readable)
    yield duplicate_finding("identical training pictures", [group for group in train if len(group) > 1], SAME, count)
    both = [group for group in copies if len({image.split for image in group}) > 1]
    yield make_finding("identical pictures in train and test", [case_of(group, SAME) for group in both])
    kinds = [group for group in copies if len({image.kind for image in group if image.split == "test"}) > 1]
    yield make_finding("identical test pictures with different labels", [case_of(group, SAME) for group in kinds])


def duplicate_finding(name: str, groups: Sequence[Sequence[ImageFacts]], sign: str, count: int) -> Finding:
    """Return a warning where many of the `count` training pictures are duplicates, else a note."""
    level = WARNING if sum(len(group) - 1 for group in groups) > DUPLICATE_SHARE * count else NOTE
    return make_finding(name, [case_of(group, sign) for group in groups], level=level)


def case_of(pictures: Sequence[ImageFacts], sign: str) -> Case:
    return Case(tuple(image.path for image in pictures), sign)


def depth_findings(pictures: Sequence[ImageFacts], bits: int | None) -> Iterator[Finding]:
    """Yield that files of 16 bits hold `bits`, and which test pictures exceed that."""
    deep = [image for image in pictures if image.highest is not None]
    if bits is None or bits == DEEPEST or not deep:
        return
    texts = {"bits": bits, "white": white_of(bits)}
    highest = max((image.highest or 0 for image in deep if image.split == "train"), default=0)
    yield make_finding("files of 16 bits with {bits} bits", [Case((f"train/{NORMAL}",), "", str(highest))], **texts)
    above = [image for image in deep if (image.highest or 0) > white_of(bits)]
    cases = [Case((image.path,), "", str(image.highest)) for image in above]
    yield make_finding("pictures brighter than white", cases, **texts)


def squash_findings(pictures: Sequence[ImageFacts]) -> Iterator[Finding]:
    """Yield the pictures whose proportions a resize to a square changes: a hint, and a warning for extreme ones."""
    level = WARNING if elongated_cases(pictures, STRIP_RATIO) else NOTE
    yield make_finding("pictures that are squashed to squares", elongated_cases(pictures, SQUARE_RATIO), level=level)


def narrow_findings(pictures: Sequence[ImageFacts]) -> Iterator[Finding]:
    """Yield the pictures that are refused where pictures keep their proportions."""
    cases = elongated_cases(pictures, LARGEST_RATIO)
    yield make_finding("pictures beyond {ratio}:1", cases, ratio=LARGEST_RATIO)


def elongated_cases(pictures: Sequence[ImageFacts], least: float) -> list[Case]:
    """Return the pictures whose sides have a ratio above `least`, the longest first."""
    ratios = [(max(image.size) / min(image.size), image) for image in pictures]
    elongated = sorted(((ratio, image) for ratio, image in ratios if ratio > least), key=lambda pair: -pair[0])
    return [Case((image.path,), "", f"{size_text(image.size)}, {ratio:.3g}:1") for ratio, image in elongated]


def mask_findings(category_dir: Path, pictures: Sequence[ImageFacts], request: CheckRequest) -> Iterator[Finding]:
    pairs = image_facts.pair_masks(category_dir, pictures)
    yield make_finding("masks without a picture", pairs.without_picture)
    if not request.masks:
        return
    yield make_finding("defective pictures without a mask", pairs.without_mask)
    shared = [Case((*owners, mask), SHARED) for mask, owners in pairs.shared.items()]
    yield make_finding("masks of several pictures", shared)
    masks = image_facts.read_mask_facts(pairs.masks, request.workers)
    for problem, files in group_by_key((mask.problem, mask.path) for mask in masks if mask.problem).items():
        yield make_finding("unreadable masks ({problem})", files, problem=problem)
    readable = [mask for mask in masks if not mask.problem]
    odd = [mask for mask in readable if mask.picture_size not in (mask.size, image_facts.UNKNOWN_SIZE)]
    cases = [Case((mask.path,), "", f"{size_text(mask.size)}, picture {size_text(mask.picture_size)}") for mask in odd]
    yield make_finding("masks of another size than their picture", cases)
    yield make_finding("empty masks", [mask.path for mask in readable if mask.marked == 0])
    grey = [mask.path for mask in readable if mask.grey > GREY_SHARE]
    yield make_finding("masks that are not black and white", grey, grey=GREY_SHARE)
    for kind, members in group_by_key((mask.kind, mask) for mask in readable).items():
        covered = [mask for mask in members if mask.covered > COVERED]
        if 2 * len(covered) > len(members):
            cases = [Case((mask.path,), "", f"{mask.covered:.0%}") for mask in covered]
            yield make_finding("masks of {kind} that cover most of their pictures", cases, kind=kind, covered=COVERED)


def near_duplicate_findings(train: Sequence[ImageFacts], test: Sequence[ImageFacts]) -> Iterator[Finding]:
    if len(train) < 2:
        return
    common = similarity.CommonContent(stack_thumbnails(train))
    residuals = common.residuals(stack_thumbnails(train))
    pairs = [(train[i], train[j]) for i, j in similarity.pairs_within(residuals) if train[i].digest != train[j].digest]
    yield duplicate_finding("nearly identical training pictures", pairs, SIMILAR, len(train))
    if test:
        others = common.residuals(stack_thumbnails(test))
        pairs = [(train[i], test[j]) for i, j in similarity.pairs_between(residuals, others)]
        cases = [case_of(pair, SIMILAR) for pair in pairs if pair[0].digest != pair[1].digest]
        yield make_finding("nearly identical pictures in train and test", cases)


def outlier_findings(train: Sequence[ImageFacts]) -> Iterator[Finding]:
    train = [image for image in train if not (image.constant or image.dark)]
    if train:
        outliers = similarity.find_outliers(stack_thumbnails(train)).items()
        cases = [Case((train[index].path,), remark=measure) for index, measure in outliers]
        yield make_finding("unusual training pictures", cases)


def mixed_ratio_findings(train: Sequence[ImageFacts]) -> Iterator[Finding]:
    ratios = [image.size[0] / image.size[1] for image in train]
    if ratios and max(ratios) > SAME_RATIO * min(ratios):
        extremes = [train[int(np.argmin(ratios))].path, train[int(np.argmax(ratios))].path]
        yield make_finding("training pictures of different aspect ratios", extremes)


def mixed_mode_findings(train: Sequence[ImageFacts]) -> Iterator[Finding]:
    modes = ((image.path, image.mode.partition(";")[0]) for image in train)
    colours = group_by_key(("grey" if mode in GREY_MODES else "colour", path) for path, mode in modes)
    if len(colours) > 1:
        rare = min(colours, key=lambda colour: len(colours[colour]))
        yield make_finding("{colour} pictures among others", colours[rare], colour=rare)


def identical_file_findings(category_dir: Path) -> Iterator[Finding]:
    """Compare test files with training files; only files with the same length and middle are read as a whole."""
    train = group_by_key((file_key(path), path) for path in picture_files(category_dir / "train" / NORMAL))
    test = [path for folder in subfolders(category_dir / "test") for path in picture_files(folder)]
    candidates = [(other, path) for path in test for other in train.get(file_key(path), ())]
    pairs = [pair for pair in candidates if filecmp.cmp(*pair, shallow=False)]
    cases = [Case((path_in(category_dir, first), path_in(category_dir, second)), SAME) for first, second in pairs]
    yield make_finding("identical files in train and test", cases)


def file_key(path: Path) -> tuple[int, bytes]:
    length = path.stat().st_size
    with path.open("rb") as file:
        file.seek(length // 2)
        return length, file.read(COMPARED_BYTES)
