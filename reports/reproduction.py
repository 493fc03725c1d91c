"""The table of a reproduction: results of a data set's categories beside those of the paper.

The folder of a reproduction holds <category>.json, the record of a category, and table.md, table.csv and table.json.
"""

import io
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from config.keys import PER_IMAGE
from config.published import PUBLISHED_METRICS, published_metrics, published_rows
from reports.metric_summary import MISSING, mean_if_complete
from reports.tables import COLUMNS, DECIMALS, MEAN, TITLES, render_grid, rounded
from runtime.errors import UserError
from storage.atomic_file import atomic_write
from storage.fingerprint import as_stored
from storage.safe_csv import write_rows

FORMAT = "ddad-reproduction-1"
REMEDY = "choose another folder with --output"
TABLE = "table"
HEAD = ("category", "scores", "features", *(title for name in TITLES for title in (name, "paper", "diff")))
COSTS = ("s/image", "MiB/image")

Kind = tuple[str, int | str]  # of a detection: protocol of scores, epoch of adaptation


@dataclass(frozen=True)
class Score:
    """What one detection of a category reached, and the identity of what it was made from."""

    protocol: str
    features: int | str  # epoch of adaptation; 0: not adapted
    batch_size: object  # scores of the published protocol depend on it
    adapted: bool  # whether these are the features that the paper uses for the category
    metrics: dict[str, float]  # in percent, by PUBLISHED_METRICS
    seconds: float  # of detecting one picture
    memory: float | None  # MiB, the peak while one picture is detected
    made_from: dict[str, object]  # settings and test pictures
    weights: dict[str, str]  # hashes of the files, by name
    folder: str

    @property
    def kind(self) -> Kind:
        return self.protocol, self.features


@dataclass(frozen=True)
class Record:
    """All that is known of a category: its finished detections, and the settings that are not the published ones."""

    data_set: str
    category: str
    scores: list[Score] = field(default_factory=list)
    changed: dict[str, object] = field(default_factory=dict)
    stage_seconds: dict[str, float] = field(default_factory=dict)  # of training and adaptation, from their logs

    def with_score(self, score: Score, kinds: Collection[Kind]) -> "Record":
        """Return the record with this score, and without earlier ones of the same kind or of none of `kinds`."""
        others = [each for each in self.scores if each.kind in {*kinds} - {score.kind}]
        return replace(self, scores=[*others, score])

    def finished(self, made_from: dict[str, object], weights: dict[str, str]) -> Score | None:
        """Return the detection that was made from this, None where there is none; weights may be gone by now."""
        for score in self.scores:
            if score.made_from == as_stored(made_from) and weights.items() <= {**weights, **score.weights}.items():
                return score
        return None


@dataclass(frozen=True)
class Row:
    """One line of the table; a mean has no costs."""

    category: str
    scores: str
    features: str
    metrics: dict[str, float | None]
    paper: dict[str, float | None]
    costs: tuple[float | None, float | None] = (None, None)  # seconds and MiB of a picture

    @property
    def values(self) -> dict[str, float | None]:
        """Return our metrics, the paper's and the differences, by the columns of the summary."""
        values: dict[str, float | None] = {}
        for name in PUBLISHED_METRICS:
            ours, paper = self.metrics.get(name), self.paper.get(name)
            difference = None if ours is None or paper is None else rounded(ours - paper)
            values |= {name: ours, f"{name}_published": paper, f"{name}_difference": difference}
        return values

    def cells(self) -> list[str]:
        numbers = [MISSING if each is None else format(each, COLUMNS[name]) for name, each in self.values.items()]
        costs = [MISSING if each is None else format(each, ".3g") for each in self.costs]
        return [self.category, self.scores, self.features, *numbers, *costs]

    def as_dict(self) -> dict[str, object]:
        costs = dict(zip(("seconds_per_image", "mib_per_image"), self.costs, strict=True))
        return {"category": self.category, "scores": self.scores, "features": self.features, **self.values, **costs}


def record_path(folder: Path, category: str) -> Path:
    return folder / f"{category}.json"


