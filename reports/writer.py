"""Write tables, JSON files and pictures of a results folder; choose a free folder."""

import errno
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reports import manifest
from reports.drawing import ColourScale, Panel, draw_figure, draw_layers
from runtime.errors import UserError, UserFileError
from storage import folder_lock, safe_names
from storage.atomic_file import atomic_write, remove_stale, write_error_text
from storage.safe_csv import write_rows

REMEDY = "choose another folder with --output"
METRICS_FILE, SCORES, CURVES = "metrics.json", "scores.csv", "curves.json"
PREDICTIONS_SUMMARY = "summary.json"
MISCLASSIFICATIONS, MISCLASSIFIED = "misclassifications.csv", "misclassified"  # a table, and the folder of its figures
GALLERY = "gallery"
SUBFOLDERS = ("figures", MISCLASSIFIED, GALLERY, "heatmaps", "outlines", "anomaly_maps")
FORMATS = {".png": "PNG", ".tiff": "TIFF", ".webp": "WEBP"}


class Spool:
    """Append arrays of one type to files, one per shape, and read them back, also if they exceed the memory."""

    def __init__(self, folder: Path, files: ExitStack):
        self._folder, self._files = folder, files
        self._by_shape: dict[tuple[int, ...], IO[bytes]] = {}

    def add(self, array: NDArray) -> None:
        self._dtype = array.dtype
        try:
            if array.shape not in self._by_shape:
                opened = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115  # the stack closes it
                self._by_shape[array.shape] = self._files.enter_context(opened)
            if self._by_shape[array.shape].write(array.tobytes()) < array.nbytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise UserFileError(f"can't keep maps in {self._folder}: {write_error_text(error, REMEDY)}") from error

    def stacks(self) -> list[NDArray]:
        """Return the arrays of each shape (N, …) as a memory map, which outlives the spool."""
        return [np.memmap(file, self._dtype, "r").reshape(-1, *shape) for shape, file in self._by_shape.items()]


