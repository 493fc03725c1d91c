"""report.html without a browser: its content, its size, and that no name becomes markup."""

import base64
import hashlib
import json
import os
import re
import shutil

import numpy as np
from result_pages import copy_gallery, write_folder, write_tables

from reports import html
from reports.html import write_page
from reports.metric_summary import METRICS
from reports.writer import Writer

SCORES = {
    "test/crack/000.png": (True, 0.9),
    "test/crack/001.png": (True, 2.5),
    "test/good/000.png": (False, 0.5),
    "test/good/001.png": (False, 1.3),
}
MAX_PAGE_BYTES = 15_000_000


def page_of(path, *folders):
    """Write a page; return its text, its data and its pictures."""
    write_page(path, folders)
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL)
    data, pictures = map(json.loads, blocks)
    return text, data, pictures


def overlapping_scores(count):
    rng = np.random.default_rng(0)
    scores = {}
    for number in range(count):
        defective = bool(number % 3)
        score = float(rng.normal(2.5 if defective else 1, 0.5))
        scores[f"test/{'crack' if defective else 'good'}/{number:04}.png"] = (defective, score)
    return scores


def test_the_page_needs_no_other_file_and_runs_no_other_script(tmp_path):
    text, data, pictures = page_of(tmp_path / "report.html", write_folder(tmp_path / "bottle", SCORES, threshold=1.0))
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:|#)", text) and "@import" not in text and "url(" not in text
    assert re.findall(r"https?://[^\"' ]*", text) == ["http://www.w3.org/2000/svg"]  # a name that nothing requests
    policy = re.search(r'Content-Security-Policy"\s+content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    for kind in ("script", "style"):
        (content,) = re.findall(f"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        assert f"{kind}-src 'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'" in policy
    (category,) = data["categories"]
    assert [row["path"] for row in category["rows"]] == list(SCORES) and category["threshold"] == 1.0
    layers = ["picture", "reconstruction", "map"]
    assert {index: list(by_layer) for index, by_layer in pictures[0].items()} == {
        **{index: [*layers, "outline"] for index in "01"},
        **dict.fromkeys("23", layers),
    }
    for by_layer in pictures[0].values():
        assert all(base64.b64decode(layer).startswith(b"RIFF") for layer in by_layer.values())


def test_the_page_depends_on_the_folders_content_alone(tmp_path):
    folder = write_folder(tmp_path / "bottle", SCORES)
    first, second = (page_of(tmp_path / name, folder)[0] for name in ("one.html", "two.html"))
    moved = shutil.move(folder, tmp_path / "elsewhere" / "bottle")
    assert first == second == page_of(tmp_path / "three.html", moved)[0]


def test_metrics_stand_beside_the_papers(tmp_path):
    names = (("bottle", "mvtec"), ("own", "mine"), ("cable", "mine"))
    folders = [write_folder(tmp_path / name, SCORES, data_set=data_set) for name, data_set in names]
    _, data, _ = page_of(tmp_path / "report.html", *folders)
    bottle, own, cable = (category["metrics"] for category in data["categories"])
    assert bottle["head"] == ["", "this run", "95 % interval", "paper", "difference"]
    assert bottle["lines"][0] == ["Image AUROC", "75.0", "50.0 – 100.0", "100.0", "−25.0"]
    assert bottle["lines"][1] == ["Pixel AUROC", "–", "–", "98.7", "–"]
    assert own["head"] == cable["head"] == ["", "this run", "95 % interval"]  # this cable is not the one of MVTec AD
    assert data["overview"]["lines"][0][:4] == ["bottle", "75.0", "100.0", "−25.0"]
    assert data["overview"]["mean"][:4] == ["mean", "75.0", "–", "–"]


def test_a_large_set_keeps_all_rows_and_the_most_informative_pictures(tmp_path):
    scores, writer = overlapping_scores(2000), Writer(tmp_path / "bottle")
    copy_gallery(writer, list(scores))
    write_tables(writer, scores, threshold=1.8)
    _, data, pictures = page_of(tmp_path / "report.html", tmp_path / "bottle")
    rows, shown = data["categories"][0]["rows"], set(map(int, pictures[0]))
    assert (tmp_path / "report.html").stat().st_size < MAX_PAGE_BYTES
    assert len(rows) == 2000 and len(shown) == sum(row["size"] is not None for row in rows) > 50
    errors = {index for index, row in enumerate(rows) if (row["score"] > 1.8) != row["defective"]}
    assert shown <= errors or shown >= errors
    left_out = (errors if shown < errors else set(range(2000))) - shown
    distance = [abs(row["score"] - 1.8) for row in rows]
    nearest_last = max(distance[index] for index in (shown - errors or shown))
    assert min(distance[index] for index in left_out) >= nearest_last


def test_a_page_has_room_for_83_pictures_that_hardly_compress(tmp_path):
    scores, writer = overlapping_scores(83), Writer(tmp_path / "bottle")
    copy_gallery(writer, list(scores))
    write_tables(writer, scores, threshold=1.8)
    _, data, pictures = page_of(tmp_path / "report.html", tmp_path / "bottle")
    assert len(pictures[0]) == 83 and data["categories"][0]["note"] == ""
    assert (tmp_path / "report.html").stat().st_size < MAX_PAGE_BYTES


def test_categories_share_the_room_for_pictures(tmp_path, monkeypatch):
    folders = [write_folder(tmp_path / name, SCORES) for name in ("bottle", "cable")]
    sizes = [sum(file.stat().st_size for file in folder.rglob("*.webp")) for folder in folders]
    monkeypatch.setattr(html, "PICTURE_BYTES", sum(sizes) * 2 // 3)
    _, _, pictures = page_of(tmp_path / "report.html", *folders)
    assert [len(by_row) for by_row in pictures] in ([2, 2], [3, 2], [2, 3])


def test_a_hostile_name_ends_no_element(tmp_path):
    names = ("'\"", "中", os.fsdecode(b"\xff\xfe"))
    hostile = {f"test/</script><b>&{'{{pictures}}'}/{name}.png": (True, 1.0) for name in names}
    scores = {**hostile, "test/good/1.png": (False, 0.0)}
    settings = {"a": {"b": "</style>"}}
    folder = write_folder(tmp_path / "x", scores, category="<!--<script>", settings=settings)
    text, data, pictures = page_of(tmp_path / "report.html", folder)
    assert text.count("</script>") == 3 and text.count("</style>") == 1
    assert "<b>" not in text and "<!--<script>" not in text
    (category,) = data["categories"]
    paths = [path.replace("\udcff\udcfe", "\\xff\\xfe") for path in hostile]
    assert [row["path"] for row in category["rows"]][:3] == paths and len(pictures[0]) == 4
    assert category["name"] == "<!--<script>" and category["settings"] == [["a.b", "</style>"]]


def test_the_page_says_what_is_missing(tmp_path):
    for name, path, defective in (("normal", "test/good/1.png", False), ("defective", "test/crack/1.png", True)):
        write_tables(Writer(tmp_path / name), {path: (defective, 1.0)})
        _, data, pictures = page_of(tmp_path / "report.html", tmp_path / name)
        (category,) = data["categories"]
        assert category["threshold"] == 1.0 and "cannot give one" in category["source"]
        assert "normal and defective" in category["metrics"]["notes"][0] and category["facts"] == []
        assert "metrics.visualisation was off" in category["note"] and pictures == [{}]
    (tmp_path / "normal" / "metrics.json").write_text("{")
    (tmp_path / "normal" / "curves.json").unlink()
    assert page_of(tmp_path / "report.html", tmp_path / "normal")[1]["categories"][0]["plots"][0]["lines"] == []
    _, data, _ = page_of(tmp_path / "report.html", write_folder(tmp_path / "own", SCORES))
    assert any("no masks" in note for note in data["categories"][0]["metrics"]["notes"])


def test_pictures_of_an_earlier_run_are_not_shown(tmp_path):
    folder = write_folder(tmp_path / "bottle", SCORES)
    write_tables(Writer(folder), SCORES)  # a second run, without visualisation
    assert (folder / "gallery").is_dir() and page_of(tmp_path / "report.html", folder)[2] == [{}]


def test_the_page_shows_what_the_manifest_holds(tmp_path):
    settings = {"data": {"image_size": 256}, "model": {"w": 3.0, "clip": None}}
    manifest = {
        "created": "2026-01-01",
        "seed": 1,
        "versions": {"python": "3.11", "torch": "2.9"},
        "peak_memory_bytes": 3 * 2**29,
        "seconds": {"detection": 12.3456789},
    }
    missing = {"git_commit": None, "metrics": {"pro": 1}}
    folder = write_folder(tmp_path / "bottle", SCORES, settings=settings, **missing, **manifest)
    category = page_of(tmp_path / "report.html", folder)[1]["categories"][0]
    assert dict(category["facts"]) == {
        "created": "2026-01-01",
        "seed": "1",
        "versions": "python 3.11, torch 2.9",
        "peak memory": "1.50 GiB",
        "seconds": "detection 12.3457",
    }
    assert category["settings"] == [["data.image_size", "256"], ["model.w", "3"], ["model.clip", "–"]]


def test_detection_writes_a_page(run_main, tmp_path):
    run_main("--train")
    code, out, _ = run_main("--detection", "metrics.resamples=0", "metrics.visualisation=True")
    folder = tmp_path / "results"
    assert code == 0 and f"page for a browser: {folder / 'report.html'}" in out and "gallery (21)" in out
    text, data, pictures = page_of(tmp_path / "again.html", folder)
    assert text == (folder / "report.html").read_text(encoding="utf-8")
    (category,) = data["categories"]
    stored = json.loads((folder / "metrics.json").read_text())
    values = [float(line[1]) for line in category["metrics"]["lines"]]
    assert values == [round(100 * stored[metric.key], 1) for metric in METRICS]
    assert len(category["rows"]) == len(pictures[0]) == 6
    roc, pro, training = category["plots"]
    assert [len(plot["lines"]) for plot in (roc, pro, training)] == [3, 1, 1]
    assert training["x"] == [1, 2] and pro["x"] == [0, 0.3] and pro["text"].startswith("PRO ")
    found = sum(row["defective"] and row["score"] > category["threshold"] for row in category["rows"])
    assert stored["operating_point"]["true_positives"] == found
