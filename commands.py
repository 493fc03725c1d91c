"""What the command line can be asked for, a function each: from its flags to the rooms that do it, and to the exit code."""

import os
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import campaign
import config
import doctor
import figure
import parallel
import preparation
import rerun
import tables
import tuning
from errors import explained
from settings import STAGES


def run_stages(options: Namespace) -> int:
    """The stages asked for, of one category or several."""
    with parallel.joined() as group:
        if not group.leads:  # of several processes the first one speaks
            sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
        return campaign.run(config.read(options.config, settings_of(options)), plan_of(options), explained)


def repeat(options: Namespace) -> int:
    refuse_several("rerun")
    return rerun.run(options.rerun, settings_of(options), plan_of(options))


def refuse_several(flag: str) -> None:
    """Raises ValueError where torchrun has started several processes."""
    if parallel.group().size > 1:
        raise ValueError(f"--{flag} is one process's, and torchrun has started {parallel.group().size}; run python main.py --{flag}")


def plan_of(options: Namespace) -> campaign.Plan:
    stages = frozenset(stage for stage in STAGES if getattr(options, stage))
    return campaign.Plan(stages, options.input, options.output, options.resume, options.force)


def settings_of(options: Namespace) -> list[str]:
    return [*options.settings, *([f"training.log={options.log}"] if options.log else [])]


def compare(options: Namespace) -> int:
    print(tables.compare(options.compare))
    return 0


def draw(options: Namespace) -> int:
    figure.run(options.figure, options.choose or [], options.output)
    return 0


def show_table(options: Namespace) -> int:
    print(tables.published_table(options.table))
    return 0


def tune(options: Namespace) -> int:
    refuse_several("tune")
    content = config.read(options.config, options.settings)
    campaign.ensure_sample(content)
    if config.is_several(content):
        raise ValueError("--tune chooses for one category; set data.category to its name")
    tuning.run(config.build(content), options.output)
    return 0


def check(options: Namespace) -> int:
    folders, data, model = campaign.folders(options.config, options.settings)
    return doctor.run(folders, masks=data["mask"], workers=model["num_workers"], sheet=options.contact_sheet)


def prepare(kind: str, options: Namespace) -> int:
    """Make a data set of this kind ready."""
    split = options.split or preparation.ONE_CLASS
    source = getattr(options, f"prepare_{kind}")
    preparation.run(preparation.Request(kind, source, options.output, options.defects, options.masks, split), options.config, options.settings)
    return 0


COMMANDS: dict[str, Callable[[Namespace], int]] = {
    **dict.fromkeys(STAGES, run_stages),
    **{"tune": tune, "rerun": repeat, "compare": compare, "figure": draw, "table": show_table, "check": check},
}
