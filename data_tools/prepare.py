"""Prepare a published data set or the user's own pictures in the MVTec AD layout: <data_dir>/<category>.

The folder is --output; else data.data_dir, where the command line gives it or data.name is this data set; else a folder
named after the data set beside data.data_dir. preparation.json in each category names its source and licence.
"""

import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from config.checks import check_sections
from config.load import (
    ALL,
    CONFIGURATION,
    SHIPPED,
    build_settings,
    category_names,
    category_value,
    parse_override,
    read_sections,
    unpublished_keys,
)
from config.presets import LAPTOP
from data_tools import published_sets
from data_tools.archives import open_source
from data_tools.category_writer import CategoryPlan, write_category
from data_tools.own_images import plan_own_images
from data_tools.published_sets import ONE_CLASS
from dataset import VALIDATION, held_out_count
from runtime.errors import UserError, UserFileError
from storage.safe_names import named_path

# Name of the data set's folder, and data.name, by kind of preparation
NAMES = {
    **{"visa": "VisA", "mvtec": "MVTec", "mvtec2": "MVTecAD2", "real_iad": "RealIAD", "mpdd": "MPDD"},
    **{"mtd": "MTD", "btad": "BTAD", "ksdd": "KSDD", "folder": "own"},
}
WITH_VALIDATION = {"mvtec2"}  # kinds whose thresholds are published for their validation split
GENERAL_NAMES = ("good", "normal", "ok", "train")  # of folders; they do not say what the pictures show
MAIN = "main.py"

ONE_CATEGORY = ("mtd", "ksdd", "folder")  # kinds of preparation

Sections = dict[str, dict[str, object]]  # settings by section and key


class PrepareRequest(NamedTuple):
    """What to prepare: its kind, as in the flag's name, its source, and the other flags."""

    kind: str
    source: Path
    output: Path | None = None
    defects: Path | None = None
    masks: Path | None = None
    split: str = ONE_CLASS


def prepare_data_set(request: PrepareRequest, configuration: str, overrides: Sequence[str]) -> None:
    """Write all categories of a data set, and print the command that trains on the first one."""
    content, given = read_sections(configuration, overrides), "data.category" in given_keys(overrides)
    wanted = wanted_categories(content) if given else []
    sections = check_sections(read_sections(configuration, without_keys(overrides, ["data.category"])))
    data_dir = choose_data_dir(request, sections["data"], overrides)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserFileError(f"can't make the folder {data_dir}: {error.strerror}; change --output") from error
    with open_source(request.source.expanduser().resolve(), data_dir) as root:
        plans = list(plan_categories(request, root, wanted, sections["model"]["seed"]))
        command = next_command(request, plans[0], data_dir, configuration, overrides)
        for plan in plans:  # only now, when all mistakes have been reported
            write_category(plan, data_dir / plan.category)
            print("\n".join(describe_category(plan, data_dir / plan.category, request.split)))
    print(f"next: {command}", flush=True)


def choose_data_dir(request: PrepareRequest, data: Mapping[str, object], overrides: Iterable[str]) -> Path:
    name, data_dir = NAMES[request.kind], Path(str(data["data_dir"]))
    if request.output:
        return request.output
    if str(data["name"]).lower() == name.lower() or "data.data_dir" in given_keys(overrides):
        return data_dir
    return named_path(data_dir).parent / (name if request.split == ONE_CLASS else f"{name}_{request.split}")


def given_keys(overrides: Iterable[str]) -> set[str]:
    return {parse_override(override)[0] for override in overrides}


def wanted_categories(content: Mapping[str, object]) -> list[str]:
    """Return the categories that data.category names; an empty list stands for all."""
    return [] if category_value(content) == ALL else category_names(content, lambda folder: [])


def plan_categories(request: PrepareRequest, root: Path, wanted: Sequence[str], seed: int) -> Iterable[CategoryPlan]:
    """Plan the categories in `root` that are `wanted`, or all; the user's own pictures make one of that name."""
    category = wanted[0] if wanted else category_name(root)
    planners: dict[str, Callable[[], Iterable[CategoryPlan]]] = {
        "visa": lambda: published_sets.plan_visa(root, request.split, wanted),
        "mvtec": lambda: published_sets.plan_mvtec(root, wanted),
        "mvtec2": lambda: published_sets.plan_mvtec2(root, wanted),
        "real_iad": lambda: published_sets.plan_real_iad(root, wanted),
        "mpdd": lambda: published_sets.plan_mpdd(root, wanted),
        "btad": lambda: published_sets.plan_btad(root, wanted),
        "mtd": lambda: [published_sets.plan_mtd(root, seed)],
        "ksdd": lambda: [published_sets.plan_kolektor(root, seed)],
        "folder": lambda: [plan_own_images(category, root, request.source, request.defects, request.masks, seed)],
    }
    if request.kind in ONE_CATEGORY and len(wanted) > 1:
        raise UserError(f"--prepare_{request.kind} makes one category; data.category names {', '.join(wanted)}")
    return planners[request.kind]()


