"""Results on disk: scores.csv, metrics.json and a figure a picture."""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from checkpoint import whole_file

REMEDY = "choose another folder with --output"
PANEL_SIZE = 256  # pixels
CAPTION_HEIGHT = 24
GAP = 6
COLOUR_MAP = matplotlib.colormaps["turbo"]
OVERLAY = 0.55  # share of the heat colour over the picture


class Panel(NamedTuple):
    """What a figure shows of one picture: its path and score, pictures (S, S, 3) uint8, maps and mask (S, S)."""

    path: str
    score: float
    picture: NDArray[np.uint8]
    reconstruction: NDArray[np.uint8]
    d_pixel: NDArray[np.floating]
    d_feature: NDArray[np.floating]
    anomaly: NDArray[np.floating]
    mask: NDArray[np.bool_] | None


class Writer:
    """Writes into one results folder, each file whole; `written` names what it wrote. Raises OSError naming the folder where it can't."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.written: list[str] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(13, "Permission denied")
        except OSError as error:
            raise OSError(f"can't write results to {folder}: {error.strerror}; choose another with --output") from error

    def scores(self, paths: Sequence[str], labels: Iterable[bool], scores: Iterable[float]) -> None:
        rows = ([path, int(label), f"{score:.8g}"] for path, label, score in zip(paths, labels, scores, strict=True))
        self._table("scores.csv", ["path", "label", "score"], rows)

    def metrics(self, figures: dict[str, float]) -> None:
        with self._file("metrics.json") as file:
            json.dump(figures, file, indent=2)
            file.write("\n")

    def misclassifications(self, paths: Sequence[str], labels: Iterable[bool], scores: Iterable[float], threshold: float) -> None:
        """Missed and falsely alarmed pictures at `threshold`, which counts as anomalous."""
        rows = (
            [path, "missed" if label else "false alarm", f"{score:.8g}", f"{threshold:.8g}"]
            for path, label, score in zip(paths, labels, scores, strict=True)
            if label != (score >= threshold)
        )
        self._table("misclassifications.csv", ["path", "error", "score", "threshold"], rows)

    def figures(self, panels: Sequence[Panel]) -> None:
        """One picture each: picture, reconstruction, D_p, D_f, map over the picture, mask; each map on one scale for all."""
        tops = [max(float(getattr(panel, name).max()) for panel in panels) for name in ("d_pixel", "d_feature", "anomaly")]
        for panel in panels:
            figure = draw_figure(panel, *tops)
            with whole_file(self.folder / figure_name(panel.path), REMEDY) as file:
                figure.save(file, format="PNG")
        self.written.append(f"figures ({len(panels)})")

    def _table(self, name: str, header: list[str], rows: Iterable[Sequence[object]]) -> None:
        with self._file(name) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)

    @contextmanager
    def _file(self, name: str) -> Iterator[IO[str]]:
        with whole_file(self.folder / name, REMEDY, "w") as file:
            yield file
        self.written.append(name)


def figure_name(path: str) -> str:
    """test/crack/003.png → figures/crack/003.png; other endings stay in the name, so that no two pictures share one."""
    picture = PurePosixPath(path)
    name = picture.name if picture.suffix == ".png" else f"{picture.name}.png"
    return str(PurePosixPath("figures", picture.parent.name, name))


def as_pixels(picture: Tensor) -> NDArray[np.uint8]:
    """(C, H, W) in [−1, 1] → (H, W, 3) uint8."""
    pixels = ((picture.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def heat(values: NDArray[np.floating], top: float) -> NDArray[np.uint8]:
    """(H, W) → (H, W, 3); 0 is the coldest colour, `top` the hottest."""
    return COLOUR_MAP(np.clip(values.astype(np.float32) / max(top, np.finfo(np.float32).tiny), 0, 1), bytes=True)[..., :3]


def draw_figure(panel: Panel, top_pixel: float, top_feature: float, top_anomaly: float) -> Image.Image:
    hot = heat(panel.anomaly, top_anomaly)
    overlay = ((1 - OVERLAY) * panel.picture + OVERLAY * hot).astype(np.uint8)
    mask = np.zeros(panel.picture.shape, np.uint8) if panel.mask is None else np.repeat(panel.mask[..., None].astype(np.uint8) * 255, 3, axis=2)
    parts = {
        "picture": panel.picture,
        "reconstruction": panel.reconstruction,
        "pixel distance": heat(panel.d_pixel, top_pixel),
        "feature distance": heat(panel.d_feature, top_feature),
        "anomaly map": overlay,
        "ground truth": mask,
    }
    figure = Image.new("RGB", (len(parts) * (PANEL_SIZE + GAP) + GAP, PANEL_SIZE + 2 * CAPTION_HEIGHT), "white")
    pen, font = ImageDraw.Draw(figure), ImageFont.load_default(14)
    pen.text(
        (GAP, 3), f"{panel.path}   score {panel.score:.3g}   (the hottest colour of the anomaly map is {top_anomaly:.3g})", fill="black", font=font
    )
    for position, (caption, pixels) in enumerate(parts.items()):
        left = GAP + position * (PANEL_SIZE + GAP)
        pen.text((left, CAPTION_HEIGHT + 3), caption, fill="#555555", font=font)
        figure.paste(Image.fromarray(pixels).resize((PANEL_SIZE, PANEL_SIZE), Image.Resampling.BICUBIC), (left, 2 * CAPTION_HEIGHT))
    return figure
