"""One page of a run, report.html: figures, curves, pictures, and a threshold to move. It stands alone: no network, no other file.

It is made of results folders alone (see `results.py`), so that it can be made again at any time. What holds it together, how it looks and
what it does is `template.html`; two blocks of JSON go into that, the data and the pictures.
"""

import base64
import hashlib
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from config.published import PUBLISHED_METRICS
from reports.reader import ResultFolder, read_result
from reports.writer import GALLERY
from storage.atomic_file import atomic_write
from storage.safe_names import file_stems

PAGE = "report.html"
TEMPLATE = Path(__file__).with_name("template.html")
REMEDY = "choose another folder with --output"
PICTURE_BYTES = 10_400_000  # of all pictures in a page; as text they take a third more, so that it stays below 15 MB
BYTES_PER_GIB = 2**30
NAMES = {
    "image_auroc": "Image AUROC",
    "image_ap": "Image AP",
    "image_f1_max": "Image F1-max",
    "pixel_auroc": "Pixel AUROC",
    "pixel_ap": "Pixel AP",
    "pixel_f1_max": "Pixel F1-max",
    "pro": "PRO to 30 % FPR",
    "pro_0.05": "PRO to 5 % FPR",
}
MINUS = "−"
NONE = "–"


class Line(NamedTuple):
    """A curve by its points; `kind` says how it looks, `key` what it is."""

    points: list[list[float]]
    kind: str
    key: str = ""


class Plot(NamedTuple):
    """Curves between the ends of both axes; `word` describes them, or says why there are none."""

    title: str
    word: str
    lines: list[Line]
    x_name: str
    y_name: str
    x: tuple[float, float] = (0, 1)
    y: tuple[float, float] = (0, 1)
    logarithmic: bool = False


def write_page(path: Path, folders: Sequence[Path]) -> None:
    """The page of these results folders, a category each. Raises FileNotFoundError or ValueError where one has no scores, OSError where
    the page can't be written."""
    categories = [read_result(folder) for folder in folders]
    pictures = embed_pictures(categories)
    data: dict[str, Any] = {
        "categories": [describe_category(category, pictures[number]) for number, category in enumerate(categories)]
    }
    if len(categories) > 1:
        data["overview"] = overview_table(categories)
    page = fill_template(TEMPLATE.read_text(encoding="utf-8"), data, pictures)
    with atomic_write(path, REMEDY, "w") as file:
        file.writelines(page)


def embed_pictures(categories: Sequence[ResultFolder]) -> list[dict[int, dict[str, str]]]:
    """For each category, by number of the row, the picture's layers as text, as many as fit into the page: the most needed of each first."""
    queue = [
        (place, number, index)
        for number, category in enumerate(categories)
        for place, index in enumerate(pictures_by_need(category))
    ]
    stems = [file_stems([row.path for row in category.rows]) for category in categories]
    pictures: list[dict[int, dict[str, str]]] = [{} for _ in categories]
    left = PICTURE_BYTES
    for _, number, index in sorted(queue):
        category = categories[number]
        stem = stems[number][category.rows[index].path].removeprefix("test/")
        files = {
            layer: category.folder / GALLERY / layer / f"{stem}.webp" for layer in category.curves.get("layers", [])
        }
        layers = {layer: file.read_bytes() for layer, file in files.items() if file.is_file()}
        left -= sum(map(len, layers.values()))
        if left < 0:
            break
        if "picture" in layers:
            pictures[number][index] = {layer: base64.b64encode(content).decode() for layer, content in layers.items()}
    return [dict(sorted(of.items())) for of in pictures]


def pictures_by_need(category: ResultFolder) -> list[int]:
    """The rows' numbers, wrongly judged ones first, then by how near the threshold they are."""
    threshold = category.start.threshold

    def need(index: int) -> tuple[bool, float]:
        row = category.rows[index]
        return (row.score > threshold) == row.defective, abs(row.score - threshold)

    return sorted(range(len(category.rows)), key=need)


