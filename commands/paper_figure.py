"""Draw a figure for papers: pictures, reconstructions, anomaly maps and ground truth, as PNG and PDF."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from anomaly_map import resize_maps
from config.keys import PER_IMAGE
from config.load import build_settings
from dataset import ImageFolder
from detection.calibrate import calibrate
from detection.detector import Prediction, load_detector, predict_pictures, stream_noise
from images.read import read_full_mask, read_picture
from reports import drawing, reader, tables, writer
from runtime.device import choose_device
from runtime.errors import UserError
from storage.atomic_file import atomic_write

BEST, WORST = "best", "worst"
CHOSEN = 2  # pictures that `best` chooses in a category
COLUMNS = ("input", "reconstruction", "anomaly map", "ground truth")
WIDTH, LABEL, GAP, TITLE = 7.0, 0.3, 0.04, 0.22  # inches: a page's text, a row's name, between cells, above columns
CELL = (WIDTH - LABEL) / len(COLUMNS)  # inches, width of a column
DOTS_PER_INCH, FONT_SIZE = 300, 8  # the latter in points
REMEDY = "choose another place with --output"
FORMATS = ("png", "pdf")

Pixels = NDArray[np.uint8]


class FigureRow(NamedTuple):
    label: str
    cells: list[Pixels]  # the columns, (H, W, 3) each, of one size


def draw_paper_figure(paths: Sequence[Path], choices: Sequence[str], output: Path | None = None) -> None:
    """Draw pictures of results folders, reconstructed again, into `output`.png and .pdf.

    `choices` are best, worst, or names of pictures in the category; without any, best.
    Raise UserError where weights or pictures are missing or are not those of the results.
    """
    results = [result for path in paths for result in tables.results_in(path).values()]
    places = ", ".join(map(str, paths))
    scores = [reader.read_scores(result.folder / writer.SCORES) for result in results]
    known = {BEST, WORST, *(row.path for rows in scores for row in rows)}
    unknown = " or ".join(choice for choice in choices if choice not in known)
    if unknown:
        raise UserError(f"none of {places} has a picture called {unknown}; scores.csv lists their names")
    rows = [row for result in results for row in figure_rows(result.folder, result.manifest, choices or [BEST])]
    if not rows:
        raise UserError(f"{places} have no defective picture to draw; name others with --choose")
    figure, written = draw_rows(rows), figure_paths(output, results[0].folder)
    for path in written:
        with atomic_write(path, REMEDY) as file, matplotlib.rc_context({"pdf.fonttype": 42}):
            figure.savefig(file, format=path.suffix[1:], dpi=DOTS_PER_INCH)
    print(f"{len(rows)} pictures in {' and '.join(map(str, written))}", flush=True)


def figure_paths(output: Path | None, default: Path) -> list[Path]:
    """Return `output` with each format's suffix, or figure.png and .pdf in the folder `output`, else in `default`."""
    if output is None or output.is_dir():
        stem = (output or default) / "figure"
    else:
        stem = output.with_suffix("") if output.suffix[1:].lower() in FORMATS else output
    return [stem.with_name(f"{stem.name}.{kind}") for kind in FORMATS]


def figure_rows(folder: Path, manifest: Mapping[str, Any], choices: Sequence[str]) -> Iterator[FigureRow]:
    """Yield the chosen pictures of a result, reconstructed again."""
    settings = build_settings(manifest["settings"])
    names, device = choose_pictures(list(reader.read_scores(folder / writer.SCORES)), choices), settings.model.device
    detector, completed, _ = load_detector(settings, settings.checkpoint_folder, choose_device(device))
    if detector.networks.hash() != manifest["weights"]:
        remedy = "run --detection again for a new result"
        raise UserError(f"the weights in {settings.checkpoint_folder} are not those of {folder}; {remedy}")
    if settings.score.protocol == PER_IMAGE:
        detector = calibrate(detector, completed)
    else:
        print(f"{folder}: score.protocol is published, so the chosen pictures' own maxima balance the maps")
    masks = settings.data.mask
    pictures = ImageFolder(settings.category_dir, "test", detector.view, masks=masks).only(names)
    noise = detector.picture_noise if detector.calibration else stream_noise(settings.model.seed, detector.device)
    predictions = list(predict_pictures(detector, pictures, noise, settings.model.num_workers))
    largest = max((float(prediction.anomaly.max()) for _, prediction in predictions), default=1.0)
    hottest = drawing.HOTTEST * detector.threshold if detector.calibration else largest
    for item, prediction in sorted(predictions, key=lambda pair: names.index(pair[0].path)):
        sample = pictures.only([item.path]).samples[0]
        cells = cells_of(read_picture(sample.picture, bits=detector.view.bits), sample.mask, prediction, hottest)
        yield FigureRow(f"{settings.data.category}\n{item.kind}", cells)


