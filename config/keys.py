"""Declare every configuration key once: its type, its default, its bounds, and what it affects."""

import json
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from enum import Flag
from pathlib import Path
from typing import Any

AUTO, LATEST = "auto", "latest"
PER_IMAGE = "per_image"
SQUARE, PROPORTIONS = "square", "proportions"
SEED = "seed"  # what alone decides the noise
SPLIT, CROSS = "split", "cross"
TRAIN, VALIDATION = "train", "validation"
PLANNED = 0  # `auto` epochs within training.budget_minutes, until a clock has decided
SCHEDULES = (CONSTANT, COSINE, WSD) = ("constant", "cosine", "wsd")
STEPS = ("epochs", "schedule", "decay")  # keys that a budget decides
STAGES = ("train", "domain_adaptation", "detection")
DISTANCES = ("pixel", "feature")  # from the reconstruction
EQUAL, MEASURED = "equal", "measured"  # weights of parts
SPACES = (PIXELS, FEATURE_MAPS) = ("pixels", "features")  # in which the UNet works
NETWORKS = (UNET, PATCH) = ("unet", "patch")  # that denoise: whole pictures, or one patch descriptor at a time
DIFFUSION = "diffusion"  # the distance from the reconstruction in the space of features
PARTS = (*DISTANCES, "memory", "wide_memory", "whole_memory", "patch_memory", DIFFUSION)
PATCH_SHAPE = ("base_channels", "blocks_per_level", "dropout", "predicts")
SHAPE = ("base_channels", "channel_multipliers", "blocks_per_level", "attention_sizes", "heads", "dropout", "predicts")

# keys that files of earlier versions lack, with the values that stand for this; files of weights leave them out
ADDED_LATER: dict[str, tuple[object, ...]] = {
    "bit_depth": (None,),
    "fit": (AUTO, SQUARE),
    "ratio": (None,),
    "space": (PIXELS,),
    "weights": (EQUAL,),
    "network": (UNET,),
    "feature_channels": (48,),
}

Values = dict[str, Any]  # by name

Effect = Flag("Effect", ["WEIGHTS", "FEATURES", "SCORES", "PLAN"])  # results that a key's value changes directly:
WEIGHTS, FEATURES, SCORES, PLAN = Effect  # the UNet, the adapted features, scores and metrics, steps within a budget
NOTHING, ALL_STAGES = Effect(0), WEIGHTS | FEATURES | SCORES


def key(
    default: Any = MISSING, *, affects: Effect, stored_as: str = "", one_of: tuple[str, ...] = (), **bounds: float
) -> Any:
    """Declare a configuration key, its name in files of weights, and its bounds `least`, `above` and `most`.

    A key that only names files affects nothing, as pictures and networks are compared by their content.
    """
    metadata = {"affects": affects, "stored_as": stored_as, "one_of": one_of, "bounds": bounds}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class DataSettings:
    name: str = key(affects=NOTHING)
    data_dir: Path = key(affects=NOTHING)
    category: str = key(affects=NOTHING)
    image_size: int = key(256, affects=ALL_STAGES, stored_as="size", least=8)
    batch_size: int = key(AUTO, affects=WEIGHTS, least=1)
    DA_batch_size: int = key(AUTO, affects=FEATURES, stored_as="batch_size", least=2)
    test_batch_size: int | None = key(AUTO, affects=SCORES, least=1)
    mask: bool = key(True, affects=SCORES)
    input_channel: int = key(3, affects=ALL_STAGES, stored_as="channels", least=1, most=3)
    tiles: int | None = key(None, affects=ALL_STAGES, least=1)
    fit: str = key(AUTO, affects=ALL_STAGES, one_of=(SQUARE, PROPORTIONS))
    ratio: float | None = key(None, affects=ALL_STAGES, above=0)
    bit_depth: int | None = key(None, affects=ALL_STAGES, least=8, most=16)
    region: Path | None = key(None, affects=NOTHING)


