"""The house: which room may import which, and that nothing happens on import."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
METHOD = {"unet", "ddad", "feature_extractor", "anomaly_map", "normality", "metrics", "tiles"}
FILES = {"dataset", "pictures", "checkpoint", "files", "results", "logs", "manifest", "names"}
STAGE = METHOD | FILES | {"parallel", "runtime", "settings"}
ALLOWED: dict[str, set[str]] = {
    **{room: set() for room in (*METHOD, "settings", "published", "presets", "runtime", "parallel", "drawing", "resumption", "synthetic")},
    "normality": {"anomaly_map"},
    "calibration": {"normality"},
    "config": {"names", "presets", "published", "settings"},
    "feature_extractor": {"downloads"},  # its pretrained weights
    # pictures, weights and results on disk
    **{room: set() for room in ("depth", "annotations", "findings", "locks", "names", "spreadsheet", "downloads")},
    "files": {"locks"},
    "pictures": {"depth"},
    "dataset": {"pictures"},
    "checkpoint": {"unet", "feature_extractor", "calibration", "normality", "files", "locks", "settings"},  # it builds what it loads
    "cache": {"dataset", "files"},
    "logs": {"files", "locks"},
    "manifest": {"calibration", "dataset", "files"},
    "results": {"drawing", "files", "locks", "manifest", "names", "spreadsheet"},
    "sample_set": {"files", "locks", "synthetic"},
    # data made ready and looked through
    "archives": {"files", "pictures"},
    "likeness": {"dataset", "pictures", "runtime"},
    "layout": {"dataset", "files", "locks", "pictures", "runtime"},
    "published_sets": {"archives", "dataset", "layout", "likeness", "pictures"},
    "own_pictures": {"annotations", "dataset", "layout", "likeness", "pictures"},
    "preparation": {"archives", "config", "dataset", "layout", "own_pictures", "presets", "published", "published_sets", "settings"},
    "looks": {"dataset", "depth", "likeness", "pictures", "runtime"},
    "contact_sheet": {"files", "pictures"},
    "doctor": {"contact_sheet", "dataset", "findings", "likeness", "looks", "pictures"},
    # stages
    "train": STAGE | {"cache", "doctor", "findings", "resumption"},
    "domain_adaptation": STAGE | {"cache", "calibration"},
    "detection": METHOD | {"networks", "dataset", "pictures", "checkpoint", "calibration", "config", "parallel", "runtime", "settings"},
    "networks": {"calibration", "normality", "runtime", "anomaly_map", "dataset", "ddad"},
    "normal_pictures": {
        "calibration",
        "checkpoint",
        "dataset",
        "ddad",
        "detection",
        "parallel",
        "runtime",
        "settings",
        "anomaly_map",
        "normality",
        "metrics",
        "synthetic",
    },
    "curves": {"metrics"},
    "figures": {"curves", "metrics"},
    "evaluation": STAGE
    | {"calibration", "curves", "detection", "drawing", "figures", "normal_pictures", "report"},  # stage 3 on labelled test pictures
    "inspection": STAGE | {"calibration", "detection", "drawing", "normal_pictures"},  # stage 3 on any pictures
    "planning": {"checkpoint", "config", "dataset", "detection", "normal_pictures", "parallel", "runtime", "settings", "train", "unet"},
    "tuning": {"checkpoint", "config", "dataset", "detection", "files", "metrics", "normal_pictures", "normality", "runtime", "settings"}
    | {"locks", "synthetic"},
    # several categories, and what is made of results
    "result_folder": {"published", "manifest", "metrics", "results"},
    "report": {"published", "files", "names", "result_folder", "results"},  # made of results folders alone
    "tables": {"config", "files", "manifest", "published", "spreadsheet"},
    "figure": STAGE | {"config", "detection", "drawing", "normal_pictures", "result_folder", "tables"},
    "campaign": {"checkpoint", "config", "settings", "dataset", "parallel", "planning", "report", "sample_set", "tables"},  # and the stages, by name
    "rerun": {"campaign", "config", "manifest", "result_folder", "results", "settings"},
    "errors": {"parallel"},
    "commands": {"campaign", "config", "doctor", "errors", "figure", "parallel", "preparation", "rerun", "settings", "tables", "tuning"},
    "main": {"commands", "errors", "runtime", "settings"},
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
