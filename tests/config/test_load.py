import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from official_config import OFFICIAL

import unet
from config.load import build_settings, load_settings, whole_pictures
from config.published import published_rows
from runtime.errors import UserError

ROOT = Path(__file__).parents[2]


def test_the_released_config_file_loads_unchanged(official):
    loaded = load_settings(official)
    content = yaml.safe_load(OFFICIAL)
    read = loaded.as_dict()
    for section, values in content.items():
        for name, value in values.items():
            assert read[section][name] == (float(value) if name == "learning_rate" else value), name
    assert loaded.model.learning_rate == 3e-4
    network = unet.UNet(**loaded.unet_arguments() | {"image_size": 64})
    assert network.architecture["base_channels"] == 64 and network.architecture["heads"] == 4


@pytest.mark.parametrize("name", ["config.yaml", "demo.yaml"])
def test_our_configurations_are_valid(name):
    load_settings(ROOT / name)


def test_auto_is_the_published_value_of_each_category():
    table = published_rows()
    assert len(table) == 27
    for category, row in table.items():
        loaded = load_settings(
            ROOT / "config.yaml", [f"data.name={row['data_set']}", f"data.category={category}", "model.load_chp=auto"]
        )
        as_released = load_settings(
            ROOT / "config.yaml",
            [f"data.name={row['data_set']}", f"data.category={category}", "score.protocol=published"],
        )
        model, data = loaded.model, loaded.data
        assert (model.w, model.v, model.DLlambda) == (float(row["w"]), float(row["v"]), float(row["DLlambda"]))
        assert (model.epochs, model.load_chp, model.DA_chp) == (
            int(row["epochs"]),
            int(row["epochs"]),
            int(row["DA_chp"]),
        )
        assert data.DA_batch_size == int(row["DA_batch_size"])
        assert (
            as_released.data.test_batch_size == int(row["test_batch_size"]) and data.test_batch_size is None
        )  # None: the free memory decides


def test_the_small_network_has_its_own_defaults():
    small = load_settings(ROOT / "config.yaml", ["model.DDADS=True"])
    assert (small.data.batch_size, small.model.base_channels, small.model.heads, small.model.dropout) == (
        16,
        32,
        2,
        0.3,
    )
    large = load_settings(ROOT / "config.yaml")
    assert (large.data.batch_size, large.model.base_channels, large.model.heads, large.model.dropout) == (
        32,
        64,
        4,
        0.0,
    )


def test_a_category_without_published_values_needs_them_from_the_user():
    with pytest.raises(
        ValueError,
        match=r"'screww' of MVTec; did you mean screw\?; give model.epochs, model.w a value in place of auto",
    ):
        load_settings(ROOT / "config.yaml", ["data.category=screww"])


def test_published_values_belong_to_one_data_set():
    with pytest.raises(ValueError, match="nothing is published for category 'screw' of own"):
        load_settings(ROOT / "config.yaml", ["data.category=screw", "data.name=own"])


def test_files_of_earlier_versions_keep_their_noise(official):
    assert load_settings(official).score.noise is None and load_settings(ROOT / "config.yaml").score.noise == "seed"


def test_the_default_protocol_is_per_image(official):
    assert load_settings(official).score.protocol == load_settings(ROOT / "config.yaml").score.protocol == "per_image"
    assert load_settings(official).calibration.share == 0.2
    assert (
        load_settings(official, ["score.protocol=published"]).calibration.share == 0
    )  # the published system trains on all pictures
    assert load_settings(official, ["calibration.share=0.5"]).calibration.share == 0.5


def test_plain_values_of_settings_build_equal_settings(official):
    """calibration.json stores them as plain values."""
    for path in (official, ROOT / "config.yaml", ROOT / "demo.yaml"):
        loaded = load_settings(path)
        assert build_settings(json.loads(json.dumps(loaded.as_dict()))) == loaded


def test_auto_blur_is_proportional_to_the_image_size():
    assert load_settings(ROOT / "config.yaml").model.blur_sigma == 4
    assert load_settings(ROOT / "config.yaml", ["data.image_size=64"]).model.blur_sigma == 1