def describe_category(category: ResultFolder, pictures: Mapping[int, Mapping[str, str]]) -> dict[str, Any]:
    """What the page says of a category."""
    rows = [
        {
            "path": row.path,
            "kind": row.kind,
            "defective": row.defective,
            "score": row.score,
            "p": row.p_value,
            "size": size_of(pictures.get(index)),
        }
        for index, row in enumerate(category.rows)
    ]
    return {
        "name": category.name,
        "data_set": category.manifest.get("data_set", ""),
        "rows": rows,
        "threshold": category.start.threshold,
        "source": category.start.source,
        "plots": [plot._asdict() | {"lines": [line._asdict() for line in plot.lines]} for plot in plots_of(category)],
        "figures": figures_of(category),
        "layers": category.curves.get("layers", []),
        "note": note_on(category, len(pictures)),
        "facts": facts_of(category.manifest),
        "settings": settings_of(category.manifest),
    }


def plots_of(category: ResultFolder) -> list[Plot]:
    """ROC, overlap of regions, and training."""
    curves, figures = category.curves, category.figures
    areas = {key: f" {percent(figures[key])} %" if key in figures else "" for key in PUBLISHED_METRICS}
    kinds = (("pictures", "image_roc", "image_auroc"), ("pixels", "pixel_roc", "pixel_auroc"))
    rates = [
        Line(curves[name], kind, f"AUROC of {kind}{areas[area]}") for kind, name, area in kinds if curves.get(name)
    ]
    overlap, training = curves.get("pro", []), curves.get("training", [])
    losses = [loss for _, loss in training]
    return [
        Plot(
            title="ROC",
            word="; ".join(line.key for line in rates) or "No curve: it needs normal and defective pictures.",
            lines=[Line([[0, 0], [1, 1]], "chance"), *rates] if rates else [],
            x_name="false-positive rate",
            y_name="true-positive rate",
        ),
        Plot(
            title="Per-region overlap",
            word=f"PRO{areas['pro']}"
            if overlap
            else "No curve: it needs masks of the defects, and normal and defective pictures.",
            lines=[Line(overlap, "pixels", f"PRO{areas['pro']}")] if overlap else [],
            x_name="false-positive rate of pixels",
            y_name="share found of a region",
            x=(0, overlap[-1][0] if overlap else 1),
        ),
        Plot(
            title="Training",
            word=f"loss from {losses[0]:.4g} to {losses[-1]:.4g}"
            if losses
            else "No curve: no training.jsonl lies beside the weights.",
            lines=[Line(training, "pixels")] if losses else [],
            x_name="epoch",
            y_name="loss",
            x=(training[0][0], training[-1][0]) if training else (0, 1),
            y=(min(losses, default=0), max(losses, default=1)),
            logarithmic=min(losses, default=0) > 0,
        ),
    ]


def note_on(category: ResultFolder, shown: int) -> str:
    """What to know of the pictures."""
    count = len(category.rows)
    if not category.curves.get("layers"):
        return f"There are no pictures, as metrics.visualisation was off; all {count} rows are listed."
    if shown < count:
        return (
            f"{shown} of {count} pictures are in this page, which stays small: those judged wrong at the first threshold, and those nearest to "
            "it. All rows are listed and counted."
        )
    return ""


def size_of(layers: Mapping[str, str] | None) -> tuple[int, int] | None:
    """(width, height) of the pictures, for which the page leaves room."""
    if layers is None:
        return None
    with Image.open(io.BytesIO(base64.b64decode(layers["picture"]))) as picture:
        return picture.size


def figures_of(category: ResultFolder) -> dict[str, Any]:
    """The table of figures beside the paper's, and a word on what is missing."""
    figures, published = category.figures, category.published
    intervals = figures.get("intervals", {})
    keys = [key for key in NAMES if key in figures or key in published]
    head = ["", "this run", *(["95 % interval"] if intervals else []), *(["paper", "difference"] if published else [])]
    lines = []
    for key in keys:
        line = [NAMES[key], percent(figures.get(key)), *([interval_text(intervals.get(key))] if intervals else [])]
        lines.append([*line, *compare_with_paper(figures.get(key), published.get(key))[1:]] if published else line)
    notes = (
        [f"In percent. Maps are measured at {figures['size']} pixels, on the centre {figures['scored']}."]
        if "scored" in figures
        else []
    )
    if not any(row.defective for row in category.rows) or all(row.defective for row in category.rows):
        notes.append("No figures: they need normal and defective test pictures.")
    elif not any(key in figures for key in ("pixel_auroc", "pro")):
        notes.append("No figures of pixels: there are no masks, or they were not asked for.")
    if figures.get("vanished_defects"):
        notes.append(
            f"{figures['vanished_defects']} defective pictures count as normal for pixels: their masks hold no defect at this size and on this part."
        )
    return {"head": head, "lines": lines, "notes": notes}


