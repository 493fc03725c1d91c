"""Each mistake of a user gives exit code 2 and one line with the thing, its value and the remedy."""

import errno
import functools
import os
import pickle
import shutil
import signal
import subprocess
import urllib.error
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import BACKBONE, PICTURE_SIZE, write_picture

import feature_extractor
import main
from config.load import load_settings
from data_tools import sample_set
from data_tools.sample_set import ensure_sample_set, save_picture
from detection.calibration_file import CALIBRATION
from training import checkpoint
from unet import UNet

pytestmark = pytest.mark.filterwarnings("error")  # a warning would add a line

TRAIN, ADAPT, DETECT = ("--train",), ("--domain_adaptation",), ("--detection",)
FEW_STEPS = (  # one per epoch
    "data.batch_size=8",
    "data.DA_batch_size=8",
    "data.image_size=16",
    "model.attention_sizes=[8]",
    "model.skip=100",
    "model.skip_DA=100",
)
CRACK = "test/crack/001.png"
CRACK_MASK = "ground_truth/crack/001_mask.png"


@dataclass
class Scene:
    """A tiny category, its configuration and its checkpoint folder, which a case damages."""

    tmp: Path
    category: Path
    config: Path
    monkeypatch: pytest.MonkeyPatch

    @property
    def weights(self) -> Path:
        return self.tmp / "checkpoints" / "nut"

    def architecture(self, **changes) -> dict:
        return load_settings(self.config).unet_arguments() | changes

    def place(self, text: str) -> str:
        return text.replace("{tmp}", str(self.tmp))

    def outputs(self) -> dict[Path, bytes]:
        """Return the content of all checkpoints and results but the calibration, which may be complete earlier."""
        files = (
            path for folder in ("checkpoints", "results") for path in (self.tmp / folder).rglob("*") if path.is_file()
        )
        return {path: path.read_bytes() for path in files if path.name != CALIBRATION}


