import csv
import io
import json

import pytest

import main
from reports import tables
from reports.manifest import FORMAT
from reports.tables import Outcome, summary_rows, write_summary


def write_result(folder, category="bottle", data_set="MVTec", w=3.0, **metrics):
    """Write a results folder that holds only a manifest."""
    folder.mkdir(parents=True)
    content = {
        "format": FORMAT,
        "category": category,
        "data_set": data_set,
        "settings": {"model": {"w": w, "v": 1.0, "epochs": 1000, "DA_chp": 0}, "data": {"image_size": 256}},
        "versions": {},
        "data": {},
        "metrics": metrics,
    }
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def outcomes(tmp_path):
    return [
        Outcome("bottle", write_result(tmp_path / "bottle", image_auroc=1.0, pixel_auroc=0.98, pro=0.9)),
        Outcome("own", write_result(tmp_path / "own", "own", image_auroc=0.5, pixel_auroc=0.5)),
        Outcome("carpet", write_result(tmp_path / "carpet", "carpet", image_auroc=0.95, pixel_auroc=0.9, pro=0.8)),
        Outcome("grid", None, "no pictures in grid/train/good"),
    ]


def test_a_summary_follows_the_papers_order_beside_its_metrics(outcomes):
    rows = [row.as_dict() for row in summary_rows(outcomes)]
    assert [row["category"] for row in rows] == ["carpet", "grid", "bottle", "own", "mean"]
    _, grid, bottle, own, mean = rows
    assert (bottle["pro"], bottle["pro_published"], bottle["pro_difference"], bottle["w"]) == (90.0, 91.8, -1.8, 3.0)
    assert own["image_auroc_published"] is None and own["pro"] is None and grid["error"] and grid["image_auroc"] is None
    assert mean["image_auroc"] == pytest.approx((100 + 50 + 95) / 3, abs=1e-4)
    assert mean["pro"] is None and mean["image_auroc_published"] is None
    complete = summary_rows([outcomes[0], outcomes[2]])[-1].percentages
    assert complete["image_auroc_published"] == pytest.approx((100 + 99.3) / 2)
    assert complete["image_auroc_difference"] == pytest.approx(-2.15)


def test_a_summary_has_four_forms(outcomes, tmp_path):
    printed = write_summary(tmp_path, outcomes)
    lines = printed.splitlines()
    assert lines[0].split()[:6] == ["category", "image", "AUROC", "paper", "diff", "pixel"]
    assert next(line for line in lines if line.startswith("bottle")).split() == [
        *("bottle", "100.0", "100.0", "+0.0", "98.0", "98.7", "-0.7", "90.0", "91.8", "-1.8"),
        *("3", "1", "1000", "0", "256"),
    ]
    assert "grid" in printed and "failed" in printed
    rows = list(csv.DictReader(io.StringIO((tmp_path / "summary.csv").read_text())))
    assert rows[2]["pixel_auroc_difference"] == "-0.7" and rows[1]["error"] == "no pictures in grid/train/good"
    assert json.loads((tmp_path / "summary.json").read_text())["rows"][2]["pixel_auroc"] == 98.0
    assert (tmp_path / "summary.md").read_text().count("\n") == 7
    assert r"\toprule" in (tmp_path / "summary.tex").read_text()


def test_names_are_text_in_every_form(tmp_path):
    name = r"<script>alert('x')</script> a|b \input{x} $1 50% ünï"
    write_summary(tmp_path, [Outcome(name, write_result(tmp_path / "odd", name, image_auroc=0.5))])
    markdown, latex = ((tmp_path / f"summary.{ending}").read_text(encoding="utf-8") for ending in ("md", "tex"))
    assert "<script" not in markdown and r"a\|b" in markdown and "ünï" in markdown
    assert "\\input" not in latex and r"\$1 50\%" in latex and "ünï" in latex


def test_the_papers_table(capsys):
    assert main.main(["--table", "visa"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["category", "image"] and len(lines) == 2 + 12 + 1
    assert lines[-1].split() == ["mean", "98.9", "97.6", "92.7"] and "0.01" in lines[2]
    assert main.main(["--table", "MVTek"]) == 2 and "did you mean MVTec?" in capsys.readouterr().err


def test_runs_stand_side_by_side(tmp_path, capsys):
    intervals = {"image_auroc": [0.95, 1.0], "image_ap": [0.8, 1]}
    first = write_result(tmp_path / "a" / "bottle", image_auroc=0.98, image_ap=0.9, intervals=intervals)
    intervals = {"image_auroc": [0.96, 1.0]}
    second = write_result(tmp_path / "b" / "bottle", w=4.0, image_auroc=0.99, intervals=intervals)
    write_result(tmp_path / "b" / "own", "own", image_auroc=0.5)
    assert main.main(["--compare", str(first), str(second), str(tmp_path / "b")]) == 0
    out = capsys.readouterr().out
    assert f"A: {first}" in out and f"C: {tmp_path / 'b'}" in out
    assert "bottle, A and B:\n  model.w was 3.0, is 4.0" in out
    rows = [line.split("  ") for line in out.splitlines() if line.startswith(("bottle  ", "own  "))]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert cells == [
        ["bottle", "image_auroc", "98.0 [95.0, 100.0]", "99.0 [96.0, 100.0]", "99.0 [96.0, 100.0]"],
        ["bottle", "image_ap", "90.0 [80.0, 100.0]", "–", "–"],
        ["own", "image_auroc", "–", "–", "50.0"],
    ]
    assert main.main(["--compare", str(tmp_path / "none")]) == 2 and "no manifest.json in" in capsys.readouterr().err


def test_two_results_of_one_category_in_a_folder_have_their_folders_names(tmp_path):
    write_result(tmp_path / "bottle")
    write_result(tmp_path / "bottle-2")
    assert list(tables.results_in(tmp_path)) == ["bottle", "bottle-2"]
