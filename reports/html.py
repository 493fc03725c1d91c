"""Write report.html, one page that needs no other file: template.html, filled with results folders' content."""

import base64
import hashlib
import io
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from config.published import PUBLISHED_METRICS
from reports.manifest import flatten_values, value_text
from reports.metric_summary import (
    METRICS,
    MISSING,
    OUTSIDE,
    Points,
    mean_if_complete,
    outside_text,
    percent,
    short_name,
)
from reports.operating_table import HEAD, read_operating_rows
from reports.reader import SCORE_DIGITS, ResultFolder, read_result
from reports.writer import GALLERY, REMEDY
from storage.atomic_file import atomic_write
from storage.safe_names import file_stems

PAGE = "report.html"
TEMPLATE = Path(__file__).with_name("template.html")
PICTURE_BYTES = 10_400_000  # of all pictures in a page; base64 adds a third, so that the page stays below 15 MB
BYTES_PER_GIB = 2**30
MINUS = "−"
EMPTY: tuple[object, ...] = (None, "", {}, [])
SHOWN_ELSEWHERE = {"format", "category", "data_set", "settings", "metrics"}  # parts of the manifest


class Line(NamedTuple):
    """A curve; `kind` is its style, `label` its text in the key."""

    points: Points
    kind: str
    label: str = ""


class Plot(NamedTuple):
    """Curves between the ends of both axes; `text` describes them, or says why there are none."""

    title: str
    text: str
    lines: list[Line]
    x_name: str
    y_name: str
    x: tuple[float, float] = (0, 1)
    y: tuple[float, float] = (0, 1)
    logarithmic: bool = False


def write_page(path: Path, folders: Sequence[Path]) -> None:
    """Write the page of results folders, one per category. Raise UserError without valid scores."""
    categories = [read_result(folder) for folder in folders]
    pictures = embed_pictures(categories)
    data: dict[str, object] = {"categories": list(map(describe_category, categories, pictures))}
    if len(categories) > 1:
        data["overview"] = overview_table(categories)
    with atomic_write(path, REMEDY, "w") as file:
        file.writelines(fill_template(TEMPLATE.read_text(encoding="utf-8"), data, pictures))


def embed_pictures(categories: Sequence[ResultFolder]) -> list[dict[int, dict[str, str]]]:
    """Return the pictures that the page has room for: for each category, layers in base64 by row number."""
    queue = []
    for number, category in enumerate(categories):
        threshold, rows = category.threshold, category.rows
        margins = [((row.score > threshold) == row.defective, abs(row.score - threshold)) for row in rows]
        order = sorted(range(len(rows)), key=margins.__getitem__)  # errors first, then scores near the threshold
        queue += [(rank, number, index) for rank, index in enumerate(order)]
    stems = [file_stems([row.path for row in category.rows]) for category in categories]
    pictures: list[dict[int, dict[str, str]]] = [{} for _ in categories]
    free = PICTURE_BYTES
    for _, number, index in sorted(queue):
        category = categories[number]
        stem = stems[number][category.rows[index].path].removeprefix("test/")
        files = {layer: category.folder / GALLERY / layer / f"{stem}.webp" for layer in category.layers}
        contents = {layer: file.read_bytes() for layer, file in files.items() if file.is_file()}
        free -= sum(map(len, contents.values()))
        if free < 0:
            break
        if "picture" in contents:
            pictures[number][index] = {layer: base64.b64encode(body).decode() for layer, body in contents.items()}
    return [dict(sorted(by_row.items())) for by_row in pictures]


def describe_category(category: ResultFolder, pictures: Mapping[int, Mapping[str, str]]) -> dict[str, object]:
    """Return what the page shows of a category."""
    sizes = {n: Image.open(io.BytesIO(base64.b64decode(layers["picture"]))).size for n, layers in pictures.items()}
    rows = [row._asdict() | {"kind": row.kind, "size": sizes.get(n)} for n, row in enumerate(category.rows)]
    plots = [plot._asdict() | {"lines": [line._asdict() for line in plot.lines]} for plot in category_plots(category)]
    settings = flatten_values("", category.manifest.get("settings", {}))
    return {
        "name": category.name,
        "data_set": category.data_set,
        "rows": rows,
        "threshold": category.threshold,
        "source": category.source,
        "warnings": category.metrics.get("warnings") or [],
        "operating": operating_table(category),
        "plots": plots,
        "metrics": {**metrics_table(category), "notes": metric_notes(category)},
        "layers": category.layers,
        "note": picture_note(category, len(pictures)),
        "facts": run_facts(category.manifest),
        "settings": [[name, value_text(value)] for name, value in settings],
    }


