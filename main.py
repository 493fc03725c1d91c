"""DDAD from the command line: its flags, its errors in one line, its exit codes. What the flags do is in `commands.py`."""

import argparse
import difflib
import io
import itertools
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from config.keys import STAGES
from runtime.errors import UserError

Flags = Any  # argparse has no public name for a group of flags

PREPARATIONS = {  # flag → what it takes
    "prepare_visa": "VisA's download",
    "prepare_mvtec": "MVTec AD's or MVTec LOCO AD's download, of one category or all",
    "prepare_mtd": "the magnetic-tile defects' download",
    "prepare_btad": "BTAD's download",
    "prepare_ksdd": "KolektorSDD's or KolektorSDD2's download",
    "prepare_folder": "a folder of your own normal pictures",
}
OWNERS = {  # flags that belong to another
    **{"input": "detection", "choose": "figure", "contact_sheet": "check"},
    **{"defects": "prepare_folder", "masks": "defects", "split": "prepare_visa"},
}
USELESS = {
    "compare": ("settings", "output"),
    "table": ("settings", "output"),
    "figure": ("settings",),
    "check": ("output",),
}  # to a request
WORDS = {"true": True, "false": False}
EXAMPLES = """\
A setting is given as section.key=value, its value read as YAML, and goes above the file's:
  python main.py --check data.data_dir=FOLDER data.category=NAME
  python main.py --train True
  python main.py --detection True data.category=screw model.w=3
  python main.py --train --domain_adaptation --detection --config demo.yaml 'model.channel_multipliers=[1,1,2,2]'
"""


class Parser(argparse.ArgumentParser):
    """argparse, with its complaints in one line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message}; python main.py --help lists the flags")


def build_parser() -> Parser:
    parser = Parser(
        prog="main.py",
        usage="python main.py [flags] [section.key=value …]",
        description="DDAD: find and outline defects after seeing only defect-free pictures.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-cfg", "--config", default="config.yaml", metavar="PATH", help="settings (config.yaml)")
    parser.add_argument("settings", nargs="*", metavar="section.key=value", help="settings that go above the file's")
    parser.add_argument("--traceback", action="store_true", help="show where an error arose")
    add_stage_flags(parser.add_argument_group("stages, alone or together"))
    add_result_flags(parser.add_argument_group("results"))
    add_data_flags(parser.add_argument_group("data"))
    return parser


def add_stage_flags(group: Flags) -> None:
    helps = (
        "stage 1: train the UNet on train/good",
        "stage 2: fine-tune the features",
        "stage 3: score the test pictures",
    )
    for stage, text in zip(STAGES, helps, strict=True):
        group.add_argument(
            f"--{stage}", nargs="?", const=True, default=False, type=truth_value, metavar="True|False", help=text
        )
    group.add_argument(
        "--tune",
        action="store_true",
        help="choose settings of detection without labels, by made defects on normal pictures",
    )
    group.add_argument(
        "--input",
        type=path_argument,
        metavar="PATH",
        help="a picture or a folder of them, without labels, for --detection to judge",
    )
    group.add_argument(
        "--output",
        type=path_argument,
        metavar="DIR",
        help="folder of the results (results/<exp_name>/<category>), or of prepared data",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on with an unfinished --train, or with the predictions of an earlier --input run",
    )
    group.add_argument(
        "--force", action="store_true", help="do again what is done already, and replace earlier results"
    )
    group.add_argument("--log", choices=("jsonl", "tensorboard"), help="how stages 1 and 2 log (training.log)")


def add_result_flags(group: Flags) -> None:
    group.add_argument(
        "--rerun",
        type=path_argument,
        metavar="MANIFEST",
        help="repeat the result of a manifest.json and say what differs; all with --train",
    )
    group.add_argument(
        "--compare",
        type=path_argument,
        nargs="+",
        metavar="RESULTS",
        help="show the figures of results folders side by side",
    )
    group.add_argument(
        "--figure",
        type=path_argument,
        nargs="+",
        metavar="RESULTS",
        help="draw a figure for print of results folders, into --output",
    )
    group.add_argument(
        "--choose",
        action="append",
        metavar="best|worst|PICTURE",
        help="pictures of --figure; one by its path in the category",
    )
    group.add_argument("--table", metavar="MVTec|VisA", help="show the paper's results and settings")


def add_data_flags(group: Flags) -> None:
    group.add_argument(
        "--check", action="store_true", help="look for what is wrong with the category's pictures and masks"
    )
    group.add_argument(
        "--contact_sheet", type=path_argument, metavar="FILE.png", help="a picture of them, and of what --check finds"
    )
    for flag, text in PREPARATIONS.items():
        group.add_argument(
            f"--{flag}", type=path_argument, metavar="PATH", help=f"make {text} ready to train on: a folder, zip or tar"
        )
    group.add_argument(
        "--defects",
        type=path_argument,
        metavar="DIR",
        help="for --prepare_folder: defective pictures, a subfolder a kind",
    )
    group.add_argument(
        "--masks",
        type=path_argument,
        metavar="PATH",
        help="for --prepare_folder: masks, or JSON of LabelMe, COCO or Label Studio",
    )
    group.add_argument(
        "--split", metavar="NAME", help="for --prepare_visa: the table of split_csv, such as 2cls_fewshot (1cls)"
    )


def path_argument(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("it is empty; name a file or a folder")
    return Path(text).expanduser()


def truth_value(text: str) -> bool:
    if text.lower() not in WORDS:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False nor section.key=value")
    return WORDS[text.lower()]


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Flags and settings in any order: a bare stage flag does not swallow the setting behind it."""
    parser = build_parser()
    spelt = []
    for argument, following in itertools.zip_longest(arguments, arguments[1:], fillvalue="--"):
        bare = argument.removeprefix("--") in STAGES and argument.startswith("--")
        spelt.append(f"{argument}=True" if bare and (following.startswith("-") or "=" in following) else argument)
    options, rest = parser.parse_known_intermixed_args(spelt)
    if rest:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        close = difflib.get_close_matches(rest[0].partition("=")[0], flags, n=1)
        raise UserError(
            f"unknown flag {rest[0]}{f'; did you mean {close[0]}?' if close else '; python main.py --help lists the flags'}"
        )
    return options