class Writer:
    """The writer of one results folder. A file is complete or not there. Failures raise UserFileError."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._written: dict[str, int] = {}  # number of pictures by subfolder; 0 for a file
        self._layers: dict[str, None] = {}  # of the gallery, in the order of their first picture
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise UserFileError(f"can't write results to {folder}: {error.strerror}; {REMEDY}") from error

    def refuse_locked(self) -> None:
        """Raise FolderLockedError where another run writes into the folder."""
        folder_lock.refuse_locked(self.folder, REMEDY)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs from writing into the folder, and remove the temporary files of killed runs."""
        with folder_lock.locked(self.folder, REMEDY):
            remove_stale(self.folder, *SUBFOLDERS)
            yield

    @property
    def written(self) -> list[str]:
        return [f"{name} ({count})" if count else name for name, count in self._written.items()]

    @contextmanager
    def spool(self) -> Iterator[Spool]:
        with ExitStack() as files:
            yield Spool(self.folder, files)

    def discard_result(self) -> None:
        """Remove what marks an earlier result as complete, and its misclassifications."""
        for name in (METRICS_FILE, manifest.MANIFEST, MISCLASSIFICATIONS):
            (self.folder / name).unlink(missing_ok=True)
        self.clear(MISCLASSIFIED)

    def clear(self, *subfolders: str) -> None:
        """Remove subfolders with the pictures of earlier runs."""
        for name in subfolders:
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def scores(
        self, paths: Sequence[str], labels: Iterable[bool], scores: Iterable[float], **more: Iterable[object]
    ) -> None:
        """Write scores.csv, a row per picture; `more` gives further columns by name."""
        columns = [paths, map(int, labels), (f"{score:.9g}" for score in scores), *more.values()]
        self._table(SCORES, ["path", "label", "score", *more], zip(*columns, strict=True))

    def misclassifications(
        self, paths: Sequence[str], errors: Iterable[str], scores: Iterable[float], threshold: float
    ) -> None:
        """Write misclassifications.csv; an error is missed, false_alarm or empty for none."""
        rows = zip(paths, (error.replace("_", " ") for error in errors), scores, strict=True)
        cells = ([path, error, f"{score:.8g}", f"{threshold:.8g}"] for path, error, score in rows if error)
        self._table(MISCLASSIFICATIONS, ["path", "error", "score", "threshold"], cells)

    def curves(self, curves: Mapping[str, object]) -> None:
        """Write curves.json: curves by name, and the layers of this run's gallery, which may hold older ones."""
        self._json(CURVES, {**curves, "layers": list(self._layers)}, indent=None)

    def manifest(self, inputs: Mapping[str, Any], seconds: Mapping[str, float], metrics: Mapping[str, object]) -> None:
        """Write manifest.json: `inputs` of `manifest.result_inputs`, the seconds by stage, and the metrics."""
        data = inputs["settings"]["data"]
        content = {
            "format": manifest.FORMAT,
            "data_set": data["name"],
            "category": data["category"],
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "seed": inputs["settings"]["model"]["seed"],
            **inputs,
            "seconds": {name: round(value, 1) for name, value in seconds.items()},
            "peak_memory_bytes": manifest.peak_memory(),
            "metrics": metrics,
        }
        self._json(manifest.MANIFEST, content)

    def metrics(self, content: Mapping[str, object]) -> None:
        """Write metrics.json. It comes last, as it marks the result as complete."""
        self._json(METRICS_FILE, content)

    def summary(self, content: Mapping[str, object]) -> None:
        """Write summary.json, which sums up predictions."""
        self._json(PREDICTIONS_SUMMARY, content)

    def figure(self, stem: str, panel: Panel, scale: ColourScale, subfolder: str = "figures") -> None:
        self.picture(f"{stem}.png", draw_figure(panel, scale), subfolder)

    def gallery(self, stem: str, panel: Panel, scale: ColourScale) -> None:
        """Write the small layers that report.html shows, each into its own folder."""
        for layer, picture in draw_layers(panel, scale).items():
            self.picture(f"{layer}/{stem}.webp", picture, GALLERY)
            self._layers[layer] = None

    def raw_map(self, stem: str, values: NDArray[np.float32], category: str) -> None:
        """Write a map as 32-bit TIFF where MVTec's evaluation code looks for it; stem: test/<kind>/<picture>."""
        self.picture(f"{category}/{stem}.tiff", Image.fromarray(values), "anomaly_maps")

    def picture(self, name: str, picture: Image.Image, subfolder: str) -> None:
        """Write a picture; the suffix of its name gives the format."""
        if not safe_names.stays_inside(name):
            raise UserError(f"{name!r} is not a name in {self.folder / subfolder}; rename the picture")
        with atomic_write(self.folder / subfolder / name, REMEDY) as file:
            picture.save(file, format=FORMATS[PurePosixPath(name).suffix])
        self._written[subfolder] = self._written.get(subfolder, 0) + 1

    def _json(self, name: str, content: Mapping[str, object], indent: int | None = 2) -> None:
        with self._file(name) as file:
            json.dump(content, file, indent=indent)
            file.write("\n")

    def _table(self, name: str, header: list[str], rows: Iterable[Sequence[object]]) -> None:
        with self._file(name) as file:
            write_rows(file, [header, *rows])

    @contextmanager
    def _file(self, name: str) -> Iterator[IO[str]]:
        with atomic_write(self.folder / name, REMEDY, "w") as file:
            yield file
        self._written[name] = 0


def choose_folder(folder: Path, inputs: Mapping[str, object]) -> tuple[Path, bool]:
    """Return the first of <folder>, <folder>-2, … that is free or holds this result, and whether it holds it."""
    folders = numbered_folders(folder)
    chosen = next(path for path in folders if not is_complete(path) or manifest.is_result_of(path, inputs))
    return chosen, is_complete(chosen)


def next_free_folder(folder: Path) -> Path:
    """Return the first of <folder>, <folder>-2, … without a complete result."""
    return next(candidate for candidate in numbered_folders(folder) if not is_complete(candidate))


def numbered_folders(folder: Path) -> Iterator[Path]:
    """Yield <folder>, <folder>-2, <folder>-3, …"""
    yield folder
    yield from (beside(folder, f"-{number}") for number in itertools.count(2))


def beside(folder: Path, ending: str) -> Path:
    """Return the path beside `folder` with `ending` added to its name; resolve `.` and `..` first."""
    named = safe_names.named_path(folder)
    return named.parent / f"{named.name}{ending}"


def is_complete(folder: Path) -> bool:
    return (folder / METRICS_FILE).exists()
