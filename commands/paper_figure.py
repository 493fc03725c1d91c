"""A figure for papers: rows of pictures with reconstruction, anomaly map and ground truth, at print resolution, as PNG and PDF."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from anomaly_map import resize_maps
from config.keys import PER_IMAGE, Settings
from config.load import build_settings
from dataset import ImageFolder, View
from detection.calibrate import calibrate
from detection.detector import Detector, Prediction, load_detector, predict_pictures, stream_noise
from images.read import read_full_mask, read_picture
from reports import drawing
from reports.reader import ScoredPicture as Scored
from reports.reader import read_scores
from reports.tables import results_in
from reports.writer import SCORES
from runtime.device import choose_device
from runtime.errors import UserError
from storage.atomic_file import atomic_write

BEST, WORST = "best", "worst"
CHOSEN = 2  # pictures of a category, where none are named
COLUMNS = ("input", "reconstruction", "anomaly map", "ground truth")
WIDTH = 7.0  # inches, the text of a page
LABEL = 0.3  # inches, for a row's name
GAP = 0.04  # inches
TITLE = 0.22  # inches
DOTS_PER_INCH = 300
FONT_SIZE = 8  # points
REMEDY = "choose another place with --output"
FORMATS = ("png", "pdf")


class FigureRow(NamedTuple):
    """A picture of the figure: its name, and its columns as pixels (H, W, 3) of one size."""

    label: str
    cells: list[NDArray[np.uint8]]


def draw_paper_figure(paths: Sequence[Path], choices: Sequence[str], output: Path | None = None) -> list[Path]:
    """Draw pictures of these results folders into `output`.png and .pdf (figure in the first one); returns both paths.

    `choices` are best, worst, or pictures by their path in the category; without one, best. Weights and pictures are read again from where the
    manifests say. Raises FileNotFoundError or ValueError where they are not there, or are not those of the results.
    """
    results = [result for path in paths for result in results_in(path).values()]
    known = {BEST, WORST}.union(*({row.path for row in read_scores(result.folder / SCORES)} for result in results))
    unknown = [choice for choice in choices if choice not in known]
    if unknown:
        raise UserError(
            f"none of {', '.join(map(str, paths))} holds a picture called {' or '.join(unknown)}; scores.csv lists their names"
        )
    rows = [row for result in results for row in figure_rows(result.folder, result.manifest, choices or [BEST])]
    if not rows:
        raise UserError(
            f"{', '.join(map(str, paths))} hold no defective picture, of which the figure would be; name others with --choose"
        )
    figure, written = draw_rows(rows), paths_of(output, results[0].folder)
    for path in written:
        with atomic_write(path, REMEDY) as file, matplotlib.rc_context({"pdf.fonttype": 42}):
            figure.savefig(file, format=path.suffix[1:], dpi=DOTS_PER_INCH)
    print(f"{len(rows)} pictures in {' and '.join(map(str, written))}", flush=True)
    return written


def paths_of(output: Path | None, otherwise: Path) -> list[Path]:
    """`output` with each format's suffix; of a folder, or of none, figure.png and figure.pdf within it or `otherwise`."""
    if output is None or output.is_dir():
        stem = (output or otherwise) / "figure"
    else:
        stem = output.with_suffix("") if output.suffix[1:].lower() in FORMATS else output
    return [stem.with_name(f"{stem.name}.{kind}") for kind in FORMATS]


def figure_rows(folder: Path, made: Mapping[str, Any], choices: Sequence[str]) -> Iterator[FigureRow]:
    """The chosen pictures of a result, reconstructed again."""
    settings = build_settings(made["settings"])
    names = choose_pictures(list(read_scores(folder / SCORES)), choices)
    detector = detector_of(settings, made["weights"], folder)
    pictures = ImageFolder(
        settings.category_dir, "test", View(**settings.view_arguments()), masks=settings.data.mask
    ).only(names)
    noise = detector.picture_noise if detector.calibration else stream_noise(settings.model.seed, detector.device)
    found = list(predict_pictures(detector, pictures, noise, settings.model.num_workers))
    top = (
        drawing.HOTTEST * detector.threshold
        if detector.calibration
        else max((float(finding.anomaly.max()) for _, finding in found), default=1.0)
    )
    for item, finding in sorted(found, key=lambda pair: names.index(pair[0].path)):
        sample = pictures.only([item.path]).samples[0]
        yield FigureRow(
            f"{settings.data.category}\n{item.kind}", cells_of(read_picture(sample.picture), sample.mask, finding, top)
        )


