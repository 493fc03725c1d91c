"""DDAD from the command line: train, adapt, detect, in this order, as asked for."""

import argparse
import difflib
import io
import itertools
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

STAGES = ("train", "domain_adaptation", "detection")
PREPARATIONS = {  # flag → what it takes
    "prepare_visa": "VisA's download",
    "prepare_mvtec": "MVTec AD's or MVTec LOCO AD's download, of one category or all",
    "prepare_mtd": "the magnetic-tile defects' download",
    "prepare_btad": "BTAD's download",
    "prepare_ksdd": "KolektorSDD's or KolektorSDD2's download",
    "prepare_folder": "a folder of your own normal pictures",
}
WORDS = {"true": True, "false": False}
MEMORY_SPENT = ("out of memory", "not enough memory", "can't allocate memory", "Storage size calculation overflowed")  # as torch says it
MEMORY_EATERS = ("data.batch_size", "data.DA_batch_size or data.test_batch_size", "data.image_size", "model.base_channels")
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
    parser.add_argument("--check", action="store_true", help="look for what is wrong with the category's pictures and masks; no stage runs")
    parser.add_argument("--contact_sheet", metavar="FILE.png", help="a picture of them, and of what --check finds")
    parser.add_argument("-cfg", "--config", default="config.yaml", metavar="PATH", help="settings (config.yaml)")
    parser.add_argument("--input", metavar="PATH", help="a picture or a folder of them, without labels, for --detection to judge")
    parser.add_argument("--output", metavar="DIR", help="folder of the results (results/<exp_name>/<category>), or of prepared data")
    parser.add_argument("--resume", action="store_true", help="go on with an unfinished --train, or with the predictions of an earlier --input run")
    parser.add_argument("--force", action="store_true", help="do again what is done already, and replace earlier results")
    parser.add_argument("--log", choices=("jsonl", "tensorboard"), help="how stages 1 and 2 log (training.log)")
    parser.add_argument("--rerun", metavar="MANIFEST", help="repeat the result of a manifest.json and say what differs (with --train: all of it)")
    parser.add_argument("--figure", nargs="+", metavar="RESULTS", help="draw a figure for print of results folders, into --output")
    parser.add_argument("--choose", action="append", metavar="best|worst|PICTURE", help="pictures of --figure; one by its path in the category")
    parser.add_argument("--compare", nargs="+", metavar="RESULTS", help="show the figures of results folders side by side")
    parser.add_argument("--table", metavar="MVTec|VisA", help="show the paper's results and settings")
    for flag, text in PREPARATIONS.items():
        parser.add_argument(f"--{flag}", metavar="PATH", help=f"make {text} ready to train on: a folder, zip or tar")
    parser.add_argument("--defects", metavar="DIR", help="for --prepare_folder: defective pictures, a subfolder a kind")
    parser.add_argument("--masks", metavar="PATH", help="for --prepare_folder: masks, or JSON of LabelMe, COCO or Label Studio (beside the defects)")
    parser.add_argument("--split", metavar="NAME", help="for --prepare_visa: the table of split_csv, such as 2cls_fewshot (1cls)")
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
    """What is asked for; returns the exit code. torch is loaded only here, so that --help and mistyped flags answer at once."""
    import tables

    if options.table:
        print(tables.published_table(options.table))
        return 0
    if options.compare:
        print(tables.compare(paths(options.compare)))
        return 0
    if options.figure:
        import figure

        figure.run(paths(options.figure), options.choose or [], Path(options.output).expanduser() if options.output else None)
        return 0
    return run_stages(options)


def paths(texts: Sequence[str]) -> list[Path]:
    return [Path(text).expanduser() for text in texts]


def check(options: argparse.Namespace) -> int:
    """The category's pictures and masks, looked through; returns the exit code."""
    import campaign
    import doctor

    folders, data, model = campaign.folders(options.config, options.settings)
    sheet = Path(options.contact_sheet).expanduser() if options.contact_sheet else None
    return doctor.run(folders, masks=data["mask"], workers=model["num_workers"], sheet=sheet)


