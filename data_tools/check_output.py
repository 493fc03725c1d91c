"""Report the findings of a check, with the texts of findings.csv: in full, in brief, on a contact sheet."""

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from data_tools.image_facts import ImageFacts, group_by_key, picture_files
from dataset import NORMAL
from images.read import Size, read_reduced
from storage.atomic_file import atomic_write

ERROR, WARNING, NOTE = "error", "warning", "note"
EXIT_CODES = {ERROR: 2, WARNING: 1, NOTE: 0}
SAME, SIMILAR, SHARED = " = ", " ≈ ", ", "  # between the files of a case
MOST_EXAMPLES, MOST_VALUES = 3, 3  # cases of a finding, sizes or modes of a folder
SIDE, GAP, CAPTION = 128, 6, 22  # pixels of the contact sheet
SHEET_COLUMNS = 10  # pictures
CATALOGUE = Path(__file__).with_name("findings.csv")


class Case(NamedTuple):
    """One case of a finding: its files, relative to the category, the sign between them, a remark."""

    files: tuple[str, ...]
    sign: str = ""
    remark: str = ""

    def __str__(self) -> str:
        return self.sign.join(self.files) + (f" ({self.remark})" if self.remark else "")


class Finding(NamedTuple):
    """A fact about a category: its level (ERROR, WARNING or NOTE), name, meaning, remedy, and cases."""

    level: str
    name: str
    meaning: str
    remedy: str
    cases: tuple[Case, ...]


def make_finding(name: str, cases: Iterable[Case | str], **values: object) -> Finding:
    """Return a finding of the catalogue, with `values` in its texts; a case may be a file's name."""
    texts = {column: text.format(**values) for column, text in read_catalogue()[name].items()}
    return Finding(**texts, cases=tuple(case if isinstance(case, Case) else Case((case,)) for case in cases))


def read_catalogue() -> dict[str, dict[str, str]]:
    """Return the rows of findings.csv by name."""
    with CATALOGUE.open(encoding="utf-8", newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def report_lines(category_dir: Path, pictures: Sequence[ImageFacts], findings: Sequence[Finding]) -> list[str]:
    """Return a line for each folder, then for each finding a line of examples, its meaning and the remedy."""
    lines = [f"{category_dir}: {len(pictures)} pictures"]
    lines.append(f"  {'folder':28}{'pictures':>9}{'masks':>7}  sizes and modes")
    for (split, kind), members in group_by_key(((image.split, image.kind), image) for image in pictures).items():
        has_masks = split == "test" and kind != NORMAL
        masks = len(picture_files(category_dir / "ground_truth" / kind)) if has_masks else 0
        readable = [image for image in members if not image.problem]
        sizes, modes = (size_text(image.size) for image in readable), (image.mode for image in readable)
        folder = f"{split}/{kind}"
        lines.append(f"  {folder:28}{len(members):9}{masks or '':>7}  {most_common(sizes)}; {most_common(modes)}")
    lines += [f"  {'finding':56}{'count':>6}  examples"] if findings else ["  no problems found"]
    for finding in findings:
        more = len(finding.cases) - MOST_EXAMPLES
        examples = ", ".join(map(str, finding.cases[:MOST_EXAMPLES])) + (f" and {more} more" if more > 0 else "")
        lines.append(f"  {finding.level.upper() + ': ' + finding.name:56}{len(finding.cases):6}  {examples}")
        lines += [f"      means: {finding.meaning}", f"      remedy: {finding.remedy}"]
    return lines


def brief_findings(findings: Sequence[Finding]) -> list[str]:
    """Return a line for each finding, and the command that shows more."""
    lines = [f"{finding.level}: {finding.name}, {len(finding.cases)} ({finding.cases[0]})" for finding in findings]
    return [*lines, "python main.py --check shows more"] if lines else []


def most_common(values: Iterable[str]) -> str:
    counts = Counter(values)
    shown = [f"{value} ({count})" if len(counts) > 1 else value for value, count in counts.most_common(MOST_VALUES)]
    return ", ".join(shown + [f"{len(counts) - MOST_VALUES} more"] * (len(counts) > MOST_VALUES))


def size_text(size: Size) -> str:
    return f"{size[0]}×{size[1]}"


def sheet_rows(pictures: Sequence[ImageFacts], findings: Sequence[Finding]) -> dict[str, Sequence[str]]:
    """Return the pictures of the contact sheet by caption: a sample of each folder, the first ones of each finding."""
    rows: dict[str, Sequence[str]] = {}
    readable = {image.path: f"{image.split}/{image.kind}" for image in pictures if not image.problem}
    for folder, names in group_by_key((folder, name) for name, folder in readable.items()).items():
        rows[f"{folder} ({len(names)})"] = names[:: -(-len(names) // SHEET_COLUMNS)]
    for finding in findings:
        shown = [name for case in finding.cases for name in case.files if name in readable][:SHEET_COLUMNS]
        rows[f"{finding.level}: {finding.name} ({len(finding.cases)})"] = shown
    return {caption: names for caption, names in rows.items() if names}


def write_contact_sheet(path: Path, category_dir: Path, rows: Mapping[str, Sequence[str]], bits: int) -> None:
    """Write a PNG with a row of pictures under each caption. Raise UserFileError where it can't be written."""
    columns = max((len(names) for names in rows.values()), default=1)
    sheet = Image.new("RGB", (columns * (SIDE + GAP) + GAP, len(rows) * (CAPTION + SIDE + GAP) + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for number, (caption, names) in enumerate(rows.items()):
        top = number * (CAPTION + SIDE + GAP) + GAP
        pen.text((GAP, top), caption, fill="black", font=font)
        for column, name in enumerate(names):
            picture, _ = read_reduced(category_dir / name, 3, lambda width, height: (SIDE, SIDE), bits)
            picture.thumbnail((SIDE, SIDE))
            sheet.paste(picture, (GAP + column * (SIDE + GAP), top + CAPTION))
    with atomic_write(path, "change --contact_sheet") as file:
        sheet.save(file, "PNG")