def detector_of(settings: Settings, weights: str, folder: Path) -> Detector:
    """The detector that a result was made with; without a calibration where its scores were published ones."""
    detector, settings, _ = load_detector(settings, settings.checkpoint_folder, choose_device(settings.model.device))
    if detector.networks.hash() != weights:
        raise UserError(
            f"the weights in {settings.checkpoint_folder} are not those of {folder}; run --detection again for a new result"
        )
    if settings.score.protocol == PER_IMAGE:
        return calibrate(detector, settings)
    print(f"{folder}: maps are weighed by the maxima of the chosen pictures, as score.protocol is published")
    return detector


def choose_pictures(scored: Sequence[Scored], choices: Sequence[str]) -> list[str]:
    """Names of pictures: `best` are the defective ones that score highest, of several kinds where there are; `worst` the defective one
    that scores lowest and the normal one that scores highest; others are themselves, where they are there."""
    falling = sorted(scored, key=lambda row: -row.score)
    defective, normal = ([row for row in falling if row.defective == label] for label in (True, False))
    kinds = [row.kind for row in defective]
    in_turns = sorted(range(len(kinds)), key=lambda place: kinds[:place].count(kinds[place]))
    meant = {
        BEST: [defective[place].path for place in in_turns[:CHOSEN]],
        WORST: [row.path for row in (*defective[-1:], *normal[:1])],
    }
    names = {row.path for row in scored}
    return list(dict.fromkeys(name for choice in choices for name in meant.get(choice, [choice]) if name in names))


def cells_of(picture: Image.Image, mask: Path | None, finding: Prediction, top: float) -> list[NDArray[np.uint8]]:
    """A picture's columns, all as large as they are printed."""
    width = round((WIDTH - LABEL) / len(COLUMNS) * DOTS_PER_INCH)
    size = (width, max(1, round(width * picture.height / picture.width)))
    pixels = np.asarray(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS))
    reconstruction = np.asarray(
        Image.fromarray(drawing.as_pixels(finding.reconstruction)).resize(size, Image.Resampling.BICUBIC)
    )
    anomaly = resize_maps(finding.anomaly[None, None], size[::-1])[0, 0].numpy()
    truth = (
        np.zeros_like(pixels)
        if mask is None
        else np.repeat((full_mask(mask, size) * np.uint8(255))[..., None], 3, axis=2)
    )
    return [pixels, reconstruction, drawing.overlay_heat(pixels, anomaly, top), truth]


def full_mask(path: Path, size: tuple[int, int]) -> NDArray[np.bool_]:
    """(H, W) at the size (width, height)."""
    return np.asarray(Image.fromarray(read_full_mask(path)).resize(size, Image.Resampling.NEAREST))


def draw_rows(rows: Sequence[FigureRow]) -> Figure:
    """Rows below each other, under the names of the columns."""
    width = (WIDTH - LABEL) / len(COLUMNS)
    heights = [width * row.cells[0].shape[0] / row.cells[0].shape[1] for row in rows]
    total = TITLE + sum(heights)
    figure = Figure(figsize=(WIDTH, total))
    below = total - TITLE
    for column, title in enumerate(COLUMNS):
        middle = (LABEL + (column + 0.5) * width) / WIDTH
        figure.text(middle, 1 - TITLE / 2 / total, title, ha="center", va="center", fontsize=FONT_SIZE)
    for row, height in zip(rows, heights, strict=True):
        below -= height
        figure.text(
            LABEL / 2 / WIDTH,
            (below + height / 2) / total,
            row.label,
            ha="center",
            va="center",
            rotation=90,
            fontsize=FONT_SIZE,
            parse_math=False,
        )
        for column, pixels in enumerate(row.cells):
            box = (LABEL + column * width + GAP / 2, below + GAP / 2, width - GAP, height - GAP)
            axes = figure.add_axes((box[0] / WIDTH, box[1] / total, box[2] / WIDTH, box[3] / total))
            axes.imshow(pixels, interpolation="none", aspect="auto")
            axes.set_axis_off()
    return figure
