"""Load the settings from config.yaml, presets and the command line, and replace `auto`."""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path

from config import checks
from config.checks import SECTIONS, SPELLINGS, PlainSections, Sections, check_sections, check_value, did_you_mean
from config.keys import AUTO, CROSS, DISTANCES, LATEST, PER_IMAGE, PLANNED, SPLIT, SQUARE, TRAIN, DataSettings, Settings
from config.plain_yaml import NOT_YAML, parse_yaml, read_yaml_file
from config.presets import PRESETS
from config.published import counts_centre, published_row, published_rows
from runtime.errors import UserError

CONFIGURATION = "config.yaml"  # without --config
SHIPPED = Path(__file__).parents[1] / CONFIGURATION  # beside main.py
SHORTCUTS = ("preset", "budget_minutes")  # at the top of the file
SAMPLE = "sample"  # data.name of the embedded sample set
SAMPLE_GROUPS = r"block\d+"  # its pictures are crops of blocks of a photograph
ALL = "all"  # data.category for every category in data.data_dir
BLUR_SIGMA_AT_256 = 4.0  # pixels, as published; `auto` scales it with image_size
BY_NETWORK = {"batch_size": (32, 16), "base_channels": (64, 32), "heads": (4, 2), "dropout": (0.0, 0.3)}  # DDAD, DDAD-S
PUBLISHED = {  # keys whose `auto` is a published value, with their type
    **dict.fromkeys(("epochs", "load_chp", "DA_epochs", "DA_chp", "DA_batch_size", "test_batch_size"), int),
    **dict.fromkeys(("w", "v", "DLlambda"), float),
}
COLUMNS = {"load_chp": "epochs", "DA_epochs": "DA_chp"}  # of published.csv, where the key has another name
UNPUBLISHED = {"DA_epochs": 0, "DA_chp": 0, "v": 1, "DLlambda": 0.1, "DA_batch_size": 16, "test_batch_size": 16}
METRICS_SIZE = 256  # pixels, as published
DRAWS = 4  # `auto` number of reconstructions with per-image scores; the published system makes one
CENTRE = 0.875  # `auto` share of the width and height that a published table counts
WHOLE = 1.0  # the same with all other settings, and with pictures without labels
HELD_OUT = 0.2  # `auto` share of train/good that calibration gets; the published system trains on all
QUOTES = ("'", '"')


def load_settings(path: str | Path, overrides: Iterable[str] = ()) -> Settings:
    """Return the settings of a YAML file, with `section.key=value` overrides on top.

    Raise UserError with the path of a wrong key or value, MissingFileError where there is no file.
    """
    return build_settings(read_sections(path, overrides))


def read_sections(path: str | Path, overrides: Iterable[str] = ()) -> PlainSections:
    """Return the plain sections of a YAML file, with overrides on top, for `build_settings` to check."""
    content = read_yaml_file(Path(path))
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no sections; it needs {', '.join(SECTIONS)}")
    return with_overrides(content, overrides)


def choose_configuration(path: str | None) -> str:
    """Return `path`, else config.yaml of the working directory, else the one beside main.py, which it prints."""
    if path is not None or Path(CONFIGURATION).exists() or not SHIPPED.exists():
        return path or CONFIGURATION
    print(f"settings from {SHIPPED}, as there is none in {Path.cwd()}, where relative paths start", flush=True)
    return str(SHIPPED)


def build_settings(content: Mapping[str, object]) -> Settings:
    """Return checked settings of plain sections. Raise UserError where nothing is published to replace an `auto`."""
    sections = check_sections(content)
    if missing := unpublished_keys(sections):
        data, remedy = sections["data"], f"give {', '.join(missing)} a value in place of auto"
        category = f"{data['category']!r} of {data['name']}{did_you_mean(data['category'], published_rows())}"
        raise UserError(f"nothing is published for category {category}; {remedy}")
    found = auto_values(sections)
    for values in sections.values():
        values.update({key: found[key] for key, value in values.items() if value == AUTO and key in found})
    settings = Settings(**{name: kind(**sections[name]) for name, kind in SECTIONS.items()})
    checks.check_combinations(settings)
    return settings


def settings_of_category(content: Mapping[str, object], name: str) -> Settings:
    """Return the settings of one category."""
    return build_settings({**content, "data": checks.section_values("data", content.get("data")) | {"category": name}})


def whole_pictures(content: Mapping[str, object]) -> PlainSections:
    """Return a copy of the sections that leaves no part of a picture out, unless they name metrics.centre_crop."""
    values = checks.section_values("metrics", content.get("metrics"))
    is_auto = values.get("centre_crop", AUTO) == AUTO
    return {**content, "metrics": values | ({"centre_crop": WHOLE} if is_auto else {})}


def category_value(content: Mapping[str, object]) -> object:
    return checks.section_values("data", content.get("data")).get("category")


def names_several(content: Mapping[str, object]) -> bool:
    """Return whether data.category is `all` or a list."""
    return category_value(content) == ALL or isinstance(category_value(content), list)


