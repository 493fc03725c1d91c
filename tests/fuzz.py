"""Feed damaged files of every kind to the project; each must give a result or an error line, never a crash.

Each `Kind` has a few small valid files, a function that damages their structure, and a function that reads one. Half of
the inputs are damaged by that function, half byte by byte. The same seed gives the same inputs. `make fuzz` runs this:

    python tests/fuzz.py [--seed 0] [--share 1.0] [--only NAME]
"""

import argparse
import csv
import functools
import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import originals  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from PIL import Image  # noqa: E402
from torch import nn  # noqa: E402

import dataset  # noqa: E402
import main  # noqa: E402
import train  # noqa: E402
from config.checks import keys_without_effect  # noqa: E402
from config.load import build_settings, load_settings, read_sections, with_overrides  # noqa: E402
from data_tools import archives, sample_set  # noqa: E402
from data_tools.published_sets import plan_mvtec, plan_visa  # noqa: E402
from data_tools.sample_set import NOTE  # noqa: E402
from detection.calibration_file import CALIBRATION, CALIBRATION_FORMAT, load_calibration  # noqa: E402
from detection.threshold import PIXEL_RATES  # noqa: E402
from images import annotations  # noqa: E402
from images.read import read_mask as read_any_mask  # noqa: E402
from images.read import read_picture as read_any_picture  # noqa: E402
from reports import manifest, tables  # noqa: E402
from reports.html import PAGE, write_page  # noqa: E402
from reports.predictions import Predictions  # noqa: E402
from reports.writer import SCORES, Writer  # noqa: E402
from runtime.errors import explain_error  # noqa: E402
from storage import safe_names  # noqa: E402
from training import checkpoint, log  # noqa: E402
from training.log import Log  # noqa: E402
from training.pace import Clock, Pace  # noqa: E402
from training.resume import restore_trainer  # noqa: E402
from unet import UNet  # noqa: E402

LONGEST = 20  # seconds that one input may take
MEMORY = 16 * 2**30  # bytes of address space
STRANGE = (
    *(
        None,
        True,
        0,
        -1,
        1,
        2**31,
        2**63,
        -(2**63) - 1,
        10**40,
        0.5,
        -0.0,
        1e308,
        float("nan"),
        float("inf"),
        float("-inf"),
    ),
    *("", " ", "\0", "=1", "auto", "latest", "..", "../x", "/x", "ü", "\ud800", "\udcff", "9" * 5000, "x" * 3000),
    *([], [[]], {}, {"": None}, [0] * 300, {"a": {"b": {"c": []}}}),
)
Mutate = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Kind:
    """`count` inputs: `mutate` changes one of `seeds`, and `read` reads it from `file` in an empty folder."""

    name: str
    count: int
    file: str
    seeds: Sequence[bytes]
    mutate: Mutate
    read: Callable[[Path], object]


# Ways to damage a file


