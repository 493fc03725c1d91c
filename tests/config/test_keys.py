"""Keys declare their defaults and what they affect."""

from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import yaml

from config.checks import SECTIONS, SPELLINGS, check_value
from config.keys import Effect, key
from config.load import SHORTCUTS, load_settings

ROOT = Path(__file__).parents[2]
KEYS = {f"{section}.{spec.name}": spec for section, kind in SECTIONS.items() for spec in fields(kind)}
OF_THE_SHIPPED_DATA_SET = {"data.name", "data.data_dir", "data.category", "model.checkpoint_dir"}


def test_a_key_must_declare_what_it_affects():
    with pytest.raises(TypeError, match="affects"):
        key(1)
    assert all(isinstance(spec.metadata["affects"], Effect) for spec in KEYS.values())


def test_files_of_weights_store_the_settings_that_they_always_stored():
    """These literals stand in files of weights and in training states, and must compare equal for ever."""
    overrides = ["model.unet_size=64", "data.tiles=2", "training.budget_minutes=5", "calibration.pictures=7"]
    settings = load_settings(ROOT / "config.yaml", overrides)
    assert settings.training_arguments() == {
        **{"size": 256, "channels": 3, "tiles": 2, "image_size": 64, "in_channels": 3, "base_channels": 64},
        **{"channel_multipliers": None, "blocks_per_level": 2, "attention_sizes": (32, 16, 8), "heads": 4},
        **{"dropout": 0.0, "predicts": None, "steps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "share": 0.2},
        **{"most": 7, "seed": 42, "batch_size": 32, "learning_rate": 0.0003, "weight_decay": 0.05, "epochs": 0},
        **{"optimizer": "adam", "schedule": "constant", "warmup_steps": 0, "ema": 0.0, "highest_step": None},
        **{"augmentation": None, "clip": None, "accumulate": 1, "precision": "auto", "decay": None},
    }
    assert settings.adaptation_arguments() == {
        **{"size": 256, "channels": 3, "tiles": 2, "steps": 1000, "beta_start": 0.0001, "beta_end": 0.02},
        **{"batch_size": 16, "predicts": None, "DA_epochs": 5, "w_DA": 3.0, "DLlambda": 0.1},
        **{"test_trajectoy_steps_DA": 250, "skip_DA": 25, "eta": 1.0, "seed": 42},
    }
    assert settings.planning_arguments() == {"budget_minutes": 5.0, "most_steps": None}


def test_unet_size_is_stored_as_the_size_in_use():
    assert load_settings(ROOT / "config.yaml").training_arguments()["image_size"] == 256


@pytest.mark.parametrize("effect", [Effect.WEIGHTS, Effect.FEATURES, Effect.PLAN])
def test_no_two_keys_of_one_effect_share_a_stored_name(effect):
    names = [spec.metadata["stored_as"] or spec.name for spec in KEYS.values() if effect in spec.metadata["affects"]]
    assert len(names) == len(set(names))


def test_config_yaml_names_every_key_and_has_the_defaults_of_the_code():
    content = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    assert [content.pop(name) for name in SHORTCUTS] == [None, None]
    shipped = {
        SPELLINGS.get(f"{section}.{name}", f"{section}.{name}"): value
        for section, values in content.items()
        for name, value in values.items()
    }
    assert shipped.keys() == KEYS.keys() - {"model.checkpoint_name"}
    assert shipped.pop("score.noise") == "seed"  # files of earlier versions, which lack the key, keep their noise
    for path in shipped.keys() - OF_THE_SHIPPED_DATA_SET:
        spec = KEYS[path]
        assert spec.default is not MISSING, path
        assert check_value(path, spec, shipped[path]) == spec.default, path
