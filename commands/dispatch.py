"""What the command line can be asked for, a function each: from its flags to the rooms that do it, and to the exit code."""

import os
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from commands.paper_figure import draw_paper_figure
from commands.rerun import repeat_result
from commands.stages import RunPlan, category_folders, provide_sample_set, run_plan
from config.keys import STAGES
from config.load import build_settings, names_several, read_sections
from data_tools.check import check_categories
from data_tools.prepare import ONE_CLASS, PrepareRequest, prepare_data_set
from detection.tune import tune_settings
from reports import tables
from runtime import distributed
from runtime.device import keep_memory
from runtime.errors import UserError, explain_error

PREPARE = "prepare_"  # the flags of the data sets begin with it


def run_command(name: str, options: Namespace) -> int:
    """Run the command that the flag `name` asks for; return the exit code."""
    keep_memory()
    if name.startswith(PREPARE):
        return prepare_data(name.removeprefix(PREPARE), options)
    return COMMANDS[name](options)


def run_stages(options: Namespace) -> int:
    """The stages asked for, of one category or several."""
    with distributed.process_group() as group:
        if not group.is_main:  # of several processes the first one speaks
            sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
        return run_plan(read_sections(options.config, settings_of(options)), plan_of_options(options), explain_error)


def rerun(options: Namespace) -> int:
    refuse_several("rerun")
    return repeat_result(options.rerun, settings_of(options), plan_of_options(options))


def refuse_several(flag: str) -> None:
    """Raises ValueError where torchrun has started several processes."""
    if distributed.group().size > 1:
        raise UserError(
            f"--{flag} is one process's, and torchrun has started {distributed.group().size}; run python main.py --{flag}"
        )


def plan_of_options(options: Namespace) -> RunPlan:
    stages = frozenset(stage for stage in STAGES if getattr(options, stage))
    return RunPlan(stages, options.input, options.output, options.resume, options.force)


def settings_of(options: Namespace) -> list[str]:
    return [*options.settings, *([f"training.log={options.log}"] if options.log else [])]


def show_comparison(options: Namespace) -> int:
    print(tables.compare_results(options.compare))
    return 0


def draw_figure(options: Namespace) -> int:
    draw_paper_figure(options.figure, options.choose or [], options.output)
    return 0


def show_paper_table(options: Namespace) -> int:
    print(tables.published_table(options.table))
    return 0


def tune(options: Namespace) -> int:
    refuse_several("tune")
    content = read_sections(options.config, options.settings)
    provide_sample_set(content)
    if names_several(content):
        raise UserError("--tune chooses for one category; set data.category to its name")
    tune_settings(build_settings(content), options.output)
    return 0


def check_data(options: Namespace) -> int:
    folders, data, model = category_folders(options.config, options.settings)
    return check_categories(folders, masks=data["mask"], workers=model["num_workers"], sheet=options.contact_sheet)


def prepare_data(kind: str, options: Namespace) -> int:
    """Make a data set of this kind ready."""
    split = options.split or ONE_CLASS
    source = getattr(options, f"{PREPARE}{kind}")
    prepare_data_set(
        PrepareRequest(kind, source, options.output, options.defects, options.masks, split),
        options.config,
        options.settings,
    )
    return 0


COMMANDS: dict[str, Callable[[Namespace], int]] = {
    **dict.fromkeys(STAGES, run_stages),
    **{
        "tune": tune,
        "rerun": rerun,
        "compare": show_comparison,
        "figure": draw_figure,
        "table": show_paper_table,
        "check": check_data,
    },
}
