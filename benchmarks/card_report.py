"""What benchmarks/card.py has found so far: its files, and the report."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.card_rows import CEILING, ENVIRONMENT, GOLDEN, Row, load_rows
from benchmarks.speed import GIGA
from config.keys import PER_IMAGE
from config.published import published_metrics
from reports import manifest
from reports.html import PAGE
from runtime.errors import UserError
from storage.atomic_file import atomic_write

CARD, REPORT = "card.json", "card.md"
PROTOCOLS = (PER_IMAGE, "published")
METRICS = {"image AUROC": "image_auroc", "pixel AUROC": "pixel_auroc", "PRO": "pro"}
MILLI = 1e-3
LOG_LINES = 30
REMEDY = "choose another folder with --out"

Step = dict[str, float]  # exit code, and seconds of all tries


@dataclass
class Card:
    """What is known so far, as card.json holds it."""

    category: str
    scale: str
    starts: list[float] = field(default_factory=list)  # seconds from the start of Python to `main`, of each try
    epochs: int | None = None  # planned
    published_epochs: int | None = None
    steps: dict[str, Step] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)  # of card_rows.py
    results: dict[str, dict[str, Any]] = field(default_factory=dict)  # metrics and seconds, by protocol
    logs: dict[str, str] = field(default_factory=dict)  # the end of the output of steps that failed

    def is_done(self, step: str) -> bool:
        return self.steps.get(step, {}).get("code") == 0


@dataclass(frozen=True)
class Places:
    """The category's folder, the folder of the report, and that of logs, weights and results."""

    data: Path
    out: Path
    work: Path

    @property
    def rows(self) -> Path:
        return self.work / "rows.jsonl"

    def log(self, step: str) -> Path:
        return self.work / f"{step}.log"

    def results(self, protocol: str) -> Path:
        return self.work / "results" / protocol


def load_card(places: Places, scale: str) -> Card:
    """Return what an earlier try left in card.json, or an empty card. Raise UserError if it is of other data."""
    path = places.out / CARD
    if not path.exists():
        return Card(places.data.name, scale)
    card = Card(**json.loads(path.read_text(encoding="utf-8")))
    if (card.category, card.scale) != (places.data.name, scale):
        found = f"{path} is of {card.category} at scale {card.scale}, not of {places.data.name} at scale {scale}"
        raise UserError(f"{found}; {REMEDY}")
    return card


def save_card(card: Card, places: Places) -> None:
    """Take over what the steps have written so far, and write card.json, the report and the pages of results."""
    card.rows = load_rows(places.rows)
    for protocol in PROTOCOLS:
        folder = places.results(protocol)
        if (folder / PAGE).exists():  # detection writes it last
            content = manifest.load_manifest(folder)
            model = {name: content["settings"]["model"][name] for name in ("load_chp", "DA_chp", "feature_extractor")}
            card.results[protocol] = {"metrics": content["metrics"], "seconds": content["seconds"], **model}
            shutil.copy(folder / PAGE, places.out / f"{protocol}.html")
    failed = [name for name, step in card.steps.items() if step["code"]]
    outputs = {name: places.log(name).read_text(encoding="utf-8", errors="replace").splitlines() for name in failed}
    card.logs = {name: "\n".join(lines[-LOG_LINES:]) for name, lines in outputs.items()}
    with atomic_write(places.out / CARD, REMEDY, "w") as file:
        json.dump(asdict(card), file, indent=1)
    with atomic_write(places.out / REPORT, REMEDY, "w") as file:
        file.writelines(f"{line}\n" for line in report_lines(card))


def report_lines(card: Card) -> Iterator[str]:
    """Yield the report in Markdown."""
    yield f"# {card.category} on {card.rows.get(ENVIRONMENT, {}).get('device', 'an unknown device')}"
    facts = {name: value for name, value in card.rows.get(ENVIRONMENT, {}).items() if name not in ("row", "seconds")}
    yield from table(["environment", ""], facts.items())
    golden = [row for name, row in card.rows.items() if name.startswith(GOLDEN)]
    differences = [(name, each) for row in golden for name, each in row.get("differences", {}).items()]
    lines = [(name, f"{each['share']:.1e}", f"{each['bound']:.1e}") for name, each in differences]
    yield from table(["golden numbers", "largest difference, as a share of the largest value", "bound"], lines)
    yield from speed_lines(card.rows)
    yield from result_lines(card)
    yield from table(["step", "seconds", "exit code"], [(name, *step.values()) for name, step in card.steps.items()])
    yield f"\nSeconds from the start of Python to the first line of the program, of each try: {card.starts}"
    failed = [(name, row["error"]) for name, row in card.rows.items() if "error" in row]
    yield from table(["row that failed", "error"], failed)
    for name, log in card.logs.items():
        yield f"\nThe end of the output of {name}:\n\n```\n{log}\n```"


def speed_lines(rows: Mapping[str, Row]) -> Iterator[str]:
    """Yield the table of ceilings and that of timed rows."""
    ceilings = {name.removeprefix(CEILING).strip(): row for name, row in rows.items() if name.startswith(CEILING)}
    highest = {name: max(row["product"], row["convolution"]) for name, row in ceilings.items() if "product" in row}
    rates = {name: [f"{ceilings[name][kind] / GIGA:,.0f}" for kind in ("product", "convolution")] for name in highest}
    columns = ["ceiling", "matrix product, GFLOP/s", "convolution, GFLOP/s"]
    yield from table(columns, [(name, *cells) for name, cells in rates.items()])
    timed = {name: row for name, row in rows.items() if "median" in row}
    columns = ["", "images", "ms", "range", "first call, s", "images a second", "GFLOP/s", "of the ceiling", "peak MiB"]
    yield from table(columns, [timed_cells(name, row, highest) for name, row in timed.items()])


def timed_cells(name: str, row: Row, highest: Mapping[str, float]) -> list[object]:
    rate = row["operations"] / row["median"]
    ceiling = next((highest[each] for each in highest if each in name.split()), highest.get("fp32"))
    middle, low, high = (f"{row[key] / MILLI:.4g}" for key in ("median", "low", "high"))
    share = f"{rate / ceiling:.0%}" if ceiling else "–"
    speed = f"{row['pictures'] / row['median']:.4g}"
    first = f"{row['first_seconds']:.3g}"
    return [name, row["pictures"], middle, f"{low}–{high}", first, speed, f"{rate / GIGA:,.0f}", share, row["peak_mib"]]


def result_lines(card: Card) -> Iterator[str]:
    """Yield the table of metrics in percent, beside the published ones, and how long training was."""
    published = published_metrics(card.category)
    rows: list[Sequence[object]] = []
    for protocol, result in card.results.items():
        cells = [f"{100 * result['metrics'][key]:.1f}" for key in METRICS.values()]
        seconds = ", ".join(f"{stage} {value:.0f}" for stage, value in result["seconds"].items())
        epochs = f"{result['load_chp']} of {card.published_epochs} epochs"
        rows.append([f"{protocol}, {epochs}, feat{result['DA_chp']} of {result['feature_extractor']}", *cells, seconds])
    if rows and published:
        rows.append(["paper", *(published[key] for key in METRICS.values()), "–"])
    yield from table(["%", *METRICS, "seconds"], rows)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Yield the lines of a table after an empty line; nothing without rows."""
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in rows]
    if lines:
        yield from ["", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}", *lines]
