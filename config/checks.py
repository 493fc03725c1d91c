"""Check values of the configuration: their types, their bounds, and which of them go together."""

import datetime
import difflib
import itertools
import math
import operator
import os
import types
import typing
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from config.keys import (
    AUTO,
    DIFFUSION,
    DISTANCES,
    FEATURE_MAPS,
    LATEST,
    PATCH,
    PER_IMAGE,
    PROPORTIONS,
    SQUARE,
    UNET,
    WSD,
    ModelSettings,
    Settings,
    TrainingSettings,
    Values,
)
from runtime.errors import UserError
from storage.safe_names import stays_inside

PlainSections = Values  # as YAML gives them, unchecked
Sections = dict[str, Values]  # checked values by section and key
SECTIONS: dict[str, type] = {spec.name: spec.type for spec in fields(Settings) if isinstance(spec.type, type)}
SPELLINGS = {
    "model.test_trajectory_steps": "model.test_trajectoy_steps",
    "model.test_trajectory_steps_DA": "model.test_trajectoy_steps_DA",
}
NO_EFFECT = {
    "model.checkpoint_name": "model.load_chp chooses the checkpoint",
    "training.min_snr": "training no longer has min-SNR weights",
}
REMOVED_KEYS = {"training.min_snr"}  # null, their old default, is still accepted
REMOVED_VALUES = {
    "model.predicts": ("v",),
    "score.parts": ("residual", "coarse", "residual_memory", "coarse_memory"),
    "score.pooling": ("quantile",),
}
NOT_TEXT = (int, float, datetime.date)  # YAML reads 01 and 2024-01-02 as these
BOUNDS = {"least": (operator.ge, "at least"), "above": (operator.gt, "above"), "most": (operator.le, "at most")}
KIND_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a name", Path: "a path"}


def check_sections(content: Mapping[str, object]) -> Sections:
    """Return checked values by section, defaults included; `auto` stays, as it may depend on the category."""
    for section in content:
        if section not in SECTIONS:
            hint = did_you_mean(str(section), SECTIONS)
            raise UserError(f"unknown section {section!r}{hint}; known are {', '.join(SECTIONS)}")
    checked: Sections = {section: {} for section in SECTIONS}
    for section, kind in SECTIONS.items():
        keys = {spec.name: spec for spec in fields(kind)}
        given = unify_spellings(section, section_values(section, content.get(section)), keys)
        for name, key in keys.items():
            path, value = f"{section}.{name}", given.get(name, key.default)
            if value is MISSING:
                raise UserError(f"missing key {path}; add it to the file, or {path}=… to the command line")
            checked[section][name] = check_value(path, key, value)
    return checked


def section_values(section: str, values: object) -> Values:
    """Return a copy of a section's values. Raise UserError if it is not a section."""
    values = values or {}
    if not isinstance(values, dict):
        raise UserError(f"{section} should be a section with keys, not {values!r}")
    return dict(values)


def unify_spellings(section: str, values: Mapping[str, object], known: Iterable[str]) -> dict[str, object]:
    """Return the values under the keys' own names. Raise UserError for an unknown key and for two spellings of one."""
    unified: dict[str, object] = {}
    for name, value in values.items():
        path = f"{section}.{name}"
        if path in REMOVED_KEYS:
            if value is not None:
                raise UserError(f"{path} is {value!r}, but {NO_EFFECT[path]}; remove the key, or set it to null")
            continue
        target = SPELLINGS.get(path, path).partition(".")[2]
        if target not in known:
            raise UserError(f"unknown key {path}{did_you_mean(str(name), known) or '; config.yaml lists the keys'}")
        if target in unified and unified[target] != value:
            spellings = " and ".join(next(pair for pair in SPELLINGS.items() if f"{section}.{target}" in pair))
            both = f"{unified[target]!r} and {value!r}"
            raise UserError(f"{spellings} are two spellings of one key with two values, {both}; keep one")
        unified[target] = value
    return unified


