"""Settings from config.yaml and the command line: read, checked, and frozen (settings.py declares the keys).

`auto` takes the published value of the category (published.py) or what the key's comment in config.yaml says.
"""

import datetime
import difflib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import yaml

from config.keys import AUTO, LATEST, PER_IMAGE, PLANNED, DataSettings, Settings
from config.presets import PRESETS
from config.published import published_rows
from runtime.errors import MissingFileError, UserError, UserFileError
from storage.safe_names import stays_inside

SAMPLE = "sample"  # data.name of the embedded sample set
ALL = "all"  # data.category of all that data.data_dir holds
BLUR_SIGMA_AT_256 = 4.0  # pixels, as published; `auto` scales it with image_size
BY_NETWORK = {
    "batch_size": (32, 16),
    "base_channels": (64, 32),
    "heads": (4, 2),
    "dropout": (0.0, 0.3),
}  # (DDAD, DDAD-S)
BY_CATEGORY: dict[
    str, tuple[str, Any, Any]
] = {  # key → column of published.csv, type, value of categories without a row (None: must be given)
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
SHORTCUTS = ("preset", "budget_minutes")  # at the top of the file
DRAWS = 4  # `auto` number of reconstructions where scores are per picture; the published system makes one
HELD_OUT = (
    0.2  # `auto` share of train/good kept for calibration where scores are per picture; the published runs train on all
)
NOT_TEXT = (int, float, datetime.date)  # what YAML makes of 01 or 2024-01-02
QUOTES = ("'", '"')
LARGEST_FILE = 2**16  # bytes; config.yaml with all its comments has 6,000
DEEPEST = 10  # levels of nesting; a configuration has three
NO_EFFECT = {
    "model.checkpoint_name": "checkpoints are found by model.load_chp",
    "training.min_snr": "training has no min-SNR weights any more",
}
REMOVED_KEYS = {"training.min_snr"}  # null, their old default, is still accepted
REMOVED_VALUES = {
    "model.predicts": ("v",),
    "score.parts": ("residual", "coarse", "residual_memory", "coarse_memory"),
    "score.pooling": ("quantile",),
}
NOT_YAML = (
    yaml.YAMLError,
    ValueError,
    RecursionError,
)  # ValueError: an impossible date; RecursionError: endless brackets
SPELLINGS = {
    "model.test_trajectory_steps": "model.test_trajectoy_steps",
    "model.test_trajectory_steps_DA": "model.test_trajectoy_steps_DA",
}


SECTIONS: dict[str, Any] = {f.name: f.type for f in fields(Settings)}


class PlainLoader(yaml.SafeLoader):
    """Plain values alone: no tags that make objects, no aliases, by which a short file can stand for more than a memory holds, no deep nesting."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            problem = f"*{event.anchor} stands for what is elsewhere; write it out"
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)  # type: ignore[arg-type]
        if self.depth == DEEPEST:
            raise yaml.composer.ComposerError(
                None, None, f"more than {DEEPEST} brackets within each other", event.start_mark
            )
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def load_settings(path: str | Path, overrides: Iterable[str] = ()) -> Settings:
    """Settings of a YAML file with `section.key=value` overrides on top.

    Raises ValueError with the key's path for what is unknown, missing, of the wrong type or out of bounds; OSError where there is no file.
    """
    return build_settings(read_sections(path, overrides))


def read_sections(path: str | Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The plain sections that `build` checks."""
    return with_overrides(read_yaml(Path(path)), overrides)


def names_several(content: Mapping[str, Any]) -> bool:
    """Whether data.category is `all` or a list."""
    category = named_category(content)
    return category == ALL or isinstance(category, list)


def category_names(content: Mapping[str, Any], there: Callable[[Path], list[str]]) -> list[str]:
    """The categories that data.category names; `all` are those `there` in data.data_dir, the paper's in its order first."""
    category = named_category(content)
    if category == ALL:
        data = check_sections({**content, "data": {**content["data"], "category": ALL}})["data"]
        order = list(published_rows())
        return sorted(
            there(data["data_dir"]), key=lambda name: (order.index(name) if name in order else len(order), name)
        )
    if category == []:
        raise UserError("data.category is an empty list; name at least one category, or write all")
    names = category if isinstance(category, list) else [category]
    return list(
        dict.fromkeys(
            check_value("data.category", DataSettings.__dataclass_fields__["category"], name) for name in names
        )
    )


def settings_of_category(content: Mapping[str, Any], name: str) -> Settings:
    """The settings of one of the categories."""
    return build_settings({**content, "data": {**content["data"], "category": name}})


def named_category(content: Mapping[str, Any]) -> Any:
    data = content.get("data")
    return data.get("category") if isinstance(data, Mapping) else None


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_FILE + 1)
        if len(text) > LARGEST_FILE:
            raise UserError(f"it has more than {LARGEST_FILE} bytes")
        content = yaml.load(text.decode("utf-8"), PlainLoader)
    except FileNotFoundError:
        raise MissingFileError(f"no configuration at {path}; name one with --config") from None
    except OSError as error:
        raise UserFileError(f"can't read {path}: {error.strerror}; --config takes a YAML file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file; --config takes a YAML file") from None
    except NOT_YAML as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}; correct it there") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no sections; it needs {', '.join(SECTIONS)}")
    return content