def run_stages(options: argparse.Namespace) -> int:
    """The stages asked for, by all processes (torchrun) together; the first one speaks."""
    import campaign
    import config
    import parallel

    stages = frozenset(stage for stage in STAGES if getattr(options, stage))
    source, output = (Path(path).expanduser() if path else None for path in (options.input, options.output))
    with parallel.joined() as group:
        if not group.leads:
            sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
        plan = campaign.Plan(stages, source, output, options.resume, options.force)
        settings = [*options.settings, *([f"training.log={options.log}"] if options.log else [])]
        if options.rerun:
            import rerun

            return rerun.run(Path(options.rerun).expanduser(), settings, plan)
        return campaign.run(config.read(options.config, settings), plan, explained)


def asked_preparations(options: argparse.Namespace) -> list[str]:
    return [flag for flag in PREPARATIONS if getattr(options, flag) is not None]


def prepare(options: argparse.Namespace) -> int:
    """Make a data set ready; returns the exit code."""
    import preparation

    (flag,) = asked_preparations(options)
    places = {name: Path(getattr(options, name)).expanduser() for name in ("output", "defects", "masks") if getattr(options, name) is not None}
    split = options.split or preparation.ONE_CLASS
    request = preparation.Request(flag.removeprefix("prepare_"), Path(getattr(options, flag)), split=split, **places)
    preparation.run(request, options.config, options.settings)
    return 0


def check_preparation(options: argparse.Namespace) -> None:
    asked = asked_preparations(options)
    stages = [stage for stage in STAGES if getattr(options, stage)]
    if asked and (len(asked) > 1 or stages):
        raise ValueError(f"--{asked[0]} and --{[*asked, *stages][1]} are two runs; prepare first, and give the other flag in the next call")
    for flag, owner in (("defects", "prepare_folder"), ("masks", "prepare_folder"), ("split", "prepare_visa")):
        if getattr(options, flag) is not None and owner not in asked:
            raise ValueError(f"--{flag} is {getattr(options, flag)}, which belongs to --{owner}; add that, or leave it away")
    for flag in (*asked, "defects", "masks", "split"):
        if getattr(options, flag) == "":
            raise ValueError(f"--{flag} is empty; name what it takes (python main.py --help)")
    if options.masks is not None and options.defects is None:
        raise ValueError(f"--masks is {options.masks}, but there are no defective pictures; name them with --defects")


def check_flags(options: argparse.Namespace) -> None:
    check_preparation(options)
    stages = [stage for stage in STAGES if getattr(options, stage)]
    if options.check and stages:
        raise ValueError(f"--check looks at files alone, and --{stages[0]} is asked for too; run them one after the other")
    if options.contact_sheet is not None and not (options.check and options.contact_sheet.lower().endswith(".png")):
        raise ValueError(f"--contact_sheet is {options.contact_sheet!r}; it goes with --check and names a .png file")
    if options.input is not None and not options.detection:
        raise ValueError(f"--input is {options.input}, but --detection is not asked for; add --detection True")
    if options.input == "":
        raise ValueError("--input is empty; name a picture or a folder of them")
    if options.resume and options.input is None and not options.train and not asked_preparations(options):
        raise ValueError("--resume goes on with --train, or with a run on --input; add --train, or name the pictures with --input")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 done, and a rerun differs or --check warns, 2 an error (one line says which), 3 done but for categories that failed
    or pictures that could not be read, 130 stopped by Ctrl-C, 143 by SIGTERM, 141 stopped as nobody reads what it prints (head)."""
    show_traceback = False
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names and signs that the terminal's encoding lacks
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        show_traceback = options.traceback
        check_flags(options)
        if options.check:
            return check(options)
        if asked_preparations(options):
            return prepare(options)
        if not any(getattr(options, wish) for wish in (*STAGES, "rerun", "compare", "table", "figure")):
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
    except Exception as error:
        line = explained(error)
        if show_traceback or line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2


def explained(error: Exception) -> str | None:
    """An error in one line that names its remedy; None for what is a fault of this program."""
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name} is missing; python -m pip install -r requirements.txt"
    if isinstance(error, (ValueError, OSError)):
        return one_line(error)
    if process_lost(error):
        return "another process of this run has ended; start it again with --resume"
    if memory_spent(error):
        return f"out of memory; lower {', '.join(MEMORY_EATERS)}"
    return None


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
