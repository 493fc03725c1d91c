"""Data sets made ready: the download of a published one, or own pictures, into <data_dir>/<category> in the MVTec AD layout.

Where they go: to --output DIR; else to data.data_dir, where that is given or the configuration's data.name is this data set; else to a folder
named after the data set beside it. Beside the pictures of each category stands preparation.json: what it was made from, and its licence.
"""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.checks import check_sections
from config.keys import AUTO, PER_IMAGE
from config.load import BY_NETWORK, HELD_OUT, read_sections
from config.presets import LAPTOP
from config.published import published_rows
from data_tools.archives import open_source, relative_path
from data_tools.category_writer import TEST_GOOD, TRAIN_GOOD, CategoryPlan, write_category
from data_tools.own_images import plan_own_images
from data_tools.published_sets import (
    ONE_CLASS,
    DataSetInfo,
    PlannedCategories,
    plan_btad,
    plan_kolektor,
    plan_mtd,
    plan_mvtec,
    plan_visa,
    published_counts,
)
from dataset import held_out_count
from runtime.errors import UserFileError

NAMES = {
    "visa": "VisA",
    "mvtec": "MVTec",
    "mtd": "MTD",
    "btad": "BTAD",
    "ksdd": "KSDD",
    "folder": "own",
}  # data.name, and the folder's
NORMAL_NAMES = ("good", "normal", "ok", "train")  # folders that do not name what is on the pictures
CONFIGURATION = "config.yaml"  # which main.py takes where no other is named


@dataclass(frozen=True)
class PrepareRequest:
    """What to prepare, by the flag's name; where from, and the other flags."""

    kind: str
    source: Path
    output: Path | None = None
    defects: Path | None = None
    masks: Path | None = None
    split: str = ONE_CLASS


def prepare_data_set(request: PrepareRequest, configuration: str, overrides: Sequence[str]) -> None:
    """Prepare, count, and print the command that trains on it. Raises ValueError or OSError, naming what can't be read or written."""
    values = check_sections(read_sections(configuration, overrides))
    data_dir = destination(request, values["data"], overrides)
    make_folder(data_dir)
    with open_source(request.source.expanduser().resolve(), data_dir) as root:
        plans = list(
            plan_data_set(request, root, values, overrides)
        )  # all of them before a file is made: what is wrong is said at once
        for about, plan in plans:
            write_data_set(about, plan, data_dir)
    print(f"next: {next_command(request, plans[0][1], data_dir, configuration, overrides)}", flush=True)


def destination(request: PrepareRequest, data: dict[str, Any], overrides: Sequence[str]) -> Path:
    """The folder of the categories."""
    if request.output:
        return request.output
    name = NAMES[request.kind]
    if data["name"].lower() == name.lower() or is_overridden("data.data_dir", overrides):
        return Path(data["data_dir"])
    return Path(data["data_dir"].parent / (name if request.split == ONE_CLASS else f"{name}_{request.split}"))


def is_overridden(key: str, overrides: Sequence[str]) -> bool:
    return any(override.startswith(f"{key}=") for override in overrides)


def make_folder(data_dir: Path) -> None:
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserFileError(
            f"can't make the folder {data_dir}: {error.strerror}; name another with --output"
        ) from error


def plan_data_set(
    request: PrepareRequest, root: Path, values: dict[str, dict[str, Any]], overrides: Sequence[str]
) -> PlannedCategories:
    """All categories that the source holds."""
    seed = values["model"]["seed"]
    if request.kind == "folder":
        category = values["data"]["category"] if is_overridden("data.category", overrides) else category_name(root)
        relative_path(category, "data.category")
        plan = plan_own_images(category, root, request.defects, request.masks, seed)
        return iter([(DataSetInfo("own pictures", str(request.source), "your own"), plan)])
    if request.kind == "visa":
        return plan_visa(root, request.split)
    if request.kind == "mvtec":
        return plan_mvtec(root)
    if request.kind == "btad":
        return plan_btad(root)
    return plan_mtd(root, seed) if request.kind == "mtd" else plan_kolektor(root, seed)


