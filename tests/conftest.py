"""A tiny category in the MVTec layout and a tiny network, on which whole runs take seconds."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import main
from detection import reference

DATA = Path(__file__).parent / "data"
PICTURE_SIZE = 48  # pixels, on disk


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)  # two runs at once on two cores crawl with more


@pytest.fixture(autouse=True)
def seeded():
    """Draw the same random tensors in a test whatever ran before it: the order changes from run to run."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def small_memories(monkeypatch):
    """Memories of normal descriptors that are chosen in no time."""
    monkeypatch.setattr(reference, "BANK", 300)
    monkeypatch.setattr(reference, "SAMPLED_PER_KEPT", 10)


@pytest.fixture
def golden():
    """golden("metrics") → the arrays of tests/data/metrics.npz; golden("unet_state_dict") → the JSON."""

    def load(name):
        path = DATA / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else dict(np.load(DATA / f"{name}.npz"))

    return load


def write_picture(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def make_category(root: Path) -> Path:
    """Make <root>/data/nut: 10 normal pictures to train on (2 of them held out), 3 normal and 3 cracked ones to test, with masks."""
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


def make_config(root: Path, category: Path) -> Path:
    """Write <root>/tiny.yaml, a configuration of seconds for `category`: 32 pixels, one narrow level of blocks, two epochs."""
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
            "feature_extractor": "efficientnet_lite0",
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
        "metrics": {"visualisation": False, "resamples": 100},  # which take as long as all the rest
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
    """Train the tiny network for 20 epochs, once for all tests of a process."""

    root = tmp_path_factory.mktemp("trained")
    assert main.main(["--train", "model.epochs=20", "--config", str(make_config(root, make_category(root)))]) == 0
    return root / "checkpoints"


@pytest.fixture
def trained(trained_once, tmp_path) -> Path:
    """Return <tmp>/checkpoints, which holds what `--train model.epochs=20` leaves."""
    return shutil.copytree(trained_once, tmp_path / "checkpoints")


@pytest.fixture
def run_main(tiny_config, tmp_path, capsys):
    """run_main("--train", "model.w=2") → (exit code, standard output, standard error), in the tiny configuration."""

    def run(*arguments: str, config: Path | None = None):
        capsys.readouterr()
        output = (
            [] if "--output" in arguments or "--detection" not in arguments else ["--output", str(tmp_path / "results")]
        )
        output += (
            ["--force"] if output and "--input" not in arguments else []
        )  # the latest result is the one to look at
        code = main.main([*arguments, "--config", str(config or tiny_config), *output])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