def load_record(folder: Path, data_set: str, category: str) -> Record:
    """Return the record of a category, an empty one where there is none. Raise UserError for a damaged one."""
    path = record_path(folder, category)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["scores"] = [Score(**score) for score in content["scores"]]
        if content.pop("format") != FORMAT:
            raise ValueError("its format is another")
        record = Record(**content)
    except FileNotFoundError:
        return Record(data_set, category)
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise UserError(f"{path} is not the record of a reproduction: {error}; remove it, or {REMEDY}") from error
    if (record.data_set, record.category) != (data_set, category):
        raise UserError(f"{path} is of {record.category} in {record.data_set}, not in {data_set}; {REMEDY}")
    return record


def save_record(folder: Path, record: Record) -> None:
    """Write the record as a whole or not at all."""
    with atomic_write(record_path(folder, record.category), REMEDY, "w") as file:
        json.dump({"format": FORMAT, **as_stored(asdict(record))}, file, indent=2)


def rows_of(record: Record) -> list[Row]:
    """Return the rows of a category, what compares with the paper first."""
    ordered = sorted(record.scores, key=lambda each: (each.protocol == PER_IMAGE, not each.adapted))
    paper: dict[str, float | None] = {**published_metrics(record.category, record.data_set)}
    rows = []
    for score in ordered:
        scores = "per image" if score.protocol == PER_IMAGE else f"batches of {score.batch_size}"
        costs = score.seconds, score.memory
        rows.append(Row(record.category, scores, f"feat{score.features}", {**score.metrics}, paper, costs))
    return rows


def mean_rows(records: Sequence[Record]) -> Iterator[Row]:
    """Yield the means over the categories of each kind of detection, beside the paper's over the same ones.

    Features that the paper does not adapt count as adapted by 0 epochs.
    """
    for protocol in ("published", PER_IMAGE):
        for adapted in (True, False):
            chosen = {
                record.category: score.metrics
                for record in records
                for score in record.scores
                if score.protocol == protocol and (score.adapted if adapted else score.features == 0)
            }
            if len(chosen) > 1:
                papers = [published_metrics(category) for category in chosen]
                scores = "per image" if protocol == PER_IMAGE else "batches"
                features = "adapted" if adapted else "feat0"
                means = mean_metrics(chosen.values()), mean_metrics(papers)
                yield Row(f"{MEAN} of {len(chosen)}", scores, features, *means)


def mean_metrics(values: Iterable[dict[str, float]]) -> dict[str, float | None]:
    """Return the mean of each metric; None where a category lacks it."""
    known = list(values)
    return {name: rounded(mean_if_complete([each.get(name) for each in known])) for name in PUBLISHED_METRICS}


def write_tables(folder: Path, data_set: str) -> str:
    """Write table.md, .csv and .json from the records in the folder; return the table to print."""
    names = [row["category"] for row in published_rows().values() if row["data_set"] == data_set]
    records = [load_record(folder, data_set, name) for name in names if record_path(folder, name).exists()]
    rows = [*(row for record in records for row in rows_of(record)), *mean_rows(records)]
    contents = [row.as_dict() for row in rows]
    table = io.StringIO(newline="")
    write_rows(table, [list(Row("", "", "", {}, {}).as_dict()), *(list(each.values()) for each in contents)])
    notes = list(change_lines(records))
    files = {
        "md": "\n\n".join([render_rows(rows, "github"), *notes]) + "\n",
        "csv": table.getvalue(),
        "json": json.dumps({"rows": contents, "records": [asdict(each) for each in records]}, indent=2) + "\n",
    }
    for ending, content in files.items():
        with atomic_write(folder / f"{TABLE}.{ending}", REMEDY, "w") as file:
            file.write(content)
    return "\n\n".join([render_rows(rows), *notes])


def render_rows(rows: Sequence[Row], style: str = "simple") -> str:
    return render_grid([row.cells() for row in rows], [*HEAD, *COSTS], style, texts=3)


def change_lines(records: Iterable[Record]) -> Iterator[str]:
    """Yield a line for each set of settings that are not the published ones, with the categories that have it."""
    categories: dict[str, list[str]] = {}
    for record in records:
        if record.changed:
            text = ", ".join(f"{name}={value}" for name, value in record.changed.items())
            categories.setdefault(text, []).append(record.category)
    yield from (f"Not the published settings ({', '.join(names)}): {text}." for text, names in categories.items())


def percentages(metrics: dict[str, object]) -> dict[str, float]:
    """Return the published metrics of a metrics.json, in percent."""
    found = {name: metrics.get(name) for name in PUBLISHED_METRICS}
    return {name: round(100 * value, DECIMALS) for name, value in found.items() if isinstance(value, (int, float))}