def overview_table(categories: Sequence[ResultFolder]) -> dict[str, Any]:
    """A line a category, and the means where all categories have the figure."""
    head = [
        "category",
        *(title for key in PUBLISHED_METRICS for title in (NAMES[key].split(" to ")[0], "paper", "difference")),
    ]
    lines = [
        [
            one.name,
            *(
                cell
                for key in PUBLISHED_METRICS
                for cell in compare_with_paper(one.figures.get(key), one.published.get(key))
            ),
        ]
        for one in categories
    ]
    means = [
        (
            mean_of_known([one.figures.get(key) for one in categories]),
            mean_of_known([one.published.get(key) for one in categories]),
        )
        for key in PUBLISHED_METRICS
    ]
    return {
        "head": head,
        "lines": lines,
        "mean": ["mean", *(cell for pair in means for cell in compare_with_paper(*pair))],
    }


def mean_of_known(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if len(there) == len(values) else None


def compare_with_paper(fraction: float | None, published: float | None) -> list[str]:
    """In percent: the figure, the paper's, and the difference in points."""
    if fraction is None or published is None:
        return [percent(fraction), NONE if published is None else f"{published:.1f}", NONE]
    difference = 100 * fraction - published
    return [percent(fraction), f"{published:.1f}", f"{'+' if difference >= 0 else MINUS}{abs(difference):.1f}"]


def percent(fraction: float | None) -> str:
    return NONE if fraction is None else f"{100 * fraction:.1f}"


def interval_text(interval: Sequence[float] | None) -> str:
    return NONE if interval is None else f"{100 * interval[0]:.1f} – {100 * interval[1]:.1f}"


def facts_of(manifest: Mapping[str, Any]) -> list[list[str]]:
    """Name and value of what is noted of the run, but for its settings and figures, which stand elsewhere."""
    elsewhere = {"format", "category", "data_set", "settings", "metrics"}
    facts = {
        name.replace("_", " "): value
        for name, value in manifest.items()
        if name not in elsewhere and value not in (None, "", {}, [])
    }
    if isinstance(memory := facts.pop("peak memory bytes", None), (int, float)):
        facts["peak memory"] = f"{memory / BYTES_PER_GIB:.2f} GiB"
    return [[name, setting_text(value)] for name, value in facts.items()]


def settings_of(manifest: Mapping[str, Any]) -> list[list[str]]:
    sections = manifest.get("settings")
    if not isinstance(sections, dict):
        return []
    return [
        [f"{section}.{key}", setting_text(value)]
        for section, values in sections.items()
        if isinstance(values, dict)
        for key, value in values.items()
    ]


def setting_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {setting_text(part)}" for name, part in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(setting_text, value))
    return f"{value:.6g}" if isinstance(value, float) else NONE if value is None else str(value)


def fill_template(template: str, data: object, pictures: object) -> Iterator[str]:
    """The page in parts: the template with both blocks of JSON in it, and with a policy that lets only its own script and style work."""
    for kind in ("script", "style"):
        content = re.search(f"<{kind}>(.*?)</{kind}>", template, re.DOTALL)
        digest = hashlib.sha256(content[1].encode()).digest() if content else b""
        template = template.replace(f"{{{{{kind}}}}}", f"'sha256-{base64.b64encode(digest).decode()}'")
    for part in re.split(r"(\{\{data\}\}|\{\{pictures\}\})", template):
        yield (
            as_text({"{{data}}": data, "{{pictures}}": pictures}[part])
            if part in ("{{data}}", "{{pictures}}")
            else part
        )


def as_text(value: object) -> str:
    """JSON that can stand in a page: nothing in it begins or ends an element."""
    return json.dumps(without_infinities(value)).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def without_infinities(value: Any) -> Any:
    """With bytes of names that are no text as \\xff, as a page holds text alone, and with numbers that JSON has not as words."""
    if isinstance(value, str):
        return re.sub("[\udc80-\udcff]", lambda byte: f"\\x{ord(byte[0]) - 0xDC00:02x}", value)
    if isinstance(value, dict):
        return {name: without_infinities(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_infinities(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
