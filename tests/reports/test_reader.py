import numpy as np
import pytest
from result_pages import write_tables

import metrics
from reports.reader import read_result
from reports.writer import Writer


@pytest.mark.parametrize(
    "content, message",
    [(None, "no results at"), ("path,label,score\n", "holds no scores"), ("path,label,score\na,1\n", "row 1 of")],
)
def test_missing_or_damaged_scores_are_an_error_message(tmp_path, content, message):
    if content:
        (tmp_path / "scores.csv").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=f"{message}.*run --detection"):
        read_result(tmp_path)


def test_the_first_threshold_without_a_calibration_is_youdens(tmp_path):
    """The rule score > threshold equals the rule score ≥ Youden's threshold, with and without ties."""
    rng = np.random.default_rng(1)
    for number in range(20):
        scores = {}
        for n in range(12):
            defective = n % 2 == 0
            score = round(float(rng.normal(defective, 1)), number % 3)
            scores[f"test/{'crack' if defective else 'good'}/{n}.png"] = (defective, score)
        write_tables(Writer(tmp_path / str(number)), scores)
        result = read_result(tmp_path / str(number))
        values, labels = [score for _, score in scores.values()], [defective for defective, _ in scores.values()]
        best = metrics.youden_threshold(values, labels)
        assert [score > result.threshold for score in values] == [score >= best for score in values]
        assert "(Youden)" in result.source


def test_other_damaged_files_are_left_out(tmp_path):
    write_tables(Writer(tmp_path), {"test/good/1.png": (False, 1.0), "test/crack/1.png": (True, 2.0)})
    (tmp_path / "metrics.json").write_text('{"image_auroc": "high"}')
    (tmp_path / "curves.json").write_text("[")
    (tmp_path / "manifest.json").write_text("[]")
    result = read_result(tmp_path)
    assert len(result.rows) == 2 and result.name == tmp_path.name
    assert not result.summary.values and not result.curves and not result.manifest
