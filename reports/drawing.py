"""Draw heat colours, overlays, outlines and the figure of one picture, from arrays."""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import maximum_filter
from torch import Tensor

from images.region import JudgedRegion

PANEL_HEIGHT, CAPTION_HEIGHT, GAP = 256, 24, 6  # pixels
WIDEST = 1024  # pixels; the longer side of a strip
COLOUR_MAP = matplotlib.colormaps["turbo"]
SHADE = 0.4  # brightness of what is not judged
OVERLAY = 0.55  # weight of the heat colours over the picture
HOTTEST = 2  # the hottest colour stands for this multiple of the threshold, or of a distance's mean normal maximum
OUTLINE = (255, 0, 80)  # RGB of the border around a defect
LAYER_SIDE, LAYER_REACH = 256, 2  # pixels: the longer side of a layer of report.html up to 2:1; width of its outline
PIXELS_PER_LINE = 400  # of the longer side, per pixel of outline width

Size = tuple[int, int]  # (width, height)


class Panel(NamedTuple):
    """The content of one picture's figure; `size` is (width, height) of the picture's file."""

    path: str
    score: float
    picture: NDArray[np.uint8]  # (H, W, 3)
    reconstruction: NDArray[np.uint8]  # (H, W, 3)
    d_pixel: NDArray[np.floating]  # (H, W)
    d_feature: NDArray[np.floating]  # (H, W)
    anomaly: NDArray[np.floating]  # (H, W)
    mask: NDArray[np.bool_] | None  # in any size
    size: tuple[int, int]
    region: JudgedRegion | None = None

    def shaded(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return pixels (H, W, 3), but the darkened picture where it is not judged."""
        return shade_outside(pixels, self.picture, self.region)


class ColourScale(NamedTuple):
    """The values that get the hottest colour."""

    d_pixel: float
    d_feature: float
    anomaly: float

    @classmethod
    def of_panels(cls, panels: Sequence[Panel]) -> "ColourScale":
        """Return the maxima of all panels."""
        return cls(*(max(float(getattr(panel, name).max()) for panel in panels) for name in cls._fields))


def as_pixels(picture: Tensor) -> NDArray[np.uint8]:
    """Convert (C, H, W) in [−1, 1] to (H, W, 3)."""
    pixels = ((picture.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def heat_colours(values: NDArray[np.floating], top: float) -> NDArray[np.uint8]:
    """Convert (H, W) to colours (H, W, 3), from the coldest at 0 to the hottest at `top`."""
    fractions = np.clip(values.astype(np.float32) / max(top, np.finfo(np.float32).tiny), 0, 1)
    return COLOUR_MAP(fractions, bytes=True)[..., :3]


def draw_figure(panel: Panel, scale: ColourScale) -> Image.Image:
    """Draw picture, reconstruction, distances, anomaly map and ground truth side by side, or in rows if wide."""
    mask = np.zeros(panel.picture.shape[:2], bool) if panel.mask is None else panel.mask
    parts = {
        "picture": panel.shaded(panel.picture),
        **compared_parts(panel, scale),
        "anomaly map": panel.shaded(overlay_heat(panel.picture, panel.anomaly, scale.anomaly)),
        "ground truth": np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=2),
    }
    width, height, columns = figure_cell(panel.size, len(parts))
    row_height, rows = height + CAPTION_HEIGHT, len(parts) // columns
    shape = columns * (width + GAP) + GAP, rows * row_height + CAPTION_HEIGHT
    figure = Image.new("RGB", shape, "white")
    pen, font = ImageDraw.Draw(figure), ImageFont.load_default(14)
    title = f"{panel.path}   score {panel.score:.3g}   (the hottest colour of the anomaly map is {scale.anomaly:.3g})"
    pen.text((GAP, 3), title, fill="black", font=font)
    for position, (caption, pixels) in enumerate(parts.items()):
        row, column = divmod(position, columns)
        left, top = GAP + column * (width + GAP), CAPTION_HEIGHT + row * row_height
        pen.text((left, top + 3), caption, fill="#555555", font=font)
        part = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        figure.paste(part, (left, top + CAPTION_HEIGHT))
    return figure


def compared_parts(panel: Panel, scale: ColourScale) -> dict[str, NDArray[np.uint8]]:
    """Return the reconstruction and the distances by caption; a network that works on features has one distance."""
    distance = heat_colours(panel.d_pixel, scale.d_pixel)
    if not scale.d_feature:
        return {"reconstructed features": panel.reconstruction, "distance of features": distance}
    other = heat_colours(panel.d_feature, scale.d_feature)
    return {"reconstruction": panel.reconstruction, "pixel distance": distance, "feature distance": other}


def figure_cell(size: Size, parts: int) -> tuple[int, int, int]:
    """Return width, height and number of columns of a figure's parts for a picture of `size` (width, height)."""
    width = round(PANEL_HEIGHT * size[0] / size[1])
    if width > 2 * PANEL_HEIGHT:
        across = min(width, WIDEST)
        return across, max(1, round(across * size[1] / size[0])), 1
    if width < PANEL_HEIGHT // 2:
        down = min(round(PANEL_HEIGHT / 2 * size[1] / size[0]), WIDEST)
        return max(1, round(down * size[0] / size[1])), down, parts
    return width, PANEL_HEIGHT, parts


def overlay_heat(picture: NDArray[np.uint8], anomaly: NDArray[np.floating], top: float) -> NDArray[np.uint8]:
    """Blend the heat colours of a map (H, W) into the picture (H, W, 3)."""
    return ((1 - OVERLAY) * picture + OVERLAY * heat_colours(anomaly, top)).astype(np.uint8)


def shade_outside(
    pixels: NDArray[np.uint8], picture: NDArray[np.uint8], region: JudgedRegion | None
) -> NDArray[np.uint8]:
    """Return `pixels` (H, W, 3) inside the region, the picture (H, W, 3) darkened outside of it."""
    if region is None:
        return pixels
    judged = region.resized(*picture.shape[:2]).numpy()
    return np.where(judged[..., None], pixels, (SHADE * picture).astype(np.uint8))


def draw_outline(picture: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the picture (H, W, 3) with the outline of the mask (H, W), thicker in larger pictures."""
    edge = border(mask, 1 + max(mask.shape) // PIXELS_PER_LINE)
    return np.where(edge[..., None], np.array(OUTLINE, np.uint8), picture)


def border(mask: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """Return the pixels (H, W) at most `reach` outside of the mask."""
    return maximum_filter(mask, 2 * reach + 1) & ~mask


def draw_layers(panel: Panel, scale: ColourScale) -> dict[str, Image.Image]:
    """Return the layers of report.html by name, in the picture's proportions; `outline` only around a marked defect."""
    elongation = max(panel.size) / min(panel.size)
    side = min(LAYER_SIDE * max(1, elongation / 2) ** 0.5, WIDEST)  # a strip would be too small to see
    factor = side / max(panel.size)
    size = max(1, round(panel.size[0] * factor)), max(1, round(panel.size[1] * factor))
    heat = panel.shaded(overlay_heat(panel.picture, panel.anomaly, scale.anomaly))
    parts = {"picture": panel.shaded(panel.picture), "reconstruction": panel.reconstruction, "map": heat}
    layers = {name: Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC) for name, pixels in parts.items()}
    if panel.mask is not None and panel.mask.any():
        mask = np.asarray(Image.fromarray(panel.mask).resize(size, Image.Resampling.NEAREST))
        outline = np.zeros((*mask.shape, 4), np.uint8)
        outline[border(mask, LAYER_REACH)] = (*OUTLINE, 255)
        layers["outline"] = Image.fromarray(outline)
    return layers
