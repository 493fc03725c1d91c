"""Published data sets, small, with the folder and file names of their downloads."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from conftest import write_picture
from PIL import Image

SIDE = 48  # pixels


class Maker:
    """Pictures that differ, and masks of a square, from a seed; `masks` remembers what each mask marks."""

    def __init__(self, root: Path, seed: int = 0):
        self.root, self._rng = root, np.random.default_rng(seed)

    def pixels(self) -> np.ndarray:
        """Blots with a grain, as a photograph has."""
        coarse = Image.fromarray(self._rng.integers(60, 200, (12, 12, 3), dtype=np.uint8)).resize(
            (SIDE, SIDE), Image.Resampling.NEAREST
        )
        return (np.asarray(coarse) + self._rng.integers(0, 40, (SIDE, SIDE, 1))).astype(np.uint8)

    def picture(self, *names: str) -> None:
        for name in names:
            write_picture(self.root / name, self.pixels())

    def mask(self, *names: str, value: int = 255, corner: int = 10) -> None:
        for name in names:
            pixels = np.zeros((SIDE, SIDE), np.uint8)
            pixels[corner : corner + 12, corner : corner + 12] = value
            write_picture(self.root / name, pixels)


def numbers(pattern: str, count: int) -> list[str]:
    return [pattern.format(number) for number in range(count)]


def visa(make: Maker) -> None:
    """Masks hold labels, not 255; names of normal and defective pictures differ in length, as in VisA."""
    rows = [("object", "split", "label", "image", "mask")]
    for category in ("candle", "pcb1"):
        images = f"{category}/Data/Images"
        for number, name in enumerate(numbers(images + "/Normal/{:04}.JPG", 8)):
            make.picture(name)
            rows.append((category, "train" if number < 6 else "test", "normal", name, ""))
        for number in range(2):
            picture, mask = f"{images}/Anomaly/{number:03}.JPG", f"{category}/Data/Masks/Anomaly/{number:03}.png"
            make.picture(picture)
            make.mask(mask, value=number + 1)
            rows.append((category, "test", "anomaly", picture, mask))
    write_rows(make.root / "split_csv" / "1cls.csv", rows)
    few = [(*row[:1], "train", *row[2:]) if row[3].endswith("Anomaly/001.JPG") else row for row in rows]
    for name in ("2cls_fewshot", "2cls_highshot"):
        write_rows(make.root / "split_csv" / f"{name}.csv", few)


def write_rows(path: Path, rows: list[tuple[str, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def mvtec(make: Maker) -> None:
    make.picture(
        *numbers("bottle/train/good/{:03}.png", 6),
        *numbers("bottle/test/good/{:03}.png", 2),
        *numbers("bottle/test/broken_large/{:03}.png", 2),
    )
    make.mask(*numbers("bottle/ground_truth/broken_large/{:03}_mask.png", 2))
    (make.root / "license.txt").write_text("CC BY-NC-SA 4.0")


def loco(make: Maker) -> None:
    """A folder of masks to each picture, of which several are to be one; values other than 255."""
    base = "juice_bottle"
    make.picture(
        *numbers(base + "/train/good/{:03}.png", 6),
        *numbers(base + "/validation/good/{:03}.png", 2),
        *numbers(base + "/test/good/{:03}.png", 2),
    )
    for kind in ("logical_anomalies", "structural_anomalies"):
        make.picture(*numbers(f"{base}/test/{kind}" + "/{:03}.png", 2))
        make.mask(f"{base}/ground_truth/{kind}/000/000.png", value=200)
        make.mask(f"{base}/ground_truth/{kind}/000/001.png", value=3, corner=30)
        make.mask(f"{base}/ground_truth/{kind}/001/000.png")
    (make.root / base / "defects_config.json").write_text("[]")


def mtd(make: Maker) -> None:
    for kind in ("Blowhole", "Break", "Crack", "Fray", "Uneven"):
        make.picture(f"MT_{kind}/Imgs/exp1_num_10{len(kind)}.jpg")
        make.mask(f"MT_{kind}/Imgs/exp1_num_10{len(kind)}.png")
    make.picture(*numbers("MT_Free/Imgs/exp2_num_{}.jpg", 10))
    make.mask(*numbers("MT_Free/Imgs/exp2_num_{}.png", 10), value=0)


def btad(make: Maker) -> None:
    for product, ending, mask_ending in (("01", "bmp", "png"), ("02", "png", "png"), ("03", "bmp", "bmp")):
        for part, count in (("train/ok", 6), ("test/ok", 2), ("test/ko", 2)):
            make.picture(*numbers(f"{product}/{part}" + "/{:04}." + ending, count))
        make.mask(*numbers(f"{product}/ground_truth/ko" + "/{:04}." + mask_ending, 2))


def ksdd(make: Maker) -> None:
    """Five items of three parts, of which Part2 is defective in two."""
    for item in range(1, 6):
        for part in range(3):
            make.picture(f"kos{item:02}/Part{part}.jpg")
            make.mask(f"kos{item:02}/Part{part}_label.bmp", value=255 if part == 2 and item < 3 else 0)


def ksdd2(make: Maker) -> None:
    """A train with a defective picture; a stray copy of a label, as the download holds."""
    for split, first in (("train", 10000), ("test", 20000)):
        for number in range(first, first + 8):
            make.picture(f"{split}/{number}.png")
            make.mask(
                f"{split}/{number}_GT.png",
                value=255 if number % 10 == 7 or (split == "test" and number % 10 == 6) else 0,
            )
    make.mask("train/10007_GT(copy).png")


def tree(folder: Path) -> dict[str, bytes]:
    """Every file, hidden ones too, with its content."""
    return dict(files_of(folder))


def files_of(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path.read_bytes()
