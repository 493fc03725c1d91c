"""The layout: imports follow the arrows, nothing happens on import, and no file escapes the checks."""

import ast
import sys
from pathlib import Path

import pytest
from structure import (
    ALLOWED,
    METHOD,
    NOT_ROOMS,
    PACKAGES,
    ROOT,
    arrows_of,
    imports_of,
    is_allowed,
    room_of,
    source_files,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which mypy brings

LONGEST_FUNCTION = 40  # lines
FILE_ACCESS = {"open", "print", "Path", "load", "save"}


@pytest.mark.parametrize("path", source_files(), ids=str)
def test_imports_follow_the_arrows(path):
    for module, names in arrows_of(path):
        assert is_allowed(room_of(path), module), f"{path} may not import {module}"
        assert not [name for name in names if name.startswith("_") or name == "*"], f"{path} imports private names"


def test_no_room_imports_one_above_it():
    order = list(ALLOWED)
    for room, allowed in ALLOWED.items():
        assert all(order.index(module.split(".")[0]) < order.index(room) for module in allowed), room


def test_every_file_belongs_to_a_room():
    folders = {path.parts[0] for path in source_files() if len(path.parts) > 1}
    assert folders == set(PACKAGES), "a new package needs a row in tests/structure.py"
    assert {room_of(path) for path in source_files()} == set(ALLOWED)
    assert all((ROOT / package / "__init__.py").exists() for package in PACKAGES)


def test_lint_types_and_coverage_leave_no_file_out():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert settings["mypy"]["files"] == ["."]
    assert settings["mypy"]["exclude"] == [r"^tests/"]
    assert settings["coverage"]["run"]["source"] == ["."]
    assert all(pattern.split("/")[0] in NOT_ROOMS for pattern in settings["coverage"]["run"]["omit"])
    assert not {"include", "exclude", "extend-exclude"} & settings["ruff"].keys()


@pytest.mark.parametrize("path", source_files(), ids=str)
def test_importing_has_no_effect(path):
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        calls = isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant)
        assert not calls and not isinstance(node, (ast.For, ast.While, ast.With)), f"{path} line {node.lineno}"


def test_the_method_knows_neither_files_nor_configuration():
    for room in METHOD:
        path = Path(f"{room}.py")
        assert not [module for module, _ in imports_of(path) if module.split(".")[0] in ("os", "pathlib", "yaml")]
        nodes = ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        called = {
            getattr(node.func, "id", getattr(node.func, "attr", "")) for node in nodes if isinstance(node, ast.Call)
        }
        assert not called & FILE_ACCESS, f"{path} reads, writes or prints"


def definitions(path):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))]


def test_no_two_classes_have_one_name():
    names = [node.name for path in source_files() for node in definitions(path) if isinstance(node, ast.ClassDef)]
    assert sorted(set(names)) == sorted(names)


def test_functions_are_short():
    for path in source_files():
        for node in definitions(path):
            if isinstance(node, ast.FunctionDef) and node.name != "__init__":
                assert node.end_lineno - node.lineno < LONGEST_FUNCTION, f"{path}: {node.name}"