def category_plots(category: ResultFolder) -> Iterator[Plot]:
    """Yield the plots of a category: ROC, per-region overlap and training."""
    curves = category.curves
    areas = {key: f" {percent(value)} %" for key, value in category.summary.values.items()}
    levels = (("image_roc", "pictures", "image_auroc"), ("pixel_roc", "pixels", "pixel_auroc"))
    labels = {name: f"AUROC of {level}{areas.get(key, '')}" for name, level, key in levels if name in curves}
    lines = [Line(curves[name], level, labels[name]) for name, level, _ in levels if name in labels]
    chance = [Line([[0, 0], [1, 1]], "chance")] if lines else []
    text = "; ".join(labels.values()) or "No curve: it needs normal and defective pictures."
    yield Plot("ROC", text, [*chance, *lines], "false-positive rate", "true-positive rate")
    axes = "false-positive rate of pixels", "overlap with a region"
    if points := curves.get("pro"):
        label = f"PRO{areas.get('pro', '')}"
        yield Plot("Per-region overlap", label, [Line(points, "pixels", label)], *axes, x=(0, points[-1][0]))
    else:
        yield Plot("Per-region overlap", "No curve: it needs masks, and normal and defective pictures.", [], *axes)
    if points := curves.get("training"):
        epochs, losses = zip(*points, strict=True)
        text, low = f"loss from {losses[0]:.4g} to {losses[-1]:.4g}", min(losses)
        ends = (epochs[0], epochs[-1]), (low, max(losses))
        yield Plot("Training", text, [Line(points, "pixels")], "epoch", "loss", *ends, logarithmic=low > 0)
    else:
        yield Plot("Training", "No curve: there is no training.jsonl beside the weights.", [], "epoch", "loss")


def picture_note(category: ResultFolder, shown: int) -> str:
    """Return why pictures are missing from the page; empty where none is."""
    count = len(category.rows)
    if not category.layers:
        return f"The page has no pictures, as metrics.visualisation was off. All {count} rows are listed."
    order = "errors at the first threshold, then scores near it"
    return f"The page has room for {shown} of {count} pictures: {order}. All rows are listed." if shown < count else ""


def metrics_table(category: ResultFolder) -> dict[str, object]:
    """Return head and lines of the table of metrics, beside the paper's where it has some."""
    values, intervals, published = category.summary.values, category.summary.intervals, category.published
    lines = [["", "this run", "95 % interval", "paper", "difference"]]
    for metric in METRICS:
        if metric.key in values or metric.key in published:
            ours, *paper = compare_with_paper(values.get(metric.key), published.get(metric.key))
            interval = " – ".join(map(percent, intervals.get(metric.key, ()))) or MISSING
            lines.append([metric.name[0].upper() + metric.name[1:], ours, interval, *paper])
    has_column = (True, True, bool(intervals), bool(published), bool(published))
    head, *lines = (list(itertools.compress(line, has_column)) for line in lines)
    return {"head": head, "lines": lines}


def operating_table(category: ResultFolder) -> dict[str, object]:
    """Return head, lines and thresholds of the operating table; empty ones where the result has none."""
    rows = read_operating_rows(category.metrics.get("operating_points"))
    thresholds = [float(f"{row.threshold:.{SCORE_DIGITS}g}") for row in rows]
    return {"head": HEAD, "lines": [row.cells() for row in rows], "thresholds": thresholds}