@pytest.fixture(autouse=True)
def one_thread():
    """On a busy machine two threads wait seconds for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def scene(tmp_path, category, tiny_config, monkeypatch) -> Scene:
    monkeypatch.chdir(tmp_path)
    return Scene(tmp_path, category, tiny_config, monkeypatch)


@dataclass(frozen=True)
class Case:
    """`prepare` damages the scene; `arguments` and `fragments` of the error line may contain {tmp}."""

    name: str
    arguments: tuple[str, ...]
    fragments: tuple[str, ...]
    prepare: Callable[[Scene], object] = lambda scene: None
    config: str = "{tmp}/tiny.yaml"


# Ways to damage a scene


def remove(name: str, scene: Scene) -> None:
    target = scene.category / name
    shutil.rmtree(target) if target.is_dir() else target.unlink()


def emptied(name: str, scene: Scene) -> None:
    remove(name, scene)
    (scene.category / name).mkdir()


def truncated(name: str, scene: Scene) -> None:
    path = scene.category / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replaced(name: str, content: bytes, scene: Scene) -> None:
    (scene.category / name).write_bytes(content)


def small_mask(scene: Scene) -> None:
    write_picture(scene.category / CRACK_MASK, np.zeros((PICTURE_SIZE // 2, PICTURE_SIZE), np.uint8))


def config_holds(content: "bytes | str | object", scene: Scene) -> None:
    if isinstance(content, bytes):
        scene.config.write_bytes(content)
    else:
        scene.config.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")


def config_with(section: str, values: dict, scene: Scene) -> None:
    content = yaml.safe_load(scene.config.read_text(encoding="utf-8"))
    content.setdefault(section, {}).update(values)
    config_holds(content, scene)


def one_word_section(scene: Scene) -> None:
    config_holds(yaml.safe_load(scene.config.read_text(encoding="utf-8")) | {"metrics": "all"}, scene)


def trained(scene: Scene, **changes) -> Path:
    """Write the weights of epoch 2, as stage 1 does."""
    checkpoint.save_unet(scene.weights / "2", UNet(**scene.architecture(**changes)), epoch=2)
    return scene.weights / "2"


def trained_grey(scene: Scene) -> None:
    trained(scene, in_channels=1)


def trained_and(damage: Callable[[Scene], object], scene: Scene) -> None:
    trained(scene)
    damage(scene)


def weights_hold(content: object, scene: Scene, name: str = "2") -> None:
    """Write a file that torch can read, with any content."""
    scene.weights.mkdir(parents=True, exist_ok=True)
    torch.save(content, scene.weights / name)


def weights_are(content: bytes, scene: Scene) -> None:
    scene.weights.mkdir(parents=True)
    (scene.weights / "2").write_bytes(content)


def truncated_weights(scene: Scene) -> None:
    path = trained(scene)
    path.write_bytes(path.read_bytes()[:-2000])


class Malicious:
    """Create a file named `owned` when unpickled."""

    def __reduce__(self):
        return os.system, ("touch owned",)


def malicious_zip(scene: Scene) -> None:
    scene.weights.mkdir(parents=True)
    with zipfile.ZipFile(scene.weights / "2", "w") as archive:
        archive.writestr("2/data.pkl", pickle.dumps({"weights": Malicious()}, protocol=2))
        archive.writestr("2/version", "3\n")
        archive.writestr("2/byteorder", "little")


def released_of_another_shape(scene: Scene) -> None:
    weights_hold(
        {f"module.{name}": value for name, value in UNet(**scene.architecture(base_channels=16)).state_dict().items()},
        scene,
    )


def foreign_features(scene: Scene) -> None:
    trained(scene)
    weights_hold({"format": "ddad-1", "network": "features", "extractor": "resnet50", "weights": {}}, scene, "feat3")


def backbone_of_another_network(scene: Scene) -> None:
    trained(scene)
    torch.save({"conv1.weight": torch.zeros(3)}, scene.tmp / "backbone.pth")


def backbone_is_a_folder(scene: Scene) -> None:
    trained(scene)
    (scene.tmp / "backbone.pth").mkdir()


def offline(scene: Scene) -> None:
    trained(scene)

    def refuse(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    scene.monkeypatch.setattr(torch.hub, "get_dir", lambda: str(scene.tmp / "hub"))
    scene.monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


def offline_timm(scene: Scene) -> None:
    trained(scene)
    create = feature_extractor.timm.create_model

    def refuse(*arguments, pretrained=False, **keywords):
        if pretrained:
            raise FileNotFoundError("An error happened while trying to locate the file on the Hub")
        return create(*arguments, **keywords)

    scene.monkeypatch.setattr(feature_extractor.timm, "create_model", refuse)


def file_in_the_way(scene: Scene) -> None:
    (scene.tmp / "taken").write_text("not a folder")


def taken_and_trained(scene: Scene) -> None:
    file_in_the_way(scene)
    trained(scene)


def foreign_sample_folder(scene: Scene) -> None:
    (scene.tmp / "sample").mkdir()
    (scene.tmp / "sample" / "holiday.txt").write_text("mine")


def broken_sample_note(scene: Scene) -> None:
    (scene.tmp / "sample").mkdir()
    (scene.tmp / "sample" / "sample.json").write_text("{")


use = functools.partial

CASES = (
    # Data
    Case(
        "data_dir missing", (*TRAIN, "data.data_dir={tmp}/nowhere"), ("no data at {tmp}/nowhere", "set data.data_dir")
    ),
    Case(
        "data_dir is a file",
        (*TRAIN, "data.data_dir={tmp}/taken"),
        ("no data at {tmp}/taken", "set data.data_dir"),
        file_in_the_way,
    ),
    Case("category misspelt", (*TRAIN, "data.category=nuts"), ("no category 'nuts'", "did you mean nut?")),
    Case("category unlike any", (*TRAIN, "data.category=zebra"), ("no category 'zebra'", "it holds nut")),
    Case(
        "category leaves data_dir",
        (*TRAIN, "data.category=../data/nut"),
        ("data.category is '../data/nut'", "must name a folder"),
    ),
    Case("category of spaces", (*TRAIN, "data.category='   '"), ("data.category is '   '", "should be a name")),
    Case("category without a value", (*TRAIN, "data.category="), ("data.category=", "no value", "model.w=3")),
    Case(
        "exp_name leaves results", (*DETECT, "model.exp_name=/etc"), ("model.exp_name", "'/etc'", "must name a folder")
    ),
    Case("train/good missing", TRAIN, ("nut/train/good", "put the pictures there"), use(remove, "train/good")),
    Case("train/good empty", TRAIN, ("no pictures in", "nut/train/good", ".png"), use(emptied, "train/good")),
    Case("train/good empty, adapting", ADAPT, ("no pictures in", "nut/train/good", ".png"), use(emptied, "train/good")),
    Case("test missing", DETECT, ("nut/test is not a folder", "put them in subfolders"), use(remove, "test")),
    Case("test empty", DETECT, ("nut/test has no subfolders", "put normal pictures"), use(emptied, "test")),
    Case("one defect empty", DETECT, ("no pictures in", "nut/test/crack", ".png"), use(emptied, "test/crack")),
    Case(
        "no ground truth",
        DETECT,
        ("no mask for test/crack/000.png", "000_mask.png", "data.mask=False"),
        use(remove, "ground_truth"),
    ),
    Case("one mask missing", DETECT, (f"no mask for {CRACK}", CRACK_MASK, "data.mask=False"), use(remove, CRACK_MASK)),
    Case(
        "mask of another size", DETECT, (CRACK_MASK, "48×24", "48×48", "data.mask=False"), use(trained_and, small_mask)
    ),
    Case(
        "mask truncated",
        DETECT,
        (CRACK_MASK, "cut short", "replace or remove"),
        use(trained_and, use(truncated, CRACK_MASK)),
    ),
    Case(
        "truncated PNG, training",
        TRAIN,
        ("train/good/003.png", "cut short", "replace or remove"),
        use(truncated, "train/good/003.png"),
    ),
    Case(
        "truncated PNG, detecting",
        DETECT,
        (CRACK, "cut short", "replace or remove"),
        use(trained_and, use(truncated, CRACK)),
    ),
    Case(
        "empty file, training",
        TRAIN,
        ("train/good/003.png", "empty", "replace or remove"),
        use(replaced, "train/good/003.png", b""),
    ),
    Case(
        "empty file, detecting",
        DETECT,
        (CRACK, "empty", "replace or remove"),
        use(trained_and, use(replaced, CRACK, b"")),
    ),
    Case(
        "text named .png",
        TRAIN,
        ("train/good/003.png", "not a picture", "replace or remove"),
        use(replaced, "train/good/003.png", b"hello\n" * 9),
    ),
    Case(
        "text named .png, detecting",
        DETECT,
        (CRACK, "not a picture", "replace"),
        use(trained_and, use(replaced, CRACK, b"hello\n")),
    ),
    Case(
        "sample set over other files",
        (*TRAIN, "data.name=sample", "data.data_dir={tmp}/sample"),
        ("{tmp}/sample", "new folder"),
        foreign_sample_folder,
    ),
    Case(
        "sample set over a file",
        (*TRAIN, "data.name=sample", "data.data_dir={tmp}/taken"),
        ("{tmp}/taken", "new folder"),
        file_in_the_way,
    ),
    Case(
        "sample set under a file",
        (*TRAIN, "data.name=sample", "data.data_dir={tmp}/taken/s"),
        ("{tmp}/taken/s", "data.data_dir"),
        file_in_the_way,
    ),
    Case(
        "sample note broken",
        (*TRAIN, "data.name=sample", "data.data_dir={tmp}/sample"),
        ("sample/sample.json", "new folder"),
        broken_sample_note,
    ),
    Case(
        "DA batch above the training set",
        (*ADAPT, "data.DA_batch_size=9"),
        ("data.DA_batch_size is 9", "8 pictures to learn from and 2 held out", "data.DA_batch_size=8"),
    ),
    # Flags
    Case("unknown flag", (*TRAIN, "--verbose"), ("unknown flag --verbose", "--help")),
    Case("misspelt flag", ("--detectoin",), ("unknown flag --detectoin", "did you mean --detection?")),
    Case("flag with a wrong value", ("--train", "maybe"), ("--train", "'maybe' is neither True nor False")),
    Case("flag with a wrong value behind =", ("--detection=ja",), ("--detection", "'ja' is neither True nor False")),
    Case("flag without its value", (*DETECT, "--output"), ("--output", "expected one argument", "--help")),
    Case(
        "--output is a file",
        (*DETECT, "--output", "{tmp}/taken"),
        ("can't write results to {tmp}/taken", "choose another folder with --output"),
        file_in_the_way,
    ),
    Case("a setting of --table", ("--table", "VisA", "model.w=2"), ("--table does not use model.w=2", "remove it")),
    Case("--output of --check", ("--check", "--output", "x"), ("--check does not use --output x",)),
    Case(
        "--input of an unknown user",
        (*DETECT, "--input", "~nobody-of-this-name"),
        ("argument --input", "no home folder"),
    ),
    Case("--input without --detection", ("--input", "x"), ("--input is x", "belongs to --detection")),
    Case(
        "--resume without --input",
        (*DETECT, "--resume"),
        ("--resume", "add --train, or name the pictures with --input"),
    ),
    Case("--input empty", (*DETECT, "--input", ""), ("--input: it is empty", "name a file or a folder")),
    Case(
        "--input missing",
        (*DETECT, "--input", "{tmp}/none"),
        ("no picture or folder at {tmp}/none", "--input"),
        trained,
    ),
    Case(
        "--input without pictures",
        (*DETECT, "--input", "{tmp}/checkpoints"),
        ("no pictures in {tmp}/checkpoints", ".png"),
        trained,
    ),
    Case(
        "--input with published scores",
        (*DETECT, "--input", "{tmp}/data", "score.protocol=published"),
        ("score.protocol is published", "set score.protocol=per_image"),
        trained,
    ),
    Case(
        "--input without a calibration or pictures for one",
        (*DETECT, "--input", "{tmp}/data/nut/test", "data.category=nut", "data.data_dir={tmp}/elsewhere"),
        (
            "calibration.json can't be used (no calibration.json of this version",
            "no data at {tmp}/elsewhere",
            "set data.data_dir",
        ),
        trained,
    ),
    Case(
        "--output under a file",
        (*DETECT, "--output", "{tmp}/taken/results"),
        ("{tmp}/taken/results", "--output"),
        taken_and_trained,
    ),
    # Settings
    Case("unknown key", (*TRAIN, "model.wieght=3"), ("unknown key model.wieght", "did you mean w")),
    Case("misspelt key", (*TRAIN, "model.epoch=3"), ("unknown key model.epoch", "did you mean epochs?")),
    Case("unknown section", (*TRAIN, "modle.w=3"), ("unknown section 'modle'", "did you mean model?", "data, model")),
    Case("override without =", (*TRAIN, "model.w"), ("'model.w'", "section.key=value")),
    Case("override without a section", (*TRAIN, "w=3"), ("'w=3'", "section.key=value")),
    Case("override without a key", (*TRAIN, "model=3"), ("'model=3'", "section.key=value")),
    Case("override without a value", (*TRAIN, "model.w="), ("model.w=", "no value", "model.w=3")),
    Case("override not YAML", (*TRAIN, "model.attention_sizes=[8"), ("model.attention_sizes", "'[8'", "[1, 2]")),
    Case(
        "override an impossible date", (*TRAIN, "data.category=2024-13-45"), ("data.category", "2024-13-45", "quotes")
    ),
    Case("word where a number belongs", (*TRAIN, "model.w=abc"), ("model.w is 'abc'", "should be a number")),
    Case("list where a number belongs", (*TRAIN, "model.w=[1, 2]"), ("model.w is [1, 2]", "should be a number")),
    Case("truth where a number belongs", (*TRAIN, "model.w=True"), ("model.w is True", "should be a number")),
    Case("number where a truth belongs", (*TRAIN, "metrics.pro=1"), ("metrics.pro is 1", "should be true or false")),
    Case(
        "number where a list belongs",
        (*TRAIN, "model.attention_sizes=8"),
        ("model.attention_sizes is 8", "list such as [1, 2]"),
    ),
    Case("list where a name belongs", (*TRAIN, "data.name=[nut]"), ("data.name is ['nut']", "should be a name")),
    Case(
        "broken number of pixels",
        (*TRAIN, "data.image_size=64.5"),
        ("data.image_size is 64.5", "should be a whole number"),
    ),
    Case(
        "misspelt latest",
        (*DETECT, "model.load_chp=lastest"),
        ("model.load_chp is 'lastest'", "a whole number or auto or latest"),
    ),
    Case("not a number", (*TRAIN, "model.learning_rate=.nan"), ("model.learning_rate is nan", "should be a number")),
    Case("infinite", (*TRAIN, "model.w=.inf"), ("model.w is inf", "should be a number")),
    Case("longer than a float", (*TRAIN, f"model.epochs={'9' * 400}"), ("model.epochs is 999", "whole number")),
    Case(
        "longer than a seed",
        (*TRAIN, "model.seed=99999999999999999999"),
        ("model.seed is 99999999999999999999", "at most"),
    ),
    Case("negative w", (*DETECT, "model.w=-1"), ("model.w is -1", "at least 0")),
    Case("no epochs", (*TRAIN, "model.epochs=0"), ("model.epochs is 0", "at least 1")),
    Case("no learning rate", (*TRAIN, "model.learning_rate=0"), ("model.learning_rate is 0", "above 0")),
    Case("dropout of 1", (*TRAIN, "model.dropout=1"), ("model.dropout is 1", "at most 0.99")),
    Case(
        "unknown optimizer",
        (*TRAIN, "training.optimizer=adamm"),
        ("training.optimizer is 'adamm'", "did you mean adam", "adam or adamw"),
    ),
    Case(
        "skip above start",
        (*DETECT, "model.skip=101"),
        ("model.skip is 101", "at most model.test_trajectoy_steps", "100"),
    ),
    Case(
        "DA skip above start",
        (*ADAPT, "model.skip_DA=101"),
        ("model.skip_DA is 101", "at most model.test_trajectoy_steps", "100"),
    ),
    Case(
        "start above trajectory",
        (*DETECT, "model.trajectory_steps=100"),
        ("is 100", "below model.trajectory_steps, 100"),
    ),
    Case(
        "beta_start above beta_end",
        (*TRAIN, "model.beta_start=0.03"),
        ("model.beta_start is 0.03", "model.beta_end, 0.02", "must grow"),
    ),
    Case(
        "tiles of published scores",
        (*TRAIN, "data.tiles=2", "score.protocol=published"),
        ("data.tiles is 2", "score.protocol=per_image"),
    ),
    Case("all pictures held out", (*TRAIN, "calibration.share=1"), ("calibration.share is 1", "at most 0.9")),
    Case(
        "a rate of none",
        (*DETECT, "calibration.false_positive_rate=0"),
        ("calibration.false_positive_rate is 0", "above 0"),
    ),
    Case("a metrics size of one", (*DETECT, "metrics.size=1"), ("metrics.size is 1", "at least 8")),
    Case("two channels", (*TRAIN, "data.input_channel=2"), ("data.input_channel is 2", "1 (grey) or 3 (colour)")),
    Case("size that levels do not divide", (*TRAIN, "data.image_size=33"), ("image_size is 33", "take 32 or 34")),
    Case(
        "size above the published",
        (*TRAIN, "model.channel_multipliers=null", "data.image_size=1024"),
        ("image_size is 1024", "32 to 512"),
    ),
    Case(
        "size below the levels'",
        (*TRAIN, "data.image_size=9", "model.channel_multipliers=[1, 1, 1, 1, 1]"),
        ("image_size is 9", "take 16 or 32"),
    ),
    Case(
        "no channels",
        (*TRAIN, "model.channel_multipliers=[1, 0.1]"),
        ("channel_multipliers", "base_channels is 8", "raise channel_multipliers"),
    ),
    Case(
        "nothing in the centre",
        (*DETECT, "metrics.centre_crop=0.001"),
        ("metrics.centre_crop is 0.001", "32 pixels", "raise it"),
    ),
    Case("heads that do not divide", (*TRAIN, "model.heads=3"), ("heads is 3", "16 channels", "change heads")),
    Case("odd base_channels", (*TRAIN, "model.base_channels=7"), ("base_channels is 7", "even number")),
    Case(
        "a network beyond memory", (*TRAIN, "model.base_channels=2000000"), ("memory", "lower", "model.base_channels")
    ),
    Case("nonsense device", (*TRAIN, "model.device=gpu"), ("model.device is 'gpu'", "auto, cuda, mps or cpu")),
    Case("nothing published", (*DETECT, "model.w=auto"), ("category 'nut'", "give model.w a value in place of auto")),
    # The configuration file
    Case("no file", TRAIN, ("no configuration at {tmp}/none.yaml", "--config"), config="{tmp}/none.yaml"),
    Case("a folder", TRAIN, ("can't read {tmp}", "directory", "--config takes a YAML file"), config="{tmp}"),
    Case(
        "under a file",
        TRAIN,
        ("can't read {tmp}/tiny.yaml/x", "Not a directory", "--config"),
        config="{tmp}/tiny.yaml/x",
    ),
    Case("not YAML", TRAIN, ("tiny.yaml", "not YAML", "line 2"), use(config_holds, "data: {\nmodel: [}\n")),
    Case("a tab for a space", TRAIN, ("tiny.yaml", "not YAML", "line 2"), use(config_holds, "data:\n\tname: x\n")),
    Case("empty", TRAIN, ("tiny.yaml", "holds no sections", "it needs data, model"), use(config_holds, "")),
    Case(
        "a list",
        TRAIN,
        ("tiny.yaml", "holds no sections", "it needs data, model"),
        use(config_holds, ["data", "model"]),
    ),
    Case(
        "a picture",
        TRAIN,
        ("tiny.yaml", "not a text file", "takes a YAML file"),
        use(config_holds, b"\x89PNG\r\n\x1a\n\xff\xfe\x00"),
    ),
    Case("control characters", TRAIN, ("tiny.yaml", "not YAML"), use(config_holds, b"data: \x01\x02\n")),
    Case("a number for a section", TRAIN, ("unknown section 1", "data, model"), use(config_holds, {1: 2})),
    Case("a section of one word", TRAIN, ("metrics should be a section with keys", "'all'"), one_word_section),
    Case(
        "a number for a key",
        TRAIN,
        ("unknown key model.1", "config.yaml lists the keys"),
        use(config_with, "model", {1: 2}),
    ),
    Case("a missing key", TRAIN, ("missing key data.", "add it"), use(config_holds, {"model": {}})),
    Case(
        "two spellings",
        TRAIN,
        ("model.test_trajectory_steps and model.test_trajectoy_steps", "100 and 99", "keep one"),
        use(config_with, "model", {"test_trajectoy_steps": 99}),
    ),
    # Weights
    Case(
        "no weights, detecting",
        DETECT,
        ("no weights latest in {tmp}/checkpoints/nut", "it has none", "run --train True"),
    ),
    Case(
        "no weights, adapting", ADAPT, ("no weights latest in {tmp}/checkpoints/nut", "it has none", "run --train True")
    ),
    Case(
        "weights of another epoch",
        (*DETECT, "model.load_chp=7"),
        ("no weights 7", "it has 2", "model.load_chp"),
        trained,
    ),
    Case(
        "weights of a wider network",
        (*DETECT, "model.base_channels=16"),
        ("base_channels is 8 in the file, 16 in", "change"),
        trained,
    ),
    Case(
        "weights of a UNet for a patch network",
        (*DETECT, "model.network=patch", "score.space=features", "model.predicts=x0", "score.parts=[diffusion]"),
        ("checkpoints/nut/2", "it is a unet, model.network is patch", "preset=laptop-unet"),
        trained,
    ),
    Case(
        "weights of a grey network",
        DETECT,
        ("in_channels is 1 in the file, 3 in", "change the configuration or train again"),
        trained_grey,
    ),
    Case(
        "released weights of another width",
        DETECT,
        ("checkpoints/nut/2", "(64, 16) in the file, (32, 8) in the", "model.DDADS"),
        released_of_another_shape,
    ),
    Case(
        "weights of random bytes",
        DETECT,
        ("checkpoints/nut/2", "not a file of weights", "replace"),
        use(weights_are, bytes(range(256)) * 9),
    ),
    Case("weights empty", DETECT, ("checkpoints/nut/2", "not a file of weights", "replace"), use(weights_are, b"")),
    Case(
        "weights half a pickle",
        DETECT,
        ("checkpoints/nut/2", "not a file of weights", "replace"),
        use(weights_are, b"\x80\x02}q\x00h\x07."),
    ),
    Case("weights truncated", DETECT, ("checkpoints/nut/2", "not a file of weights", "replace"), truncated_weights),
    Case(
        "weights that run code",
        DETECT,
        ("checkpoints/nut/2", "not a file of weights", "replace"),
        use(weights_are, pickle.dumps(Malicious())),
    ),
    Case("a zip that runs code", DETECT, ("checkpoints/nut/2", "not a file of weights", "replace"), malicious_zip),
    Case(
        "weights are a pickled list",
        DETECT,
        ("checkpoints/nut/2", "not a file", "replace"),
        use(weights_are, pickle.dumps([1, 2], protocol=2)),
    ),
    Case(
        "weights are torch's list", DETECT, ("checkpoints/nut/2", "holds a list", "replace"), use(weights_hold, [1, 2])
    ),
    Case(
        "weights are numbered",
        DETECT,
        ("checkpoints/nut/2", "state dict", "replace"),
        use(weights_hold, {1: torch.zeros(2)}),
    ),
    Case(
        "weights half an own file",
        DETECT,
        ("checkpoints/nut/2", "architecture", "replace"),
        use(weights_hold, {"format": "ddad-1", "network": "unet"}),
    ),
    Case(
        "features in the UNet's place",
        DETECT,
        ("checkpoints/nut/2", "feature weights"),
        use(weights_hold, {"format": "ddad-1", "network": "features"}),
    ),
    Case(
        "weights are a folder",
        DETECT,
        ("checkpoints/nut/2", "directory", "file of weights"),
        lambda scene: (scene.weights / "2").mkdir(parents=True),
    ),
    # Features
    Case(
        "no adapted features",
        (*DETECT, "model.DA_chp=3"),
        ("no weights feat3", "run --domain_adaptation True", "model.DA_chp"),
        trained,
    ),
    Case(
        "features of another extractor",
        (*DETECT, "model.DA_chp=3"),
        ("feat3 holds features of resnet50", "=resnet50, or adapt again"),
        foreign_features,
    ),
    Case(
        "no backbone file",
        (*DETECT, "model.backbone_weights={tmp}/none"),
        ("no weights at {tmp}/none", "model.backbone_weights"),
        trained,
    ),
    Case(
        "backbone of another network",
        (*DETECT, "model.backbone_weights={tmp}/backbone.pth"),
        ("{tmp}/backbone.pth is not of timm/test_resnet", "conv1.0.weight", "give a file of its weights"),
        backbone_of_another_network,
    ),
    Case(
        "backbone is a folder",
        (*DETECT, "model.backbone_weights={tmp}/backbone.pth"),
        ("{tmp}/backbone.pth", "directory"),
        backbone_is_a_folder,
    ),
    Case(
        "unknown extractor",
        (*DETECT, "model.feature_extractor=resnet51"),
        ("'resnet51'", "known are", "resnet50", "timm/NAME"),
        trained,
    ),
    Case(
        "unknown timm model",
        (*DETECT, "model.feature_extractor=timm/nonsense", "model.backbone_weights=null"),
        ("'timm/nonsense'", "take another"),
        trained,
    ),
    Case(
        "no network for the published extractor",
        (*DETECT, "model.feature_extractor=wide_resnet101_2", "model.backbone_weights=null"),
        ("wide_resnet101_2", "Name or service not known", "set model.backbone_weights", "=efficientnet_lite0"),
        offline,
    ),
    Case(
        "no network for timm",
        (*DETECT, "model.feature_extractor=timm/resnet18", "model.backbone_weights=null"),
        ("no weights for timm/resnet18", "model.backbone_weights"),
        offline_timm,
    ),
    # Places that cannot be written
    Case(
        "checkpoint_dir under a file",
        (*TRAIN, *FEW_STEPS, "model.checkpoint_dir={tmp}/taken/c"),
        ("{tmp}/taken/c/nut", "model.checkpoint_dir"),
        file_in_the_way,
    ),
    Case(
        "checkpoint_dir is a file",
        (*TRAIN, *FEW_STEPS, "model.checkpoint_dir={tmp}/taken"),
        ("{tmp}/taken/nut", "model.checkpoint_dir"),
        file_in_the_way,
    ),
    Case(
        "features under a file",
        (*ADAPT, "model.checkpoint_dir={tmp}/taken"),
        ("can't write to {tmp}/taken/nut", "change model.checkpoint_dir"),
        file_in_the_way,
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_mistake_is_one_error_line(case, scene, run_main):
    case.prepare(scene)
    before = scene.outputs()
    code, out, err = run_main(*map(scene.place, case.arguments), config=Path(scene.place(case.config)))
    print(err, end="")
    assert code == 2
    assert_one_error_line(out, err)
    for fragment in case.fragments:
        assert scene.place(fragment) in err
    assert_nothing_half_written(scene, before)
    assert not (scene.tmp / "owned").exists()


@pytest.mark.parametrize("arguments", [[], ["model.w=3"], ["--train", "False"]])
def test_a_command_without_a_stage_prints_the_help(arguments, capsys):
    assert main.main(arguments) == 2
    out, err = capsys.readouterr()
    assert err == "" and "usage:" in out and "--detection" in out


def test_traceback_is_shown_on_request(run_main):
    with pytest.raises(ValueError, match=r"model\.w is 'abc'"):
        run_main("--train", "model.w=abc", "--traceback")


@pytest.mark.parametrize("arguments", [TRAIN, ADAPT], ids=["training", "adapting"])
def test_a_full_disk_keeps_earlier_weights(scene, run_main, arguments):
    trained(scene, image_size=16, attention_sizes=(8,))
    checkpoint.save_features(scene.weights / "feat0", feature_extractor.FeatureExtractor(BACKBONE, "random"), epoch=0)
    before = scene.outputs()

    def refuse(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    scene.monkeypatch.setattr(os, "fsync", refuse)
    code, out, err = run_main(*arguments, *FEW_STEPS, "model.backbone_weights=null")
    assert code == 2
    assert_one_error_line(out, err)
    name = "training.jsonl" if arguments == TRAIN else "adaptation.jsonl"
    assert (
        f"can't write {scene.weights / name}: No space left" in err
        and "free some space or change model.checkpoint_dir" in err
    )
    assert_nothing_half_written(scene, before)


@pytest.fixture
def small_disk(tmp_path):
    """Yield a folder on a file system of 64 KiB, smaller than the tiny network."""
    folder = tmp_path / "small disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_while_weights_are_written(scene, run_main, small_disk):
    code, out, err = run_main("--train", *FEW_STEPS, f"model.checkpoint_dir={small_disk}")
    assert code == 2
    assert_one_error_line(out, err)
    assert f"can't write {small_disk}/nut/2" in err and "free some space" in err
    assert {path.name for path in small_disk.rglob("*") if path.is_file()} == {"training.jsonl"}


def test_a_disk_that_fills_up_while_results_are_written(scene, run_main, small_disk):
    trained(scene, image_size=16, attention_sizes=(8,))
    code, out, err = run_main("--detection", *FEW_STEPS, "--output", str(small_disk))
    assert code == 2
    assert_one_error_line(out, err)
    assert f"can't keep maps in {small_disk}: No space left" in err and "--output" in err
    code, out, err = run_main(
        "--detection", *FEW_STEPS, "metrics.size=32", "metrics.visualisation=True", "--output", str(small_disk)
    )
    assert code == 2
    assert_one_error_line(out, err)
    assert f"can't write {small_disk}/figures/crack/000.png: No space left" in err and "--output" in err
    assert not [path for path in small_disk.rglob("*") if path.is_file()]


def test_a_folder_that_even_root_cannot_write(scene, run_main):
    if not Path("/proc/self").exists():
        pytest.skip("no /proc here")
    code, out, err = run_main("--train", *FEW_STEPS, "model.checkpoint_dir=/proc/ddad")
    assert code == 2
    assert_one_error_line(out, err)
    assert "can't write to /proc/ddad/nut" in err and "model.checkpoint_dir" in err
    trained(scene)
    code, out, err = run_main("--detection", "--output", "/proc/ddad")
    assert code == 2
    assert_one_error_line(out, err)
    assert "can't write results to /proc/ddad" in err and "--output" in err


def test_ctrl_c_while_files_are_written(scene, run_main):
    trained(scene)
    before = scene.outputs()
    scene.monkeypatch.setattr(os, "fsync", lambda _: signal.raise_signal(signal.SIGINT))
    code, out, err = run_main("--train", *FEW_STEPS)
    assert (code, err) == (130, "stopped; all files written so far are complete\n")
    assert "Traceback" not in out
    assert_nothing_half_written(scene, before)


def test_ctrl_c_while_the_last_weights_are_written_completes_them_and_ends_the_run(scene, run_main):
    save = checkpoint.save_unet

    def interrupted(*arguments, **notes):
        signal.raise_signal(signal.SIGINT)
        save(*arguments, **notes)

    scene.monkeypatch.setattr(checkpoint, "save_unet", interrupted)
    code, out, err = run_main("--train", "--detection", *FEW_STEPS)
    assert (code, err) == (130, "stopped; all files written so far are complete\n")
    assert (scene.weights / "2").is_file() and "Detecting" not in out and "image AUROC" not in out


def test_ctrl_c_while_the_sample_set_is_made(scene, run_main):
    """The next run replaces the incomplete set, which does not count as foreign files."""
    folder, save = scene.tmp / "sample", save_picture
    scene.monkeypatch.setattr(sample_set, "TEXTURES", ("brick", "grass"))
    scene.monkeypatch.setattr(sample_set, "TRAINING_PICTURES", 12)

    def stop(path, picture):
        save(path, picture)
        raise KeyboardInterrupt

    scene.monkeypatch.setattr(sample_set, "save_picture", stop)
    code, _, _ = run_main("--train", "data.name=sample", f"data.data_dir={folder}", "data.category=brick")
    assert code == 130 and len(list(folder.rglob("*.png"))) == 1
    scene.monkeypatch.setattr(sample_set, "save_picture", save)
    ensure_sample_set(folder, seed=42)
    assert len(list((folder / "brick" / "train" / "good").iterdir())) == 12


def assert_nothing_half_written(scene: Scene, before: dict[Path, bytes]) -> None:
    assert scene.outputs() == before
    assert not list(scene.tmp.rglob("*.part"))


def assert_one_error_line(out: str, err: str) -> None:
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in out + err