def category_names(content: Mapping[str, object], list_categories: Callable[[Path], list[str]]) -> list[str]:
    """Return the categories that data.category names.

    `all` are those that `list_categories` gives for data.data_dir: first the paper's, in its order, then the others.
    """
    category = category_value(content)
    if category == ALL:
        order = {name: place for place, name in enumerate(published_rows())}
        found = list_categories(check_sections(content)["data"]["data_dir"])
        return sorted(found, key=lambda name: (order.get(name, len(order)), name))
    if category == []:
        raise UserError("data.category is an empty list; name at least one category, or write all")
    names = category if isinstance(category, list) else [category]
    spec = DataSettings.__dataclass_fields__["category"]
    return list(dict.fromkeys(str(check_value("data.category", spec, name)) for name in names))


def with_overrides(content: Mapping[str, object], overrides: Iterable[str]) -> PlainSections:
    """Return a copy of `content`. The preset's values replace those of `content`, the overrides replace both."""
    given = dict(map(parse_override, overrides))
    preset, budget = (given.pop(name, content.get(name)) for name in SHORTCUTS)
    if preset is not None and not (isinstance(preset, str) and preset in PRESETS):
        hint = did_you_mean(str(preset), PRESETS)
        raise UserError(f"preset is {preset!r}{hint}; it should be {', '.join(PRESETS)} or null")
    budgets = {} if budget is None else {"training.budget_minutes": budget}
    merged = {section: copy.copy(values) for section, values in content.items() if section not in SHORTCUTS}
    for path, value in (PRESETS.get(str(preset), {}) | budgets | given).items():
        section, _, leaf = path.partition(".")
        values = merged[section] = checks.section_values(section, merged.get(section))
        for spelling in next((pair for pair in SPELLINGS.items() if path in pair), ()):
            values.pop(spelling.partition(".")[2], None)
        values[leaf] = value
    return merged


def parse_override(override: str) -> tuple[str, object]:
    """Return name and value of `section.key=value`; the value is read as YAML."""
    name, equals, text = override.partition("=")
    _, dot, leaf = name.partition(".")
    if not equals or not (name in SHORTCUTS or (dot and leaf)):
        raise UserError(f"{override!r} is neither a flag nor section.key=value (such as model.w=3)")
    if not text.strip():
        raise UserError(f"{override} has no value; write one after = (such as model.w=3), or null for none")
    try:
        value = parse_yaml(text)
    except NOT_YAML:
        remedy = "write 3, [1, 2], or text in quotes within quotes (\"'…'\")"
        raise UserError(f"{name}: {text!r} is not a YAML value; {remedy}") from None
    section, _, leaf = SPELLINGS.get(name, name).partition(".")
    kinds = {spec.name: spec.type for spec in fields(SECTIONS[section])} if section in SECTIONS else {}
    takes_text = kinds.get(leaf) in (str, Path, str | None, Path | None)
    # YAML changes some names and paths: 01 to a number, 2024-01-02 to a date, `a #b` to `a`
    is_unquoted = isinstance(value, str) and not text.strip().startswith(QUOTES)
    return name, text.strip() if takes_text and (is_unquoted or isinstance(value, (*checks.NOT_TEXT, dict))) else value


def auto_values(sections: Sections) -> dict[str, object]:
    """Return the value that replaces `auto`, by key: other settings decide it, or else it is the published one."""
    data, model, score = sections["data"], sections["model"], sections["score"]
    row = published_row(data["category"], str(data["name"]))
    values: dict[str, object] = {}
    for key, kind in PUBLISHED.items():
        if row or key in UNPUBLISHED:
            values[key] = kind(row[COLUMNS.get(key, key)] if row else UNPUBLISHED[key])
    values |= {key: pair[model["DDADS"]] for key, pair in BY_NETWORK.items()}
    values["blur_sigma"] = BLUR_SIGMA_AT_256 * data["image_size"] / 256
    if isinstance(model["DA_chp"], int):
        values["DA_epochs"] = model["DA_chp"]
    if sections["training"]["budget_minutes"]:
        values |= {"epochs": PLANNED, "load_chp": LATEST}
    if data["name"] == SAMPLE:
        values["groups"] = SAMPLE_GROUPS
    published = counts_centre(data["name"], score["protocol"], score["parts"])
    values["centre_crop"] = CENTRE if published else WHOLE
    # otherwise the pictures decide: `auto` fit stays, and a size of None, until they are known
    values |= {"fit": SQUARE, "size": METRICS_SIZE} if published or data["tiles"] else {"size": None}
    if score["protocol"] != PER_IMAGE:
        return values | {"method": SPLIT, "share": 0.0, "draws": 1}
    method = sections["calibration"]["method"]
    if method == AUTO:
        method = values["method"] = SPLIT if set(score["parts"] or ()) <= set(DISTANCES) else CROSS
    holds_out = method == SPLIT and sections["calibration"]["folder"] == TRAIN
    return values | {"share": HELD_OUT if holds_out else 0.0, "draws": DRAWS, "test_batch_size": None}


def makes_squares(sections: Sections) -> bool | None:
    """Return whether pictures are resized to squares; None where data.fit is `auto` and the pictures decide."""
    fit = sections["data"]["fit"]
    if fit == AUTO:
        fit = auto_values(sections).get("fit", AUTO)
    return None if fit == AUTO else fit == SQUARE and not sections["data"]["tiles"]


def unpublished_keys(sections: Sections) -> list[str]:
    """Return the keys whose `auto` is a published value, where none is published for data.category."""
    found = auto_values(sections)
    return [f"model.{key}" for key in PUBLISHED if key not in found and sections["model"][key] == AUTO]
