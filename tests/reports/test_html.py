"""The page of a run, without a browser: what is in it, how large it is, and that nothing in it is markup from a name."""

import base64
import hashlib
import json
import os
import re
import shutil

import numpy as np
import pytest
from result_pages import copied_gallery, write_folder, write_tables

import metrics
from reports import html
from reports.html import NAMES, write_page
from reports.metric_summary import POINTS, pro_curve, roc_curve, training_curve
from reports.reader import read_result
from reports.writer import Writer

SCORES = {
    "test/crack/000.png": (True, 0.9),
    "test/crack/001.png": (True, 2.5),
    "test/good/000.png": (False, 0.5),
    "test/good/001.png": (False, 1.3),
}
LARGEST = 15_000_000  # bytes of a page


def page_of(path, *folders):
    """The page's text, and what its two blocks of JSON hold: the categories and their pictures."""
    write_page(path, folders)
    text = path.read_text(encoding="utf-8")
    data, pictures = (
        json.loads(block)
        for block in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL)
    )
    return text, data, pictures


def many(count):
    """So many pictures, with scores that overlap."""
    rng = np.random.default_rng(0)
    return {
        f"test/{'crack' if number % 3 else 'good'}/{number:04}.png": (
            bool(number % 3),
            float(rng.normal(2.5 if number % 3 else 1, 0.5)),
        )
        for number in range(count)
    }