def category_name(folder: Path) -> str:
    """Return the name of the folder or of the first one above it that says what the pictures show."""
    names = (path.name for path in (folder, *folder.parents) if path.name.lower() not in GENERAL_NAMES)
    return next(names, "") or NAMES["folder"]


def describe_category(plan: CategoryPlan, folder: Path, split: str) -> Iterator[str]:
    """Yield a line with the numbers of pictures, then warnings: missing masks, unexpected numbers."""
    training, normal, defective = plan.counts().values()
    name, category = plan.data_set.name, plan.category
    test = f"{normal} normal and {defective} defective to test"
    yield f"{folder}: {training} normal pictures to train on, {test} ({name}, licence: {plan.data_set.licence})"
    own = {"normal": training + normal, "training": training, "defective test": defective}
    published = published_sets.published_counts() if split == ONE_CLASS else {}  # counts of other splits differ
    for kind, count in published.get((name, category), {}).items():
        if own[kind] != count:
            numbers = f"{category} has {own[kind]} {kind} pictures, the published {name} {count}"
            reason = (
                "the download may be incomplete" if own[kind] < count else "it is another version, or has more files"
            )
            yield f"warning: {numbers}; {reason}"
    missing = plan.without_mask()
    if missing:
        pictures = f"{len(missing)} defective pictures of {category} have no mask, {missing[0]} is the first"
        yield f"warning: {pictures}; set data.mask=False, or add them"


def next_command(
    request: PrepareRequest, plan: CategoryPlan, data_dir: Path, configuration: str, overrides: Sequence[str]
) -> str:
    """Return the command that trains on a category, with the settings that differ from the configuration file."""
    file, name = check_sections(read_sections(configuration)), NAMES[request.kind]
    changes: Sections = {"data": {"name": name, "data_dir": data_dir, "category": plan.category}, "model": {}}
    if file["data"]["name"] != name and "model.checkpoint_dir" not in given_keys(overrides):
        changes["model"]["checkpoint_dir"] = named_path(file["model"]["checkpoint_dir"]).parent / name
    if plan.without_mask():
        changes["data"]["mask"] = False
    if request.kind in WITH_VALIDATION:
        changes["calibration"] = {"folder": VALIDATION}
    missing = unpublished_keys(check_sections(merge_sections(read_sections(configuration, overrides), changes)))
    if missing:
        overrides = [f"preset={LAPTOP}", *without_keys(overrides, ["preset", *missing])]
    settings = build_settings(merge_sections(read_sections(configuration, overrides), changes))
    pictures, calibration = plan.counts()["train normal"], settings.calibration
    pictures -= held_out_count(pictures, calibration.share, calibration.pictures)
    if pictures < settings.data.batch_size:
        changes["data"]["batch_size"] = pictures
    stages = ["train", *(["domain_adaptation"] if settings.model.DA_chp else []), "detection"]
    flags = [word for stage in stages for word in (f"--{stage}", "True")]
    flags += [] if configuration in (CONFIGURATION, str(SHIPPED)) else ["--config", configuration]
    given = [(section, key, value) for section, values in changes.items() for key, value in values.items()]
    overrides = without_keys(overrides, [f"{section}.{key}" for section, key, _ in given])
    changed = [f"{section}.{key}={value}" for section, key, value in given if file[section][key] != value]
    program = MAIN if Path(MAIN).exists() else str(SHIPPED.with_name(MAIN))
    return shlex.join(["python", program, *flags, *overrides, *changed])


def merge_sections(content: Mapping[str, Any], changes: Sections) -> dict[str, Any]:
    return {**content, **{section: {**(content.get(section) or {}), **changes[section]} for section in changes}}


def without_keys(overrides: Iterable[str], keys: Collection[str]) -> list[str]:
    return [override for override in overrides if parse_override(override)[0] not in keys]
