import numpy as np
from PIL import Image

from commands.paper_figure import FigureRow, choose_pictures, draw_rows, figure_paths
from reports.reader import ScoredPicture


def test_best_worst_and_named_pictures_are_chosen():
    defective = {"test/a/1": 3.0, "test/a/2": 5.0, "test/b/1": 4.0, "test/b/2": 1.0}
    normal = {"test/good/1": 2.0, "test/good/2": 0.5}
    scores = [ScoredPicture(name, name in defective, score, None) for name, score in (defective | normal).items()]
    assert choose_pictures(scores, ["best"]) == ["test/a/2", "test/b/1"]
    assert choose_pictures(scores, ["worst"]) == ["test/b/2", "test/good/1"]
    assert choose_pictures(scores, ["test/a/1", "best", "test/a/2", "none"]) == ["test/a/1", "test/a/2", "test/b/1"]
    assert choose_pictures(scores[-2:-1], ["best", "worst"]) == ["test/good/1"]


def test_a_figure_is_drawn_for_print(run_main, tmp_path, category):
    results = tmp_path / "results"
    run_main("--train", "--detection", "model.epochs=1", "metrics.resamples=0")
    code, out, err = run_main(
        "--figure",
        str(results),
        "--choose",
        "best",
        "--choose",
        "test/good/001.png",
        "--output",
        str(tmp_path / "a figure"),
    )
    assert code == 0 and "3 pictures in" in out
    picture = Image.open(tmp_path / "a figure.png")
    assert (
        picture.width == 2100
        and picture.info["dpi"][0] > 299
        and (tmp_path / "a figure.pdf").read_bytes().startswith(b"%PDF")
    )
    pixels = np.asarray(picture.convert("L"))
    truth = pixels[66 + 20 : 66 + 400, -450:-50]
    assert (truth > 250).any() and (truth < 5).any()  # the mask of the first one
    assert (pixels[-400:-30, -450:-50] < 5).all()  # a normal picture has none
    code, _, err = run_main("--figure", str(results), "--choose", "best", "--choose", "none.png")
    assert code == 2 and "has a picture called none.png" in err
    assert (
        run_main("--figure", str(results / "manifest.json"), "--choose", "test/good/001.png")[0] == 0
        and (results / "figure.pdf").is_file()
    )

    code, out, _ = run_main("--train", "model.epochs=1", "model.seed=1")
    code, _, err = run_main("--figure", str(results))
    assert code == 2 and "are not those of" in err


def test_a_figure_gets_one_path_for_each_format(tmp_path):
    def names(output):
        return [path.relative_to(tmp_path).as_posix() for path in figure_paths(output, tmp_path / "result")]

    assert names(None) == ["result/figure.png", "result/figure.pdf"]
    assert names(tmp_path / "a.pdf") == names(tmp_path / "a") == ["a.png", "a.pdf"] and names(tmp_path / "a.v2") == [
        "a.v2.png",
        "a.v2.pdf",
    ]
    (tmp_path / "there").mkdir()
    assert names(tmp_path / "there") == ["there/figure.png", "there/figure.pdf"]


def test_names_in_a_figure_are_text():
    cells = [np.zeros((20, 30, 3), np.uint8)] * 4
    drawn = draw_rows([FigureRow("$x^2_\\frac\nクラック", cells)])
    assert [text.get_text() for text in drawn.texts][-1] == "$x^2_\\frac\nクラック"
    drawn.canvas.draw()
