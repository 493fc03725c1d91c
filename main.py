"""Run DDAD from the command line: parse flags, print each error in one line; commands/dispatch.py does the rest."""

import argparse
import difflib
import io
import itertools
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from config.keys import STAGES
from runtime.errors import UserError, explain_error

STAGE_FLAGS = {
    "--train": "stage 1: train the UNet on train/good",
    "--domain_adaptation": "stage 2: fine-tune the features",
    "--detection": "stage 3: score the test images",
}
PREPARATIONS = {  # flag: what it takes
    "prepare_visa": "the download of VisA",
    "prepare_mvtec": "the download of MVTec AD or MVTec LOCO AD, one category or all",
    "prepare_mvtec2": "the download of MVTec AD 2, one category or all",
    "prepare_real_iad": "the download of Real-IAD, its JSON files included",
    "prepare_mpdd": "the download of MPDD",
    "prepare_mtd": "the download of the magnetic-tile defects",
    "prepare_btad": "the download of BTAD",
    "prepare_ksdd": "the download of KolektorSDD or KolektorSDD2",
    "prepare_folder": "a folder of your own normal images",
}
RESULTS = ("reproduce", "compare", "figure", "table")
REQUESTS = ("tune", "recalibrate", "export", "rerun", *RESULTS, "check", *PREPARATIONS)  # one per run
OWNERS = {  # flag: the flag that it needs
    "input": "detection", "submission": "detection", "choose": "figure", "contact_sheet": "check",
    "checkpoint": "export", "categories": "reproduce", "defects": "prepare_folder", "masks": "defects",
    "split": "prepare_visa",
}  # fmt: skip
UNUSED = {  # argument: requests
    "settings": ("compare", "table", "figure"), "output": ("recalibrate", "export", "compare", "table", "check"),
}  # fmt: skip
HELP_HINT = "python main.py --help lists the flags"
EXAMPLES = """\
section.key=value sets one key; its value is read as YAML. Values are taken in this order, the last one wins:
the file, then the preset (preset=laptop, preset=published), then section.key=value after the flags.
  python main.py --check data.data_dir=FOLDER data.category=NAME
  python main.py --train --detection preset=laptop data.name=own data.data_dir=FOLDER data.category=NAME
  python main.py --detection True data.category=screw model.w=3
  python main.py --train --domain_adaptation --detection --config demo.yaml 'model.channel_multipliers=[1,1,2,2]'
"""


class Parser(argparse.ArgumentParser):
    """Raise a UserError for wrong arguments, where argparse prints the usage and exits."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message}; {HELP_HINT}")


def build_parser() -> Parser:
    parser = Parser(
        prog="main.py",
        usage="python main.py [flags] [section.key=value …]",
        description="DDAD: find and outline defects after training on defect-free images only.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    place = "configuration file (default: config.yaml here, else the one beside main.py)"
    add("-cfg", "--config", metavar="PATH", help=place)
    add("settings", nargs="*", metavar="section.key=value", help="settings; they override the file and the preset")
    add("--traceback", action="store_true", help="show where an error was raised")

    add = parser.add_argument_group("stages, alone or together; without a value: True").add_argument
    for flag, text in STAGE_FLAGS.items():
        add(flag, nargs="?", const=True, default=False, type=truth_value, metavar="True|False", help=text)
    add("--tune", action="store_true", help="choose detection settings on synthetic anomalies; needs no labels")
    recalibrate = "measure the thresholds anew on a folder of new normal images, without training"
    add("--recalibrate", type=as_path, metavar="FOLDER", help=recalibrate)
    add("--input", type=as_path, metavar="PATH", help="with --detection: an image or a folder without labels")
    add("--export", type=as_path, metavar="FILE", help="write the trained detector into FILE.onnx or FILE.ddad")
    add("--checkpoint", type=as_path, metavar="FOLDER", help="with --export: a category's checkpoint folder")
    submission = "with --detection: also write maps and masks for the server of MVTec AD 2"
    add("--submission", type=as_path, metavar="DIR", help=submission)
    add("--output", type=as_path, metavar="DIR", help="results (results/<exp_name>/<category>), or prepared data")
    add("--resume", action="store_true", help="continue an unfinished --train, or an earlier --input run")
    add("--force", action="store_true", help="repeat finished work and replace earlier results")
    add("--log", choices=("jsonl", "tensorboard"), help="log format of stages 1 and 2; overrides training.log")
    add_data_flags(parser)
    return parser


def add_data_flags(parser: Parser) -> None:
    add = parser.add_argument_group("results").add_argument
    rerun = "repeat detection from a manifest.json and print the differences; with --train, training too"
    add("--rerun", type=as_path, metavar="MANIFEST", help=rerun)
    reproduce = "train and detect all categories as published, beside the paper's results; run it again to go on"
    add("--reproduce", metavar="MVTec|VisA", help=reproduce)
    add("--categories", type=as_names, metavar="NAME,…", help="with --reproduce: only these")
    add("--compare", type=as_path, nargs="+", metavar="RESULTS", help="print the metrics of folders side by side")
    add("--figure", type=as_path, nargs="+", metavar="RESULTS", help="make a figure for print, in --output")
    add("--choose", action="append", metavar="best|worst|PICTURE", help="an image for --figure, by path; repeatable")
    add("--table", metavar="MVTec|VisA", help="print the paper's results and settings")

    add = parser.add_argument_group("data").add_argument
    add("--check", action="store_true", help="check the category's images and masks for problems")
    add(
        "--contact_sheet", type=as_path, metavar="FILE.png", help="with --check: an overview of the images and problems"
    )
    for flag, source in PREPARATIONS.items():
        add(f"--{flag}", type=as_path, metavar="PATH", help=f"prepare {source}: a folder, zip or tar")
    add("--defects", type=as_path, metavar="DIR", help="with --prepare_folder: defective images, a subfolder per kind")
    add("--masks", type=as_path, metavar="PATH", help="with --defects: masks, or JSON of LabelMe, COCO, Label Studio")
    add("--split", metavar="NAME", help="with --prepare_visa: a table of split_csv, such as 2cls_fewshot (1cls)")


def as_path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("it is empty; name a file or a folder")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # the user of ~user is unknown
        raise argparse.ArgumentTypeError(f"{text!r} has no home folder: {error}") from None


def as_names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} holds an empty name; separate names by one comma")
    return names


def truth_value(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False nor section.key=value")
    return text.lower() == "true"


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse flags and settings in any order. A bare stage flag does not take the setting after it as its value."""
    spelt_out = []
    for argument, following in itertools.zip_longest(arguments, arguments[1:], fillvalue="--"):
        is_bare = argument in STAGE_FLAGS and (following.startswith("-") or "=" in following)
        spelt_out.append(f"{argument}=True" if is_bare else argument)
    options, unknown = build_parser().parse_known_intermixed_args(spelt_out)
    if unknown:
        flags = ["--help", *(f"--{name}" for name in vars(options) if name != "settings")]
        close = difflib.get_close_matches(unknown[0].partition("=")[0], flags, n=1)
        raise UserError(f"unknown flag {unknown[0]}; {f'did you mean {close[0]}?' if close else HELP_HINT}")
    return options


