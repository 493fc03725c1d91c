import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from official_config import OFFICIAL

import unet
from config.checks import NO_EFFECT, SPELLINGS, keys_without_effect
from config.load import SHORTCUTS, build_settings, load_settings, read_sections, with_overrides
from config.published import published_rows

ROOT = Path(__file__).parents[2]


@pytest.fixture
def official(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(OFFICIAL, encoding="utf-8")
    return path


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


@pytest.mark.parametrize("name", ["config.yaml", "demo.yaml"])
def test_our_configurations_are_valid(name):
    load_settings(ROOT / name)


def test_config_yaml_names_every_key():
    content = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    assert [content.pop(name) for name in SHORTCUTS] == [None, None]
    spelt = {
        SPELLINGS.get(f"{section}.{name}", f"{section}.{name}")
        for section, values in content.items()
        for name in values
    }
    known = {
        f"{section}.{name}"
        for section, values in load_settings(ROOT / "config.yaml").as_dict().items()
        for name in values
    }
    assert spelt == known - set(NO_EFFECT)


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


@pytest.mark.parametrize(("data_set", "means"), [("MVTec", (99.8, 98.1, 92.3)), ("VisA", (98.9, 97.6, 92.7))])
def test_the_published_table_has_the_published_means(data_set, means):
    rows = [row for row in published_rows().values() if row["data_set"] == data_set]
    for column, mean in zip(("image_auroc", "pixel_auroc", "pro"), means, strict=True):
        assert round(sum(float(row[column]) for row in rows) / len(rows), 1) == mean


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


def test_a_name_that_yaml_reads_as_a_number_needs_quotes():
    with pytest.raises(
        ValueError, match="data.category is 1, which YAML takes for a number or a date; write it in quotes"
    ):
        build_settings({"data": {"name": "BTAD", "data_dir": "d", "category": 1}, "model": {"w": 1, "epochs": 1}})


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
    except ValueError as error:
        assert str(error)


def test_omitted_keys_have_their_defaults():
    loaded = build_settings(
        {"data": {"name": "own", "data_dir": "d", "category": "c"}, "model": {"w": 1, "epochs": 1, "load_chp": 1}}
    )
    assert loaded.model.checkpoint_dir == Path("checkpoints") and loaded.model.exp_name == "default"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("data: !!python/object/apply:os.system ['touch owned']", "could not determine a constructor for the tag"),
        ("data: !!python/object/new:os.system ['touch owned']", "could not determine a constructor for the tag"),
        ("data: !!python/name:os.system", "could not determine a constructor for the tag"),
        ("data: &a [x]\nmodel: *a", "*a is an alias, which is not allowed here; write its value out"),
        (
            "a0: &a0 [lol]\n" + "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 20)),
            "*a0 is an alias",
        ),
        (
            "a0: &a0 {k: v}\n"
            + "\n".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 20)),
            "*a0 is an alias",
        ),
        ("data: &a {x: *a}", "is an alias"),
        ("[" * 20_000, "more than 10 nested brackets"),
        ("data: " + "1:" * 30_000 + "1", "Exceeds the limit"),
        ("x" * 70_000, "it has more than 65536 bytes"),
    ],
    ids=["apply", "new", "name", "alias", "laughs", "merged laughs", "itself", "brackets", "sixties", "long"],
)
def test_a_hostile_file_runs_no_code_and_fills_no_memory(tmp_path, monkeypatch, text, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        load_settings("c.yaml")
    assert len(str(caught.value)) < 1000 and not (tmp_path / "owned").exists()
    with pytest.raises(ValueError, match="not a YAML value|should be|holds no sections"):
        with_overrides({"data": "x"}, [f"data.name={text[6:]}"])


def test_auto_adaptation_epochs_follow_the_features_of_detection():
    data = ["data.name=own", "data.category=nut", "model.w=3", "model.epochs=2"]
    for changes, epochs in (
        ((), 0),
        (("model.DA_chp=4",), 4),
        (("model.DA_chp=4", "model.DA_epochs=6"), 6),
        (("model.DA_chp=latest",), 0),
    ):
        assert load_settings(ROOT / "config.yaml", [*data, *changes]).model.DA_epochs == epochs