@dataclass(frozen=True)
class ModelSettings:
    DDADS: bool = key(False, affects=NOTHING)
    checkpoint_dir: Path = key(Path("checkpoints"), affects=NOTHING)
    checkpoint_name: str | None = key(None, affects=NOTHING)
    exp_name: str = key("default", affects=NOTHING)
    feature_extractor: str = key(AUTO, affects=NOTHING)
    backbone_weights: Path | None = key(None, affects=NOTHING)
    network: str = key(UNET, affects=WEIGHTS, one_of=NETWORKS)
    feature_channels: int = key(48, affects=WEIGHTS, least=1)
    unet_size: int | None = key(None, affects=WEIGHTS | SCORES, stored_as="image_size", least=8)
    base_channels: int = key(AUTO, affects=WEIGHTS, least=2)
    channel_multipliers: tuple[float, ...] | None = key(None, affects=WEIGHTS, above=0)
    blocks_per_level: int = key(2, affects=WEIGHTS, least=1)
    attention_sizes: tuple[int, ...] = key((32, 16, 8), affects=WEIGHTS, least=1)
    heads: int = key(AUTO, affects=WEIGHTS, least=1)
    dropout: float = key(AUTO, affects=WEIGHTS, least=0, most=0.99)
    predicts: str | None = key(None, affects=ALL_STAGES, one_of=("x0",))
    learning_rate: float = key(3e-4, affects=WEIGHTS, above=0)
    weight_decay: float = key(0.05, affects=WEIGHTS, least=0)
    epochs: int = key(AUTO, affects=WEIGHTS, least=1)
    load_chp: int | str = key(LATEST, affects=NOTHING, least=0)
    averaged: bool = key(True, affects=NOTHING)
    DA_epochs: int = key(AUTO, affects=FEATURES, least=0)
    DA_chp: int | str = key(AUTO, affects=NOTHING, least=0)
    v: float = key(AUTO, affects=SCORES, least=0)
    w: float = key(AUTO, affects=SCORES, least=0)
    w_DA: float = key(3.0, affects=FEATURES, least=0)
    DLlambda: float = key(AUTO, affects=FEATURES, least=0)
    trajectory_steps: int = key(1000, affects=ALL_STAGES, stored_as="steps", least=1)
    test_trajectoy_steps: int = key(250, affects=SCORES, least=1)
    test_trajectoy_steps_DA: int = key(250, affects=FEATURES, least=1)
    skip: int | None = key(25, affects=SCORES, least=1)
    skip_DA: int = key(25, affects=FEATURES, least=1)
    eta: float = key(1.0, affects=FEATURES | SCORES, least=0, most=1)
    blur_sigma: float = key(AUTO, affects=SCORES, least=0)
    beta_start: float = key(1e-4, affects=ALL_STAGES, above=0, most=0.999)
    beta_end: float = key(0.02, affects=ALL_STAGES, above=0, most=0.999)
    device: str = key(AUTO, affects=NOTHING)
    save_model: bool = key(True, affects=NOTHING)
    num_workers: int = key(2, affects=NOTHING, least=0)
    seed: int = key(42, affects=ALL_STAGES, least=0, most=2**63 - 1)


@dataclass(frozen=True)
class TrainingSettings:
    optimizer: str = key("adam", affects=WEIGHTS, one_of=("adam", "adamw"))
    schedule: str = key(CONSTANT, affects=WEIGHTS, one_of=SCHEDULES)
    decay: tuple[int, ...] | None = key(None, affects=WEIGHTS, least=0)
    warmup_steps: int = key(0, affects=WEIGHTS, least=0)
    ema: float = key(0.0, affects=WEIGHTS, least=0, most=0.99999)
    highest_step: int | None = key(None, affects=WEIGHTS, least=1)
    augmentation: str | None = key(None, affects=WEIGHTS, one_of=("flip", "rotate"))
    clip: float | None = key(None, affects=WEIGHTS, above=0)
    accumulate: int = key(1, affects=WEIGHTS, least=1)
    checkpoint_epochs: int = key(250, affects=NOTHING, least=1)
    checkpoint_minutes: float = key(10.0, affects=NOTHING, above=0)
    budget_minutes: float | None = key(None, affects=PLAN, above=0)
    most_steps: int | None = key(None, affects=PLAN, least=1)
    log: str = key("jsonl", affects=NOTHING, one_of=("jsonl", "tensorboard"))


