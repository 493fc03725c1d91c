"""Tables to read and to paste: a data set's categories beside the published figures, published settings, and runs side by side."""

import html
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from config.checks import did_you_mean
from config.published import published_metrics, published_rows
from reports import manifest
from runtime.errors import MissingFileError, UserError
from storage.atomic_file import atomic_write
from storage.safe_csv import write_rows

REMEDY = "choose another folder with --output"
SUMMARY = "summary"
FIGURES = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "pro": "PRO"}  # in percent, as published
SETTINGS = {
    "w": "model.w",
    "v": "model.v",
    "epochs": "model.epochs",
    "DA_chp": "model.DA_chp",
    "image_size": "data.image_size",
}
MEAN = "mean"
NOTHING = "–"

Row = dict[str, Any]


class Outcome(NamedTuple):
    """What came of a category: the folder of its results, or the error that ended it."""

    category: str
    folder: Path | None
    error: str = ""


def summary_rows(outcomes: Iterable[Outcome]) -> list[Row]:
    """A row a category in the paper's order, then those that are not in it; figures in percent, None where there is none; the mean last."""
    order = list(published_rows())
    ordered = sorted(
        outcomes, key=lambda one: (order.index(one.category) if one.category in order else len(order), one.category)
    )
    rows = [summary_row(one) for one in ordered]
    done = [row for row in rows if not row["error"]]
    columns = [name for name in (rows[0] if rows else {}) if name.startswith(tuple(FIGURES))]
    mean = {name: mean_percent([row[name] for row in done]) for name in columns}
    return [*rows, {"category": MEAN, **mean, **dict.fromkeys(SETTINGS), "error": ""}]


def summary_row(outcome: Outcome) -> Row:
    there = (
        manifest.load_manifest(outcome.folder) if outcome.folder else {"metrics": {}, "settings": {}, "data_set": None}
    )
    paper = published_metrics(outcome.category, str(there["data_set"]))
    row: Row = {"category": outcome.category}
    for name in FIGURES:
        ours, theirs = as_percent(there["metrics"].get(name)), paper.get(name)
        difference = round(ours - theirs, 4) if ours is not None and theirs is not None else None
        row |= {name: ours, f"{name}_published": theirs, f"{name}_difference": difference}
    used = {
        name: there["settings"].get(section, {}).get(leaf)
        for name, (section, leaf) in ((n, p.split(".")) for n, p in SETTINGS.items())
    }
    return {**row, **used, "error": outcome.error}


def as_percent(fraction: object) -> float | None:
    return round(100 * fraction, 4) if isinstance(fraction, (int, float)) else None


def mean_percent(values: Sequence[float | None]) -> float | None:
    """None where one is missing, as a mean over fewer compares with nothing."""
    there = [value for value in values if value is not None]
    return round(sum(there) / len(there), 4) if there and len(there) == len(values) else None


def row_text(row: Row) -> list[str]:
    """A summary's row as it is read: the category, figures with one decimal, differences with their sign, settings."""
    cells = [row["category"]]
    for name in FIGURES:
        for figure, form in ((name, ".1f"), (f"{name}_published", ".1f"), (f"{name}_difference", "+.1f")):
            cells.append(NOTHING if row[figure] is None else f"{row[figure]:{form}}")
    return [
        *cells,
        *(
            "" if row[name] is None else f"{row[name]:g}" if isinstance(row[name], float) else str(row[name])
            for name in SETTINGS
        ),
    ]


def write_summary(folder: Path, outcomes: Sequence[Outcome]) -> str:
    """summary.csv, .json, .md and .tex in `folder`; returns the table for the screen."""
    rows = summary_rows(outcomes)
    settings = {one.category: manifest.load_manifest(one.folder)["settings"] for one in outcomes if one.folder}
    table = io.StringIO(newline="")
    write_rows(table, [list(rows[0]), *(["" if cell is None else cell for cell in row.values()] for row in rows)])
    contents = {
        "csv": table.getvalue(),
        "json": json.dumps({"rows": rows, "settings": settings}, indent=2) + "\n",
        "md": render_table(rows, "github", in_markdown) + "\n",
        "tex": render_table(rows, "latex_booktabs") + "\n",
    }
    for ending, content in contents.items():
        with atomic_write(folder / f"{SUMMARY}.{ending}", REMEDY, "w") as file:
            file.write(content)
    return render_table(rows, "simple")


