"""A tiny category in the MVTec layout and a tiny network: whole runs take seconds."""

import functools
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from official_config import OFFICIAL
from PIL import Image

import feature_extractor
import main
from commands import budget, reproduce
from detection import reference

pytest_plugins = ["exported"]  # a fixture that several files use
DATA = Path(__file__).parent / "data"
PICTURE_SIZE = 48  # pixels, on disk
BACKBONE = "timm/test_resnet"


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)  # with more threads two processes on two cores block each other


@pytest.fixture(autouse=True)
def seeded():
    """Seed torch, so that a test does not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def small_memories(monkeypatch):
    """Use small memory banks, which are chosen fast."""
    monkeypatch.setattr(reference, "BANK", 300)
    monkeypatch.setattr(reference, "SAMPLED_PER_KEPT", 10)


@pytest.fixture(autouse=True)
def few_timings(monkeypatch):
    """Time a step and a picture twice, as the first time does not count; no test depends on how long they take."""
    monkeypatch.setattr(budget, "TIMED_STEPS", 2)
    monkeypatch.setattr(reproduce, "TIMED_CALLS", 2)


@pytest.fixture
def small_features(monkeypatch):
    """Enlarge small pictures to half the usual side: their features take a quarter of the time."""
    monkeypatch.setattr(feature_extractor, "MINIMUM_SIZE", 128)


@pytest.fixture
def golden():
    """Return a function: golden("metrics") loads tests/data/metrics.npz, golden("unet_state_dict") the JSON file."""

    def load(name):
        path = DATA / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else dict(np.load(DATA / f"{name}.npz"))

    return load


def write_picture(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def make_category(root: Path) -> Path:
    """Create <root>/data/nut.

    It has 10 training pictures (2 are held out), and 3 normal and 3 cracked test pictures with masks.
    """
    rng = np.random.default_rng(0)
    folder = root / "data" / "nut"
    stripes = (np.arange(PICTURE_SIZE) // 4 % 2 * 90 + 80).astype(np.uint8)

    def normal() -> np.ndarray:
        grey = np.tile(stripes, (PICTURE_SIZE, 1)) + rng.integers(0, 20, (PICTURE_SIZE, PICTURE_SIZE))
        return np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)

    for number in range(10):
        write_picture(folder / "train" / "good" / f"{number:03}.png", normal())
    for number in range(3):
        write_picture(folder / "test" / "good" / f"{number:03}.png", normal())
        cracked, mask = normal(), np.zeros((PICTURE_SIZE, PICTURE_SIZE), np.uint8)
        spot = (slice(16 + number, 28), slice(18, 30 - number))
        cracked[spot], mask[spot] = 255, 255
        write_picture(folder / "test" / "crack" / f"{number:03}.png", cracked)
        write_picture(folder / "ground_truth" / "crack" / f"{number:03}_mask.png", mask)
    return folder


@functools.cache
def random_backbone() -> bytes:
    """Return a file of random weights; pretrained networks take seven times as long."""
    file = io.BytesIO()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = feature_extractor.FeatureExtractor(BACKBONE, feature_extractor.RANDOM).network
        torch.save(network.state_dict(), file)
    return file.getvalue()


def make_config(root: Path, category: Path) -> Path:
    """Write <root>/tiny.yaml: 32 pixels, two narrow levels, two epochs; a run takes seconds."""
    backbone = root / "tiny_backbone.pth"
    backbone.write_bytes(random_backbone())
    content = {
        "data": {
            "name": "own",
            "data_dir": str(category.parent),
            "category": category.name,
            "image_size": 32,
            "batch_size": 4,
            "DA_batch_size": 4,
            "test_batch_size": 4,
        },
        "model": {
            "checkpoint_dir": str(root / "checkpoints"),
            "feature_extractor": BACKBONE,
            "backbone_weights": str(backbone),
            "base_channels": 8,
            "channel_multipliers": [1, 2],
            "blocks_per_level": 1,
            "attention_sizes": [16],
            "heads": 2,
            "dropout": 0,
            "epochs": 2,
            "load_chp": "latest",
            "DA_epochs": 1,
            "DA_chp": 0,
            "w": 3,
            "test_trajectory_steps": 100,
            "test_trajectory_steps_DA": 100,
            "skip": 50,
            "skip_DA": 50,
            "device": "cpu",
        },
        "score": {"protocol": "per_image", "draws": 1},
        "metrics": {"visualisation": False, "resamples": 100},  # figures and 1,000 resamples would double the time
    }
    path = root / "tiny.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture
def category(tmp_path) -> Path:
    return make_category(tmp_path)


@pytest.fixture
def tiny_config(tmp_path, category) -> Path:
    return make_config(tmp_path, category)


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory) -> Path:
    """Return the checkpoints of 20 epochs, trained once per test process."""

    root = tmp_path_factory.mktemp("trained")
    assert main.main(["--train", "model.epochs=20", "--config", str(make_config(root, make_category(root)))]) == 0
    return root / "checkpoints"


@pytest.fixture
def trained(trained_once, tmp_path) -> Path:
    """Return <tmp>/checkpoints with the weights of `--train model.epochs=20`."""
    return shutil.copytree(trained_once, tmp_path / "checkpoints")


@pytest.fixture
def run_main(tiny_config, tmp_path, capsys):
    """Return a function: run_main("--train", "model.w=2") → (exit code, standard output, standard error)."""

    def run(*arguments: str, config: Path | None = None):
        capsys.readouterr()
        needs_output = "--detection" in arguments and "--output" not in arguments
        output = ["--output", str(tmp_path / "results")] if needs_output else []
        if needs_output and "--input" not in arguments:
            output.append("--force")  # tests read the latest result
        code = main.main([*arguments, "--config", str(config or tiny_config), *output])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def official(tmp_path) -> Path:
    """Write the configuration of the official release, and return its path."""
    path = tmp_path / "config.yaml"
    path.write_text(OFFICIAL, encoding="utf-8")
    return path
