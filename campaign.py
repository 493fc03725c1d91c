"""The stages asked for, over one category or several: what fails is reported at the end, what is done already is not done again."""

import importlib
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

import checkpoint
import config
import parallel
import planning
import report
import sample_set
import tables
from dataset import categories_in, pictures_below
from settings import LATEST, PLANNED, STAGES, Settings
from tables import Outcome

INCOMPLETE = 3  # exit code

Explain = Callable[[Exception], str | None]


class Plan(NamedTuple):
    """What is asked for: stages, pictures without labels to judge in place of the test pictures, and where results go.

    `resume` goes on with what an earlier run left, `force` does again what is done and replaces it.
    """

    stages: frozenset[str]
    source: Path | None = None
    output: Path | None = None
    resume: bool = False
    force: bool = False


def run(content: Mapping[str, Any], plan: Plan, explain: Explain) -> int:
    """Do the plan with the settings `content` (plain sections); returns the exit code.

    `explain` gives an error's line, None for one that is a fault of this program.
    """
    ensure_sample(content)
    for line in config.accepted_without_effect(content):
        print(line)
    if not config.is_several(content):
        return INCOMPLETE if run_category(config.build(content), plan)[1] else 0
    if plan.source is not None:
        raise ValueError("--input is judged by one category; set data.category to its name")
    return run_all(content, config.categories(content, categories_in), plan._replace(resume=not plan.force), explain)


def folders(path: str, overrides: Iterable[str]) -> tuple[list[Path], dict[str, Any], dict[str, Any]]:
    """The categories' folders, and the sections data and model, checked; `auto` stays, as what looks at files needs nothing published."""
    content = config.read(path, overrides)
    ensure_sample(content)
    names = config.categories(content, categories_in)
    sections = config.checked_sections({**content, "data": {**content["data"], "category": names[0]}})
    return [sections["data"]["data_dir"] / name for name in names], sections["data"], sections["model"]


def ensure_sample(content: Mapping[str, Any]) -> None:
    """Make the sample set where it is asked for and is not there."""
    data = content.get("data")
    if isinstance(data, Mapping) and data.get("name") == config.SAMPLE:
        settings = config.of_category(content, sample_set.TEXTURES[0])
        if parallel.group().leads:
            sample_set.ensure_sample(settings.data.data_dir, settings.model.seed)
        parallel.group().wait()


def run_category(settings: Settings, plan: Plan) -> tuple[Path | None, int]:
    """The folder of a category's results, where it has any, and how many pictures could not be read."""
    stages: list[tuple[Any, tuple[object, ...]]] = [(importlib.import_module(stage), (plan.resume,)) for stage in STAGES[:2] if stage in plan.stages]
    folder, unreadable = None, 0
    if "detection" in plan.stages and plan.source is None:
        stages.append((importlib.import_module("evaluation"), (plan.output, plan.force)))
    elif "detection" in plan.stages:
        stages.append((importlib.import_module("inspection"), (plan.source, plan.output, plan.resume, plan.force)))
    refuse_without_weights(settings, plan.stages)
    if not parallel.group().leads:  # one writes
        settings = replace(settings, model=replace(settings.model, save_model=False))
    judged = len(pictures_below(plan.source, [])) if plan.source else None
    settings = planning.fitted(settings, plan.stages, plan.resume, judged)
    for stage, arguments in stages:
        stage.check(settings, *arguments)
    parallel.group().wait()  # none begins to write before all have looked
    for stage, arguments in stages:
        result = stage.run(settings, *arguments)
        parallel.group().wait()  # what one stage wrote is there for the next
        folder = result if isinstance(result, Path) else folder
        unreadable += result if isinstance(result, int) else 0
    return folder, unreadable


def refuse_without_weights(settings: Settings, stages: frozenset[str]) -> None:
    """Raises FileNotFoundError, before hours of training, where a stage will look for weights that are neither there nor made before it."""
    model, folder = settings.model, settings.checkpoint_folder
    trained: set[object] = {LATEST, *settings.saved_epochs} if "train" in stages and model.save_model else set()
    if stages > {"train"} and model.load_chp not in trained and model.epochs != PLANNED:
        checkpoint.find(folder, model.load_chp)
    adapted = range(1, model.DA_epochs + 1) if "domain_adaptation" in stages and model.save_model else ()
    if "detection" in stages and model.DA_chp not in (0, LATEST, *adapted):
        if "train" not in stages:
            checkpoint.find(folder, model.load_chp)  # without a network it is not the features that are missed
        checkpoint.find(folder, model.DA_chp, checkpoint.FEATURES_PREFIX)


def run_all(content: Mapping[str, Any], names: Iterable[str], plan: Plan, explain: Explain) -> int:
    """One category after the other, then the table of all."""
    names, outcomes, began = list(names), [], time.monotonic()
    for number, name in enumerate(names, start=1):
        print(f"[{number} of {len(names)}] {name}{remaining(time.monotonic() - began, number - 1, len(names))}", flush=True)
        outcomes.append(outcome(content, name, plan, explain))
    failed = [one for one in outcomes if one.error]
    folders = [one.folder for one in outcomes if one.folder]
    if folders and parallel.group().leads:
        print(f"\n{tables.write_summary(folders[0].parent, outcomes)}\n")
        report.write(folders[0].parent / report.PAGE, folders)
        print(f"summary.csv, .json, .md, .tex and {report.PAGE} in {folders[0].parent}")
    for one in failed:
        print(f"{one.category} failed: {one.error}")
    print(f"{len(names) - len(failed)} of {len(names)} categories done in {tqdm.format_interval(time.monotonic() - began)}", flush=True)
    return INCOMPLETE if failed else 0


def outcome(content: Mapping[str, Any], name: str, plan: Plan, explain: Explain) -> Outcome:
    """What comes of a category, whose error does not stop the others."""
    try:
        folder, _ = run_category(config.of_category(content, name), plan._replace(output=plan.output and plan.output / name))
    except BrokenPipeError:
        raise
    except Exception as error:
        line = explain(error)
        if line is None or parallel.group().size > 1:  # the other processes would wait for this one
            raise
        print(f"error: {name}: {line}", file=sys.stderr, flush=True)
        return Outcome(name, None, line)
    return Outcome(name, folder)


def remaining(seconds: float, done: int, total: int) -> str:
    if not done:
        return ""
    return f" (about {tqdm.format_interval(seconds / done * (total - done))} left for {total - done})"
