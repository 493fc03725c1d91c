"""--export: from settings or from a checkpoint folder into one file."""

import pytest

from detection import Detector


def test_a_trained_detector_becomes_one_file(run_main, trained, category, tmp_path):
    """It is calibrated first if need be; a checkpoint folder gives the same."""
    path, again = tmp_path / "nut.ddad", tmp_path / "again.ddad"
    code, out, _ = run_main("--export", str(path), "calibration.false_positive_rate=0.4", "score.noise=seed")
    assert code == 0 and "calibration is to be measured" in out and f"{path}: " in out and " MB" in out
    detector, picture = Detector.load(path), category / "test" / "crack" / "000.png"
    assert detector.false_positive_rate == 0.4
    code, out, _ = run_main("--export", str(again), "--checkpoint", str(trained / "nut"))
    assert code == 0 and "calibration is to be measured" not in out
    assert Detector.load(again)(picture).score == detector(picture).score


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nut.zip",), "--export is nut.zip; its ending should be .onnx or .ddad"),
        (("nut.ddad", "score.protocol=published"), "set score.protocol=per_image for --export"),
        (("nut.ddad", "--checkpoint", "nowhere"), "no calibration.json of this version in nowhere"),
        (("nut.ddad", "--checkpoint", "nut", "model.w=3"), "--checkpoint nut has its own settings; remove model.w=3"),
        (("nut.ddad", "--output", "here"), "--export does not use --output here; remove it"),
        (("nut.ddad", "data.category=[nut, bolt]"), "--export takes one category"),
    ],
)
def test_what_cannot_be_exported_is_refused(run_main, trained, arguments, message):
    code, _, err = run_main("--export", *arguments)
    assert code == 2 and message in err