def with_overrides(content: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """`content` with the settings of its `preset`, and then each `section.key=value` set, the value read as YAML."""
    merged = {section: dict(values) if isinstance(values, dict) else values for section, values in content.items()}
    given = dict(map(parse_override, overrides))
    merged |= {name: given[name] for name in SHORTCUTS if name in given}
    preset, budget = (merged.pop(name, None) for name in SHORTCUTS)
    if preset is not None and (not isinstance(preset, str) or preset not in PRESETS):
        raise UserError(
            f"preset is {preset!r}{did_you_mean(str(preset), PRESETS)}; it should be {', '.join(PRESETS)} or null"
        )
    above = {
        **PRESETS.get(preset or "", {}),
        **({"training.budget_minutes": budget} if budget is not None else {}),
        **given,
    }
    for name, value in above.items():
        section, _, leaf = name.partition(".")
        if name in SHORTCUTS:
            continue
        if not isinstance(merged.setdefault(section, {}), dict):
            raise UserError(f"{section} should be a section with keys, not {merged[section]!r}")
        for spelling in {
            leaf,
            *(other.partition(".")[2] for pair in SPELLINGS.items() if name in pair for other in pair),
        }:
            merged[section].pop(spelling, None)
        merged[section][leaf] = value
    return merged


def parse_override(override: str) -> tuple[str, Any]:
    """Name and value of `section.key=value`."""
    name, equals, text = override.partition("=")
    _, dot, leaf = name.partition(".")
    if not equals or not (name in SHORTCUTS or (dot and leaf)):
        raise UserError(f"{override!r} is neither a flag nor section.key=value (model.w=3, say)")
    if not text.strip():
        raise UserError(f"{override} has no value; give one behind = (model.w=3, say), or null for none")
    try:
        value = yaml.load(text, PlainLoader)
    except NOT_YAML:
        raise UserError(
            f"{name}: {text!r} is not a YAML value; write 3, [1, 2], or text in quotes within quotes (\"'…'\")"
        ) from None
    return name, text.strip() if wants_text(name) and misread(text, value) else value


def misread(text: str, value: Any) -> bool:
    """Whether YAML makes something else of a name or path than it says: a number or a date of 01 or 2024, a comment of what is behind " #"."""
    return isinstance(value, (*NOT_TEXT, dict)) or (isinstance(value, str) and not text.strip().startswith(QUOTES))


def wants_text(path: str) -> bool:
    """Whether a key holds a name or a path."""
    section, _, leaf = SPELLINGS.get(path, path).partition(".")
    kinds = {f.name: f.type for f in fields(SECTIONS[section])} if section in SECTIONS else {}
    return kinds.get(leaf) in (str, Path, str | None, Path | None)


def build_settings(content: Mapping[str, Any]) -> Settings:
    """Checked settings from plain sections."""
    sections = check_sections(content)
    settings = Settings(**{name: kind(**resolve_auto(sections, name)) for name, kind in SECTIONS.items()})
    check_together(settings)
    return settings


def check_sections(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Checked values by section, `auto` as it stands: what can be known without a category."""
    content = dict(content)
    unknown = [section for section in content if section not in SECTIONS]
    if unknown:
        raise UserError(
            f"unknown section {unknown[0]!r}{did_you_mean(str(unknown[0]), SECTIONS)}; known are {', '.join(SECTIONS)}"
        )
    sections = {}
    for section, kind in SECTIONS.items():
        values = content.get(section) or {}
        if not isinstance(values, dict):
            raise UserError(f"{section} should be a section with keys, not {values!r}")
        sections[section] = check_section(section, kind, values)
    return sections


def check_section(section: str, kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    known = {f.name: f for f in fields(kind)}
    renamed: dict[str, Any] = {}
    for name, value in values.items():
        if f"{section}.{name}" in REMOVED_KEYS:
            check_removed(f"{section}.{name}", value)
            continue
        target = SPELLINGS.get(f"{section}.{name}", f"{section}.{name}").partition(".")[2]
        if target not in known:
            raise UserError(
                f"unknown key {section}.{name}{did_you_mean(str(name), known) or '; config.yaml lists the keys'}"
            )
        if target in renamed and renamed[target] != value:
            spellings = " and ".join(next(pair for pair in SPELLINGS.items() if f"{section}.{target}" in pair))
            raise UserError(
                f"{spellings} are two spellings of one key with two values, {renamed[target]!r} and {value!r}; keep one"
            )
        renamed[target] = value
    for name, spec in known.items():
        if name not in renamed and spec.default is MISSING:
            raise UserError(
                f"missing key {section}.{name}; add it to the configuration or give {section}.{name}=… on the command line"
            )
    return {
        name: check_value(f"{section}.{name}", spec, renamed.get(name, spec.default)) for name, spec in known.items()
    }


def check_removed(path: str, value: Any) -> None:
    """Raise ValueError where a removed key has a value."""
    if value is not None:
        raise UserError(f"{path} is {value!r}, but {NO_EFFECT[path]}; remove the key, or set it to null")


def check_value(path: str, spec: "Field[Any]", value: Any) -> Any:
    """The value as the key's type, within its bounds."""
    kinds = list(typing.get_args(spec.type)) if isinstance(spec.type, types.UnionType) else [spec.type]
    words = [AUTO] * (spec.default == AUTO) + [LATEST] * (int in kinds and str in kinds)
    if value in words or (value is None and types.NoneType in kinds):
        return value
    kind = kinds[0]
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{path} is {value!r}; it should be a list such as [1, 2]")
        return tuple(check_bounds(path, spec, convert_value(path, item, entry)) for entry in value)
    return check_bounds(path, spec, convert_value(path, kind, value, words))


def convert_value(path: str, kind: Any, value: Any, words: Iterable[str] = ()) -> Any:
    """The value as `kind`; `words` are what the key takes besides."""
    if kind in (int, float) and not isinstance(value, bool):
        try:
            number = float(value)  # PyYAML reads 3e-4 as text
        except (TypeError, ValueError, OverflowError):
            pass
        else:
            if kind is float and abs(number) < float("inf"):
                return number
            if number.is_integer():
                return value if isinstance(value, int) else int(number)  # beyond 2**53 a float is another number
    if kind is bool and isinstance(value, bool):
        return value
    if kind in (str, Path) and isinstance(value, NOT_TEXT) and not isinstance(value, bool):
        raise UserError(f"{path} is {value!r}, which YAML takes for a number or a date; write it in quotes")
    if kind in (str, Path) and isinstance(value, (str, kind)) and str(value).strip():
        return Path(str(value)).expanduser() if kind is Path else str(value)
    wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "a name", Path: "a path"}[kind]
    raise UserError(f"{path} is {value!r}; it should be {' or '.join([wanted, *words])}")


def check_bounds(path: str, spec: "Field[Any]", value: Any) -> Any:
    least, above, most, one_of = (spec.metadata[bound] for bound in ("least", "above", "most", "one_of"))
    if value in REMOVED_VALUES.get(path, ()):
        words = [*one_of, "null"] if spec.default is None else one_of
        raise UserError(f"{path} is {value!r}, which this version no longer has; set it to {' or '.join(words)}")
    if one_of and value not in one_of:
        raise UserError(f"{path} is {value!r}{did_you_mean(value, one_of)}; it should be {' or '.join(one_of)}")
    for broken, rule in (
        (least is not None and value < least, f"at least {least}"),
        (above is not None and value <= above, f"above {above}"),
        (most is not None and value > most, f"at most {most}"),
    ):
        if broken:
            raise UserError(f"{path} is {value}; it should be {rule}")
    return value


def resolve_auto(sections: Mapping[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """One section with each `auto` replaced by what it stands for."""
    data, small = sections["data"], sections["model"]["DDADS"]
    by_network: dict[str, Any] = {leaf: pair[small] for leaf, pair in BY_NETWORK.items()}
    by_network["blur_sigma"] = BLUR_SIGMA_AT_256 * data["image_size"] / 256
    per_image = sections["score"]["protocol"] == PER_IMAGE
    if sections["training"]["budget_minutes"]:
        by_network |= {"epochs": PLANNED, "load_chp": LATEST}
    by_network |= (
        {"share": HELD_OUT, "draws": DRAWS, "test_batch_size": None} if per_image else {"share": 0.0, "draws": 1}
    )
    row = published_rows().get(data["category"], {})
    if row.get("data_set", "").lower() != str(data["name"]).lower():
        row = {}
    values, unpublished = dict(sections[name]), []
    for leaf in (leaf for leaf, value in values.items() if value == AUTO):
        if leaf in by_network:
            values[leaf] = by_network[leaf]
        elif leaf in BY_CATEGORY:
            column, kind, otherwise = BY_CATEGORY[leaf]
            if not row and otherwise is None:
                unpublished.append(f"{name}.{leaf}")
            else:
                values[leaf] = kind(row.get(column, otherwise))
    if name == "model" and sections[name].get("DA_epochs") == AUTO and isinstance(values["DA_chp"], int):
        values["DA_epochs"] = values["DA_chp"]
    if unpublished:
        raise UserError(
            f"nothing is published for category {data['category']!r} of {data['name']}{did_you_mean(data['category'], published_rows())}; "
            f"give {', '.join(unpublished)} a value in place of auto"
        )
    return values


def check_together(settings: Settings) -> None:
    """What no single key can tell."""
    data, model, highest = settings.data, settings.model, settings.training.highest_step
    parts = (data.category, model.exp_name)
    if not all(map(stays_inside, parts)):
        raise UserError(
            f"data.category is {data.category!r} and model.exp_name {model.exp_name!r}; they name folders and can't leave them"
        )
    if 4 * model.blur_sigma >= data.image_size:
        raise UserError(
            f"model.blur_sigma is {model.blur_sigma}; its kernel reaches 4 sigmas, beyond data.image_size, {data.image_size}; lower it"
        )
    if data.input_channel == 2:
        raise UserError("data.input_channel is 2; it should be 1 (grey) or 3 (colour)")
    if data.tiles is not None and settings.score.protocol != PER_IMAGE:
        raise UserError(
            f"data.tiles is {data.tiles}, which the published system has not; set score.protocol=per_image, or data.tiles=null"
        )
    for size in (data.image_size, settings.metrics.size):
        if round(settings.metrics.centre_crop * size) < 1:
            raise UserError(
                f"metrics.centre_crop is {settings.metrics.centre_crop}, which leaves none of {size} pixels; raise it (1: all)"
            )
    if settings.score.parts and settings.score.protocol != PER_IMAGE:
        raise UserError(
            "score.parts compare with normal pictures, and the published system has none; set score.protocol=per_image, or score.parts=null"
        )
    if model.beta_start > model.beta_end:
        raise UserError(
            f"model.beta_start is {model.beta_start}, above model.beta_end {model.beta_end}; noise grows from start to end"
        )
    for steps, skip in (("test_trajectoy_steps", "skip"), ("test_trajectoy_steps_DA", "skip_DA")):
        start, stride = getattr(model, steps), getattr(model, skip)
        if start >= model.trajectory_steps:
            raise UserError(
                f"model.{steps} is {start}; it should be below model.trajectory_steps, {model.trajectory_steps}"
            )
        if highest is not None and not start <= highest <= model.trajectory_steps:
            raise UserError(
                f"training.highest_step is {highest}; it should be from model.{steps}, {start}, to {model.trajectory_steps}, or null"
            )
        if stride > start:
            raise UserError(f"model.{skip} is {stride}; it should be at most model.{steps}, {start}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """'; did you mean …?' where a known name is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def keys_without_effect(content: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each key of plain sections that is given and does nothing; a removed one is given as null."""
    given = {
        f"{section}.{name}": value
        for section, values in content.items()
        if isinstance(values, dict)
        for name, value in values.items()
    }
    named = (path for path in NO_EFFECT if path in given and (path in REMOVED_KEYS or given[path] is not None))
    return [f"{path} is accepted and has no effect: {NO_EFFECT[path]}" for path in named]


def unpublished_keys(content: Mapping[str, Any]) -> list[str]:
    """Return the keys that need a value, because their `auto` is a published one and data.category has none."""
    sections = check_sections(content)
    data, row = sections["data"], published_rows().get(sections["data"]["category"])
    if row and row["data_set"].lower() == data["name"].lower():
        return []
    planned = ("epochs", "load_chp") if sections["training"]["budget_minutes"] else ()
    required = [leaf for leaf, (_, _, otherwise) in BY_CATEGORY.items() if otherwise is None and leaf not in planned]
    return [f"model.{leaf}" for leaf in required if sections["model"][leaf] == AUTO]
