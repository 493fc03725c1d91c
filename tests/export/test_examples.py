"""The examples judge pictures as the detector does, without it; the web page does in a real browser, from files."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from exported import random_pictures
from PIL import Image

pytest.importorskip("onnxscript", reason="onnxscript is missing; python -m pip install -r requirements-export.txt")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is missing; install requirements-export.txt")

EXAMPLES = Path(__file__).parents[2] / "examples"
RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


def load_example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_folder_is_judged_without_this_repository(exported, tmp_path):
    detector, path, pictures = exported
    folder = shutil.copytree(pictures, tmp_path / "pictures")
    command = [sys.executable, str(EXAMPLES / "judge_folder.py"), str(path), str(folder)]
    lines = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.splitlines()
    for line, picture in zip(lines, sorted(pictures.iterdir()), strict=True):
        found = detector(picture)
        verdict = "anomalous" if found.is_anomalous else "normal"
        said, score, _ = line.partition(": ")[2].split(", ")
        assert f"{picture.name}: " in line and said == verdict
        assert float(score.removeprefix("score ")) == pytest.approx(found.score, abs=1e-3)
        heat = np.asarray(Image.open(folder / f"{picture.stem}_heat.png"))
        expected = (255 * found.map / (2 * detector.threshold)).clip(0, 255)
        np.testing.assert_allclose(heat, expected, atol=1.1)


class Camera:
    """Two frames, as OpenCV's VideoCapture gives them."""

    def __init__(self, frames):
        self.frames = iter(frames)

    def read(self):
        frame = next(self.frames, None)
        return frame is not None, frame


def test_frames_are_judged_in_the_colours_of_opencv(exported):
    detector, path, _ = exported
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    frames = random_pictures((32, 32), (48, 60))
    judged = list(load_example("camera").judge_frames(session, Camera(frames)))
    assert len(judged) == len(frames)
    for frame, score, is_anomalous, heat in judged:
        found = detector(frame, channels="bgr")
        assert score == pytest.approx(found.score, rel=1e-4) and is_anomalous == found.is_anomalous
        np.testing.assert_array_equal(heat[..., :2], frame[..., :2])
        assert (heat[..., 2] >= frame[..., 2]).all()


def test_a_web_page_judges_pictures_without_a_server(exported):
    """ORT_WEB names the folder dist of the npm package onnxruntime-web."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is missing; install requirements-dev.txt"
    )
    runtime = [Path(os.environ.get("ORT_WEB", "")) / name for name in RUNTIME]
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not (browser and all(file.is_file() for file in runtime)):
        pytest.skip("no chromium, or ORT_WEB does not name the folder dist of the npm package onnxruntime-web")
    detector, path, pictures = exported
    with playwright.sync_playwright() as driver:
        page = driver.chromium.launch(executable_path=browser, args=FLAGS).new_page()
        page.goto((EXAMPLES / "web" / "index.html").as_uri())
        page.set_input_files("#files", [*map(str, runtime), str(path), *map(str, sorted(pictures.iterdir()))])
        page.wait_for_function("document.querySelectorAll('figcaption').length == 2", timeout=120_000)
        captions = page.locator("figcaption").all_inner_texts()[::-1]  # the last picture comes first
        for caption, picture in zip(captions, sorted(pictures.iterdir()), strict=True):
            found = detector(picture)
            assert caption.startswith(f"{picture.name}: {'anomalous' if found.is_anomalous else 'normal'}")
            assert float(caption.split("score ")[1].split(",")[0]) == pytest.approx(found.score, abs=1e-3)
        page.locator("#threshold").evaluate("(node) => { node.value = 0; node.dispatchEvent(new Event('input')); }")
        assert page.locator("figure.anomalous").count() == 2
        assert float(page.locator("#value").inner_text()) == 0
