"""Run stages on one category or several; all stages of a category are checked before the first runs."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from commands.budget import fit_budget
from config.checks import keys_without_effect
from config.keys import LATEST, PLANNED, Settings
from config.load import SAMPLE, build_settings, category_names, names_several, settings_of_category, whole_pictures
from data_tools.check import check_region
from data_tools.sample_set import TEXTURES, ensure_sample_set
from dataset import categories_in
from detection.evaluate import check_evaluation, evaluate_category
from detection.mask_check import check_masks
from detection.predict import check_prediction, input_pictures, predict_input
from detection.recalibrate import refuse_training
from detection.submission import check_submission, write_submission
from domain_adaptation import adapt_features, check_adaptation
from reports import html, tables
from runtime import distributed
from runtime.errors import UserError, explain_error
from train import check_training, train_unet
from training import checkpoint
from training.bit_depth import settle_bit_depth
from training.fit import choose_fit
from training.pace import Clock

INCOMPLETE = 3  # exit code

Content = Mapping[str, Any]  # sections of a configuration, as config.yaml has them


class StageResult(NamedTuple):
    folder: Path | None = None  # of the results, if any
    unreadable: int = 0  # number of pictures


Stage = Callable[[], StageResult | None]  # a stage that is checked and ready to run


class RunPlan(NamedTuple):
    stages: frozenset[str]
    source: Path | None = None  # pictures of --input; None: the test pictures
    output: Path | None = None  # folder of the results
    resume: bool = False  # continue an earlier run's unfinished work
    force: bool = False  # repeat finished work and replace its results
    submission: Path | None = None  # folder of the maps and masks for the server of MVTec AD 2


def run_plan(content: Content, plan: RunPlan) -> int:
    """Run the plan with these settings; return the exit code."""
    provide_sample_set(content)
    for line in keys_without_effect(content):
        print(line)
    if not names_several(content):
        settings = build_settings(whole_pictures(content) if plan.source else content)
        return INCOMPLETE if run_category(settings, plan).unreadable else 0
    if plan.source is not None:
        raise UserError("--input needs the detector of one category; set data.category to its name")
    return run_categories(content, category_names(content, categories_in), plan._replace(resume=not plan.force))


def provide_sample_set(content: Content) -> None:
    """Create the sample set if the settings name it and it does not exist."""
    data = content.get("data")
    if isinstance(data, Mapping) and data.get("name") == SAMPLE:
        settings = settings_of_category(content, TEXTURES[0])
        if distributed.group().is_main:
            ensure_sample_set(settings.data.data_dir, settings.model.seed)
        distributed.group().wait()


def run_category(settings: Settings, plan: RunPlan) -> StageResult:
    """Run the plan's stages on one category; return the result of the last one."""
    refuse_without_weights(settings, plan.stages)
    check_region(settings.data.region, settings.category_dir, settings.metrics.centre_crop)
    settings = choose_fit(settings, trains="train" in plan.stages, resume=plan.resume)
    if not distributed.group().is_main:  # one process writes
        settings = replace(settings, model=replace(settings.model, save_model=False))
    settings = settle_bit_depth(settings, "train" in plan.stages)
    settings, clock = fit_budget(settings, plan.stages, plan.resume, count_inputs(settings, plan))
    stages = list(checked_stages(settings, plan, clock))
    distributed.group().wait()  # no process begins to write before all have checked
    result = StageResult()
    for run_stage in stages:
        result = run_stage() or StageResult()
        distributed.group().wait()  # the next stage finds what this one wrote
    return result


def count_inputs(settings: Settings, plan: RunPlan) -> int | None:
    """Return the number of pictures that detection scores; None for the test pictures alone."""
    if plan.source:
        return len(input_pictures(settings, plan.source, plan.output))
    if plan.submission:
        private = check_submission(settings, plan.submission).values()
        return len(check_evaluation(settings, plan.output)[0]) + sum(map(len, private))
    return None


