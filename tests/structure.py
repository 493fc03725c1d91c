"""The layout of the code: which room may import which, and how large each room is.

A room is a package, or a file at the top level. `python tests/structure.py` prints the table of rooms.
"""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = (
    "commands",
    "export",
    "detection",
    "training",
    "reports",
    "data_tools",
    "config",
    "runtime",
    "storage",
    "images",
)
NOT_ROOMS = ("tests", "benchmarks", "examples")  # they may import everything, and nothing imports them
METHOD = {"unet", "ddad", "anomaly_map", "metrics"}
FILES = {"storage", "images", "dataset"}
BASE = METHOD | FILES | {"runtime", "config", "feature_extractor"}
STAGES = {"train", "domain_adaptation", "detection"}
ALLOWED: dict[
    str, set[str]
] = {  # room → rooms that it may import; every room that stands on a higher floor comes later
    **{room: set() for room in (*sorted(METHOD), "runtime")},
    "storage": {"runtime.errors"},
    "images": {"storage", "runtime.errors"},
    "config": {"storage", "runtime.errors"},
    "feature_extractor": {"storage", "runtime.errors"},
    "dataset": {"images", "storage", "runtime.errors"},
    **dict.fromkeys(("training", "reports", "data_tools"), BASE),
    **{room: BASE | {"training", "data_tools"} for room in ("train", "domain_adaptation")},
    "detection": BASE | {"training", "reports"},
    "export": BASE | {"detection", "reports"},
    "commands": BASE | STAGES | {"export", "training", "reports", "data_tools"},
    "main": {"commands", "config.keys", "runtime.errors"},
}


@functools.cache
def source_files() -> tuple[Path, ...]:
    """Return all Python files of the project but those of NOT_ROOMS and of hidden folders."""
    paths = (path.relative_to(ROOT) for path in sorted(ROOT.rglob("*.py")))
    return tuple(path for path in paths if path.parts[0] not in NOT_ROOMS and not path.parts[0].startswith("."))


def room_of(path: Path) -> str:
    return path.parts[0] if len(path.parts) > 1 else path.stem


def imports_of(path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the modules that a file imports, anywhere in it, each with the names taken from it."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{path} imports relatively; write the module's whole name"
            names = tuple(alias.name for alias in node.names)
            modules = [name for name in names if (ROOT / node.module.replace(".", "/") / f"{name}.py").exists()]
            yield from ((f"{node.module}.{name}", ()) for name in modules)
            if len(modules) < len(names):
                yield node.module, names


def arrows_of(path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the imports of a file that lead to another room."""
    rooms = {room_of(other) for other in source_files()}
    for module, names in imports_of(path):
        if module.split(".")[0] in rooms - {room_of(path)}:
            yield module, names


def is_allowed(room: str, module: str) -> bool:
    return bool(ALLOWED.get(room, set()) & {module, module.split(".")[0]})


def rows() -> Iterator[tuple[str, int, int, list[str]]]:
    """Yield each room with its files, its lines and the rooms that it imports, from the top floor down."""
    for room in reversed(ALLOWED):
        files = [path for path in source_files() if room_of(path) == room]
        lines = sum(len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in files)
        yield room, len(files), lines, sorted({m.split(".")[0] for path in files for m, _ in arrows_of(path)})


if __name__ == "__main__":
    table = list(rows())
    for room, files, lines, imported in table:
        print(f"{room:18}{files:3} files {lines:6} lines  → {', '.join(imported) or '–'}")
    print(f"{sum(row[1] for row in table)} files, {sum(row[2] for row in table)} lines, ", end="")
    print(f"{len(table)} rooms, {sum(len(row[3]) for row in table)} arrows, none upwards")