def category_name(folder: Path) -> str:
    """The name of the folder or, where that says good or train, of the first one above that does not."""
    return (
        next((place.name for place in (folder, *folder.parents) if place.name.lower() not in NORMAL_NAMES), "") or "own"
    )


def write_data_set(about: DataSetInfo, plan: CategoryPlan, data_dir: Path) -> None:
    """Make one category and say what it holds."""
    numbers = {
        "train normal": plan.count(TRAIN_GOOD),
        "test normal": plan.count(TEST_GOOD),
        "test defective": plan.count("test"),
    }
    folder = data_dir / plan.category
    write_category(
        plan, folder, {"data set": about.name, "source": about.source, "licence": about.licence, "pictures": numbers}
    )
    counted = f"{numbers['train normal']} normal pictures to train on, {numbers['test normal']} normal and {numbers['test defective']} defective to test"
    print(f"{folder}: {counted} ({about.name}, licence: {about.licence})")
    for line in warning_lines(about, plan):
        print(f"warning: {line}")


def warning_lines(about: DataSetInfo, plan: CategoryPlan) -> Iterator[str]:
    """Where the category differs from the published one, and what it lacks."""
    train, normal, defective = (
        plan.count(TRAIN_GOOD),
        plan.count(TRAIN_GOOD) + plan.count(TEST_GOOD),
        plan.count("test"),
    )
    published = published_counts().get((about.name, plan.category))
    if published:
        for name, there, known in zip(
            ("normal", "training", "defective test"), (normal, train, defective), published, strict=True
        ):
            if known is not None and there != known:
                yield f"{plan.category} has {there} {name} pictures, the published {about.name} {known}; the download may be incomplete"
    lacking = plan.without_mask()
    if lacking:
        yield f"{len(lacking)} defective pictures of {plan.category} have no mask, {lacking[0]} is the first; set data.mask=False, or add them"


def next_command(
    request: PrepareRequest, plan: CategoryPlan, data_dir: Path, configuration: str, overrides: Sequence[str]
) -> str:
    """What trains on the category and detects its defects, with the settings in which it differs from the configuration."""
    before, after = (check_sections(read_sections(configuration, settings)) for settings in ([], overrides))
    name, row, preset = NAMES[request.kind], published_rows().get(plan.category, {}), []
    if row.get("data_set") != name:
        row = {}
        planned = after["model"]["epochs"] != AUTO or after["training"]["budget_minutes"]
        if after["model"]["w"] == AUTO or not planned:  # what nothing is published of the preset has
            overrides, preset = (
                [override for override in overrides if not override.startswith("preset=")],
                [f"preset={LAPTOP}"],
            )
            after = check_sections(read_sections(configuration, [*overrides, *preset]))
    model = after["model"]
    wanted: dict[str, object] = {"data.name": name, "data.data_dir": data_dir, "data.category": plan.category}
    if not is_overridden("model.checkpoint_dir", overrides) and before["data"]["name"] != name:
        wanted["model.checkpoint_dir"] = before["model"]["checkpoint_dir"].parent / name
    if plan.without_mask():
        wanted["data.mask"] = False
    normal, share = plan.count(TRAIN_GOOD), after["calibration"]["share"]
    held_out = HELD_OUT * (after["score"]["protocol"] == PER_IMAGE) if share == AUTO else share
    most = normal - held_out_count(normal, held_out, after["calibration"]["pictures"])
    batch = after["data"]["batch_size"]
    if most < (BY_NETWORK["batch_size"][model["DDADS"]] if batch == AUTO else batch):
        wanted["data.batch_size"] = most
    kept = [override for override in overrides if override.partition("=")[0] not in wanted]
    changed = [
        f"{key}={value}"
        for key, value in wanted.items()
        if before[key.partition(".")[0]][key.partition(".")[2]] != value
    ]
    named = [] if configuration == CONFIGURATION else ["--config", configuration]
    adapts = int(row.get("DA_chp", 0)) if model["DA_chp"] == AUTO else model["DA_chp"]
    stages = ["train", *(["domain_adaptation"] if adapts else []), "detection"]
    flags = [word for stage in stages for word in (f"--{stage}", "True")]
    return shlex.join(["python", "main.py", *flags, *named, *preset, *changed, *kept])
