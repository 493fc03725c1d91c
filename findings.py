"""What `doctor.py` finds, and how it is told."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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


def table(findings: Sequence[Finding]) -> list[str]:
    """A block a finding: how bad, what, how many, examples; what it means; what to do."""
    lines = [f"  {'finding':56}{'count':>6}  examples"] if findings else ["  nothing to complain of"]
    for finding in findings:
        lines.append(f"  {finding.level.upper() + ': ' + finding.what:56}{len(finding.cases):6}  {examples(finding.cases)}")
        lines += [f"      means: {finding.meaning}", f"      remedy: {finding.remedy}"]
    return lines


def brief(findings: Sequence[Finding]) -> list[str]:
    """A line a finding, for those who asked for something else."""
    lines = [f"{finding.level}: {finding.what}, {len(finding.cases)} ({finding.cases[0]})" for finding in findings]
    return [*lines, "python main.py --check says more"] if lines else []


def examples(cases: Sequence[Case]) -> str:
    more = f" and {len(cases) - EXAMPLES} more" if len(cases) > EXAMPLES else ""
    return ", ".join(map(str, cases[:EXAMPLES])) + more
