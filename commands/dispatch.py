"""The commands of the command line, a function each: from flags to the packages that do the work."""

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from commands.export import check_ending, export_detector, trained_detector
from commands.paper_figure import draw_paper_figure
from commands.reproduce import published_sections, reproduce, wanted_categories
from commands.rerun import repeat_result
from commands.stages import INCOMPLETE, RunPlan, provide_sample_set, run_plan
from config.checks import check_sections
from config.keys import STAGES, Settings
from config.load import (
    PlainSections,
    build_settings,
    category_names,
    choose_configuration,
    makes_squares,
    names_several,
    read_sections,
    whole_pictures,
)
from data_tools.check import CheckRequest, check_categories, check_region
from data_tools.prepare import ONE_CLASS, PrepareRequest, prepare_data_set
from dataset import categories_in
from detection.detector import Detector
from detection.recalibrate import recalibrate
from detection.tune import tune_settings
from reports import tables
from runtime import distributed
from runtime.device import keep_memory
from runtime.errors import UserError
from training.bit_depth import settle_bit_depth
from training.fit import choose_fit

PREPARE = "prepare_"  # prefix of the flags that prepare data sets


def run_command(flag: str, options: Namespace) -> int:
    """Run the command that a flag asks for; return the exit code."""
    keep_memory()
    if flag.startswith(PREPARE):
        return prepare_data(flag.removeprefix(PREPARE), options)
    return COMMANDS[flag](options) or 0


def run_stages(options: Namespace) -> int:
    with printing_group():
        content = read_sections(choose_configuration(options.config), overrides_of(options))
        return run_plan(content, plan_of(options))


def reproduce_table(options: Namespace) -> int:
    with printing_group():
        categories = wanted_categories(options.reproduce, options.categories)
        content = published_sections(choose_configuration(options.config), options.reproduce, overrides_of(options))
        return reproduce(content, categories, options.output, options.force)


@contextmanager
def printing_group() -> Iterator[None]:
    """Connect the processes of the run, of which only one prints."""
    with distributed.process_group() as group:
        if not group.is_main:
            sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
        yield


def rerun(options: Namespace) -> int:
    refuse_several("rerun")
    return repeat_result(options.rerun, overrides_of(options), plan_of(options))


def refuse_several(flag: str) -> None:
    """Raise UserError where torchrun has started several processes."""
    processes = distributed.group().size
    if processes > 1:
        remedy = f"run python main.py --{flag}"
        raise UserError(f"--{flag} needs a single process, and torchrun has started {processes}; {remedy}")


def plan_of(options: Namespace) -> RunPlan:
    stages = frozenset(stage for stage in STAGES if getattr(options, stage))
    return RunPlan(stages, options.input, options.output, options.resume, options.force, options.submission)


def overrides_of(options: Namespace) -> list[str]:
    """Return the settings of the command line, --log among them."""
    return [*options.settings, *([f"training.log={options.log}"] if options.log else [])]


def tune(options: Namespace) -> None:
    refuse_several("tune")
    tune_settings(detection_settings(sections_of_one("tune", options)), options.output)


def recalibrate_thresholds(options: Namespace) -> int:
    refuse_several("recalibrate")
    settings = detection_settings(whole_pictures(sections_of_one("recalibrate", options)))  # as --input judges
    return INCOMPLETE if recalibrate(settings, options.recalibrate) else 0


def export(options: Namespace) -> None:
    refuse_several("export")
    check_ending(options.export)
    if options.checkpoint is None:
        settings = detection_settings(whole_pictures(sections_of_one("export", options)))  # as --input judges
        detector = trained_detector(settings)
    else:
        detector = Detector.load(options.checkpoint)
    export_detector(options.export, detector)


def sections_of_one(flag: str, options: Namespace) -> PlainSections:
    """Return the sections of a command that takes one category. Raise UserError where they name several."""
    content = read_sections(choose_configuration(options.config), options.settings)
    provide_sample_set(content)
    if names_several(content):
        raise UserError(f"--{flag} takes one category; set data.category to its name")
    return content


def detection_settings(content: PlainSections) -> Settings:
    """Return the settings of a command that detects with trained weights, checked against the pictures."""
    settings = build_settings(content)
    check_region(settings.data.region, settings.category_dir, settings.metrics.centre_crop)
    return choose_fit(settle_bit_depth(settings, measured=False))


def check_data(options: Namespace) -> int:
    content = read_sections(choose_configuration(options.config), options.settings)
    provide_sample_set(content)
    names = category_names(content, categories_in)
    sections = check_sections({**content, "data": {**content["data"], "category": names[0]}})
    data, workers = sections["data"], sections["model"]["num_workers"]
    folders = [data["data_dir"] / name for name in names]
    for folder in folders:
        check_region(data["region"], folder)
    request = CheckRequest(data["mask"], makes_squares(sections), data["bit_depth"], workers, options.contact_sheet)
    return check_categories(folders, request)


def prepare_data(kind: str, options: Namespace) -> int:
    source, split = getattr(options, f"{PREPARE}{kind}"), options.split or ONE_CLASS
    request = PrepareRequest(kind, source, options.output, options.defects, options.masks, split)
    prepare_data_set(request, choose_configuration(options.config), options.settings)
    return 0


COMMANDS: dict[str, Callable[[Namespace], int | None]] = {
    **dict.fromkeys(STAGES, run_stages),
    "tune": tune,
    "recalibrate": recalibrate_thresholds,
    "rerun": rerun,
    "reproduce": reproduce_table,
    "export": export,
    "compare": lambda options: print(tables.compare_results(options.compare)),
    "figure": lambda options: draw_paper_figure(options.figure, options.choose or [], options.output),
    "table": lambda options: print(tables.published_table(options.table)),
    "check": check_data,
}