def metric_notes(category: ResultFolder) -> list[str]:
    """Return how metrics were measured, and which are missing."""
    stored, values = category.metrics, category.summary.values
    notes = []
    if "scored" in stored:
        size, side, judged, shapes = (stored.get(name) for name in ("size", "scored", "judged", "shapes"))
        area = "on the whole picture" if side == size else f"on the centre {side}"
        area += "" if judged is None else f", {judged:.0%} of it in data.region"
        area += f", in the pictures' proportions: {', '.join(shapes)}" if isinstance(shapes, dict) else ""
        notes.append(f"In percent. Maps are scored at {size} pixels, {area}.")
        if OUTSIDE[0] in stored and (side != size or judged is not None):
            notes.append(f"Not scored: {outside_text(stored)}.")
    if len({row.defective for row in category.rows}) < 2:
        notes.append("No metrics: they need normal and defective test pictures.")
    elif "pixel_auroc" not in values and "pro" not in values:
        notes.append("No pixel metrics: there are no masks, or the settings turn these metrics off.")
    if count := stored.get("vanished_defects"):
        reason = "their masks hold no defect at this size and in this part"
        notes.append(f"{count} defective pictures count as normal for pixel metrics: {reason}.")
    return notes


def overview_table(categories: Sequence[ResultFolder]) -> dict[str, object]:
    """Return a line per category, and the means over all of them."""
    names = map(short_name, PUBLISHED_METRICS)
    titles = [title for name in names for title in (name[0].upper() + name[1:], "paper", "difference")]
    lines = [comparison_line(each.name, each.summary.values, each.published) for each in categories]
    sides = [each.summary.values for each in categories], [each.published for each in categories]
    means = [{key: mean_if_complete([each.get(key) for each in side]) for key in PUBLISHED_METRICS} for side in sides]
    return {"head": ["category", *titles], "lines": lines, "mean": comparison_line("mean", *means)}


def comparison_line(name: str, values: Mapping[str, float | None], paper: Mapping[str, float | None]) -> list[str]:
    cells = (compare_with_paper(values.get(key), paper.get(key)) for key in PUBLISHED_METRICS)
    return [name, *itertools.chain(*cells)]


def compare_with_paper(fraction: float | None, published: float | None) -> list[str]:
    """Return this run's value, the paper's and the difference, in percent."""
    if fraction is None or published is None:
        return [percent(fraction), MISSING if published is None else f"{published:.1f}", MISSING]
    return [percent(fraction), f"{published:.1f}", f"{100 * fraction - published:+.1f}".replace("-", MINUS)]


def run_facts(manifest: Mapping[str, object]) -> list[list[str]]:
    """Return names and values of the manifest, except those that the page shows elsewhere."""
    facts = {name: value for name, value in manifest.items() if name not in SHOWN_ELSEWHERE and value not in EMPTY}
    memory = facts.pop("peak_memory_bytes", None)
    if isinstance(memory, (int, float)):
        facts["peak_memory"] = f"{memory / BYTES_PER_GIB:.2f} GiB"
    return [[name.replace("_", " "), value_text(value)] for name, value in facts.items()]


def fill_template(template: str, data: object, pictures: object) -> Iterator[str]:
    """Yield the page in parts, with both blocks of JSON and a policy that allows only its own script and style."""
    for kind in ("script", "style"):
        (content,) = re.findall(f"<{kind}>(.*?)</{kind}>", template, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        template = template.replace(f"{{{{{kind}}}}}", f"'sha256-{digest}'")
    blocks = {"{{data}}": data, "{{pictures}}": pictures}
    for part in re.split(r"(\{\{data\}\}|\{\{pictures\}\})", template):
        if part in blocks:  # < > & are escaped, so that no name begins or ends an element
            part = re.sub("[<>&]", lambda sign: f"\\u{ord(sign[0]):04x}", json.dumps(json_value(blocks[part])))
        yield part


def json_value(value: object) -> object:
    """Return a value that JSON can hold: bytes that are no text become \\xff, non-finite numbers become text."""
    if isinstance(value, str):
        return re.sub("[\udc80-\udcff]", lambda byte: f"\\x{ord(byte[0]) - 0xDC00:02x}", value)
    if isinstance(value, dict):
        return {name: json_value(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
