import re
from pathlib import Path

import pytest

from config.checks import keys_without_effect
from config.load import build_settings, load_settings, read_sections
from runtime.errors import UserError

ROOT = Path(__file__).parents[2]


def test_a_key_without_effect_is_reported(official):
    assert keys_without_effect(read_sections(official)) == [
        "model.checkpoint_name is accepted and has no effect: model.load_chp chooses the checkpoint"
    ]
    assert keys_without_effect(read_sections(ROOT / "config.yaml")) == []


def test_a_removed_key_is_accepted_only_as_null(official):
    content = read_sections(official, ["training.min_snr=null", "model.checkpoint_name=null"])
    assert build_settings(content) == load_settings(official, ["model.checkpoint_name=null"])
    assert keys_without_effect(content) == [
        "training.min_snr is accepted and has no effect: training no longer has min-SNR weights"
    ]
    with pytest.raises(
        ValueError,
        match="training.min_snr is 5, but training no longer has min-SNR weights; remove the key, or set it to null",
    ):
        load_settings(official, ["training.min_snr=5"])


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("model.predicts=v", "model.predicts is 'v', which this version no longer has; set it to x0 or null"),
        (
            "score.pooling=quantile",
            "score.pooling is 'quantile', which this version no longer has; set it to maximum or top_mean",
        ),
        (
            "score.parts=[memory, coarse]",
            "score.parts is 'coarse', which this version no longer has; set it to pixel or feature or memory",
        ),
    ],
)
def test_a_removed_value_raises_with_the_remaining_ones(official, override, remedy):
    with pytest.raises(ValueError, match=re.escape(remedy)):
        load_settings(official, [override])


def test_a_name_that_yaml_reads_as_a_number_needs_quotes():
    with pytest.raises(
        ValueError, match="data.category is 1, which YAML takes for a number or a date; write it in quotes"
    ):
        build_settings({"data": {"name": "BTAD", "data_dir": "d", "category": 1}, "model": {"w": 1, "epochs": 1}})


@pytest.mark.parametrize("key", ["data.data_dir", "model.exp_name"])
@pytest.mark.parametrize("text", ["a\0b", "\ud800", "  "])
def test_a_text_that_no_file_can_have_as_its_name_is_refused(key, text):
    section, name = key.split(".")
    content = {"data": {"name": "own", "data_dir": "d", "category": "c"}, "model": {"w": 1, "epochs": 1}}
    content[section][name] = text
    with pytest.raises(UserError, match=rf"{key} is .*; it should be a (path|name)"):
        build_settings(content)


def test_the_home_of_an_unknown_user_is_refused():
    with pytest.raises(UserError, match="data.data_dir is '~nobody-of-this-name/x'; it should be a path"):
        load_settings(ROOT / "config.yaml", ["data.data_dir=~nobody-of-this-name/x"])