@dataclass(frozen=True)
class SpeedSettings:
    precision: str = key(AUTO, affects=WEIGHTS, one_of=("fp32", "bf16", "fp16"))
    detection_precision: str = key("fp32", affects=SCORES, one_of=("fp32", "bf16", "fp16"))
    compile: bool | str = key(AUTO, affects=NOTHING)
    activation_checkpointing: bool = key(False, affects=NOTHING)
    cache: Path | None = key(None, affects=NOTHING)
    cache_limit: float = key(10.0, affects=NOTHING, above=0)


@dataclass(frozen=True)
class ScoreSettings:
    protocol: str = key(PER_IMAGE, affects=SCORES, one_of=(PER_IMAGE, "published"))
    space: str = key(PIXELS, affects=WEIGHTS | SCORES, one_of=SPACES)
    draws: int = key(AUTO, affects=SCORES, least=1)
    noise: str | None = key(None, affects=SCORES, one_of=(SEED,))  # None: that of earlier versions
    parts: tuple[str, ...] | None = key(None, affects=SCORES, one_of=PARTS)
    weights: str = key(EQUAL, affects=SCORES, one_of=(EQUAL, MEASURED))
    pooling: str = key("maximum", affects=SCORES, one_of=("maximum", "top_mean"))
    pooled_share: float = key(0.01, affects=SCORES, above=0, most=1)


@dataclass(frozen=True)
class CalibrationSettings:
    folder: str = key(TRAIN, affects=SCORES, one_of=(TRAIN, VALIDATION))
    method: str = key(AUTO, affects=SCORES, one_of=(SPLIT, CROSS))
    share: float = key(AUTO, affects=WEIGHTS | SCORES, least=0, most=0.9)
    pictures: int = key(100, affects=WEIGHTS | SCORES, stored_as="most", least=1)
    false_positive_rate: float = key(0.01, affects=SCORES, above=0, most=0.5)
    exclude: tuple[str, ...] = key((), affects=SCORES)
    groups: str | None = key(AUTO, affects=SCORES)

    @property
    def on_validation(self) -> bool:
        """Return whether validation/good sets the thresholds, so that nothing of train/good is held or left out."""
        return self.folder == VALIDATION


@dataclass(frozen=True)
class MetricsSettings:
    auroc: bool = key(True, affects=NOTHING)
    pro: bool = key(True, affects=NOTHING)
    misclassifications: bool = key(False, affects=NOTHING)
    visualisation: bool = key(True, affects=NOTHING)
    raw_maps: bool | None = key(None, affects=NOTHING)
    centre_crop: float = key(AUTO, affects=SCORES, above=0, most=1)
    size: int | None = key(AUTO, affects=SCORES, least=8)
    resamples: int = key(1000, affects=SCORES, least=0)


