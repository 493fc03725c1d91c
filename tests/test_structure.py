"""The house: which room may import which, and that nothing happens on import."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
METHOD = {"unet", "ddad", "feature_extractor", "anomaly_map", "metrics", "tiles"}
FILES = {"dataset", "checkpoint", "files", "results", "names"}
ALONE = {"dataset", "runtime", "calibration", "parallel", "locks", "names", "tables", "drawing", "downloads", "resumption"}
ALLOWED: dict[str, set[str]] = {
    **{room: set() for room in METHOD | ALONE},
    "config": {"names"},
    "feature_extractor": {"downloads"},  # its pretrained weights
    "files": {"locks"},
    "preparation": {"files", "locks"},
    "checkpoint": {"unet", "feature_extractor", "calibration", "files", "locks"},  # it builds what it loads
    "results": {"drawing", "files", "locks", "names", "tables"},
    "train": METHOD | FILES | {"config", "parallel", "resumption", "runtime"},
    "domain_adaptation": METHOD | FILES | {"config", "runtime"},
    "detection": METHOD | {"dataset", "checkpoint", "calibration", "config", "runtime"},
    "evaluation": METHOD | FILES | {"calibration", "config", "detection", "drawing", "runtime"},  # stage 3 on labelled test pictures
    "inspection": METHOD | FILES | {"calibration", "config", "detection", "drawing", "runtime"},  # stage 3 on any pictures
    "main": {"config", "parallel", "preparation"},  # and the stages, by name
}
ROOMS = sorted(path.stem for path in ROOT.glob("*.py"))


def imports_of(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module, tuple(alias.name for alias in node.names)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_follow_the_arrows(room):
    tree = ast.parse((ROOT / f"{room}.py").read_text(encoding="utf-8"))
    for module, names in imports_of(tree):
        if module in ROOMS:
            assert module in ALLOWED[room], f"{room} may not import {module}"
            assert not [name for name in names if name.startswith("_") or name == "*"], f"{room} imports private names of {module}"


@pytest.mark.parametrize("room", ROOMS)
def test_importing_has_no_effect(room):
    tree = ast.parse((ROOT / f"{room}.py").read_text(encoding="utf-8"))
    for node in tree.body:
        calls = isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant)
        assert not calls and not isinstance(node, (ast.For, ast.While, ast.With)), f"{room}.py line {node.lineno} does something on import"


def test_the_method_rooms_know_neither_files_nor_configuration():
    for room in METHOD - {"feature_extractor"}:
        source = (ROOT / f"{room}.py").read_text(encoding="utf-8")
        assert not {"open(", "Path", "torch.load", "torch.save", "print("} & {
            word for word in ("open(", "Path", "torch.load", "torch.save", "print(") if word in source
        }
