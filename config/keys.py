"""The settings: every key, declared once with its type, its default and its bounds, and what each consumer takes of them.

`config.py` makes them of config.yaml and the command line, checks them, and puts values in place of `auto`.
"""

from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, field
from pathlib import Path
from typing import Any

AUTO, LATEST = "auto", "latest"
PER_IMAGE = "per_image"
PLANNED = 0  # `auto` epochs until planning.py has found how many fit training.budget_minutes
STAGES = ("train", "domain_adaptation", "detection")
PARTS = ("pixel", "feature", "memory", "wide_memory", "whole_memory", "patch_memory")


def key(
    default: Any = MISSING,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    one_of: Iterable[str] = (),
) -> Any:
    """A configuration key; without a default it must be given."""
    return field(default=default, metadata={"least": least, "above": above, "most": most, "one_of": tuple(one_of)})


@dataclass(frozen=True)
class DataSettings:
    name: str = key()
    data_dir: Path = key()
    category: str = key()
    image_size: int = key(256, least=8)
    batch_size: int = key(AUTO, least=1)
    DA_batch_size: int = key(AUTO, least=2)
    test_batch_size: int | None = key(AUTO, least=1)
    mask: bool = key(True)
    input_channel: int = key(3, least=1, most=3)
    tiles: int | None = key(None, least=1)


@dataclass(frozen=True)
class ModelSettings:
    DDADS: bool = key(False)
    checkpoint_dir: Path = key(Path("checkpoints"))
    checkpoint_name: str | None = key(None)
    exp_name: str = key("default")
    feature_extractor: str = key("wide_resnet101_2")
    backbone_weights: Path | None = key(None)
    unet_size: int | None = key(None, least=8)
    base_channels: int = key(AUTO, least=2)
    channel_multipliers: tuple[float, ...] | None = key(None, above=0)
    blocks_per_level: int = key(2, least=1)
    attention_sizes: tuple[int, ...] = key((32, 16, 8), least=1)
    heads: int = key(AUTO, least=1)
    dropout: float = key(AUTO, least=0, most=0.99)
    predicts: str | None = key(None, one_of=("x0",))
    learning_rate: float = key(3e-4, above=0)
    weight_decay: float = key(0.05, least=0)
    epochs: int = key(AUTO, least=1)
    load_chp: int | str = key(AUTO, least=0)
    averaged: bool = key(True)
    DA_epochs: int = key(AUTO, least=0)
    DA_chp: int | str = key(AUTO, least=0)
    v: float = key(AUTO, least=0)
    w: float = key(AUTO, least=0)
    w_DA: float = key(3.0, least=0)
    DLlambda: float = key(AUTO, least=0)
    trajectory_steps: int = key(1000, least=1)
    test_trajectoy_steps: int = key(250, least=1)
    test_trajectoy_steps_DA: int = key(250, least=1)
    skip: int = key(25, least=1)
    skip_DA: int = key(25, least=1)
    eta: float = key(1.0, least=0, most=1)
    blur_sigma: float = key(AUTO, least=0)
    beta_start: float = key(1e-4, above=0, most=0.999)
    beta_end: float = key(0.02, above=0, most=0.999)
    device: str = key(AUTO)
    save_model: bool = key(True)
    num_workers: int = key(2, least=0)
    seed: int = key(42, least=0, most=2**63 - 1)


@dataclass(frozen=True)
class TrainingSettings:
    optimizer: str = key("adam", one_of=("adam", "adamw"))
    schedule: str = key("constant", one_of=("constant", "cosine"))
    warmup_steps: int = key(0, least=0)
    ema: float = key(0.0, least=0, most=0.99999)
    highest_step: int | None = key(None, least=1)
    augmentation: str | None = key(None, one_of=("flip", "rotate"))
    clip: float | None = key(None, above=0)
    accumulate: int = key(1, least=1)
    checkpoint_epochs: int = key(250, least=1)
    checkpoint_minutes: float = key(10.0, above=0)
    budget_minutes: float | None = key(None, above=0)
    most_steps: int | None = key(None, least=1)
    log: str = key("jsonl", one_of=("jsonl", "tensorboard"))


@dataclass(frozen=True)
class SpeedSettings:
    precision: str = key(AUTO, one_of=("fp32", "bf16", "fp16"))
    detection_precision: str = key("fp32", one_of=("fp32", "bf16", "fp16"))
    compile: bool | str = key(AUTO)
    activation_checkpointing: bool = key(False)
    cache: Path | None = key(None)
    cache_limit: float = key(10.0, above=0)


