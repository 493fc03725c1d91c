"""Make tables: categories beside the paper's results, the paper's results alone, runs side by side."""

import html
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tabulate import tabulate

from config.published import PUBLISHED_METRICS, published_data_set, published_metrics, published_rows
from reports.manifest import MANIFEST, Manifest, differences, load_manifest, value_text
from reports.metric_summary import MISSING, MetricSummary, mean_if_complete, percent, short_name
from reports.writer import REMEDY
from runtime.errors import MissingFileError
from storage.atomic_file import atomic_write
from storage.safe_csv import write_rows

SUMMARY, MEAN = "summary", "mean"
TITLES = [short_name(key) for key in PUBLISHED_METRICS]
SETTINGS = {"w": "model", "v": "model", "epochs": "model", "DA_chp": "model", "image_size": "data"}  # key → section
STYLES = {"": ".1f", "_published": ".1f", "_difference": "+.1f"}  # of a printed percentage, by the ending of its column
COLUMNS = {f"{name}{ending}": style for name in PUBLISHED_METRICS for ending, style in STYLES.items()}
DECIMALS = 4  # of a percentage in the summary files


class Outcome(NamedTuple):
    """The end of a category's run: the folder of its results, or the error that ended it."""

    category: str
    folder: Path | None
    error: str = ""


class SummaryRow(NamedTuple):
    """A category in the summary: `percentages` of this run, of the paper and their differences, by column."""

    category: str
    percentages: dict[str, float | None]
    settings: Mapping[str, object]
    error: str = ""

    def as_dict(self) -> dict[str, object]:
        return {"category": self.category, **self.percentages, **self.settings, "error": self.error}

    def cells(self) -> list[str]:
        """Return the row as text, a failed category without numbers."""
        if self.error:
            return [self.category, "failed", *[""] * (len(self.percentages) + len(self.settings) - 1)]
        numbers = (MISSING if each is None else format(each, COLUMNS[name]) for name, each in self.percentages.items())
        settings = ("" if value is None else value_text(value) for value in self.settings.values())
        return [self.category, *numbers, *settings]


def write_summary(folder: Path, outcomes: Sequence[Outcome]) -> str:
    """Write summary.csv, .json, .md and .tex into `folder`; return the table to print."""
    rows = summary_rows(outcomes)
    contents = [row.as_dict() for row in rows]
    settings = {each.category: load_manifest(each.folder)["settings"] for each in outcomes if each.folder}
    table = io.StringIO(newline="")
    write_rows(table, [list(contents[0]), *(list(row.values()) for row in contents)])
    files = {
        "csv": table.getvalue(),
        "json": json.dumps({"rows": contents, "settings": settings}, indent=2) + "\n",
        "md": render_summary(rows, "github", escape_markdown) + "\n",
        "tex": render_summary(rows, "latex_booktabs") + "\n",
    }
    for ending, content in files.items():
        with atomic_write(folder / f"{SUMMARY}.{ending}", REMEDY, "w") as file:
            file.write(content)
    return render_summary(rows, "simple")


def summary_rows(outcomes: Iterable[Outcome]) -> list[SummaryRow]:
    """Return a row per category, in the paper's order and then by name, and the means as the last row."""
    order = {category: place for place, category in enumerate(published_rows())}
    ordered = sorted(outcomes, key=lambda each: (order.get(each.category, len(order)), each.category))
    rows = [summary_row(each) for each in ordered]
    done = [row.percentages for row in rows if not row.error]
    means = {name: rounded(mean_if_complete([percentages[name] for percentages in done])) for name in COLUMNS}
    return [*rows, SummaryRow(MEAN, means, dict.fromkeys(SETTINGS))]


def summary_row(outcome: Outcome) -> SummaryRow:
    manifest = load_manifest(outcome.folder) if outcome.folder else None
    metrics, settings = (manifest["metrics"], manifest["settings"]) if manifest else ({}, {})
    paper = published_metrics(outcome.category, manifest["data_set"]) if manifest else {}
    percentages: dict[str, float | None] = {}
    for name in PUBLISHED_METRICS:
        fraction, published = metrics.get(name), paper.get(name)
        ours = rounded(100 * fraction) if isinstance(fraction, (int, float)) else None
        difference = rounded(ours - published) if ours is not None and published is not None else None
        percentages |= {name: ours, f"{name}_published": published, f"{name}_difference": difference}
    used = {key: settings.get(section, {}).get(key) for key, section in SETTINGS.items()}
    return SummaryRow(outcome.category, percentages, used, outcome.error)


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DECIMALS)