def run_request(options: argparse.Namespace) -> int:
    """What is asked for; returns the exit code. torch is loaded only here, so that --help and mistyped flags answer at once."""
    asked = requests(options)
    check_flags(options, asked)
    if not asked:
        build_parser().print_help()
        return 2
    from commands import dispatch

    return dispatch.run_command(asked[0], options)


def requests(options: argparse.Namespace) -> list[str]:
    """The flags that ask for something to be done. Those of the stages are one request, and belong to --rerun where that is asked for too."""
    alone = [
        flag
        for flag in ("tune", "rerun", "compare", "figure", "table", "check", *PREPARATIONS)
        if getattr(options, flag)
    ]
    stages = [stage for stage in STAGES if getattr(options, stage)]
    return alone + (stages[:1] if "rerun" not in alone else [])


def check_flags(options: argparse.Namespace, asked: Sequence[str]) -> None:
    """Raises ValueError for flags that do nothing together."""
    if len(asked) > 1:
        raise UserError(f"--{asked[0]} and --{asked[1]} are two runs; leave one for the next call")
    for flag, owner in OWNERS.items():
        if getattr(options, flag) is not None and not getattr(options, owner):
            raise UserError(
                f"--{flag} is {getattr(options, flag)}, which belongs to --{owner}; add that, or leave it away"
            )
    for name in USELESS.get(asked[0], ()) if asked else ():
        if getattr(options, name):
            told = f"--output {options.output}" if name == "output" else " ".join(options.settings)
            raise UserError(f"--{asked[0]} does nothing with {told}; leave it away")
    if options.contact_sheet is not None and options.contact_sheet.suffix.lower() != ".png":
        raise UserError(f"--contact_sheet is {options.contact_sheet}; it names a .png file")
    if options.resume and not (options.input or options.train or set(asked) & set(PREPARATIONS)):
        raise UserError(
            "--resume goes on with --train, or with a run on --input; add --train, or name the pictures with --input"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 done, and a rerun differs or --check warns, 2 an error (one line says which), 3 done but for categories that failed
    or pictures that could not be read, 130 stopped by Ctrl-C, 143 by SIGTERM, 141 stopped as nobody reads what it prints (head)."""
    show_traceback = False
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names and signs that the terminal's encoding lacks
    try:
        options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
        show_traceback = options.traceback
        return run_request(options)
    except KeyboardInterrupt as stopped:
        below_echo = "\n" if sys.stderr.isatty() else ""  # a terminal shows ^C
        print(f"{below_echo}stopped; files written so far are whole", file=sys.stderr)
        return 128 + getattr(stopped, "signal", signal.SIGINT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        from runtime.errors import explain_error

        line = explain_error(error)
        if show_traceback or line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