def check_value(path: str, spec: "Field[object]", value: object) -> object:
    """Return the value as the key's type. Raise UserError where it has another type or is out of bounds."""
    kinds = typing.get_args(spec.type) if isinstance(spec.type, types.UnionType) else (spec.type,)
    is_epoch = int in kinds and str in kinds
    words = [AUTO] * (is_epoch or spec.default == AUTO) + [LATEST] * is_epoch
    if value in words or (value is None and types.NoneType in kinds):
        return value
    kind = kinds[0]
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{path} is {value!r}; it should be a list such as [1, 2]")
        return tuple(check_bounds(path, spec, convert_value(path, item, entry)) for entry in value)
    return check_bounds(path, spec, convert_value(path, kind, value, words))


def convert_value(path: str, kind: type, value: object, words: Iterable[str] = ()) -> object:
    """Return the value as `kind`. `words` are texts that the key takes too; the error message lists them."""
    if kind in (int, float) and not isinstance(value, bool):
        with suppress(TypeError, ValueError, OverflowError):
            number = float(value)  # type: ignore[arg-type]  # PyYAML reads 3e-4 as text
            if kind is float and math.isfinite(number):
                return number
            if kind is int and number.is_integer():
                return value if isinstance(value, int) else int(number)  # a float would round a number above 2**53
    if kind is bool and isinstance(value, bool):
        return value
    if kind in (str, Path) and isinstance(value, NOT_TEXT) and not isinstance(value, bool):
        raise UserError(f"{path} is {value!r}, which YAML takes for a number or a date; write it in quotes")
    if kind is str and isinstance(value, str) and is_file_text(value):
        return value
    if kind is Path and isinstance(value, (str, Path)) and is_file_text(str(value)):
        with suppress(RuntimeError):  # the user of ~user is unknown
            return Path(value).expanduser()
    raise UserError(f"{path} is {value!r}; it should be {' or '.join([KIND_NAMES[kind], *words])}")


def is_file_text(text: str) -> bool:
    """Return whether a text is not blank and can stand in the name of a file."""
    try:
        return bool(text.strip()) and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def check_bounds(path: str, spec: "Field[object]", value: Any) -> object:
    """Return the value. Raise UserError where it is outside the key's bounds."""
    one_of = spec.metadata["one_of"]
    if value in REMOVED_VALUES.get(path, ()):
        choices = [*one_of, "null"] if spec.default is None else one_of
        raise UserError(f"{path} is {value!r}, which this version no longer has; set it to {' or '.join(choices)}")
    if one_of and value not in one_of:
        raise UserError(f"{path} is {value!r}{did_you_mean(value, one_of)}; it should be {' or '.join(one_of)}")
    for bound, limit in spec.metadata["bounds"].items():
        holds, words = BOUNDS[bound]
        if not holds(value, limit):
            raise UserError(f"{path} is {value}; it should be {words} {limit}")
    return value


def check_combinations(settings: Settings) -> None:
    """Raise UserError for values that do not go together."""
    data, model, size, crop = settings.data, settings.model, settings.data.image_size, settings.metrics.centre_crop
    if not (stays_inside(data.category) and stays_inside(model.exp_name)):
        names = f"data.category is {data.category!r} and model.exp_name {model.exp_name!r}"
        raise UserError(f"{names}; both must name a folder that lies inside its parent")
    shortest = size // 4 if data.fit == PROPORTIONS else size  # the side of a strip
    if 4 * model.blur_sigma >= shortest:
        limit = f"data.image_size, {size}" if shortest == size else f"a quarter of data.image_size, {shortest}"
        raise UserError(f"model.blur_sigma is {model.blur_sigma}; 4 sigmas exceed {limit}; lower it")
    if data.fit == PROPORTIONS and data.tiles:
        raise UserError(f"data.tiles is {data.tiles}, data.fit is {PROPORTIONS}; set one of them to null or {SQUARE}")
    if data.input_channel == 2:
        raise UserError("data.input_channel is 2; it should be 1 (grey) or 3 (colour)")
    for pixels in (size, settings.metrics.size or size):
        if round(crop * pixels) < 1:
            raise UserError(f"metrics.centre_crop is {crop}, which leaves none of {pixels} pixels; raise it (1: all)")
    own = {"data.tiles": data.tiles, "data.region": data.region, "score.parts": settings.score.parts}
    for path, value in own.items():
        if value and settings.score.protocol != PER_IMAGE:
            remedy = f"set score.protocol=per_image, or {path}=null"
            raise UserError(f"{path} is {value}, which the published protocol does not have; {remedy}")
    if settings.learns_features:
        check_feature_space(settings)
    elif model.network == PATCH:
        raise UserError(f"model.network is {PATCH}, which learns features; set score.space={FEATURE_MAPS}, or {UNET}")
    elif DIFFUSION in (settings.score.parts or ()):
        remedy = f"set score.space={FEATURE_MAPS} and train again, or take pixel and feature"
        raise UserError(f"score.parts has {DIFFUSION}, which compares features, but score.space is pixels; {remedy}")
    check_decay(settings.training)
    check_noise_steps(model, settings.training.highest_step)