def choose_pictures(scored: Sequence[reader.ScoredPicture], choices: Sequence[str]) -> list[str]:
    """Return the names of the chosen pictures.

    best: the defective pictures with the highest scores, of different kinds if possible. worst: the defective picture
    with the lowest score and the normal one with the highest. Others are names; those not in `scored` are left out.
    """
    falling = sorted(scored, key=lambda row: -row.score)
    defective, normal = ([row for row in falling if row.defective == label] for label in (True, False))
    kinds = [row.kind for row in defective]
    in_turns = sorted(range(len(kinds)), key=lambda rank: kinds[:rank].count(kinds[rank]))
    names = {row.path: [row.path] for row in scored}
    names[BEST] = [defective[rank].path for rank in in_turns[:CHOSEN]]
    names[WORST] = [row.path for row in (*defective[-1:], *normal[:1])]
    return list(dict.fromkeys(name for choice in choices for name in names.get(choice, [])))


def cells_of(picture: Image.Image, mask: Path | None, prediction: Prediction, hottest: float) -> list[Pixels]:
    """Return a picture's columns, (H, W, 3) each, in the size in which they are printed."""
    width = round(CELL * DOTS_PER_INCH)
    size = (width, max(1, round(width * picture.height / picture.width)))
    pixels = np.asarray(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS))
    small = Image.fromarray(drawing.as_pixels(prediction.reconstruction))
    reconstruction = np.asarray(small.resize(size, Image.Resampling.BICUBIC))
    anomaly = resize_maps(prediction.anomaly[None, None], size[::-1])[0, 0].numpy()
    truth = np.zeros_like(pixels)
    if mask is not None:
        truth[np.asarray(Image.fromarray(read_full_mask(mask)).resize(size, Image.Resampling.NEAREST))] = 255
    return [pixels, reconstruction, drawing.overlay_heat(pixels, anomaly, hottest), truth]


def draw_rows(rows: Sequence[FigureRow]) -> Figure:
    """Return a figure of the rows, below the titles of the columns."""
    heights = [CELL * row.cells[0].shape[0] / row.cells[0].shape[1] for row in rows]
    total = TITLE + sum(heights)
    figure = Figure(figsize=(WIDTH, total))
    for column, title in enumerate(COLUMNS):
        middle = (LABEL + (column + 0.5) * CELL) / WIDTH
        figure.text(middle, 1 - TITLE / 2 / total, title, ha="center", va="center", fontsize=FONT_SIZE)
    bottom = total - TITLE
    for row, height in zip(rows, heights, strict=True):
        bottom -= height
        middle = (bottom + height / 2) / total
        name = figure.text(LABEL / 2 / WIDTH, middle, row.label, ha="center", va="center", fontsize=FONT_SIZE)
        name.set(rotation=90, parse_math=False)
        for column, pixels in enumerate(row.cells):
            left = LABEL + column * CELL
            box = (left + GAP / 2) / WIDTH, (bottom + GAP / 2) / total, (CELL - GAP) / WIDTH, (height - GAP) / total
            axes = figure.add_axes(box)
            axes.imshow(pixels, interpolation="none", aspect="auto")
            axes.set_axis_off()
    return figure