def render_summary(rows: Sequence[SummaryRow], style: str, escape: Callable[[str], str] = str) -> str:
    """Return the summary in a style of tabulate, without empty columns."""
    header = ["category", *(title for name in TITLES for title in (name, "paper", "diff")), *SETTINGS]
    columns = list(zip(header, *(map(escape, row.cells()) for row in rows), strict=True))
    filled = [column for column in columns if column is columns[0] or set(column[1:]) - {"", MISSING}]
    head, *body = zip(*filled, strict=True)
    return render_grid(body, head, style)


def render_grid(body: Sequence[Sequence[str]], head: Sequence[str], style: str = "simple", texts: int = 1) -> str:
    """Return a table whose first columns are aligned to the left and the others, numbers, to the right."""
    return tabulate(body, head, tablefmt=style, disable_numparse=True, stralign="right", colalign=["left"] * texts)


def escape_markdown(text: str) -> str:
    """Return text for a cell of a Markdown table: no tags, no new cell, no emphasis."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    return "".join(f"\\{sign}" if sign in "|*_`[]\\" else sign for sign in escaped)


def published_table(data_set: str) -> str:
    """Return the paper's results and settings of MVTec AD or VisA; raise UserError for another name."""
    rows = list(published_data_set(data_set).values())
    settings = [name for name in rows[0] if name not in ("data_set", "category", *PUBLISHED_METRICS)]
    body = [
        [row["category"], *(f"{float(row[name]):.1f}" for name in PUBLISHED_METRICS), *(row[name] for name in settings)]
        for row in rows
    ]
    means = [f"{sum(float(row[name]) for row in rows) / len(rows):.1f}" for name in PUBLISHED_METRICS]
    return render_grid([*body, [MEAN, *means, *[""] * len(settings)]], ["category", *TITLES, *settings])


class Result(NamedTuple):
    """A results folder and its manifest."""

    folder: Path
    manifest: Manifest


def compare_results(paths: Sequence[Path]) -> str:
    """Return runs side by side: a line per category and metric, then the differences of their inputs."""
    runs = [results_in(path) for path in paths]
    names = [chr(ord("A") + number) if number < 26 else str(number) for number in range(len(paths))]
    table = render_grid(list(comparison_cells(runs)), ["category", "metric", *names], texts=2)
    lines = [*(f"{name}: {path}" for name, path in zip(names, paths, strict=True)), "", table]
    for name, run in zip(names[1:], runs[1:], strict=True):
        for category in (category for category in run if category in runs[0]):
            differing = [f"  {line}" for line in differences(runs[0][category].manifest, run[category].manifest)]
            title = f"{category}, {names[0]} and {name}:"
            lines += ["", title if differing else f"{title} same inputs", *differing]
    return "\n".join(lines)


def results_in(path: Path) -> dict[str, Result]:
    """Return results by category, from a results folder, its manifest, or a folder of results folders."""
    if path.is_file() or (path / MANIFEST).is_file():
        folders = [path if path.is_dir() else path.parent]
    else:
        folders = sorted(file.parent for file in path.glob(f"*/{MANIFEST}"))
    if not folders:
        raise MissingFileError(f"no {MANIFEST} in {path} or its subfolders; name a results folder of --detection")
    results = [Result(folder, load_manifest(folder)) for folder in folders]
    names = [result.manifest["category"] for result in results]
    # Results of the same category are named by their folders
    unique = (each.folder.name if names.count(name) > 1 else name for name, each in zip(names, results, strict=True))
    return dict(zip(unique, results, strict=True))


def comparison_cells(runs: Sequence[Mapping[str, Result]]) -> Iterator[list[str]]:
    """Yield category, metric and a value per run, for each published metric and each one with an interval."""
    for category in dict.fromkeys(name for run in runs for name in run):
        contents = (run[category].manifest["metrics"] if category in run else {} for run in runs)
        summaries = list(map(MetricSummary.from_stored, contents))
        keys = (key for each in summaries for key in (*PUBLISHED_METRICS, *each.intervals) if key in each.values)
        for key in dict.fromkeys(keys):
            yield [category, key, *(value_with_interval(summary, key) for summary in summaries)]


def value_with_interval(summary: MetricSummary, key: str) -> str:
    interval = summary.intervals.get(key)
    text = f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else ""
    return percent(summary.values.get(key)) + text
