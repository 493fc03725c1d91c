"""Small copies of published data sets, with the folder and file names of their downloads."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from conftest import write_picture
from PIL import Image

SIDE = 48  # pixels
QUICK = ("model.epochs=1", "data.image_size=16", "model.attention_sizes=[8]", "metrics.resamples=0", "model.skip=100")


class Maker:
    """Writes pictures that differ, drawn from a seed, and masks of a square."""

    def __init__(self, root: Path, seed: int = 0):
        self.root, self._rng = root, np.random.default_rng(seed)

    def pixels(self) -> np.ndarray:
        """Return coloured blocks with the noise of a photograph."""
        blocks = Image.fromarray(self._rng.integers(60, 200, (12, 12, 3), dtype=np.uint8))
        large = np.asarray(blocks.resize((SIDE, SIDE), Image.Resampling.NEAREST))
        return (large + self._rng.integers(0, 40, (SIDE, SIDE, 1))).astype(np.uint8)

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
    write_table(make.root / "split_csv" / "1cls.csv", rows)
    two_class = [(*row[:1], "train", *row[2:]) if row[3].endswith("Anomaly/001.JPG") else row for row in rows]
    for name in ("2cls_fewshot", "2cls_highshot"):
        write_table(make.root / "split_csv" / f"{name}.csv", two_class)


def write_table(path: Path, rows: list[tuple[str, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def mvtec(make: Maker) -> None:
    make.picture(*numbers("bottle/train/good/{:03}.png", 6), *numbers("bottle/test/good/{:03}.png", 2))
    make.picture(*numbers("bottle/test/broken_large/{:03}.png", 2))
    make.mask(*numbers("bottle/ground_truth/broken_large/{:03}_mask.png", 2))
    (make.root / "license.txt").write_text("CC BY-NC-SA 4.0")


def mvtec2(make: Maker) -> None:
    """Pictures under several lights; two splits have no labels and no folders of kinds."""
    base = "can"
    make.picture(*numbers(f"{base}/train/good/{{:03}}_regular.png", 6))
    make.picture(*numbers(f"{base}/validation/good/{{:03}}_regular.png", 3))
    make.picture(*numbers(f"{base}/test_public/good/{{:03}}_regular.png", 2))
    make.picture(*numbers(f"{base}/test_public/bad/{{:03}}_overexposed.png", 2))
    make.mask(*numbers(f"{base}/test_public/ground_truth/bad/{{:03}}_overexposed_mask.png", 2))
    make.picture(*numbers(f"{base}/test_private/{{:03}}_regular.png", 2))
    make.picture(*numbers(f"{base}/test_private_mixed/{{:03}}_mixed.png", 3))


def mpdd(make: Maker) -> None:
    for category in ("connector", "tubes"):
        make.picture(*numbers(category + "/train/good/{:03}.png", 6), *numbers(category + "/test/good/{:03}.png", 2))
        make.picture(*numbers(category + "/test/anomalous/{:03}.png", 2))
        make.mask(*numbers(category + "/ground_truth/anomalous/{:03}_mask.png", 2))


def real_iad(make: Maker) -> None:
    """A table of each category names pictures and masks; a view of a defective object may show no defect."""
    for category in ("audiojack", "toy"):
        views = {f"OK/S{number:04}/{category}_{number:04}_OK_C1_2023.jpg": "OK" for number in range(8)}
        views[f"NG/BX/S0001/{category}_0001_NG_BX_C2_2023.jpg"] = "OK"
        views |= {f"NG/BX/S{number:04}/{category}_{number:04}_NG_BX_C1_2023.jpg": "BX" for number in range(1, 3)}
        entries = []
        for name, kind in views.items():
            make.picture(f"realiad_1024/{category}/{name}", f"realiad_256/{category}/{name}")
            mask = name.replace(".jpg", ".png") if kind != "OK" else None
            if mask:
                make.mask(f"realiad_1024/{category}/{mask}", f"realiad_256/{category}/{mask}")
            entries.append({"category": category, "anomaly_class": kind, "image_path": name, "mask_path": mask})
        tables = {"realiad_jsons": entries[:6], "realiad_jsons_sv": entries[:4]}
        for folder, train in tables.items():
            path = make.root / "realiad_jsons" / folder / f"{category}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            meta = {"normal_class": "OK", "prefix": f"{category}/"}
            path.write_text(json.dumps({"meta": meta, "train": train, "test": entries[6:]}))


def loco(make: Maker) -> None:
    """Each picture has a folder of masks, whose values differ from 255."""
    base = "juice_bottle"
    for part, count in (("train/good", 6), ("validation/good", 2), ("test/good", 2)):
        make.picture(*numbers(f"{base}/{part}" + "/{:03}.png", count))
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
    for product, suffix, mask_suffix in (("01", "bmp", "png"), ("02", "png", "png"), ("03", "bmp", "bmp")):
        for part, count in (("train/ok", 6), ("test/ok", 2), ("test/ko", 2)):
            make.picture(*numbers(f"{product}/{part}" + "/{:04}." + suffix, count))
        make.mask(*numbers(f"{product}/ground_truth/ko" + "/{:04}." + mask_suffix, 2))


def ksdd(make: Maker) -> None:
    """Five items of three parts; Part2 of the first two is defective."""
    for item in range(1, 6):
        for part in range(3):
            make.picture(f"kos{item:02}/Part{part}.jpg")
            make.mask(f"kos{item:02}/Part{part}_label.bmp", value=255 if part == 2 and item < 3 else 0)


def ksdd2(make: Maker) -> None:
    """One training picture is defective; a stray copy of a label lies in train, as in the download."""
    defective = ("train/10007", "test/20006", "test/20007")
    for split, first in (("train", 10000), ("test", 20000)):
        for name in (f"{split}/{number}" for number in range(first, first + 8)):
            make.picture(f"{name}.png")
            make.mask(f"{name}_GT.png", value=255 if name in defective else 0)
    make.mask("train/10007_GT(copy).png")


def tree(folder: Path) -> dict[str, bytes]:
    """Return the content of every file, hidden ones too."""
    return dict(files_of(folder))


def files_of(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path.read_bytes()


def count_pictures(category_dir: Path) -> tuple[int, int, int]:
    """Return the numbers of training, normal test and defective test pictures."""
    train, normal, test = (len(list(category_dir.glob(f"{part}/*"))) for part in ("train/good", "test/good", "test/*"))
    return train, normal, test - normal


def read_pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))