def check_feature_space(settings: Settings) -> None:
    """Raise UserError for settings that diffusion on features does not have."""
    space, parts = f"score.space is {FEATURE_MAPS}", settings.score.parts
    if parts is None or set(parts) & set(DISTANCES):
        remedy = f"it takes {DIFFUSION} and memories in place of {' and '.join(DISTANCES)}"
        raise UserError(f"{space}, but score.parts is {list(parts) if parts else 'null'}; {remedy}")
    others: dict[str, tuple[object, object, str]] = {
        "model.feature_extractor": (settings.model.feature_extractor == AUTO, AUTO, "name one, as efficientnet_lite0"),
        "model.DA_chp": (settings.model.DA_chp != 0, settings.model.DA_chp, "set it to 0: features stay as they are"),
        "data.tiles": (settings.data.tiles, settings.data.tiles, "set it to null"),
        "training.augmentation": (settings.training.augmentation, settings.training.augmentation, "set it to null"),
    }
    for path, (is_wrong, value, remedy) in others.items():
        if is_wrong:
            raise UserError(f"{space}, which needs another {path} than {value}; {remedy}")


def check_decay(training: TrainingSettings) -> None:
    decay = training.decay
    if decay is None:
        return
    if training.schedule != WSD:
        problem = f"training.decay is {list(decay)}, but training.schedule is {training.schedule}"
        raise UserError(f"{problem}; set training.schedule={WSD}, or training.decay=null")
    if not is_decay(decay):
        raise UserError(f"training.decay is {list(decay)}; it should be two or more rising steps, such as [3200, 4000]")


def is_decay(steps: object) -> bool:
    """Return whether a value can be training.decay: at least two whole numbers that rise."""
    if not isinstance(steps, (list, tuple)) or not all(type(step) is int and step >= 0 for step in steps):
        return False
    return len(steps) > 1 and all(step < following for step, following in itertools.pairwise(steps))


def check_noise_steps(model: ModelSettings, highest: int | None) -> None:
    if model.beta_start > model.beta_end:
        betas = f"model.beta_start is {model.beta_start}, above model.beta_end, {model.beta_end}"
        raise UserError(f"{betas}; the noise must grow from start to end")
    total = model.trajectory_steps
    for steps, skip in (("test_trajectoy_steps", "skip"), ("test_trajectoy_steps_DA", "skip_DA")):
        start, stride = getattr(model, steps), getattr(model, skip)
        if start >= total:
            raise UserError(f"model.{steps} is {start}; it should be below model.trajectory_steps, {total}")
        if highest is not None and not start <= highest <= total:
            bounds = f"from model.{steps}, {start}, to {total}, or null"
            raise UserError(f"training.highest_step is {highest}; it should be {bounds}")
        if stride is not None and stride > start:
            raise UserError(f"model.{skip} is {stride}; it should be at most model.{steps}, {start}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return '; did you mean …?' where a known name is close, else an empty text."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def keys_without_effect(content: Mapping[str, object]) -> list[str]:
    """Return a sentence for each given key that has no effect. A removed key counts even if it is null."""
    lines = []
    for path, reason in NO_EFFECT.items():
        section, _, name = path.partition(".")
        values = content.get(section)
        if isinstance(values, dict) and name in values and (path in REMOVED_KEYS or values[name] is not None):
            lines.append(f"{path} is accepted and has no effect: {reason}")
    return lines
