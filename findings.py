"""What `doctor.py` finds, and how it is told."""

from collections.abc import Sequence
from dataclasses import dataclass

ERROR, WARNING, NOTE = "error", "warning", "note"
EXIT_CODES = {ERROR: 2, WARNING: 1, NOTE: 0}
SAME, NEARLY = " = ", " ≈ "  # between the files of a pair
EXAMPLES = 3  # files named to a finding


@dataclass(frozen=True)
class Finding:
    """Something to know about a category: how bad (ERROR, WARNING or NOTE), what, the files (relative to it), what it means, what to do."""

    level: str
    what: str
    files: tuple[str, ...]
    meaning: str
    remedy: str


def table(findings: Sequence[Finding]) -> list[str]:
    """A block a finding: how bad, what, how many, examples; what it means; what to do."""
    lines = [f"  {'finding':56}{'count':>6}  examples"] if findings else ["  nothing to complain of"]
    for finding in findings:
        lines.append(f"  {finding.level.upper() + ': ' + finding.what:56}{len(finding.files):6}  {examples(finding.files)}")
        lines += [f"      means: {finding.meaning}", f"      remedy: {finding.remedy}"]
    return lines


def brief(findings: Sequence[Finding]) -> list[str]:
    """A line a finding, for those who asked for something else."""
    lines = [f"{finding.level}: {finding.what}, {len(finding.files)} ({finding.files[0]})" for finding in findings]
    return [*lines, "python main.py --check says more"] if lines else []


def examples(files: Sequence[str]) -> str:
    return ", ".join(files[:EXAMPLES]) + (f" and {len(files) - EXAMPLES} more" if len(files) > EXAMPLES else "")