@dataclass(frozen=True)
class ScoreSettings:
    protocol: str = key(PER_IMAGE, one_of=(PER_IMAGE, "published"))
    draws: int = key(AUTO, least=1)
    parts: tuple[str, ...] | None = key(None, one_of=PARTS)
    pooling: str = key("maximum", one_of=("maximum", "top_mean"))
    pooled_share: float = key(0.01, above=0, most=1)


@dataclass(frozen=True)
class CalibrationSettings:
    share: float = key(AUTO, least=0, most=0.9)
    pictures: int = key(100, least=1)
    false_positive_rate: float = key(0.01, above=0, most=0.5)


@dataclass(frozen=True)
class MetricsSettings:
    auroc: bool = key(True)
    pro: bool = key(True)
    misclassifications: bool = key(False)
    visualisation: bool = key(True)
    raw_maps: bool | None = key(None)
    centre_crop: float = key(0.875, above=0, most=1)
    size: int = key(256, least=8)
    resamples: int = key(1000, least=0)


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
        """Where the category's pictures are."""
        return self.data.data_dir / self.data.category

    @property
    def checkpoint_folder(self) -> Path:
        """Where the category's weights are."""
        return self.model.checkpoint_dir / self.data.category

    @property
    def results_folder(self) -> Path:
        """Where detection leaves the category's results."""
        return Path("results") / self.model.exp_name / self.data.category

    @property
    def unet_size(self) -> int:
        """Pixels at which the UNet sees a picture, or a tile of it."""
        return self.model.unet_size or self.data.image_size

    @property
    def saved_epochs(self) -> set[int]:
        """Those of stage 1 whose weights are kept: every checkpoint_epochs-th, and the last."""
        return {*range(0, self.model.epochs, self.training.checkpoint_epochs), self.model.epochs} - {0}

    def view_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `View`: how the network is shown a picture."""
        return {"size": self.data.image_size, "channels": self.data.input_channel, "tiles": self.data.tiles}

    def split_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `ImageFolder.split`: which pictures are held out of training."""
        return {"share": self.calibration.share, "most": self.calibration.pictures, "seed": self.model.seed}

    def cache_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `cache.pixels`: where decoded pictures are kept."""
        return {"workers": self.model.num_workers, "folder": self.speed.cache, "limit": self.speed.cache_limit}

    def schedule_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `NoiseSchedule`."""
        return {
            "steps": self.model.trajectory_steps,
            "beta_start": self.model.beta_start,
            "beta_end": self.model.beta_end,
        }

    def unet_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `UNet`."""
        names = (
            "base_channels",
            "channel_multipliers",
            "blocks_per_level",
            "attention_sizes",
            "heads",
            "dropout",
            "predicts",
        )
        shape = {name: getattr(self.model, name) for name in names}
        return {"image_size": self.unet_size, "in_channels": self.data.input_channel, **shape}

    def training_arguments(self) -> dict[str, Any]:
        """All settings that the weights depend on."""
        parts = (self.view_arguments(), self.unet_arguments(), self.schedule_arguments(), self.split_arguments())
        model = {name: getattr(self.model, name) for name in ("learning_rate", "weight_decay", "epochs")}
        training = {
            name: value
            for name, value in asdict(self.training).items()
            if not name.startswith(("checkpoint_", "log", "budget_", "most_"))
        }
        merged = {name: value for part in parts for name, value in part.items()}
        return {**merged, "batch_size": self.data.batch_size, **model, **training, "precision": self.speed.precision}

    def planning_arguments(self) -> dict[str, Any]:
        """All settings that a plan of epochs depends on, beside the machine."""
        return {"budget_minutes": self.training.budget_minutes, "most_steps": self.training.most_steps}

    def adaptation_arguments(self) -> dict[str, Any]:
        """All settings that the adapted features depend on, beside the network."""
        names = ("predicts", "DA_epochs", "w_DA", "DLlambda", "test_trajectoy_steps_DA", "skip_DA", "eta", "seed")
        model = {name: getattr(self.model, name) for name in names}
        return {**self.view_arguments(), **self.schedule_arguments(), "batch_size": self.data.DA_batch_size, **model}

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Plain values by section, as config.yaml would hold them."""
        sections = {
            section: {name: plain_value(value) for name, value in values.items()}
            for section, values in asdict(self).items()
        }
        if self.model.epochs == PLANNED:
            sections["model"]["epochs"] = AUTO
        return sections


def plain_value(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
