"""A result repeated from its manifest, and what differs."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from commands.stages import RunPlan, run_category
from config.checks import keys_without_effect
from config.keys import AUTO
from config.load import build_settings, with_overrides
from reports import manifest
from reports.reader import read_scores
from reports.writer import SCORES, beside, next_free_folder
from runtime.errors import UserError

DIFFERS = 1  # exit code
SHOWN = 5  # names of pictures in a line


def repeat_result(path: Path, overrides: list[str], plan: RunPlan) -> int:
    """Repeat detection as the manifest says, settings in `overrides` on top, and say what differs; the exit code is 1 where figures do.

    Training is repeated if `plan` has it, and stage 2 where the result has adapted features, with weights of their own in the new folder:
    `plan.output`, or <folder>-rerun. Raises ValueError for stage 2 alone.
    """
    then = manifest.load_manifest(path)
    earlier = path if path.is_dir() else path.parent
    folder = next_free_folder(plan.output or beside(earlier, "-rerun"))
    content = with_overrides(then["settings"], overrides)
    stages = plan.stages | {"detection"}
    if "train" in stages:
        model = content["model"]
        model["checkpoint_dir"] = str(folder / "checkpoints")
        if model["epochs"] == AUTO:  # detection alone, of weights whose training a budget had planned
            model["epochs"] = model["load_chp"]
        stages = stages | {"domain_adaptation"} if model["DA_chp"] else stages
    elif "domain_adaptation" in stages:
        raise UserError(
            "--rerun repeats stage 2 with stage 1, whose weights it has for itself; add --train True, or leave both away"
        )
    for line in keys_without_effect(content):
        print(line)
    plan = plan._replace(stages=stages, output=folder, force=True)
    run_category(build_settings(content), plan)
    now = manifest.load_manifest(folder)
    print(f"\nrerun of {earlier / manifest.MANIFEST}, made {then.get('created')}")
    print_differences(
        "made with something else",
        list(manifest.differences(then, now)),
        "made with the same settings, versions, pictures and weights",
    )
    before, after = scores_by_picture(earlier), scores_by_picture(folder)
    found = [*figure_differences(then["metrics"], now["metrics"]), *score_differences(before, after)]
    print_differences("figures differ", found, f"all figures and {len(after)} scores are equal to the last bit")
    return DIFFERS if found else 0


def print_differences(title: str, lines: list[str], otherwise: str) -> None:
    print("\n".join([f"{title}:", *(f"  {line}" for line in lines)]) if lines else otherwise, flush=True)


def figure_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """'image_auroc 0.98 → 0.971 (−0.009)'."""
    before, after = dict(manifest.flatten_values("", then)), dict(manifest.flatten_values("", now))
    for name in {**before, **after}:
        old, new = before.get(name), after.get(name)
        if old != new:
            by = f" ({new - old:+.3g})" if isinstance(old, float) and isinstance(new, float) else ""
            yield f"{name.removeprefix('.')} {round_figures(old)} → {round_figures(new)}{by}"


def round_figures(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(round_figures, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def score_differences(then: Mapping[str, float], now: Mapping[str, float]) -> Iterator[str]:
    """How many scores changed, which most, and which pictures only one side has."""
    for title, names in (("only before", then.keys() - now.keys()), ("only now", now.keys() - then.keys())):
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            yield f"pictures that were there {title}: {', '.join(sorted(names)[:SHOWN])}{more}"
    changed = sorted(
        (name for name in then.keys() & now.keys() if then[name] != now[name]),
        key=lambda name: (-abs(now[name] - then[name]), name),
    )
    if changed:
        most = ", ".join(f"{name} {then[name]:.6g} → {now[name]:.6g}" for name in changed[:SHOWN])
        yield f"scores of {len(changed)} of {len(then.keys() & now.keys())} pictures changed, most: {most}"


def scores_by_picture(folder: Path) -> dict[str, float]:
    return {row.path: row.score for row in read_scores(folder / SCORES)}