def test_the_page_stands_alone_and_lets_nothing_else_run(tmp_path):
    text, data, pictures = page_of(tmp_path / "report.html", write_folder(tmp_path / "bottle", SCORES, threshold=1.0))
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:|#)", text) and "@import" not in text and "url(" not in text
    assert re.findall(r"https?://[^\"' ]*", text) == ["http://www.w3.org/2000/svg"]  # a name, which nobody asks for
    policy = re.search(r'Content-Security-Policy"\s+content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    for kind in ("script", "style"):
        (content,) = re.findall(f"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        assert f"{kind}-src 'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'" in policy
    (category,) = data["categories"]
    assert [row["path"] for row in category["rows"]] == list(SCORES) and category["threshold"] == 1.0
    assert all(
        base64.b64decode(layer).startswith(b"RIFF") for layers in pictures[0].values() for layer in layers.values()
    )
    assert {place: list(layers) for place, layers in pictures[0].items()} == {
        **{place: ["picture", "reconstruction", "map", "outline"] for place in "01"},
        **{place: ["picture", "reconstruction", "map"] for place in "23"},
    }


def test_the_page_follows_from_the_folder_alone(tmp_path):
    folder = write_folder(tmp_path / "bottle", SCORES)
    first, again = (page_of(tmp_path / name, folder)[0] for name in ("one.html", "two.html"))
    moved = shutil.move(folder, tmp_path / "elsewhere" / "bottle")
    assert first == again == page_of(tmp_path / "three.html", moved)[0]


def test_figures_stand_beside_the_papers(tmp_path):
    folders = [
        write_folder(tmp_path / name, SCORES, data_set=data_set)
        for name, data_set in (("bottle", "mvtec"), ("own", "mine"), ("cable", "mine"))
    ]
    _, data, _ = page_of(tmp_path / "report.html", *folders)
    ours, own, cable = (category["figures"] for category in data["categories"])
    assert ours["head"] == ["", "this run", "95 % interval", "paper", "difference"]
    assert ours["lines"][0] == ["Image AUROC", "75.0", "50.0 – 100.0", "100.0", "−25.0"] and ours["lines"][1] == [
        "Pixel AUROC",
        "–",
        "–",
        "98.7",
        "–",
    ]
    assert own["head"] == cable["head"] == ["", "this run", "95 % interval"]  # cable is MVTec's, but not this one
    assert data["overview"]["lines"][0][:4] == ["bottle", "75.0", "100.0", "−25.0"] and data["overview"]["mean"][
        :4
    ] == ["mean", "75.0", "–", "–"]


def test_a_large_set_is_thinned_but_all_rows_stay(tmp_path):
    """2,000 pictures of noise: the wrong ones and those nearest the threshold are kept, and the page stays below its bound."""
    scores, writer = many(2000), Writer(tmp_path / "bottle")
    copied_gallery(writer, list(scores))
    write_tables(writer, scores, threshold=1.8)
    _, data, pictures = page_of(tmp_path / "report.html", tmp_path / "bottle")
    (category,) = data["categories"]
    assert (tmp_path / "report.html").stat().st_size < LARGEST
    assert (
        len(category["rows"]) == 2000
        and len(pictures[0]) == sum(row["size"] is not None for row in category["rows"]) > 50
    )
    wrong = [place for place, row in enumerate(category["rows"]) if (row["score"] > 1.8) != row["defective"]]
    shown = set(map(int, pictures[0]))
    assert shown <= set(wrong) if len(wrong) > len(shown) else shown >= set(wrong)
    distance = [abs(row["score"] - 1.8) for row in category["rows"]]
    rest = (
        [place for place in wrong if place not in shown]
        if len(wrong) > len(shown)
        else [p for p in range(2000) if p not in shown | set(wrong)]
    )
    assert min(distance[place] for place in rest) >= max(distance[place] for place in (shown - set(wrong) or shown))


def test_83_pictures_that_hardly_compress_are_all_there(tmp_path):
    scores, writer = many(83), Writer(tmp_path / "bottle")
    copied_gallery(writer, list(scores))
    write_tables(writer, scores, threshold=1.8)
    _, data, pictures = page_of(tmp_path / "report.html", tmp_path / "bottle")
    assert (
        len(pictures[0]) == 83
        and data["categories"][0]["note"] == ""
        and (tmp_path / "report.html").stat().st_size < LARGEST
    )


def test_categories_share_the_room(tmp_path, monkeypatch):
    folders = [write_folder(tmp_path / name, SCORES) for name in ("bottle", "cable")]
    sizes = [sum(file.stat().st_size for file in folder.rglob("*.webp")) for folder in folders]
    monkeypatch.setattr(html, "PICTURE_BYTES", sum(sizes) * 2 // 3)
    _, _, pictures = page_of(tmp_path / "report.html", *folders)
    assert [len(of) for of in pictures] in ([2, 2], [3, 2], [2, 3])


def test_names_end_no_element(tmp_path):
    hostile = {
        f"test/</script><b>&{'{{pictures}}'}/{name}.png": (True, 1.0)
        for name in ("'\"", "中", os.fsdecode(b"\xff\xfe"))
    }
    folder = write_folder(
        tmp_path / "x",
        {**hostile, "test/good/1.png": (False, 0.0)},
        category="<!--<script>",
        settings={"a": {"b": "</style>"}},
    )
    text, data, pictures = page_of(tmp_path / "report.html", folder)
    assert (
        len(re.findall("</script>", text)) == 3
        and len(re.findall("</style>", text)) == 1
        and "<b>" not in text
        and "<!--<script>" not in text
    )
    (category,) = data["categories"]
    assert [row["path"] for row in category["rows"]][:3] == [
        path.replace("\udcff\udcfe", "\\xff\\xfe") for path in hostile
    ]
    assert (
        category["name"] == "<!--<script>" and category["settings"] == [["a.b", "</style>"]] and len(pictures[0]) == 4
    )


def test_what_is_missing_leaves_a_word(tmp_path):
    for name, scores in (
        ("normal", {"test/good/1.png": (False, 1.0)}),
        ("defective", {"test/crack/1.png": (True, 1.0)}),
    ):
        writer = Writer(tmp_path / name)
        write_tables(writer, scores)
        _, data, pictures = page_of(tmp_path / "report.html", tmp_path / name)
        (category,) = data["categories"]
        assert (
            category["threshold"] == 1.0
            and "none can be taken" in category["source"]
            and "normal and defective" in category["figures"]["notes"][0]
        )
        assert (
            category["note"].startswith("There are no pictures, as metrics.visualisation was off")
            and pictures == [{}]
            and category["facts"] == []
        )
    (tmp_path / "normal" / "metrics.json").write_text("{")
    (tmp_path / "normal" / "curves.json").unlink()
    assert page_of(tmp_path / "report.html", tmp_path / "normal")[1]["categories"][0]["plots"][0]["lines"] == []
    figures = page_of(tmp_path / "report.html", write_folder(tmp_path / "own", SCORES))[1]["categories"][0]["figures"]
    assert any("no masks" in note for note in figures["notes"])


def test_pictures_of_an_earlier_run_are_not_shown(tmp_path):
    folder = write_folder(tmp_path / "bottle", SCORES)
    write_tables(Writer(folder), SCORES)  # the same again, without visualisation
    assert (folder / "gallery").is_dir() and page_of(tmp_path / "report.html", folder)[2] == [{}]


@pytest.mark.parametrize(
    "content, word",
    [(None, "no results at"), ("path,label,score\n", "holds no scores"), ("path,label,score\na,1\n", "picture 1 of")],
)
def test_scores_that_cannot_be_read_are_named(tmp_path, content, word):
    if content:
        (tmp_path / "scores.csv").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=f"{word}.*run --detection"):
        write_page(tmp_path / "report.html", [tmp_path])


def test_without_a_measured_threshold_it_starts_at_youdens(tmp_path):
    """On scores that tie and on those of one value apart, the rule score > start is the rule score ≥ Youden's threshold."""
    rng = np.random.default_rng(1)
    for number in range(20):
        scores = {
            f"test/{'good' if n % 2 else 'crack'}/{n}.png": (
                n % 2 == 0,
                round(float(rng.normal(n % 2 == 0, 1)), number % 3),
            )
            for n in range(12)
        }
        write_tables(Writer(tmp_path / str(number)), scores)
        start = read_result(tmp_path / str(number)).start
        values, labels = [score for _, score in scores.values()], [defective for defective, _ in scores.values()]
        best = metrics.youden_threshold(values, labels)
        assert [score > start.threshold for score in values] == [
            score >= best for score in values
        ] and "(Youden)" in start.source


def test_the_manifest_is_shown_as_far_as_it_goes(tmp_path):
    settings = {"data": {"image_size": 256}, "model": {"w": 3.0, "clip": None}}
    manifest = {
        "created": "2026-01-01",
        "seed": 1,
        "versions": {"python": "3.11", "torch": "2.9"},
        "peak_memory_bytes": 3 * 2**29,
        "seconds": {"detection": 12.3456789},
    }
    folder = write_folder(
        tmp_path / "bottle", SCORES, settings=settings, git_commit=None, metrics={"pro": 1}, **manifest
    )
    category = page_of(tmp_path / "report.html", folder)[1]["categories"][0]
    assert dict(category["facts"]) == {
        "created": "2026-01-01",
        "seed": "1",
        "versions": "python 3.11, torch 2.9",
        "peak memory": "1.50 GiB",
        "seconds": "detection 12.3457",
    }
    assert category["settings"] == [["data.image_size", "256"], ["model.w", "3"], ["model.clip", "–"]]


def test_detection_leaves_a_page(run_main, tmp_path):
    run_main("--train")
    code, said, _ = run_main("--detection", "metrics.resamples=0", "metrics.visualisation=True")
    folder = tmp_path / "results"
    assert code == 0 and f"page for a browser: {folder / 'report.html'}" in said and "gallery (21)" in said
    text, data, pictures = page_of(tmp_path / "again.html", folder)
    assert text == (folder / "report.html").read_text(encoding="utf-8")
    (category,) = data["categories"]
    figures = json.loads((folder / "metrics.json").read_text())
    assert [float(line[1]) for line in category["figures"]["lines"]] == [
        round(100 * figures[line], 1) for line in NAMES
    ]
    assert len(pictures[0]) == 6 and [len(plot["lines"]) for plot in category["plots"]] == [3, 1, 1]
    assert (
        category["plots"][2]["x"] == [1, 2]
        and category["plots"][1]["x"] == [0, 0.3]
        and category["plots"][1]["word"].startswith("PRO ")
    )
    scores = [row["score"] for row in category["rows"]]
    assert figures["operating_point"]["true_positives"] == sum(
        row["defective"] and row["score"] > category["threshold"] for row in category["rows"]
    )
    assert len(scores) == 6


def area(points):
    x, y = np.array(points).T
    return float(np.trapezoid(y, x)) if hasattr(np, "trapezoid") else float(np.trapz(y, x))


@pytest.mark.parametrize("digits", [0, 1, 6])
def test_the_areas_under_the_curves_are_the_figures(digits):
    """With ties by rounding; thinned curves are off by less than their steps."""
    rng = np.random.default_rng(digits)
    masks = np.zeros((6, 40, 40), bool)
    masks[0, 3:9, 5:20], masks[1, 20:22, 20:22], masks[1, 30:38, 2:9] = True, True, True
    maps = (rng.normal(size=masks.shape) + 1.5 * masks).round(digits)
    ranking = metrics.rank_anomalies(maps, masks)
    for points, figure, width in (
        (roc_curve(ranking), ranking.auroc(), 1),
        (pro_curve(ranking, 0.3), ranking.pro(0.3), 0.3),
        (pro_curve(ranking, 0.05), ranking.pro(0.05), 0.05),
    ):
        steps = np.diff(points, axis=0)
        assert len(points) <= POINTS + 2 and (steps >= 0).all() and points[-1][0] == pytest.approx(width)
        assert area(points) / width == pytest.approx(figure, abs=0.01 if len(points) > 100 else 1e-4)


def test_a_curve_of_few_points_is_exact():
    ranking = metrics.rank_anomalies([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
    assert roc_curve(ranking) == [[0, 0], [0, 0], [0, 0.5], [0.5, 0.5], [0.5, 1], [1, 1]]
    assert (
        training_curve([]) == []
        and len(training_curve([{"epoch": n, "loss": 1 / n} for n in range(1, 1000)])) == POINTS
    )