def render_table(rows: Sequence[Row], style: str, escape: Callable[[str], str] = str) -> str:
    """The summary in a style of tabulate; failed categories have their error in place of figures."""
    header = ["category", *(word for title in FIGURES.values() for word in (title, "paper", "diff")), *SETTINGS]
    body = [[escape(cell) for cell in row_text(row)] for row in rows]
    body = [
        [line[0], "failed", *[""] * (len(header) - 2)] if row["error"] else line
        for row, line in zip(rows, body, strict=True)
    ]
    empty = [index for index in range(1, len(header)) if all(line[index] in ("", NOTHING) for line in body)]
    keep = [index for index in range(len(header)) if index not in empty]
    return grid([[line[index] for index in keep] for line in body], [header[index] for index in keep], style)


def grid(body: Sequence[Sequence[str]], header: Sequence[str], style: str) -> str:
    """Text to the left in the first column, figures to the right in the others, as they stand."""
    return tabulate(
        body, header, tablefmt=style, disable_numparse=True, colalign=("left", *["right"] * (len(header) - 1))
    )


def in_markdown(text: str) -> str:
    """Text as text in a cell: no tags, no new cell, no emphasis."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    return "".join(f"\\{sign}" if sign in "|*_`[]\\" else sign for sign in escaped)


def published_table(data_set: str) -> str:
    """The paper's results and settings of MVTec AD or VisA, with the mean. Raises ValueError for another name."""
    rows = [row for row in published_rows().values() if row["data_set"].lower() == data_set.lower()]
    if not rows:
        known = sorted({row["data_set"] for row in published_rows().values()})
        raise UserError(
            f"nothing is published for {data_set!r}{did_you_mean(data_set, known)}; take {' or '.join(known)}"
        )
    settings = [name for name in rows[0] if name not in ("data_set", "category", *FIGURES)]
    body = [
        [row["category"], *(f"{float(row[name]):.1f}" for name in FIGURES), *(row[name] for name in settings)]
        for row in rows
    ]
    means = [f"{sum(float(row[name]) for row in rows) / len(rows):.1f}" for name in FIGURES]
    return grid([*body, [MEAN, *means, *[""] * len(settings)]], ["category", *FIGURES.values(), *settings], "simple")


class Result(NamedTuple):
    """A results folder and its manifest."""

    folder: Path
    made: dict[str, Any]


def compare_results(paths: Sequence[Path]) -> str:
    """Runs side by side: a line a category and figure, with 95 % intervals, and what the runs were made with that is not the same.

    A run is a results folder or a folder of such. Raises FileNotFoundError where there is no manifest.
    """
    runs = [results_in(path) for path in paths]
    names = [f"{chr(ord('A') + number)}" if number < 26 else str(number) for number in range(len(paths))]
    lines = [f"{name}: {path}" for name, path in zip(names, paths, strict=True)]
    body = []
    for category in dict.fromkeys(name for run in runs for name in run):
        metrics = [run[category].made["metrics"] if category in run else {} for run in runs]
        for figure in metric_cells(metrics):
            body.append([category, figure, *(with_interval(one, figure) for one in metrics)])
    lines += [
        "",
        tabulate(
            body,
            ["category", "figure", *names],
            disable_numparse=True,
            colalign=("left", "left", *["right"] * len(names)),
        ),
    ]
    for name, run in list(zip(names, runs, strict=True))[1:]:
        for category in (category for category in run if category in runs[0]):
            differing = list(manifest.differences(runs[0][category].made, run[category].made))
            lines += [
                "",
                f"{category}, {names[0]} and {name}:" + ("" if differing else " made alike"),
                *(f"  {line}" for line in differing),
            ]
    return "\n".join(lines)


def results_in(path: Path) -> dict[str, Result]:
    """The result of a folder (or named by its manifest), or those in it, by category; by folder where two are of one category."""
    if path.is_file() or (path / manifest.MANIFEST).is_file():
        folders = [path if path.is_dir() else path.parent]
    else:
        folders = sorted(file.parent for file in path.glob(f"*/{manifest.MANIFEST}")) if path.is_dir() else []
    if not folders:
        raise MissingFileError(
            f"no {manifest.MANIFEST} in {path} or its subfolders; detection leaves one in its results folder"
        )
    there = [Result(folder, manifest.load_manifest(folder)) for folder in folders]
    names = [one.made["category"] for one in there]
    return {name if names.count(name) == 1 else one.folder.name: one for name, one in zip(names, there, strict=True)}


def metric_cells(metrics: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the figures that one of the runs has an interval of, or that are published."""
    return list(dict.fromkeys(name for one in metrics for name in (*FIGURES, *one.get("intervals", {})) if name in one))


def with_interval(metrics: Mapping[str, Any], figure: str) -> str:
    if not isinstance(metrics.get(figure), (int, float)):
        return NOTHING
    low, high = metrics.get("intervals", {}).get(figure, (None, None))
    return f"{100 * metrics[figure]:.1f}" + (f" [{100 * low:.1f}, {100 * high:.1f}]" if low is not None else "")
