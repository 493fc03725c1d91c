"""report.html in a real browser; skipped where none is installed."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from result_pages import WARNING, write_folder

import metrics
from reports.html import write_page

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install -r requirements-dev.txt"
)

FLAGS = [  # no sandbox in containers, no requests of the browser itself
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SCORES = {
    **{f"test/crack/{n:03}.png": (True, score) for n, score in enumerate((0.9, 1.2, 1.9, 2.4, 3.1))},
    **{f"test/good/{n:03}.png": (False, score) for n, score in enumerate((0.5, 0.7, 0.8, 1.3))},
    **{f"test/scratch/{n:03}.png": (True, score) for n, score in enumerate((1.1, 1.3, 4.2))},
}
THRESHOLD = 1.15  # misses crack/000 and scratch/000; good/003 is a false alarm
# Returns the lowest contrast of a text with its background (WCAG 2), and the element that has it
CONTRAST = """() => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const [r, g, b, alpha = 1] = channels(getComputedStyle(node).backgroundColor);
      if (alpha) return [r, g, b];
    }
  };
  const worst = [21, ""];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === Node.TEXT_NODE && child.data.trim());
    if (!own || !node.checkVisibility() || node.closest("script, noscript, .visually-hidden")) continue;
    const style = getComputedStyle(node), letters = channels(node.closest("svg") ? style.fill : style.color);
    const both = [light(letters), light(ground(node))].sort((a, b) => a - b);
    const ratio = (both[1] + 0.05) / (both[0] + 0.05);
    if (ratio < worst[0]) worst.splice(0, 2, ratio, node.outerHTML.slice(0, 80));
  }
  return worst;
}"""


FOCUSED = "document.activeElement.id || document.activeElement.className || document.activeElement.tagName"


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright.sync_playwright() as driver:
        path = path or driver.chromium.executable_path
        if not Path(path).exists():
            pytest.skip(f"no browser: looked for {', '.join(BROWSERS)} in PATH and for playwright's own")
        try:
            chromium = driver.chromium.launch(executable_path=path, args=FLAGS)
        except playwright.Error as error:
            pytest.skip(f"{path} does not start: {str(error).splitlines()[0]}")
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(
        tmp_path_factory.mktemp("page") / "bottle",
        SCORES,
        threshold=THRESHOLD,
        data_set="MVTec",
        category="bottle",
        seed=3,
    )


@pytest.fixture
def open_page(browser, tmp_path):
    """Return open_page(*folders, width=…) → page. A page must write nothing to the console and request nothing."""
    contexts, messages, urls = [], [], []

    def open_report(*folders, width=1400, **options):
        path = tmp_path / "report.html"
        write_page(path, folders)
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: urls.append(request.url))
        page.goto(path.as_uri())
        return page

    yield open_report
    for context in contexts:
        context.close()
    assert messages == []
    assert {url for url in urls if not url.startswith("data:")} <= {(tmp_path / "report.html").as_uri()}


def counts_of(page):
    numbers = dict(
        zip(page.locator("#counts dt").all_inner_texts(), page.locator("#counts dd").all_inner_texts(), strict=True)
    )
    return {name: number if "%" in number or number == "–" else int(number) for name, number in numbers.items()}


def expected_counts(point):
    rates = {"recall": point.recall, "precision": point.precision, "FPR": point.false_positive_rate}
    shares = {name: "–" if rate is None else f"{100 * rate:.1f} %" for name, rate in rates.items()}
    return {
        "TP": point.true_positives,
        "FN": point.false_negatives,
        "FP": point.false_positives,
        "TN": point.true_negatives,
        **shares,
    }


def shown_names(page):
    return page.locator("#gallery .caption:nth-last-child(2) bdi").all_text_contents()


def move_slider(page, position):
    page.locator("#slider").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", position
    )


def wait_until(condition):
    """Wait up to 5 s for a condition; the page's policy forbids the script by which playwright waits."""
    for _ in range(100):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("the condition did not hold within 5 s")


def opacity(page):
    return float(page.locator("#stage img").nth(1).evaluate("picture => getComputedStyle(picture).opacity"))