def damage_bytes(content: bytes, rng: random.Random) -> bytes:
    """Damage bytes one to four times: flip bits, remove, double, move or overwrite a part, or cut off the rest."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(content) + 1)
        length = min(rng.choice((1, 2, 4, 8, 64)), len(content) - at)
        part = content[at : at + length]
        middle = (
            bytes(byte ^ 1 << rng.randrange(8) for byte in part),
            b"",
            part + part,
            rng.randbytes(length),
            rng.choice((b"\0", b"\xff", b"\x7f")) * length,
            struct.pack(rng.choice(("<I", ">I")), rng.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 65536)))[:length],
            content[rng.randrange(len(content) + 1) :][:length],
        )
        content = content[:at] + rng.choice(middle) + (b"" if rng.random() < 0.1 else content[at + length :])
    return content


def change_tree(tree: Any, rng: random.Random, strange: Sequence[Any] = STRANGE) -> Any:
    """Return a tree of dicts and lists with one change."""
    if not isinstance(tree, (dict, list)) or not tree or rng.random() < 0.1:
        return rng.choice(strange)
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    key, copy = rng.choice(keys), tree.copy()
    what = rng.random()
    if what < 0.6:
        copy[key] = change_tree(tree[key], rng, strange)
    elif what < 0.75:
        del copy[key]
    elif what < 0.9:
        copy[key] = tree[rng.choice(keys)]
    elif isinstance(copy, dict):
        copy[rng.choice(("x", "", *map(str, keys)))] = rng.choice(strange)
    else:
        copy.append(rng.choice(strange))
    return copy


def damage_tree(load: Callable[[bytes], Any], dump: Callable[[Any], bytes], strange: Sequence[Any] = STRANGE) -> Mutate:
    def damage(content: bytes, rng: random.Random) -> bytes:
        tree = load(content)
        for _ in range(rng.randint(1, 3)):
            tree = change_tree(tree, rng, strange)
        try:
            return dump(tree)
        except (
            ValueError,
            RecursionError,
            OverflowError,
            TypeError,
            RuntimeError,
        ):  # the format cannot express the tree
            return damage_bytes(content, rng)

    return damage


def damage_png(content: bytes, rng: random.Random) -> bytes:
    """Change, double or remove a PNG chunk and correct its checksum; damage the bytes of other formats."""
    if not content.startswith(b"\x89PNG"):
        return damage_bytes(content, rng)
    chunks, at = [], 8
    while at < len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    which = rng.randrange(len(chunks))
    kind, body = chunks[which]
    new = [
        (kind, damage_bytes(body, rng)),
        (kind, body),
        (rng.choice((b"tRNS", b"PLTE", b"eXIf", b"gAMA", b"iCCP", kind)), damage_bytes(body, rng)),
    ]
    chunks[which : which + 1] = rng.choice((new[:1], new[:2], new[2:], []))
    return content[:8] + b"".join(
        struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks
    )


def damage_torch(content: bytes, rng: random.Random) -> bytes:
    """Change the dict, or damage a member of the archive, mostly the pickle, with a correct checksum."""
    if rng.random() < 0.6:
        return damage_tree(loaded, saved, STRANGE_TENSORS)(content, rng)
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(made, "w") as new:
        members = archive.namelist()
        chosen = (
            next(name for name in members if name.endswith("data.pkl")) if rng.random() < 0.7 else rng.choice(members)
        )
        for name in members:
            body = archive.read(name)
            new.writestr(name, damage_bytes(body, rng) if name == chosen else body)
    return made.getvalue()


def loaded(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), weights_only=True)


def saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def as_json(tree: Any) -> bytes:
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def as_lines(rows: Any) -> bytes:
    return b"".join(as_json(row) + b"\n" for row in rows)


STRANGE_TENSORS = (
    *STRANGE[:20],
    *(
        torch.zeros(()),
        torch.zeros(3),
        torch.full((2, 2), float("nan")),
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(2, dtype=torch.int8),
    ),
    *(
        torch.eye(2).to_sparse(),
        torch.zeros(0, 4),
        torch.zeros(1).expand(4, 4),
        torch.zeros(2, dtype=torch.bool),
        torch.empty(2, device="meta"),
    ),
)


# Valid files, and the functions that read them


def pictures() -> list[bytes]:
    grey = Image.effect_noise((24, 16), 60)
    made = []
    for mode, formats in (
        ("RGB", ("PNG", "JPEG", "BMP", "TIFF", "WEBP")),
        ("L", ("PNG", "TIFF")),
        ("P", ("PNG",)),
        ("RGBA", ("PNG", "WEBP")),
    ):
        for form in formats:
            file = io.BytesIO()
            exif = Image.Exif()
            exif[0x0112] = 6
            grey.convert(mode).save(file, form, **({"exif": exif} if form in ("PNG", "JPEG", "WEBP") else {}))
            made.append(file.getvalue())
    for mode, form in (("I;16", "PNG"), ("1", "PNG"), ("F", "TIFF")):
        file = io.BytesIO()
        (Image.new("I;16", (24, 16), 40_000) if mode == "I;16" else grey.convert(mode)).save(file, form)
        made.append(file.getvalue())
    return made


def read_picture(path: Path) -> object:
    view = dataset.View(16, 1 if len(path.read_bytes()) % 2 else 3, tiles=None if len(path.read_bytes()) % 3 else 2)
    return view.pixels(read_any_picture(path, view.channels))


def read_mask(path: Path) -> object:
    return read_any_mask(path, (24, 16), path, (16, 16))


CONFIGURATION = {
    "data": {"name": "own", "data_dir": "d", "category": "c", "image_size": 32, "tiles": None},
    "model": {
        "w": 3,
        "epochs": 2,
        "load_chp": "latest",
        "channel_multipliers": [1, 2],
        "blur_sigma": 0.5,
        "backbone_weights": None,
    },
    "training": {"clip": 1.0, "schedule": "cosine"},
    "metrics": {"pro": True, "centre_crop": 0.5},
}


def read_settings(path: Path) -> object:
    settings = load_settings(path)
    assert safe_names.stays_inside(settings.data.category) and safe_names.stays_inside(settings.model.exp_name)
    return keys_without_effect(read_sections(path)), json.dumps(settings.as_dict())


def read_overrides(path: Path) -> object:
    words = path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    options = main.parse_arguments(words)
    return build_settings(with_overrides(CONFIGURATION, options.settings))


SHAPE: dict[str, Any] = {
    **{"image_size": 8, "base_channels": 8, "channel_multipliers": (1,)},
    **{"blocks_per_level": 1, "attention_sizes": (8,), "heads": 1},
}


def unet_file() -> bytes:
    unet = UNet(**SHAPE)
    notes = {"held_out": ["train/good/1.png"], "made_with": {"epochs": 1}}
    weights = {"weights": unet.state_dict(), "average": unet.state_dict()}
    return saved(
        {"format": checkpoint.FORMAT, "network": "unet", "architecture": unet.architecture, **weights, **notes}
    )


def read_unet(path: Path) -> object:
    checkpoint.load_unet(path, UNet(**SHAPE))
    return checkpoint.held_out_names(path), checkpoint.is_made_with(path.parent, 1, {"epochs": 1})


class Extractor(nn.Module):
    """The part of a feature extractor that its file is loaded into."""

    name = "resnet50"

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))


def read_features(path: Path) -> object:
    checkpoint.load_features(path, Extractor())  # type: ignore[arg-type]
    return checkpoint.held_out_names(path)


def a_pace() -> Pace:
    return Pace(clock=Clock(budget=60, began=0, step=1, detection=1))


def a_trainer() -> train.Trainer:
    return train.build_trainer(build_settings(TRAINING), a_pace(), torch.device("cpu"))


TRAINING: dict[str, Any] = {
    "data": {"name": "own", "data_dir": "d", "category": "c", "image_size": 8, "batch_size": 2},
    "model": {"w": 1, "epochs": 2, "load_chp": 1, "DA_chp": 0, "blur_sigma": 0.1, "dropout": 0}
    | {"base_channels": 8, "channel_multipliers": [1], "blocks_per_level": 1, "heads": 1, "attention_sizes": [8]},
    "training": {"ema": 0.9},
}


def one_step(trainer: train.Trainer) -> None:
    pixels = [torch.zeros(3, 8, 8, dtype=torch.uint8)] * 4
    source = train.BatchSource(pixels, batch_size=2, view=dataset.View(8), highest_step=10)
    rule = train.UpdateRule(train.NoiseSchedule(), trainer.unet)
    next(train.training_steps(trainer, source, rule, Pace.of_steps(trainer.step + 1)))


def training_state() -> bytes:
    trainer = a_trainer()
    one_step(trainer)
    state = {"trainer": trainer.state_dict(), "losses": [1.0, [1.0, 2.0]], "made_with": {"epochs": 2}}
    state["pace"] = {"decay": [1, 3], "parts": 2, "used": 9.5}
    return saved({"format": checkpoint.TRAINING_FORMAT, **state})


def read_training_state(path: Path) -> object:
    trainer = a_trainer()
    state = checkpoint.load_training_state(path.parent, {"epochs": 2})
    if state is None:
        return None
    losses = train.Losses(*restore_trainer(trainer, state, path, pictures=4, pace=a_pace()))
    return losses.mean(), one_step(trainer)


def calibration_file() -> bytes:
    settings = build_settings(CONFIGURATION | {"model": CONFIGURATION["model"] | {"DA_chp": 0}})
    calibration = {
        "feature": 1.0,
        "pixel": 2.0,
        "scores": [0.1, 0.2, 0.3],
        "pixels": [0.5] * len(PIXEL_RATES),
        "held_out": True,
    }
    return as_json(
        {"format": CALIBRATION_FORMAT, **calibration, "made_with": {"w": 3, "view": {}}, "settings": settings.as_dict()}
    )


def read_calibration(path: Path) -> object:
    calibration = load_calibration(path.parent)
    if calibration is None:
        return None
    build_settings(calibration.settings)
    return (
        calibration.describe(0.01),
        calibration.pixel_threshold(0.01),
        calibration.p_value(0.2),
        calibration.staleness({"w": 3}),
        calibration.balance,
    )


def prediction_rows() -> bytes:
    row = {"path": "a.png", "verdict": "anomalous", "score": 0.5, "p_value": 0.25, "error": ""}
    row["regions"] = [{"box": [1, 2, 3, 4], "area": 4, "peak": 1.0}]  # type: ignore[assignment]
    return as_lines(
        [
            row,
            row | {"path": "b.png", "regions": []},
            row | {"path": "c.png", "score": None, "p_value": None, "error": "it is empty"},
        ]
    )


def read_predictions(path: Path) -> object:
    (path.parent / "predictions.json").write_text("{}")
    (path.parent / "predictions.csv").write_bytes(path.read_bytes())
    there = Predictions(path.parent, {})
    there.add({"path": "new.png", "verdict": "normal", "score": 0.1, "p_value": 1.0, "regions": [], "error": ""})
    again = Predictions(path.parent, {})
    assert again.done == there.done | {"new.png"}
    return again


def read_predictions_note(path: Path) -> object:
    (path.parent / "predictions.jsonl").write_bytes(prediction_rows())
    return Predictions(path.parent, {"format": "ddad-predictions-1", "thresholds": [1.0, 2.0]})


def log_lines() -> bytes:
    return as_lines(
        {"step": 2 * n, "epoch": n, "loss": 1.0 / n, "learning_rate": 1e-3, "pictures_per_second": 3.0}
        for n in range(1, 5)
    )


def read_log(path: Path) -> object:
    Log(path.parent, log.TRAINING, "jsonl", 6).add(8, 4, 1.0, 1e-3, 1)
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_sample_note(path: Path) -> object:
    return sample_set.read_sample_note(path.parent)


def read_names(path: Path) -> object:
    """Write files for names of pictures from a foreign file; all stay inside the folder."""
    names = path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    given = [name for name in names if Path(name).name and "\0" not in name]  # no system allows a NUL in a name
    writer = Writer(path.parent)
    for stem in safe_names.file_stems(given).values():
        writer.picture(f"{stem}.png", Image.new("L", (1, 1)), "heatmaps")
    writer.scores(given, [True] * len(given), [1.0] * len(given))
    return writer.written


def archives_() -> list[bytes]:
    """Return a small download in each archive format."""
    made = []
    with tempfile.TemporaryDirectory() as folder:
        originals.mvtec(originals.Maker(Path(folder) / "all"))
        for form in ("zip", "tar", "gztar", "xztar"):
            made.append(
                Path(shutil.make_archive(str(Path(folder) / "packed"), form, Path(folder) / "all")).read_bytes()
            )
    return made


def read_archive(path: Path) -> object:
    """Plan the archive as MVTec AD; all files are written to the workspace beside it."""
    with archives.open_source(path, path.parent / "workspace") as root:
        return [plan.files for plan in plan_mvtec(root)]


def annotations_() -> list[bytes]:
    polygon = [[2, 2], [20, 3], [9, 12]]
    labelme = {
        "imageWidth": 24,
        "imageHeight": 16,
        "imagePath": "a.png",
        "shapes": [{"shape_type": "polygon", "points": polygon}],
    }
    images = [{"id": 1, "file_name": "a.png", "width": 24, "height": 16}]
    runs = {"size": [16, 24], "counts": [30, 4, 350]}
    coco = {
        "images": images,
        "annotations": [{"image_id": 1, "segmentation": [[2, 2, 20, 3, 9, 12]]}, {"image_id": 1, "segmentation": runs}],
    }
    value = {"x": 10, "y": 10, "width": 30, "height": 40, "rotation": 5, "rectanglelabels": ["x"]}
    result = {"type": "rectanglelabels", "original_width": 24, "original_height": 16, "value": value}
    studio = [{"data": {"image": "/data/a.png"}, "annotations": [{"result": [result]}]}]
    return [as_json(content) for content in (labelme, coco, studio)]


def read_annotations(path: Path) -> object:
    return [one.mask((24, 16)).sum() for one in annotations.read_annotations(path)]


def read_split(path: Path) -> object:
    """Plan VisA from the table and empty pictures."""
    root = path.parent / "visa"
    (root / "split_csv").mkdir(parents=True)
    path.rename(root / "split_csv" / "1cls.csv")
    for row in csv.reader(io.StringIO(split_table_content())):
        for name in row[3:]:
            if name and name not in ("image", "mask"):
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).touch()
    return [plan.files for plan in plan_visa(root)]


@functools.cache
def split_table_content() -> str:
    with tempfile.TemporaryDirectory() as folder:
        originals.visa(originals.Maker(Path(folder)))
        return (Path(folder) / "split_csv" / "1cls.csv").read_text()


def result_files() -> tuple[bytes, bytes]:
    """Return the content of manifest.json and scores.csv."""
    settings = {"model": {"w": 3, "v": 1, "epochs": 1, "DA_chp": 0}, "data": {"image_size": 32}}
    metrics = {"image_auroc": 0.9, "intervals": {"image_auroc": [0.8, 1.0]}}
    made = {
        "format": manifest.FORMAT,
        "category": "nut",
        "data_set": "own",
        "settings": settings,
        "versions": {"torch": "2"},
        "data": {},
    }
    return as_json(
        {**made, "metrics": metrics}
    ), b"path,label,score,p_value,anomalous\ntest/a/1.png,1,0.9,0.1,1\ntest/good/1.png,0,0.2,0.9,0\n"


def read_result(path: Path) -> object:
    """Use a results folder with one damaged file for all that is made from such folders."""
    for name, content in zip((manifest.MANIFEST, SCORES), result_files(), strict=True):
        if not (path.parent / name).exists():
            (path.parent / name).write_bytes(content)
    write_page(path.parent / PAGE, [path.parent])
    tables.write_summary(path.parent, [tables.Outcome("nut", path.parent)])
    return tables.compare_results([path.parent, path.parent])


def kinds() -> list[Kind]:
    in_json, in_lines = (
        damage_tree(json.loads, as_json),
        damage_tree(lambda content: [json.loads(line) for line in content.splitlines()], as_lines),
    )
    in_yaml = damage_tree(yaml.safe_load, lambda tree: yaml.safe_dump(tree).encode())
    words = (
        b"--train\n--config\nx.yaml\nmodel.w=3\ndata.category=nut\n"
        b"model.attention_sizes=[8, 16]\nmetrics.pro=False\nmodel.seed=1e3"
    )
    paths = (
        b"a.png\ntest/crack/001.png\n../up.png\n/abs.png\nc:\\x.png\nCON.png\n=1.png\n..\\x.png\n...png\n"
        b"\xc3\xbc/..//b.png\n\xff.png"
    )
    features = saved(
        {
            "format": checkpoint.FORMAT,
            "network": "features",
            "extractor": "resnet50",
            "weights": Extractor().network.state_dict(),
        }
    )
    released = saved({f"module.{name}": value for name, value in UNet(**SHAPE).state_dict().items()})
    note = b'{"format": "ddad-predictions-1", "thresholds": [1.0, 2.0]}'
    return [
        Kind("pictures", 7000, "p.png", pictures(), damage_png, read_picture),
        Kind("masks", 3500, "m.png", pictures(), damage_png, read_mask),
        Kind("configurations", 2500, "c.yaml", [yaml.safe_dump(CONFIGURATION).encode()], in_yaml, read_settings),
        Kind("command lines", 2000, "words", [words], damage_bytes, read_overrides),
        Kind("unet weights", 800, "1", [unet_file(), released], damage_torch, read_unet),
        Kind("feature weights", 1500, "feat1", [features], damage_torch, read_features),
        Kind("training.state", 300, checkpoint.TRAINING_STATE, [training_state()], damage_torch, read_training_state),
        Kind("training.jsonl", 1500, "training.jsonl", [log_lines()], in_lines, read_log),
        Kind("calibration.json", 3000, CALIBRATION, [calibration_file()], in_json, read_calibration),
        Kind("predictions.jsonl", 2000, "predictions.jsonl", [prediction_rows()], in_lines, read_predictions),
        Kind("predictions.json", 800, "predictions.json", [note], in_json, read_predictions_note),
        Kind(
            "sample.json",
            800,
            NOTE,
            [b'{"made by": "DDAD sample set", "version": 1, "seed": 3}'],
            in_json,
            read_sample_note,
        ),
        Kind("picture names", 1200, "names", [paths], damage_bytes, read_names),
        Kind("archives", 1200, "packed.zip", archives_(), damage_bytes, read_archive),
        Kind("annotations", 2500, "a.json", annotations_(), in_json, read_annotations),
        Kind("split tables", 600, "1cls.csv", [split_table_content().encode()], damage_bytes, read_split),
        Kind("manifests", 1000, manifest.MANIFEST, [result_files()[0]], in_json, read_result),
        Kind("score tables", 600, SCORES, [result_files()[1]], damage_bytes, read_result),
    ]


# The run


@dataclass
class Count:
    accepted: int = 0
    refused: int = 0
    crashes: int = 0
    outside: int = 0


class Watch:
    """Record writes outside one folder, started programs and foreign calls, as Python's audit events report them."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.seen: list[str] = []

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event == "open" and isinstance(arguments[0], (str, bytes)):
            flags = arguments[2] if isinstance(arguments[2], int) else 0
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self.check(event, arguments[0])
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "shutil.rmtree"):
            for place in arguments[:2]:
                if isinstance(place, (str, bytes)):
                    self.check(event, place)
        elif event in (
            "os.system",
            "os.exec",
            "os.posix_spawn",
            "subprocess.Popen",
            "socket.connect",
            "exec_",
        ) or event.startswith("ctypes."):
            self.seen.append(f"{event} {arguments[:1]}")

    def check(self, event: str, place: str | bytes) -> None:
        path = os.path.realpath(Path(self.folder or "") / os.fsdecode(place))
        if not path.startswith(f"{self.folder}{os.sep}") and path not in (self.folder, os.devnull):
            self.seen.append(f"{event} {path}")


