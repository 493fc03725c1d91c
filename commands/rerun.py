"""Repeat a result from its manifest, and print what differs."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from commands.stages import RunPlan, run_category
from config.checks import keys_without_effect
from config.keys import AUTO, SQUARE
from config.load import build_settings, with_overrides
from reports import manifest, reader, writer
from runtime.errors import UserError

DIFFERS = 1  # exit code
SHOWN = 5  # names of pictures in a line
ADDED = {"warnings", "operating_points", "drift"}  # parts of metrics.json that earlier versions did not write


def repeat_result(path: Path, overrides: list[str], plan: RunPlan) -> int:
    """Repeat detection with a manifest's settings and `overrides`; return 1 if metrics or scores differ.

    If the plan has training, stage 1 is repeated too, and stage 2 if the result has adapted features. Their weights go
    to the new folder: `plan.output`, or <folder>-rerun. Raise UserError for stage 2 alone.
    """
    before = manifest.load_manifest(path)
    earlier = path if path.is_dir() else path.parent
    folder = writer.next_free_folder(plan.output or writer.beside(earlier, "-rerun"))
    content, stages = with_overrides(before["settings"], overrides), plan.stages | {"detection"}
    model = content["model"]
    content["data"].setdefault("fit", SQUARE)  # manifests of earlier versions do not name it
    if "train" in stages:
        model["checkpoint_dir"] = str(folder / "checkpoints")
        if model["epochs"] == AUTO:  # the result is of detection alone; a budget had planned the epochs
            model["epochs"] = model["load_chp"]
        stages = stages | {"domain_adaptation"} if model["DA_chp"] else stages
    elif "domain_adaptation" in stages:
        reason = "--rerun repeats stage 2 only together with stage 1, whose weights it needs"
        raise UserError(f"{reason}; add --train True, or leave both out")
    for line in keys_without_effect(content):
        print(line)
    run_category(build_settings(content), plan._replace(stages=stages, output=folder, force=True))
    print(f"\nrerun of {earlier / manifest.MANIFEST}, made {before.get('created')}")
    return compare_with(earlier, before, folder)


def compare_with(earlier: Path, before: manifest.Manifest, folder: Path) -> int:
    """Print how a result differs from the earlier one, whose manifest is `before`; return the exit code."""
    now = manifest.load_manifest(folder)
    inputs = list(manifest.differences(before, now))
    print_differences("inputs differ", inputs, "made with the same settings, versions, pictures and weights")
    scores = [reader.read_scores(place / writer.SCORES) for place in (earlier, folder)]
    old, new = ({row.path: row.score for row in rows} for rows in scores)
    missing = ADDED - before["metrics"].keys()
    metrics = {part: value for part, value in now["metrics"].items() if part not in missing}
    results = [*metric_differences(before["metrics"], metrics), *score_differences(old, new)]
    print_differences("results differ", results, f"all metrics and {len(new)} scores are equal to the last bit")
    return DIFFERS if results else 0


def print_differences(title: str, lines: list[str], otherwise: str) -> None:
    print("\n  ".join([f"{title}:", *lines]) if lines else otherwise, flush=True)


def metric_differences(before: object, now: object) -> Iterator[str]:
    """Yield a line for each metric that differs: 'image_auroc 0.98 → 0.971 (-0.009)'."""
    old, new = dict(manifest.flatten_values("", before)), dict(manifest.flatten_values("", now))
    known = {name.split(".")[0] for name in old}  # an earlier version may lack a metric
    for name in (name for name in old | new if name.split(".")[0] in known):
        then, value = old.get(name), new.get(name)
        if then != value:
            change = f" ({value - then:+.3g})" if isinstance(then, float) and isinstance(value, float) else ""
            yield f"{name.removeprefix('.')} {rounded(then)} → {rounded(value)}{change}"


def rounded(value: object) -> str:
    """Return a value with six digits, for print."""
    if isinstance(value, list):
        return f"[{', '.join(map(rounded, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def score_differences(before: Mapping[str, float], now: Mapping[str, float]) -> Iterator[str]:
    """Yield a line for pictures that only one side has, and for the scores that changed most."""
    for title, names in (("only before", before.keys() - now.keys()), ("only now", now.keys() - before.keys())):
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            yield f"pictures that exist {title}: {', '.join(sorted(names)[:SHOWN])}{more}"
    common = before.keys() & now.keys()
    changes = {name: abs(now[name] - before[name]) for name in common if before[name] != now[name]}
    if changes:
        largest = sorted(changes, key=lambda name: (-changes[name], name))[:SHOWN]
        scores = ", ".join(f"{name} {before[name]:.6g} → {now[name]:.6g}" for name in largest)
        yield f"scores of {len(changes)} of {len(common)} pictures changed, most: {scores}"