def test_counts_and_verdicts_follow_the_threshold(folder, open_page):
    page = open_page(folder)
    scores, labels = [score for _, score in SCORES.values()], [defective for defective, _ in SCORES.values()]

    def check_verdicts():
        threshold = float(page.locator("#threshold").input_value())
        assert counts_of(page) == expected_counts(metrics.operating_point(scores, labels, threshold))
        verdicts = dict(zip(shown_names(page), page.locator("#gallery .verdict").all_text_contents(), strict=True))
        names = {(True, True): "found", (True, False): "missed", (False, True): "false alarm", (False, False): "passed"}
        assert verdicts == {
            path.removeprefix("test/"): names[defective, score > threshold]
            for path, (defective, score) in SCORES.items()
        }
        mark, width = float(page.locator("#mark").get_attribute("x1")), page.locator("#slider").bounding_box()["width"]
        assert mark == pytest.approx(
            10 + (width - 20) * float(page.locator("#slider").input_value()) / 1000, abs=2
        )  # above the slider's thumb
        return threshold

    assert check_verdicts() == THRESHOLD
    stored = json.loads((folder / "metrics.json").read_text())["operating_point"]
    assert counts_of(page) == expected_counts(metrics.OperatingPoint(**stored))
    for position in (0, 90, 333, 500, 871, 1000):
        move_slider(page, position)
        check_verdicts()
    assert counts_of(page)["TP"] == counts_of(page)["FP"] == 0
    page.locator("#reset").click()
    for key in ("ArrowRight", "PageUp", "Home"):
        page.locator("#slider").press(key)
        check_verdicts()
    assert counts_of(page)["TN"] == counts_of(page)["FN"] == 0
    page.locator("#threshold").fill("1.3")
    page.locator("#threshold").press("Enter")
    assert check_verdicts() == 1.3 and counts_of(page)["FP"] == 0  # a score at the threshold is normal
    page.locator("#lower").click()
    assert check_verdicts() == 1.2 and counts_of(page)["FP"] == 1
    page.locator("#higher").click()
    assert check_verdicts() == 1.3


def test_filters_and_orders_show_the_right_pictures(folder, open_page):
    page = open_page(folder)
    assert shown_names(page)[:3] == [
        "crack/000.png",
        "scratch/000.png",
        "good/003.png",
    ]  # errors first, the worst one first
    page.locator("#order").select_option("high")
    assert shown_names(page) == [
        path.removeprefix("test/") for path in sorted(SCORES, key=lambda path: -SCORES[path][1])
    ]
    page.locator("#order").select_option("low")
    assert shown_names(page)[:2] == ["good/000.png", "good/001.png"]
    page.locator("#order").select_option("name")
    assert shown_names(page) == [path.removeprefix("test/") for path in SCORES]
    page.locator("#kind").select_option(label="scratch")
    assert shown_names(page) == ["scratch/000.png", "scratch/001.png", "scratch/002.png"]
    page.get_by_role("radio", name="missed").check()
    assert shown_names(page) == ["scratch/000.png"] and page.locator("#shown").inner_text() == "1 of 12 shown"
    page.locator("#kind").select_option(label="all")
    assert shown_names(page) == ["crack/000.png", "scratch/000.png"]
    page.get_by_role("radio", name="false alarm").check()
    assert shown_names(page) == ["good/003.png"]
    page.get_by_role("radio", name="correct").check()
    assert len(shown_names(page)) == 9
    page.locator("#threshold").fill("1.25")
    page.locator("#threshold").press("Enter")  # misses crack/001 too
    assert len(shown_names(page)) == 8 and "crack/001.png" not in shown_names(page)


def test_a_picture_is_compared_by_blending_and_blinking(folder, open_page):
    page = open_page(folder)
    assert not page.locator("#dialog").is_visible()
    page.locator("#gallery button").first.click()
    assert (
        page.locator("#dialog-title").inner_text() == "crack/000.png"
        and "missed" in page.locator("#dialog-facts").inner_text()
    )
    assert page.locator("#stage img").evaluate_all("images => images.map(image => image.alt)") == [
        "picture",
        "reconstruction",
        "ground-truth outline",
    ]
    wait_until(
        lambda: (
            page.locator("#stage img").first.evaluate("image => [image.naturalWidth, image.naturalHeight]")
            == [256, 171]
        )
    )
    assert opacity(page) == 0
    for percent in (0, 30, 100):
        page.locator("#blend").fill(str(percent))
        assert opacity(page) == percent / 100
    page.locator("#over").select_option("map")
    assert page.locator("#stage img").nth(1).get_attribute("alt").startswith("anomaly map") and opacity(page) == 1
    page.keyboard.press("Tab")
    page.locator("#blink").click()
    assert page.locator("#blink").get_attribute("aria-pressed") == "true"
    for expected in (1, 0, 1):
        wait_until(lambda expected=expected: opacity(page) == expected)
    page.locator("#blink").click()
    resting = opacity(page)
    page.wait_for_timeout(800)
    assert opacity(page) == resting and page.locator("#blink").get_attribute("aria-pressed") == "false"
    page.locator("#dialog-outline").uncheck()
    assert not page.locator("#stage .outline").is_visible()
    page.locator("#close").click()
    assert not page.locator("#dialog").is_visible() and not page.locator("#gallery .outline").first.is_visible()


def test_a_row_of_the_operating_table_sets_its_threshold(folder, open_page):
    page = open_page(folder)
    assert page.locator("#warnings").inner_text() == WARNING  # as text, whatever it holds
    lines = page.locator("#operating tbody tr").all_inner_texts()
    assert [line.split("\t")[0] for line in lines] == ["* 1 %", "10 %"]
    page.locator("#operating button").nth(1).click()
    assert float(page.locator("#threshold").input_value()) == pytest.approx(THRESHOLD - 0.1)
    counts = counts_of(page)
    assert f"{counts['FP']} of 4" in lines[1] and f"{counts['TP']} of 8" in lines[1]