def try_input(kind: Kind, content: bytes, folder: Path, watch: Watch, count: Count) -> str:
    """Count the result of one input; return the fault, or an empty text."""
    path = folder / kind.file
    path.write_bytes(content)
    watch.folder, watch.seen = str(folder), []
    signal.alarm(LONGEST)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            kind.read(path)
        count.accepted += 1
        fault = ""
    except Exception as error:
        explained = explain_error(error) is not None
        count.refused += explained
        fault = "" if explained else traceback.format_exc()
    finally:
        signal.alarm(0)
        watch.folder = None
    count.crashes += bool(fault)
    count.outside += len(watch.seen)
    return fault or "; ".join(watch.seen)


def too_long(*_: object) -> None:
    raise TimeoutError


def fuzz(kind: Kind, seed: int, share: float, watch: Watch, shown: list[str]) -> Count:
    rng, count = random.Random(f"{seed} {kind.name}"), Count()
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # many small files: keep them off the disk
    with tempfile.TemporaryDirectory(dir=memory) as temporary:
        for number in range(round(share * kind.count)):
            folder = Path(temporary).resolve() / str(number)
            folder.mkdir()
            content = (kind.mutate if rng.random() < 0.5 else damage_bytes)(rng.choice(kind.seeds), rng)
            fault = try_input(kind, content, folder, watch, count)
            if fault and len(shown) < 20:
                shown.append(f"{kind.name}, input {number}: {content[:80]!r}\n{fault}")
    return count


def run_all() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="share of the inputs of each kind")
    parser.add_argument("--only", help="the name of one kind")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, too_long)
    watch, shown = Watch(), []
    sys.addaudithook(watch.note)
    total, began_all = Count(), time.monotonic()
    print(f"{'kind':20}{'inputs':>8}{'seconds':>9}{'accepted':>10}{'refused':>9}{'crashes':>9}{'outside':>9}")
    for kind in kinds():
        if options.only in (None, kind.name):
            began = time.monotonic()
            count = fuzz(kind, options.seed, options.share, watch, shown)
            show(kind.name, count, time.monotonic() - began)
            total = Count(*(getattr(total, name) + getattr(count, name) for name in vars(total)))
    show("all", total, time.monotonic() - began_all)
    print("\n".join(shown))
    return 1 if total.crashes or total.outside else 0


def show(name: str, count: Count, seconds: float) -> None:
    inputs = count.accepted + count.refused + count.crashes
    print(
        f"{name:20}{inputs:8}{seconds:9.1f}{count.accepted:10}{count.refused:9}{count.crashes:9}{count.outside:9}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(run_all())
