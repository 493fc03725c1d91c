import json

import numpy as np
import pytest
from PIL import Image

from reports import manifest

pytestmark = pytest.mark.usefixtures("small_features")
QUICK = ("model.epochs=1", "metrics.resamples=20")


@pytest.fixture
def result(run_main, tmp_path):
    """Return the results folder of a detection."""
    folder = tmp_path / "found"
    assert run_main("--train", "--detection", "--output", str(folder), *QUICK)[0] == 0
    return folder


def test_a_manifest_records_how_a_result_was_made(result, tmp_path):
    made = manifest.load_manifest(result)
    assert (made["category"], made["data_set"], made["seed"]) == ("nut", "own", 42)
    assert (
        made["settings"]["model"]["w"] == 3 and made["settings"]["model"]["load_chp"] == 1 and made["versions"]["torch"]
    )
    assert (
        made["data"]["test"]["files"] == 9 and made["data"]["train"]["files"] == 10 and made["device"].startswith("cpu")
    )
    assert made["metrics"] == json.loads((result / "metrics.json").read_text())
    assert made["seconds"]["training"] > 0 and made["seconds"]["detection"] > 0 and made["peak_memory_bytes"] > 2**20


def test_a_rerun_is_equal_to_the_last_bit(result, run_main, tmp_path):
    code, out, _ = run_main("--rerun", str(result / "manifest.json"))
    assert code == 0 and "made with the same settings, versions, pictures and weights" in out
    assert "all metrics and 6 scores are equal to the last bit" in out
    assert (tmp_path / "found-rerun" / "scores.csv").read_bytes() == (result / "scores.csv").read_bytes()
    assert run_main("--rerun", str(result))[0] == 0 and (tmp_path / "found-rerun-2" / "scores.csv").is_file()


def test_a_rerun_takes_the_batch_size_of_the_manifest(result, run_main, tmp_path):
    content = json.loads((result / "manifest.json").read_text())
    for size in (2, None):  # None: an older manifest, which leaves the size to the machine
        content["settings"]["data"]["test_batch_size"] = size
        (result / "manifest.json").write_text(json.dumps(content))
        assert run_main("--rerun", str(result), "--output", str(tmp_path / f"again{size}"))[0] in (
            0,
            1,
        )  # last digits change
    assert manifest.load_manifest(tmp_path / "again2")["settings"]["data"]["test_batch_size"] == 2


def test_a_rerun_with_training_makes_its_own_weights(result, run_main, tmp_path):
    (tmp_path / "checkpoints" / "nut" / "1").unlink()
    code, out, err = run_main("--rerun", str(result))
    assert code == 2 and "no weights 1" in err
    code, out, _ = run_main("--rerun", str(result), "--train", "--output", str(tmp_path / "again"))
    assert code == 0 and "equal to the last bit" in out and "checkpoint_dir was" in out
    assert (tmp_path / "again" / "checkpoints" / "nut" / "1").is_file() and not (
        tmp_path / "checkpoints" / "nut" / "1"
    ).exists()


def test_a_rerun_with_training_adapts_where_the_result_is_of_adapted_features(run_main, tmp_path):
    folder = tmp_path / "found"
    assert (
        run_main("--train", "--domain_adaptation", "--detection", "--output", str(folder), *QUICK, "model.DA_chp=1")[0]
        == 0
    )
    code, out, err = run_main("--rerun", str(folder), "--train", "--output", str(tmp_path / "again"))
    assert code == 0 and "equal to the last bit" in out, err
    code, _, err = run_main("--rerun", str(folder), "--domain_adaptation")
    assert code == 2 and "repeats stage 2 only together with stage 1" in err


@pytest.mark.parametrize("flags", [["--rerun", "folder"], ["--tune"], ["--recalibrate", "folder"]])
def test_commands_of_a_single_process_refuse_several(flags, run_main, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = run_main(*flags)
    assert code == 2 and "needs a single process, and torchrun has started 2" in err


def test_a_rerun_prints_what_differs(result, run_main, category):
    code, out, _ = run_main("--rerun", str(result), "model.w=4")
    assert (
        code == 1
        and "model.w was 3.0, is 4.0" in out
        and "operating_point.threshold" in out
        and "scores of 6 of 6 pictures changed" in out
    )

    picture = category / "test" / "crack" / "001.png"
    pixels = np.asarray(Image.open(picture)).copy()
    pixels[:20] = 0
    Image.fromarray(pixels).save(picture)
    made = json.loads((result / "manifest.json").read_text())
    made["versions"]["torch"] = "1.0"
    (result / "manifest.json").write_text(json.dumps(made))
    code, out, _ = run_main("--rerun", str(result))
    assert code == 1 and "torch was 1.0, is " in out and "data.test.hash was" in out
    assert "scores of 1 of 6 pictures changed, most: test/crack/001.png" in out

    picture.rename(picture.with_name("009.png"))
    (category / "ground_truth" / "crack" / "001_mask.png").rename(category / "ground_truth" / "crack" / "009_mask.png")
    _, out, _ = run_main("--rerun", str(result))
    assert "only before: test/crack/001.png" in out and "only now: test/crack/009.png" in out


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "ddad-manifest-1"}', "\0", "[" * 10**5])
def test_a_file_that_is_not_a_manifest_is_refused(run_main, tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    code, _, err = run_main("--rerun", str(tmp_path))
    assert code == 2 and f"{tmp_path / 'manifest.json'} is not a manifest" in err
    assert "no manifest at" in run_main("--rerun", str(tmp_path / "none"))[2]


@pytest.mark.parametrize(("inside", "dots"), [("", "."), ("deeper", "..")])
def test_folders_named_by_dots_are_numbered_beside_themselves(inside, dots, result, run_main, tmp_path, monkeypatch):
    (result / inside).mkdir(exist_ok=True)
    monkeypatch.chdir(result / inside)
    code, out, err = run_main("--detection", "--output", dots, "model.w=2", *QUICK)
    assert code == 0 and f"results in {tmp_path / 'found-2'}" in out, err
    assert run_main("--rerun", dots)[0] == 0 and (tmp_path / "found-rerun" / "scores.csv").is_file()
    assert {path.name for path in tmp_path.glob("found*")} == {"found", "found-2", "found-rerun"} and not list(
        result.glob("deeper/*")
    )
