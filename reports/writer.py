"""Results on disk: tables, metrics.json, figures, maps, and the rows of a run that may be resumed."""

import errno
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
METRICS, SCORES = "metrics.json", "scores.csv"
MISCLASSIFIED, MISCLASSIFICATIONS = (
    "misclassified",
    "misclassifications.csv",
)  # the subfolder of their figures, and their table
FORMATS = {".png": "PNG", ".tiff": "TIFF", ".webp": "WEBP"}
GALLERY, CURVES = "gallery", "curves.json"
SUBFOLDERS = ("figures", MISCLASSIFIED, GALLERY, "heatmaps", "outlines", "anomaly_maps")


class Spool:
    """Arrays of one shape and type, kept on disk one by one and read as one array, of which only the parts in use are in memory."""

    def __init__(self, file: IO[bytes], folder: Path):
        self._file, self._folder, self._count = file, folder, 0
        self._shape: tuple[int, ...] = ()
        self._kind = np.dtype(np.float32)

    def add(self, array: NDArray) -> None:
        self._shape, self._kind, self._count = array.shape, array.dtype, self._count + 1
        content = array.tobytes()
        try:
            if self._file.write(content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise UserFileError(f"can't keep maps in {self._folder}: {write_error_text(error, REMEDY)}") from error

    def array(self) -> NDArray:
        """(N, …), also after the spool is closed."""
        return np.memmap(self._file, self._kind, "r", shape=(self._count, *self._shape))  # type: ignore[call-overload]


class Writer:
    """Writes into one results folder, each file whole; `written` names what it wrote. Raises OSError naming the folder where it can't."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._written: dict[str, int] = {}
        self._layers: list[str] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(13, "Permission denied")
        except OSError as error:
            raise UserFileError(f"can't write results to {folder}: {error.strerror}; {REMEDY}") from error

    def refuse_others(self) -> None:
        """Raise FolderLockedError where another run writes into the folder."""
        folder_lock.refuse_locked(self.folder, REMEDY)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs from writing into the folder, and sweep away what killed runs left half-written."""
        with folder_lock.locked(self.folder, REMEDY):
            remove_stale(self.folder, *SUBFOLDERS)
            yield

    @property
    def written(self) -> list[str]:
        return [f"{name} ({count})" if count else name for name, count in self._written.items()]

    @contextmanager
    def spool(self) -> Iterator[Spool]:
        with tempfile.TemporaryFile(dir=self.folder, buffering=0) as file:
            yield Spool(file, self.folder)

    def scores(
        self, paths: Sequence[str], labels: Iterable[bool], scores: Iterable[float], **further: Iterable[object]
    ) -> None:
        """A row a picture; `further` are more columns by name."""
        columns = [paths, map(int, labels), (f"{score:.9g}" for score in scores), *further.values()]
        self._table(SCORES, ["path", "label", "score", *further], zip(*columns, strict=True))

    def metrics(self, figures: dict[str, Any]) -> None:
        """Written last: where they are, the result is whole."""
        with self._file(METRICS) as file:
            json.dump(figures, file, indent=2)
            file.write("\n")

    def curves(self, points: dict[str, Any]) -> None:
        """The curves by name, and the `layers` that the gallery holds of this run (what else is there is of an earlier one)."""
        with self._file(CURVES) as file:
            json.dump({**points, "layers": self._layers}, file)
            file.write("\n")

    def begin(self) -> None:
        """An earlier result is no longer whole from here on, and its errors, which this one need not have, are gone."""
        for name in (METRICS, manifest.MANIFEST, MISCLASSIFICATIONS):
            (self.folder / name).unlink(missing_ok=True)
        self.clear(MISCLASSIFIED)

    def clear(self, *subfolders: str) -> None:
        """Remove what earlier runs have drawn."""
        for name in subfolders:
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def manifest(self, made: Mapping[str, Any], seconds: Mapping[str, float], figures: dict[str, Any]) -> None:
        """How the result was made."""
        manifest.write_manifest(self.folder, made, seconds=seconds, metrics=figures, remedy=REMEDY)
        self._written[manifest.MANIFEST] = 0

    def misclassifications(
        self, paths: Sequence[str], errors: Iterable[str], scores: Iterable[float], threshold: float
    ) -> None:
        """Pictures that have an error: missed or false_alarm."""
        rows = (
            [path, error.replace("_", " "), f"{score:.8g}", f"{threshold:.8g}"]
            for path, error, score in zip(paths, errors, scores, strict=True)
            if error
        )
        self._table(MISCLASSIFICATIONS, ["path", "error", "score", "threshold"], rows)

    def figure(self, stem: str, panel: Panel, tops: ColourScale, kind: str = "figures") -> None:
        """Picture, reconstruction, D_p, D_f, map over the picture, mask."""
        self.picture(f"{stem}.png", draw_figure(panel, tops), kind)

    def gallery(self, stem: str, panel: Panel, tops: ColourScale) -> None:
        """What report.html puts over each other, each layer small and in a folder of its own."""
        for layer, picture in draw_layers(panel, tops).items():
            self.picture(f"{layer}/{stem}.webp", picture, GALLERY)
            self._layers = self._layers if layer in self._layers else [*self._layers, layer]

    def raw_map(self, stem: str, values: NDArray[np.float32], category: str) -> None:
        """A 32-bit TIFF of the picture's own size, where MVTec's evaluation code looks for it: `stem` is test/<kind>/<picture>."""
        self.picture(f"{category}/{stem}.tiff", Image.fromarray(values), "anomaly_maps")

    def picture(self, name: str, picture: Image.Image, kind: str) -> None:
        """A picture in the subfolder `kind`; the ending of its name says its format."""
        if not safe_names.stays_inside(name):
            raise UserError(f"{name!r} is not a name in {self.folder / kind}; rename the picture")
        with atomic_write(self.folder / kind / name, REMEDY) as file:
            picture.save(file, format=FORMATS[PurePosixPath(name).suffix])
        self._written[kind] = self._written.get(kind, 0) + 1

    def _table(self, name: str, header: list[str], rows: Iterable[Sequence[object]]) -> None:
        with self._file(name) as file:
            write_rows(file, [header, *rows])

    @contextmanager
    def _file(self, name: str) -> Iterator[IO[str]]:
        with atomic_write(self.folder / name, REMEDY, "w") as file:
            yield file
        self._written[name] = 0


def choose_folder(folder: Path, made: Mapping[str, Any]) -> tuple[Path, bool]:
    """Where a result goes that is made with `made` (manifest.py), and whether it is there already, whole.

    That is `folder`, or where it holds another whole result the first of <folder>-2, <folder>-3, … that does not.
    """
    for candidate in numbered_folders(folder):
        if not is_complete(candidate):
            break
        if manifest.is_result_of(candidate, made):
            return candidate, True
    return candidate, False


def next_free_folder(folder: Path) -> Path:
    """The first of <folder>, <folder>-2, … that holds no result."""
    return next(candidate for candidate in numbered_folders(folder) if not is_complete(candidate))


def numbered_folders(folder: Path) -> Iterator[Path]:
    """Yield <folder>, <folder>-2, <folder>-3, …"""
    yield folder
    for number in itertools.count(2):
        yield beside(folder, f"-{number}")


def beside(folder: Path, ending: str) -> Path:
    """Return the path beside `folder` whose name is longer by `ending`; `.` and `..`, which are no names, are resolved first."""
    named = folder.resolve() if folder.name in ("", "..") else folder
    return named.parent / f"{named.name}{ending}"


def is_complete(folder: Path) -> bool:
    return (folder / METRICS).exists()


def read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
