"""What results look like: heat colours, overlays, outlines and the figure of one picture. Arrays in, pictures out."""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import maximum_filter
from torch import Tensor

PANEL_HEIGHT = 256  # pixels
CAPTION_HEIGHT = 24
GAP = 6
COLOUR_MAP = matplotlib.colormaps["turbo"]
OVERLAY = 0.55  # share of the heat colour over the picture
HOTTEST = 2  # times what normal pictures reach gets the hottest colour
OUTLINE = (255, 0, 80)  # colour of a defect's border
LAYER_SIDE = 256  # pixels, the longer one, of the layers that report.html puts over each other
LAYER_REACH = 2  # pixels that an outline is wide there
PIXELS_PER_LINE = 400  # a picture of so many pixels has its borders a pixel thicker


class Panel(NamedTuple):
    """What a figure shows of one picture: its path and score, pictures (H, W, 3) uint8, maps (H, W), mask (S, S), and its own (width, height)."""

    path: str
    score: float
    picture: NDArray[np.uint8]
    reconstruction: NDArray[np.uint8]
    d_pixel: NDArray[np.floating]
    d_feature: NDArray[np.floating]
    anomaly: NDArray[np.floating]
    mask: NDArray[np.bool_] | None
    size: tuple[int, int]


class ColourScale(NamedTuple):
    """The values that get the hottest colour."""

    d_pixel: float
    d_feature: float
    anomaly: float

    @classmethod
    def reached(cls, panels: Sequence[Panel]) -> "ColourScale":
        """The maxima of all these panels."""
        return cls(*(max(float(getattr(panel, name).max()) for panel in panels) for name in cls._fields))


def as_pixels(picture: Tensor) -> NDArray[np.uint8]:
    """(C, H, W) in [−1, 1] → (H, W, 3) uint8."""
    pixels = ((picture.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def heat(values: NDArray[np.floating], top: float) -> NDArray[np.uint8]:
    """(H, W) → (H, W, 3); 0 is the coldest colour, `top` the hottest."""
    return COLOUR_MAP(np.clip(values.astype(np.float32) / max(top, np.finfo(np.float32).tiny), 0, 1), bytes=True)[
        ..., :3
    ]


def draw_figure(panel: Panel, tops: ColourScale) -> Image.Image:
    overlay = overlay_heat(panel.picture, panel.anomaly, tops.anomaly)
    mask = (
        np.zeros(panel.picture.shape, np.uint8)
        if panel.mask is None
        else np.repeat(panel.mask[..., None].astype(np.uint8) * 255, 3, axis=2)
    )
    parts = {
        "picture": panel.picture,
        "reconstruction": panel.reconstruction,
        "pixel distance": heat(panel.d_pixel, tops.d_pixel),
        "feature distance": heat(panel.d_feature, tops.d_feature),
        "anomaly map": overlay,
        "ground truth": mask,
    }
    width = min(max(round(PANEL_HEIGHT * panel.size[0] / panel.size[1]), PANEL_HEIGHT // 2), 2 * PANEL_HEIGHT)
    figure = Image.new("RGB", (len(parts) * (width + GAP) + GAP, PANEL_HEIGHT + 2 * CAPTION_HEIGHT), "white")
    pen, font = ImageDraw.Draw(figure), ImageFont.load_default(14)
    title = f"{panel.path}   score {panel.score:.3g}   (the hottest colour of the anomaly map is {tops.anomaly:.3g})"
    pen.text((GAP, 3), title, fill="black", font=font)
    for position, (caption, pixels) in enumerate(parts.items()):
        left = GAP + position * (width + GAP)
        pen.text((left, CAPTION_HEIGHT + 3), caption, fill="#555555", font=font)
        figure.paste(
            Image.fromarray(pixels).resize((width, PANEL_HEIGHT), Image.Resampling.BICUBIC), (left, 2 * CAPTION_HEIGHT)
        )
    return figure


def overlay_heat(picture: NDArray[np.uint8], anomaly: NDArray[np.floating], top: float) -> NDArray[np.uint8]:
    """The map's colours over the picture (H, W, 3)."""
    return ((1 - OVERLAY) * picture + OVERLAY * heat(anomaly, top)).astype(np.uint8)


def draw_outline(picture: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The picture (H, W, 3) with the border of the mask drawn around it, thicker in larger pictures."""
    drawn = picture.copy()
    drawn[border(mask, 1 + max(mask.shape) // PIXELS_PER_LINE)] = OUTLINE
    return drawn


def border(mask: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """(H, W), true up to `reach` pixels outside the mask."""
    return maximum_filter(mask, 2 * reach + 1) & ~mask


def draw_layers(panel: Panel, tops: ColourScale) -> dict[str, Image.Image]:
    """What can be put over each other of a picture, in its own proportions: picture, reconstruction, map over the picture and, where its
    mask has a defect, the outline of that on a transparent ground."""
    scale = LAYER_SIDE / max(panel.size)
    size = max(1, round(panel.size[0] * scale)), max(1, round(panel.size[1] * scale))
    parts = {
        "picture": panel.picture,
        "reconstruction": panel.reconstruction,
        "map": overlay_heat(panel.picture, panel.anomaly, tops.anomaly),
    }
    layers = {name: Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC) for name, pixels in parts.items()}
    if panel.mask is not None and panel.mask.any():
        mask = np.asarray(Image.fromarray(panel.mask).resize(size, Image.Resampling.NEAREST))
        drawn = np.zeros((*mask.shape, 4), np.uint8)
        drawn[border(mask, LAYER_REACH)] = (*OUTLINE, 255)
        layers["outline"] = Image.fromarray(drawn)
    return layers