def test_nothing_blinks_with_reduced_motion(folder, open_page):
    page = open_page(folder, reduced_motion="reduce")
    page.locator("#gallery button").first.click()
    page.locator("#blend").fill("0")
    page.locator("#blink").click()
    assert opacity(page) == 1
    page.wait_for_timeout(800)
    assert opacity(page) == 1
    page.keyboard.press("b")
    assert opacity(page) == 0


def test_the_keyboard_reaches_every_control(folder, open_page):
    page = open_page(folder)
    reached = []
    for _ in range(14):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(FOCUSED))
    first = ["visually-hidden", "rate", "rate", "slider", "threshold", "lower", "higher"]
    assert reached[:7] == first and reached[8:] == ["INPUT", "kind", "order", "outline", "card wrong", "BODY"]


def test_the_keyboard_works_in_gallery_and_dialog(folder, open_page):
    page = open_page(folder)
    page.locator("#gallery button").first.focus()
    for key, index in (
        ("ArrowRight", 1),
        ("ArrowDown", 5),
        ("ArrowUp", 1),
        ("ArrowLeft", 0),
        ("ArrowLeft", 0),
        ("End", 11),
        ("Home", 0),
        ("ArrowRight", 1),
    ):
        page.keyboard.press(key)
        assert (
            page.evaluate("[...document.querySelectorAll('#gallery button')].indexOf(document.activeElement)") == index
        )
    page.keyboard.press("Enter")
    assert page.locator("#dialog-title").inner_text() == "scratch/000.png" and page.evaluate(FOCUSED) == "next"
    page.keyboard.press("ArrowRight")
    assert page.locator("#dialog-title").inner_text() == "good/003.png" and page.locator("#stage img").count() == 2
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert page.locator("#dialog-facts").inner_text().startswith("12 of 12")
    for _ in range(12):
        page.keyboard.press("Tab")
        assert page.evaluate(
            "[document.body, ...document.querySelectorAll('#dialog, #dialog *')].includes(document.activeElement)"
        )
    page.keyboard.press("Escape")
    assert not page.locator("#dialog").is_visible()
    wait_until(
        lambda: page.evaluate("[...document.querySelectorAll('#gallery button')].indexOf(document.activeElement)") == 11
    )


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_the_window_and_has_enough_contrast(folder, tmp_path, open_page, width, scheme):
    other = write_folder(tmp_path / "hazelnut", {"test/good/000.png": (False, 1.0)}, masks=False)
    page = open_page(folder, other, width=width, color_scheme=scheme)
    page.locator("#pictures-title").scroll_into_view_if_needed()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    lowest, element = page.evaluate(CONTRAST)
    assert lowest >= 4.5, element
    background = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(background) < 60) == (scheme == "dark")
    page.locator("#gallery button").first.click()
    assert page.locator("#dialog").evaluate(
        "box => box.scrollWidth <= box.clientWidth && box.getBoundingClientRect().right <= innerWidth"
    )
    assert page.evaluate(CONTRAST)[0] >= 4.5
    page.keyboard.press("Escape")
    page.locator("#category").select_option(label="hazelnut")
    assert shown_names(page) == ["good/000.png"] and "cannot give one" in page.locator("#source").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_names_are_text_never_markup(tmp_path, open_page):
    names = [
        "a b",
        'it\'s "so"',
        "<script>bad()</script>",
        "</script><b>",
        "&amp; & {{pictures}}",
        "Блеск 中文 فحص",
        os.fsdecode(b"\xff"),
    ]
    scores = {
        f"test/{'kind ' + name.replace('/', '∕')}/{name.replace('/', '∕')}.png": (True, 2.0 + n)
        for n, name in enumerate(names)
    }
    scores["test/good/</script><img src=x onerror=bad()>.png".replace("</", "<∕")] = (False, 1.0)
    folder = write_folder(
        tmp_path / "x", scores, data_set="</script><script>bad()</script>", category='"</script>&lt;', seed="<i>1</i>"
    )
    page = open_page(folder)
    page.locator("#order").select_option("name")
    texts = shown_names(page)
    assert texts == [path.removeprefix("test/").replace("\udcff", "\\xff") for path in scores]
    assert page.locator("#title").inner_text() == '"</script>&lt;' and "<i>1</i>" in page.locator("#facts").inner_text()
    assert page.locator("#gallery button").count() == len(scores)
    page.locator("#gallery button").last.scroll_into_view_if_needed()
    wait_until(lambda: page.locator("#gallery img").count() >= 3 * len(scores))
    wait_until(lambda: page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth)"))
    assert page.evaluate("document.querySelectorAll('script').length") == 3
    assert page.locator("b, i:not([class])").count() == 0