def run_request(options: argparse.Namespace) -> int:
    """Do what the flags ask for and return the exit code."""
    requests = [flag for flag in REQUESTS if getattr(options, flag)]
    if "rerun" not in requests:  # with --rerun, the stages are part of it
        requests += [stage for stage in STAGES if getattr(options, stage)][:1]
    check_flags(options, requests)
    if not requests:
        build_parser().print_help()
        return 2
    from commands import dispatch  # loads torch; --help and mistyped flags need not wait for it

    return dispatch.run_command(requests[0], options)


def check_flags(options: argparse.Namespace, requests: Sequence[str]) -> None:
    """Raise UserError for flags that do not go together."""
    if len(requests) > 1:
        raise UserError(f"--{requests[0]} and --{requests[1]} are two runs; remove one of them")
    for flag, owner in OWNERS.items():
        value = getattr(options, flag)
        if value is not None and not getattr(options, owner):
            raise UserError(f"--{flag} is {value}, which belongs to --{owner}; add that, or remove --{flag}")
    for name, without in UNUSED.items():
        if getattr(options, name) and {*requests} & {*without}:
            argument = f"--output {options.output}" if name == "output" else " ".join(options.settings)
            raise UserError(f"--{requests[0]} does not use {argument}; remove it")
    if options.submission and options.input:
        raise UserError(f"--submission {options.submission} scores the pictures of MVTec AD 2; remove --input")
    if options.checkpoint and options.settings:
        raise UserError(f"--checkpoint {options.checkpoint} has its own settings; remove {' '.join(options.settings)}")
    if options.contact_sheet is not None and options.contact_sheet.suffix.lower() != ".png":
        raise UserError(f"--contact_sheet is {options.contact_sheet}; it should name a .png file")
    if options.resume and not (options.input or options.train or {*requests} & {"reproduce", *PREPARATIONS}):
        raise UserError("--resume needs --train or --input; add --train, or name the pictures with --input")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    0: done. 1: done, but a rerun differs or --check warns. 2: an error, explained in one line. 3: done, but some
    categories failed or some pictures could not be read. 130: Ctrl-C. 143: SIGTERM. 141: the output was closed.
    """
    show_traceback = False
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for characters that the terminal's encoding lacks
    try:
        options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
        show_traceback = options.traceback
        return run_request(options)
    except KeyboardInterrupt as stopped:
        below_echo = "\n" if sys.stderr.isatty() else ""  # a terminal shows ^C
        print(f"{below_echo}stopped; all files written so far are complete", file=sys.stderr)
        return 128 + next((number for number in stopped.args if isinstance(number, int)), int(signal.SIGINT))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        line = explain_error(error)
        if show_traceback or line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
