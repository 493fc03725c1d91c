"""DDAD from the command line: train, adapt, detect, in this order, as asked for."""

import argparse
import difflib
import importlib
import io
import itertools
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

STAGES = ("train", "domain_adaptation", "detection")
INCOMPLETE = 3  # exit code
WORDS = {"true": True, "false": False}
MEMORY_SPENT = ("out of memory", "not enough memory", "can't allocate memory", "Storage size calculation overflowed")  # as torch says it
MEMORY_EATERS = ("data.batch_size", "data.DA_batch_size or data.test_batch_size", "data.image_size", "model.base_channels")
EXAMPLES = """\
A setting is given as section.key=value, its value read as YAML, and goes above the file's:
  python main.py --train True
  python main.py --detection True data.category=screw model.w=3
  python main.py --train --domain_adaptation --detection --config demo.yaml 'model.channel_multipliers=[1,1,2,2]'
"""


class Parser(argparse.ArgumentParser):
    """argparse, with its complaints in one line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise ValueError(f"{message}; python main.py --help lists the flags")


def build_parser() -> Parser:
    parser = Parser(
        prog="main.py",
        description="DDAD: find and outline defects after seeing only defect-free pictures.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    helps = ("stage 1: train the UNet on train/good", "stage 2: fine-tune the features", "stage 3: score the test pictures")
    for stage, text in zip(STAGES, helps, strict=True):
        parser.add_argument(f"--{stage}", nargs="?", const=True, default=False, type=truth, metavar="True|False", help=text)
    parser.add_argument("-cfg", "--config", default="config.yaml", metavar="PATH", help="settings (config.yaml)")
    parser.add_argument("--input", metavar="PATH", help="a picture or a folder of them, without labels, for --detection to judge")
    parser.add_argument("--output", metavar="DIR", help="folder of detection's results (results/<exp_name>/<category>)")
    parser.add_argument("--resume", action="store_true", help="go on with an unfinished --train, or with the predictions of an earlier --input run")
    parser.add_argument("--traceback", action="store_true", help="show where an error arose")
    parser.add_argument("settings", nargs="*", metavar="section.key=value", help="settings that go above the file's")
    return parser


def truth(text: str) -> bool:
    if text.lower() not in WORDS:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False nor section.key=value")
    return WORDS[text.lower()]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
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
        raise ValueError(f"unknown flag {rest[0]}{f'; did you mean {close[0]}?' if close else '; python main.py --help lists the flags'}")
    return options


def run(options: argparse.Namespace) -> int:
    """The stages asked for; returns the exit code. torch is loaded only here, so that --help and mistyped flags answer at once.

    Of several processes (torchrun) all train together; adaptation and detection are the first one's.
    """
    import parallel

    with parallel.joined() as group:
        if not group.leads:
            sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
            options.domain_adaptation = options.detection = False
        return run_stages(options)


def run_stages(options: argparse.Namespace) -> int:
    import config

    settings = config.load(options.config, options.settings)
    for line in config.accepted_without_effect(settings):
        print(line)
    if settings.data.name == config.SAMPLE:
        import preparation

        preparation.ensure_sample(settings.data.data_dir, settings.model.seed)
    stages: list[tuple[ModuleType, tuple[object, ...]]] = [
        (importlib.import_module(stage), (options.resume,) if stage == "train" else ()) for stage in STAGES[:2] if getattr(options, stage)
    ]
    if options.detection:
        stages.append(detection_stage(options))
    for stage, arguments in stages:
        stage.check(settings, *arguments)
    left_out = [stage.run(settings, *arguments) for stage, arguments in stages]
    return INCOMPLETE if any(left_out) else 0


def detection_stage(options: argparse.Namespace) -> tuple[ModuleType, tuple[object, ...]]:
    """The module that does it, for labelled test pictures or for those of --input, and its arguments behind the settings."""
    output = Path(options.output).expanduser() if options.output else None
    if options.input is None:
        return importlib.import_module("evaluation"), (output,)
    return importlib.import_module("inspection"), (Path(options.input).expanduser(), output, options.resume)


def check_flags(options: argparse.Namespace) -> None:
    if options.input is not None and not options.detection:
        raise ValueError(f"--input is {options.input}, but --detection is not asked for; add --detection True")
    if options.input == "":
        raise ValueError("--input is empty; name a picture or a folder of them")
    if options.resume and options.input is None and not options.train:
        raise ValueError("--resume goes on with --train, or with a run on --input; add --train, or name the pictures with --input")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 an error (one line says which), 3 done but for pictures that could not be read, 130 stopped by Ctrl-C,
    143 by SIGTERM, 141 stopped as nobody reads what it prints (head)."""
    show_traceback = False
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names and signs that the terminal's encoding lacks
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        show_traceback = options.traceback
        check_flags(options)
        if not any(getattr(options, stage) for stage in STAGES):
            build_parser().print_help()
            return 2
        return run(options)
    except KeyboardInterrupt as stopped:
        below_echo = "\n" if sys.stderr.isatty() else ""  # a terminal shows ^C
        print(f"{below_echo}stopped; files written so far are whole", file=sys.stderr)
        return 128 + getattr(stopped, "signal", signal.SIGINT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError) as error:
        if show_traceback:
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if show_traceback:
            raise
        print(f"error: the package {error.name} is missing; python -m pip install -r requirements.txt", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not show_traceback and process_lost(error):
            print("error: another process of this run has ended; start it again with --resume", file=sys.stderr)
            return 2
        if show_traceback or not memory_spent(error):
            raise
        print(f"error: out of memory; lower {', '.join(MEMORY_EATERS)}", file=sys.stderr)
        return 2


def process_lost(error: BaseException) -> bool:
    import parallel

    return parallel.lost(error)


def memory_spent(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or any(words in str(error) for words in MEMORY_SPENT)


def one_line(error: BaseException) -> str:
    """What it says, without line ends and without what a terminal obeys: names of files may hold both."""
    text = re.sub(r"\s*\n\s*", " ", str(error)).strip() or type(error).__name__
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "?", text)


if __name__ == "__main__":
    sys.exit(main())