@dataclass(frozen=True)
class Settings:
    data: DataSettings
    model: ModelSettings
    training: TrainingSettings
    speed: SpeedSettings
    score: ScoreSettings
    calibration: CalibrationSettings
    metrics: MetricsSettings

    @property
    def category_dir(self) -> Path:
        return self.data.data_dir / self.data.category

    @property
    def checkpoint_folder(self) -> Path:
        return self.model.checkpoint_dir / self.data.category

    @property
    def results_folder(self) -> Path:
        return Path("results") / self.model.exp_name / self.data.category

    @property
    def unet_size(self) -> int:
        """Return the size, in pixels, at which the UNet sees a picture or a tile of it."""
        return self.model.unet_size or self.data.image_size

    @property
    def learns_features(self) -> bool:
        """Return whether the UNet works on features of pictures, not on their pixels."""
        return self.score.space == FEATURE_MAPS

    @property
    def unet_channels(self) -> int:
        return self.model.feature_channels if self.learns_features else self.data.input_channel

    @property
    def saved_epochs(self) -> set[int]:
        """Return the epochs of stage 1 whose weights are saved: every checkpoint_epochs-th, and the last."""
        return {*range(0, self.model.epochs, self.training.checkpoint_epochs), self.model.epochs} - {0}

    def view_arguments(self) -> Values:
        """Return the arguments of `View`: how the network sees a picture."""
        fit = None if self.data.fit in ADDED_LATER["fit"] else self.data.fit
        later = {"bits": self.data.bit_depth, "fit": fit, "ratio": fit and self.data.ratio}
        added = {name: value for name, value in later.items() if value}  # earlier calibrations have none
        return {"size": self.data.image_size, "channels": self.data.input_channel, "tiles": self.data.tiles, **added}

    def split_arguments(self) -> Values:
        """Return the arguments of `ImageFolder.split`: which pictures are held out of training."""
        return {"share": self.calibration.share, "most": self.calibration.pictures, "seed": self.model.seed}

    def cache_arguments(self) -> Values:
        """Return the arguments of `cached_pixels`: where decoded pictures are kept."""
        return {"workers": self.model.num_workers, "folder": self.speed.cache, "limit": self.speed.cache_limit}

    def schedule_arguments(self) -> Values:
        model = self.model
        return {"steps": model.trajectory_steps, "beta_start": model.beta_start, "beta_end": model.beta_end}

    def patch_network_arguments(self) -> Values:
        return {"in_channels": self.unet_channels, **{name: getattr(self.model, name) for name in PATCH_SHAPE}}

    def unet_arguments(self) -> Values:
        shape = {name: getattr(self.model, name) for name in SHAPE}
        return {"image_size": self.unet_size, "in_channels": self.unet_channels, **shape}

    def training_arguments(self) -> dict[str, object]:
        """Return all settings that the weights of the UNet depend on."""
        learnt = {"feature_extractor": self.model.feature_extractor} if self.learns_features else {}
        sizes = {"image_size": self.unet_size, "in_channels": self.unet_channels}
        return self.settings_affecting(WEIGHTS) | sizes | learnt

    def planning_arguments(self) -> dict[str, object]:
        """Return all settings that the number of steps within a budget depends on, apart from the machine."""
        return self.settings_affecting(PLAN)

    def with_steps(self, epochs: int, schedule: str, decay: Sequence[int] | None) -> "Settings":
        """Return the settings of a training whose steps are decided."""
        training = replace(self.training, schedule=schedule, decay=None if decay is None else tuple(decay))
        return replace(self, model=replace(self.model, epochs=epochs), training=training)

    def adaptation_arguments(self) -> dict[str, object]:
        """Return all settings that the adapted features depend on, apart from the network."""
        return self.settings_affecting(FEATURES)

    def settings_affecting(self, effect: Effect) -> dict[str, object]:
        """Return the values of all keys that have this effect, under the names that files of weights store."""
        stored: dict[str, object] = {}
        for section in (getattr(self, section.name) for section in fields(self)):
            for spec in fields(section):
                value = getattr(section, spec.name)
                if effect in spec.metadata["affects"] and value not in ADDED_LATER.get(spec.name, ()):
                    stored[spec.metadata["stored_as"] or spec.name] = value
        return stored

    def as_dict(self) -> dict[str, dict[str, object]]:
        """Return plain values by section, as config.yaml would hold them."""
        sections: dict[str, dict[str, object]] = json.loads(json.dumps(asdict(self), default=str))
        if self.model.epochs == PLANNED:
            sections["model"]["epochs"] = AUTO
        return sections
