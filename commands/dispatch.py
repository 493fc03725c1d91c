"""The commands of the command line, a function each: from flags to the packages that do the work."""

import os
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from commands.paper_figure import draw_paper_figure
from commands.rerun import repeat_result
from commands.stages import RunPlan, provide_sample_set, run_plan
from config.checks import check_sections
from config.keys import STAGES
from config.load import build_settings, category_names, names_several, read_sections
from data_tools.check import check_categories
from data_tools.prepare import ONE_CLASS, PrepareRequest, prepare_data_set
from dataset import categories_in
from detection.tune import tune_settings
from reports import tables
from runtime import distributed
from runtime.device import keep_memory
from runtime.errors import UserError
from training.fit import choose_fit

PREPARE = "prepare_"  # prefix of the flags that prepare data sets


def run_command(flag: str, options: Namespace) -> int:
    """Run the command that a flag asks for; return the exit code."""
    keep_memory()
    if flag.startswith(PREPARE):
        return prepare_data(flag.removeprefix(PREPARE), options)
    return COMMANDS[flag](options) or 0


def run_stages(options: Namespace) -> int:
    with distributed.process_group() as group:
        if not group.is_main:  # of several processes only one prints
            sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
        return run_plan(read_sections(options.config, overrides_of(options)), plan_of(options))


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
    return RunPlan(stages, options.input, options.output, options.resume, options.force)


def overrides_of(options: Namespace) -> list[str]:
    """Return the settings of the command line, --log among them."""
    return [*options.settings, *([f"training.log={options.log}"] if options.log else [])]


def tune(options: Namespace) -> None:
    refuse_several("tune")
    content = read_sections(options.config, options.settings)
    provide_sample_set(content)
    if names_several(content):
        raise UserError("--tune chooses settings for one category; set data.category to its name")
    tune_settings(choose_fit(build_settings(content)), options.output)


def check_data(options: Namespace) -> int:
    content = read_sections(options.config, options.settings)
    provide_sample_set(content)
    names = category_names(content, categories_in)
    sections = check_sections({**content, "data": {**content["data"], "category": names[0]}})
    data, workers = sections["data"], sections["model"]["num_workers"]
    folders = [data["data_dir"] / name for name in names]
    return check_categories(folders, masks=data["mask"], workers=workers, sheet=options.contact_sheet)


def prepare_data(kind: str, options: Namespace) -> int:
    source, split = getattr(options, f"{PREPARE}{kind}"), options.split or ONE_CLASS
    request = PrepareRequest(kind, source, options.output, options.defects, options.masks, split)
    prepare_data_set(request, options.config, options.settings)
    return 0


COMMANDS: dict[str, Callable[[Namespace], int | None]] = {
    **dict.fromkeys(STAGES, run_stages),
    "tune": tune,
    "rerun": rerun,
    "compare": lambda options: print(tables.compare_results(options.compare)),
    "figure": lambda options: draw_paper_figure(options.figure, options.choose or [], options.output),
    "table": lambda options: print(tables.published_table(options.table)),
    "check": check_data,
}
