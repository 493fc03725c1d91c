"""Pictures of a category in rows, on one sheet."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import pictures
from files import whole_file

SIDE, GAP, CAPTION = 128, 6, 22  # pixels


def write(path: Path, category_dir: Path, rows: Mapping[str, Sequence[str]]) -> None:
    """A PNG with a row of the pictures named (paths in the category) under each caption. Raises OSError where it can't be written."""
    columns = max((len(names) for names in rows.values()), default=1)
    sheet = Image.new("RGB", (columns * (SIDE + GAP) + GAP, len(rows) * (CAPTION + SIDE + GAP) + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for number, (caption, names) in enumerate(rows.items()):
        top = number * (CAPTION + SIDE + GAP) + GAP
        pen.text((GAP, top), caption, fill="black", font=font)
        for column, name in enumerate(names):
            sheet.paste(small(category_dir / name), (GAP + column * (SIDE + GAP), top + CAPTION))
    with whole_file(path, "change --contact_sheet") as file:
        sheet.save(file, "PNG")


def small(path: Path) -> Image.Image:
    picture, _ = pictures.read_shown(path, 3, lambda width, height: (SIDE, SIDE))
    picture.thumbnail((SIDE, SIDE))
    return picture
