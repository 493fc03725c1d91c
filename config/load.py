"""Load the settings from config.yaml, presets and the command line, and replace `auto`.

`auto` takes the published value of the category (published.py), or what the key's comment in config.yaml says.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path

from config.checks import (
    NOT_TEXT,
    SECTIONS,
    SPELLINGS,
    PlainSections,
    Sections,
    check_category,
    check_combinations,
    check_sections,
    did_you_mean,
)
from config.keys import AUTO, LATEST, PER_IMAGE, PLANNED, Settings
from config.plain_yaml import NOT_YAML, parse_yaml, read_yaml_file
from config.presets import PRESETS
from config.published import published_rows
from runtime.errors import UserError

SHORTCUTS = ("preset", "budget_minutes")  # at the top of the file
SAMPLE = "sample"  # data.name of the embedded sample set
ALL = "all"  # data.category for every category in data.data_dir
BLUR_SIGMA_AT_256 = 4.0  # pixels, as published; `auto` scales it with image_size
BY_NETWORK = {"batch_size": (32, 16), "base_channels": (64, 32), "heads": (4, 2), "dropout": (0.0, 0.3)}  # DDAD, DDAD-S
BY_CATEGORY: dict[str, tuple[str, type, object]] = {
    # key: (column of published.csv, type, value where nothing is published; None: the user must give one)
    "w": ("w", float, None),
    "epochs": ("epochs", int, None),
    "load_chp": ("epochs", int, None),
    "DA_epochs": ("DA_chp", int, 0),
    "DA_chp": ("DA_chp", int, 0),
    "v": ("v", float, 1),
    "DLlambda": ("DLlambda", float, 0.1),
    "DA_batch_size": ("DA_batch_size", int, 16),
    "test_batch_size": ("test_batch_size", int, 16),
}
DRAWS = 4  # `auto` number of reconstructions with per-image scores; the published system makes one
HELD_OUT = 0.2  # `auto` share of train/good that calibration gets; the published system trains on all
QUOTES = ("'", '"')


def load_settings(path: str | Path, overrides: Iterable[str] = ()) -> Settings:
    """Return the settings of a YAML file, with `section.key=value` overrides on top.

    Raise UserError with the key's path for a value that is unknown, missing, of the wrong type or out of bounds.
    Raise MissingFileError where there is no file.
    """
    return build_settings(read_sections(path, overrides))


def read_sections(path: str | Path, overrides: Iterable[str] = ()) -> PlainSections:
    """Return the plain sections of a YAML file, with overrides on top, for `build_settings` to check."""
    content = read_yaml_file(Path(path))
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no sections; it needs {', '.join(SECTIONS)}")
    return with_overrides(content, overrides)


def build_settings(content: Mapping[str, object]) -> Settings:
    """Return checked settings of plain sections."""
    sections = check_sections(content)
    settings = Settings(**{name: kind(**resolve_auto(sections, name)) for name, kind in SECTIONS.items()})
    check_combinations(settings)
    return settings


def names_several(content: Mapping[str, object]) -> bool:
    """Return whether data.category is `all` or a list."""
    category = category_value(content)
    return category == ALL or isinstance(category, list)


def category_names(content: Mapping[str, object], list_categories: Callable[[Path], list[str]]) -> list[str]:
    """Return the categories that data.category names.

    `all` are those that `list_categories` gives for data.data_dir: the paper's in its order, then the others.
    """
    category = category_value(content)
    if category == ALL:
        data_dir = check_sections(with_category(content, ALL))["data"]["data_dir"]
        order = {name: place for place, name in enumerate(published_rows())}
        return sorted(list_categories(data_dir), key=lambda name: (order.get(name, len(order)), name))
    if category == []:
        raise UserError("data.category is an empty list; name at least one category, or write all")
    names = category if isinstance(category, list) else [category]
    return list(dict.fromkeys(map(check_category, names)))


def settings_of_category(content: Mapping[str, object], name: str) -> Settings:
    """Return the settings of one category."""
    return build_settings(with_category(content, name))


def category_value(content: Mapping[str, object]) -> object:
    data = content.get("data")
    return data.get("category") if isinstance(data, Mapping) else None


def with_category(content: Mapping[str, object], name: str) -> PlainSections:
    """Return plain sections whose data.category is `name`."""
    data = content.get("data")
    return {**content, "data": {**data, "category": name} if isinstance(data, Mapping) else data}


def with_overrides(content: Mapping[str, object], overrides: Iterable[str]) -> PlainSections:
    """Return the plain sections of `content`, with those of its preset on top, and then the overrides."""
    given = dict(map(parse_override, overrides))
    shortcuts = {name: given.pop(name, content.get(name)) for name in SHORTCUTS}
    merged = {
        section: dict(values) if isinstance(values, dict) else values
        for section, values in content.items()
        if section not in SHORTCUTS
    }
    for path, value in {**expand_shortcuts(**shortcuts), **given}.items():
        section, _, leaf = path.partition(".")
        values = merged.setdefault(section, {})
        if not isinstance(values, dict):
            raise UserError(f"{section} should be a section with keys, not {values!r}")
        for spellings in SPELLINGS.items():
            if path in spellings:
                for spelling in spellings:
                    values.pop(spelling.partition(".")[2], None)
        values[leaf] = value
    return merged


def expand_shortcuts(preset: object, budget_minutes: object) -> dict[str, object]:
    """Return the settings, by path, that the keys at the top of the file stand for."""
    if preset is not None and (not isinstance(preset, str) or preset not in PRESETS):
        hint = did_you_mean(str(preset), PRESETS)
        raise UserError(f"preset is {preset!r}{hint}; it should be {', '.join(PRESETS)} or null")
    budget = {} if budget_minutes is None else {"training.budget_minutes": budget_minutes}
    return {**(PRESETS[preset] if isinstance(preset, str) else {}), **budget}


def parse_override(override: str) -> tuple[str, object]:
    """Return name and value of `section.key=value`, the value read as YAML."""
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
    return name, text.strip() if takes_text(name) and is_misread(text, value) else value


def is_misread(text: str, value: object) -> bool:
    """Return whether YAML changes a name or path: 01 to a number, 2024-01-02 to a date, `a #b` to `a`."""
    return isinstance(value, (*NOT_TEXT, dict)) or (isinstance(value, str) and not text.strip().startswith(QUOTES))


def takes_text(path: str) -> bool:
    """Return whether a key takes a name or a path."""
    section, _, leaf = SPELLINGS.get(path, path).partition(".")
    kinds = {spec.name: spec.type for spec in fields(SECTIONS[section])} if section in SECTIONS else {}
    return kinds.get(leaf) in (str, Path, str | None, Path | None)


def resolve_auto(sections: Sections, name: str) -> dict[str, object]:
    """Return one section with each `auto` replaced. Raise UserError where nothing is published to replace it."""
    category, data_set = sections["data"]["category"], sections["data"]["name"]
    row, values, defaults, unpublished = published_row(sections), dict(sections[name]), default_values(sections), []
    for leaf in (leaf for leaf, value in values.items() if value == AUTO):
        if leaf in defaults:
            values[leaf] = defaults[leaf]
        elif leaf in BY_CATEGORY:
            column, kind, otherwise = BY_CATEGORY[leaf]
            if not row and otherwise is None:
                unpublished.append(f"{name}.{leaf}")
            else:
                values[leaf] = kind(row.get(column, otherwise))
    if unpublished:
        hint = did_you_mean(category, published_rows())
        remedy = f"give {', '.join(unpublished)} a value in place of auto"
        raise UserError(f"nothing is published for category {category!r} of {data_set}{hint}; {remedy}")
    if name == "model" and sections[name]["DA_epochs"] == AUTO and isinstance(values["DA_chp"], int):
        values["DA_epochs"] = values["DA_chp"]
    return values


def default_values(sections: Sections) -> dict[str, object]:
    """Return what `auto` stands for, by key, where other settings decide it and not the category."""
    defaults: dict[str, object] = {key: pair[sections["model"]["DDADS"]] for key, pair in BY_NETWORK.items()}
    defaults["blur_sigma"] = BLUR_SIGMA_AT_256 * sections["data"]["image_size"] / 256
    if sections["training"]["budget_minutes"]:
        defaults |= {"epochs": PLANNED, "load_chp": LATEST}
    if sections["score"]["protocol"] == PER_IMAGE:
        return defaults | {"share": HELD_OUT, "draws": DRAWS, "test_batch_size": None}
    return defaults | {"share": 0.0, "draws": 1}


def published_row(sections: Sections) -> Mapping[str, str]:
    """Return what the paper publishes for the category of the data set; nothing where it has no such category."""
    row = published_rows().get(sections["data"]["category"], {})
    return row if row.get("data_set", "").lower() == str(sections["data"]["name"]).lower() else {}


def unpublished_keys(content: Mapping[str, object]) -> list[str]:
    """Return the keys that need a value, because their `auto` is a published one and data.category has none."""
    sections = check_sections(content)
    if published_row(sections):
        return []
    decided = default_values(sections)
    needed = [key for key, (_, _, otherwise) in BY_CATEGORY.items() if otherwise is None and key not in decided]
    return [f"model.{key}" for key in needed if sections["model"][key] == AUTO]
