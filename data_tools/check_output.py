"""Pictures of a category in rows, on one sheet."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from images.read import read_reduced
from storage.atomic_file import atomic_write

SIDE, GAP, CAPTION = 128, 6, 22  # pixels


def write_contact_sheet(path: Path, category_dir: Path, rows: Mapping[str, Sequence[str]]) -> None:
    """A PNG with a row of the pictures named (paths in the category) under each caption. Raises OSError where it can't be written."""
    columns = max((len(names) for names in rows.values()), default=1)
    sheet = Image.new("RGB", (columns * (SIDE + GAP) + GAP, len(rows) * (CAPTION + SIDE + GAP) + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for number, (caption, names) in enumerate(rows.items()):
        top = number * (CAPTION + SIDE + GAP) + GAP
        pen.text((GAP, top), caption, fill="black", font=font)
        for column, name in enumerate(names):
            sheet.paste(small_picture(category_dir / name), (GAP + column * (SIDE + GAP), top + CAPTION))
    with atomic_write(path, "change --contact_sheet") as file:
        sheet.save(file, "PNG")


def small_picture(path: Path) -> Image.Image:
    picture, _ = read_reduced(path, 3, lambda width, height: (SIDE, SIDE))
    picture.thumbnail((SIDE, SIDE))
    return picture


ERROR, WARNING, NOTE = "error", "warning", "note"
EXIT_CODES = {ERROR: 2, WARNING: 1, NOTE: 0}
SAME, NEARLY = " = ", " ≈ "  # between the files of a pair
EXAMPLES = 3  # cases named of a finding


class Case(NamedTuple):
    """One case of a finding: its files, relative to the category; the sign between several; a remark."""

    files: tuple[str, ...]
    sign: str = ""
    remark: str = ""

    def __str__(self) -> str:
        return self.sign.join(self.files) + (f" ({self.remark})" if self.remark else "")


@dataclass(frozen=True)
class Finding:
    """A fact about a category: its level (ERROR, WARNING or NOTE), name, cases, meaning and remedy."""

    level: str
    what: str
    cases: tuple[Case, ...]
    meaning: str
    remedy: str


def each(files: Iterable[str]) -> tuple[Case, ...]:
    """Return a case for each file."""
    return tuple(Case((file,)) for file in files)


def finding_table(findings: Sequence[Finding]) -> list[str]:
    """A block a finding: how bad, what, how many, examples; what it means; what to do."""
    lines = [f"  {'finding':56}{'count':>6}  examples"] if findings else ["  nothing to complain of"]
    for finding in findings:
        lines.append(
            f"  {finding.level.upper() + ': ' + finding.what:56}{len(finding.cases):6}  {examples(finding.cases)}"
        )
        lines += [f"      means: {finding.meaning}", f"      remedy: {finding.remedy}"]
    return lines


def brief_findings(findings: Sequence[Finding]) -> list[str]:
    """A line a finding, for those who asked for something else."""
    lines = [f"{finding.level}: {finding.what}, {len(finding.cases)} ({finding.cases[0]})" for finding in findings]
    return [*lines, "python main.py --check says more"] if lines else []


def examples(cases: Sequence[Case]) -> str:
    more = f" and {len(cases) - EXAMPLES} more" if len(cases) > EXAMPLES else ""
    return ", ".join(map(str, cases[:EXAMPLES])) + more
