"""The documents: links resolve, commands and examples run, and every name in them exists."""

import re
import shlex
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

import main
from config.keys import Settings
from config.load import choose_configuration, load_settings

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path for folder in (".", "docs", "docs/history", "benchmarks") for path in (ROOT / folder).glob("*.md")
)
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README_LINES, README_WIDTH = 150, 120
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
KEYS = {section.name: {key.name for key in fields(section.type)} for section in fields(Settings)}
KEYS["model"] |= {"test_trajectory_steps", "test_trajectory_steps_DA"}  # the published keys are misspelt; both are read
FILE_ENDINGS = {"json", "jsonl", "state", "npz", "py"}  # training.state and metrics.json are no settings
by_path = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


def headings(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as the usual forges make them."""
    titles = re.findall(r"^#+ (.+)$", CODE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@by_path
def test_links_resolve(path):
    for link in LINK.findall(CODE.sub("", path.read_text(encoding="utf-8"))):
        target, _, anchor = link.partition("#")
        if not target.startswith("https://"):
            file = (path.parent / target) if target else path
            assert file.exists(), f"{path.name} links to {link}"
            assert not anchor or anchor in headings(file), f"{path.name} links to {link}"


def test_readme_is_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= README_LINES
    assert not [line for line in lines if len(line) > README_WIDTH]


def test_the_index_names_every_document():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert all(f"({path.name})" in index for path in GUIDES[1:] if path.name != "README.md")


def test_each_difference_names_a_test_that_exists():
    text = (ROOT / "docs" / "differences.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    missing = [f"{file}::{name}" for file, name in named if f"def {name}(" not in read_if_there(ROOT / file)]
    assert named and not missing
    for row in re.findall(r"^\|(?! *-)(.+)\|$", text, re.MULTILINE):
        assert "tests/" in row or "| test" in row, f"no test holds: {row}"


def read_if_there(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_each_setting_exists(path):
    text = path.read_text(encoding="utf-8")
    for section, name, ending in re.findall(rf"\b({'|'.join(KEYS)})\.(\w+)(=|: |`)", text):
        module = ROOT / section / f"{name}.py"
        is_file = ending == "`" and (name in FILE_ENDINGS or module.exists())
        assert name in KEYS[section] or is_file, f"{path.name} names {section}.{name}"


def commands(path: Path) -> list[str]:
    """Return the commands of main.py in a document, each as one line."""
    text = path.read_text(encoding="utf-8")
    blocks = "\n".join(CODE.findall(text)).replace("\\\n", " ")
    inline = re.findall(r"`python main\.py ([^`]+)`", CODE.sub("", text))
    return inline + re.findall(r"^(?:python|torchrun \S.*?) main\.py (.+)$", blocks, re.MULTILINE)


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_commands_are_understood(path, monkeypatch):
    """Flags, settings and their values exist; placeholders stand for bottle, whose values are published."""
    monkeypatch.chdir(ROOT)
    for command in commands(path):
        options = main.parse_arguments(shlex.split(command, comments=True))
        load_settings(
            choose_configuration(options.config), [*options.settings, "data.name=MVTec", "data.category=bottle"]
        )


@by_path
def test_each_benchmark_exists(path):
    for name in re.findall(r"-m benchmarks\.(\w+)", path.read_text(encoding="utf-8")):
        assert (ROOT / "benchmarks" / f"{name}.py").exists(), f"{path.name} runs benchmarks.{name}"


def test_contributing_names_what_there_is():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`(\w+)(?:\(\.\.\.\))?`\s+(?:in|of)\s+`([\w/]+\.py)`", text)
    assert len(named) > 5
    assert not [f"{name} in {file}" for name, file in named if name not in read_if_there(ROOT / file)]


def test_the_changelog_names_modules_that_exist():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").partition("| before | now |")[2]
    package = ""
    for name in re.findall(r"`(\w*\.\w+)`", text):
        package, module = name.split(".") if not name.startswith(".") else (package, name[1:])
        assert (ROOT / package / f"{module}.py").exists(), name


def test_python_examples_run(run_main, trained, category, monkeypatch):
    monkeypatch.chdir(category.parents[1])
    assert run_main("--detection")[0] == 0
    shutil.copy(category / "test" / "crack" / "000.png", "image.png")
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    text = text.replace("checkpoints/sample/brick", str(trained / "nut"))
    text = text.replace("datasets/sample/brick/test/scratch/000.png", "image.png")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), {})


def test_the_citation_is_the_one_of_the_readme():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    paper = citation["preferred-citation"]
    assert (citation["cff-version"], paper["type"], paper["year"]) == ("1.2.0", "conference-paper", 2024)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert paper["title"] in readme and paper["doi"] in readme