def checked_stages(settings: Settings, plan: RunPlan, clock: Clock | None) -> Iterator[Stage]:
    """Yield the plan's stages in order, each checked. Raise UserError for what would stop one later."""
    if plan.stages >= {"train", "detection"} and not plan.resume:
        refuse_training(settings)
    if "train" in plan.stages:
        yield partial(train_unet, check_training(settings, plan.resume, clock))
    if "domain_adaptation" in plan.stages:
        yield partial(adapt_features, settings, check_adaptation(settings), plan.resume)
    if "detection" not in plan.stages:
        return
    if plan.source is None:
        pictures, _ = check_evaluation(settings, plan.output)
        check_masks(pictures.samples)
        if plan.submission:
            check_submission(settings, plan.submission)
            yield partial(write_submission, settings, plan.submission)
        yield lambda: StageResult(folder=evaluate_category(settings, plan.output, plan.force))
    else:
        arguments = (settings, plan.source, plan.output, plan.resume, plan.force)
        check_prediction(*arguments)
        yield lambda: StageResult(unreadable=predict_input(*arguments))


def refuse_without_weights(settings: Settings, stages: frozenset[str]) -> None:
    """Raise MissingFileError, before hours of training, if weights are missing that no stage will make."""
    model, folder = settings.model, settings.checkpoint_folder
    trained: set[object] = {LATEST, *settings.saved_epochs} if "train" in stages and model.save_model else set()
    if stages > {"train"} and model.load_chp not in trained and model.epochs != PLANNED:
        checkpoint.find_weights(folder, model.load_chp)
    adapted = range(1, model.DA_epochs + 1) if "domain_adaptation" in stages and model.save_model else ()
    if "detection" in stages and model.DA_chp not in (0, LATEST, *adapted):
        if "train" not in stages:
            checkpoint.find_weights(folder, model.load_chp)  # a missing network is reported before its features
        checkpoint.find_weights(folder, model.DA_chp, checkpoint.FEATURES_PREFIX)


def run_categories(content: Content, names: list[str], plan: RunPlan) -> int:
    """Run the plan on one category after the other and write the table of all; return the exit code."""
    outcomes, began = [], time.monotonic()
    for number, name in enumerate(names, start=1):
        done, left = number - 1, len(names) - number + 1
        seconds = (time.monotonic() - began) / max(1, done) * left
        remaining = f" (about {tqdm.format_interval(seconds)} left for {left})" if done else ""
        print(f"[{number} of {len(names)}] {name}{remaining}", flush=True)
        outcomes.append(try_category(content, name, plan))
    failed = [outcome for outcome in outcomes if outcome.error]
    folders = [outcome.folder for outcome in outcomes if outcome.folder]
    if folders and distributed.group().is_main:
        print(f"\n{tables.write_summary(folders[0].parent, outcomes)}\n")
        html.write_page(folders[0].parent / html.PAGE, folders)
        print(f"summary.csv, .json, .md, .tex and {html.PAGE} in {folders[0].parent}")
    for outcome in failed:
        print(f"{outcome.category} failed: {outcome.error}")
    elapsed = tqdm.format_interval(time.monotonic() - began)
    print(f"{len(names) - len(failed)} of {len(names)} categories done in {elapsed}", flush=True)
    return INCOMPLETE if failed else 0


def try_category(content: Content, name: str, plan: RunPlan) -> tables.Outcome:
    """Run the plan on one category; return its results folder or the user's error."""
    output = plan.output and plan.output / name
    try:
        result = run_category(settings_of_category(content, name), plan._replace(output=output))
        return tables.Outcome(name, result.folder)
    except BrokenPipeError:
        raise
    except Exception as error:
        return tables.Outcome(name, None, report_failure(name, error))


def report_failure(name: str, error: Exception) -> str:
    """Print and return the error message of a failed category. Raise the error if it is none of the user's."""
    line = explain_error(error)
    if line is None or distributed.group().size > 1:  # the other processes would wait for this one
        raise error
    print(f"error: {name}: {line}", file=sys.stderr, flush=True)
    return line