@pytest.mark.parametrize(
    ("override", "section", "name", "value"),
    [
        ("model.w=3", "model", "w", 3.0),
        ("model.learning_rate=1e-5", "model", "learning_rate", 1e-5),
        ("model.epochs=1e3", "model", "epochs", 1000),
        ("model.channel_multipliers=[1,1,2,2]", "model", "channel_multipliers", (1.0, 1.0, 2.0, 2.0)),
        ("model.load_chp=latest", "model", "load_chp", "latest"),
        ("model.test_trajectory_steps=500", "model", "test_trajectoy_steps", 500),
        ("model.test_trajectoy_steps=500", "model", "test_trajectoy_steps", 500),
        ("data.data_dir=a folder/of mine", "data", "data_dir", Path("a folder/of mine")),
        ("data.data_dir=/tmp/set #2", "data", "data_dir", Path("/tmp/set #2")),
        ("data.data_dir=/tmp/a: b", "data", "data_dir", Path("/tmp/a: b")),
        ("data.data_dir='/tmp/it''s #2'", "data", "data_dir", Path("/tmp/it's #2")),
        ("model.backbone_weights=null", "model", "backbone_weights", None),
        ("model.exp_name=2024", "model", "exp_name", "2024"),
        ("model.exp_name=01", "model", "exp_name", "01"),
        ("model.exp_name=2024-01-02", "model", "exp_name", "2024-01-02"),
        ("metrics.pro=False", "metrics", "pro", False),
    ],
)
def test_overrides_replace_values_of_the_file(override, section, name, value):
    assert getattr(getattr(load_settings(ROOT / "config.yaml", [override]), section), name) == value


@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["data", "model", "w", "category", "epochs", "x"]), inner, max_size=4)
        ),
    )
)
def test_any_content_builds_settings_or_raises_a_user_error(content):
    try:
        given = content if isinstance(content, dict) else {"model": content}
        known = {"name": "own", "data_dir": "d", "category": "c"}
        data = given.get("data", {})
        build_settings(
            {"model": {"w": 1, "epochs": 1}} | given | {"data": known | data if isinstance(data, dict) else data}
        )
    except UserError as error:
        assert str(error)


def test_omitted_keys_have_their_defaults():
    loaded = build_settings({"data": {"name": "own", "data_dir": "d", "category": "c"}, "model": {"w": 1, "epochs": 1}})
    assert loaded.model.checkpoint_dir == Path("checkpoints") and loaded.model.exp_name == "default"
    assert loaded.model.load_chp == "latest" and loaded.model.feature_extractor == "auto"


def test_auto_adaptation_epochs_follow_the_features_of_detection():
    data = ["data.name=own", "data.category=nut", "model.w=3", "model.epochs=2"]
    for changes, epochs in (
        ((), 0),
        (("model.DA_chp=4",), 4),
        (("model.DA_chp=4", "model.DA_epochs=6"), 6),
        (("model.DA_chp=latest",), 0),
    ):
        assert load_settings(ROOT / "config.yaml", [*data, *changes]).model.DA_epochs == epochs


@pytest.mark.parametrize(
    ("overrides", "share"),
    [
        (["data.name=MVTec", "data.category=screw"], 0.875),
        (["data.name=visa", "data.category=candle"], 0.875),
        (["data.name=own", "model.epochs=1", "model.w=1", "score.protocol=published"], 0.875),
        (["preset=published"], 0.875),
        (["preset=laptop"], 1),
        (["data.name=own", "model.epochs=1", "model.w=1"], 1),
        (["score.parts=[memory]"], 1),
        (["preset=laptop", "metrics.centre_crop=0.5"], 0.5),
    ],
)
def test_auto_scores_the_centre_only_where_a_published_table_is_reproduced(overrides, share):
    assert load_settings(ROOT / "config.yaml", overrides).metrics.centre_crop == share


def test_new_pictures_are_scored_whole_unless_a_crop_is_given():
    for values, share in (({}, 1), ({"centre_crop": "auto"}, 1), ({"centre_crop": 0.875}, 0.875)):
        content = {**yaml.safe_load(OFFICIAL), "metrics": values}
        assert build_settings(whole_pictures(content)).metrics.centre_crop == share
