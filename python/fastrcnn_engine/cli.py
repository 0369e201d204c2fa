"""The command line: `fastrcnn-engine COMMAND --help` documents each command.

Only what a command line needs is imported here. A command imports its tools when it runs, so that
help and mistakes answer at once.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from typing import Any

import tyro
from rich.table import Table
from rich.text import Text

from fastrcnn_engine.commands import plain_console
from fastrcnn_engine.options import (
    CheckData,
    Compress,
    Demo,
    Detect,
    Env,
    Eval,
    Export,
    Proposals,
    ReportRuns,
    Svm,
)
from fastrcnn_engine.report.text import spelt_out

# What each command is for, and its options; those of train are the settings of the training loop,
# which needs torch.
COMMANDS: dict[str, tuple[str, type | None]] = {
    "demo": (
        "The whole of Fast R-CNN in minutes, on images it draws itself; needs no download.", Demo
    ),
    "check-data": (
        "What is wrong with a data set, and what is in it, before training on it.", CheckData
    ),
    "proposals": ("Compute region proposals of a data set, once, into a file.", Proposals),
    "train": ("Train a detector on a VOC or COCO directory, and test it.", None),
    "eval": ("Average precision of a trained detector on a split.", Eval),
    "detect": ("Detect objects on image files: JSON and drawn pictures.", Detect),
    "compress": ("A faster detector of a trained one, by truncated SVD of fc6 and fc7.", Compress),
    "export": ("A trained detector as one ONNX file.", Export),
    "report": (
        "Several runs on one page: results, curves, the settings in which they differ.", ReportRuns
    ),
    "svm": (
        "A detector that scores by linear SVMs in place of the softmax of a trained one.", Svm
    ),
    "env": ("Versions and hardware, for a bug report.", Env),
}  # fmt: skip

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done; 1 a failure that is not the user's, or images or data with
    faults, which are named; 2 a user's mistake; of what was stopped 130 by Ctrl-C, 143 by SIGTERM.
    Raises BrokenPipeError where nobody reads the output any more.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments or os.environ.get("FRCNN_DEBUG", "0") not in ("", "0")
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help"):
        _print_help()
        sys.exit(0 if arguments else 2)
    name, *rest = arguments
    try:
        if name == "--version":
            from fastrcnn_engine import __version__

            print(__version__)
            return
        if name not in COMMANDS:
            raise ValueError(f"{name!r} is not a command; there are {', '.join(COMMANDS)}")
        chosen = tyro.cli(
            _options_of(name), prog=f"fastrcnn-engine {name}", args=rest, **_defaults(name, rest)
        )
        _run(chosen, shlex.join(["fastrcnn-engine", *arguments]))
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        if debug or isinstance(error, BrokenPipeError):
            raise
        message = str(error) or type(error).__name__
        if isinstance(error, ModuleNotFoundError):
            extra = "onnx" if (error.name or "").startswith("onnx") else "train"
            message += f"; pip install '.[{extra}]' in the checkout brings what the command needs"
        who = f" (process {rank})" if (rank := os.environ.get("RANK")) else ""  # of torchrun's
        message = spelt_out(" ".join(line.strip() for line in message.splitlines()))
        print(f"fastrcnn-engine {name}{who}: {message}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        if debug:
            raise
        # The training says from where it can go on; a demo always starts anew.
        hint = f"; --{stop}" if name == "train" and str(stop) else ""
        if os.environ.get("RANK", "0") == "0":
            print(f"fastrcnn-engine {name}: stopped{hint}", file=sys.stderr)
        sys.exit(128 + getattr(stop, "number", signal.SIGINT))


def _options_of(name: str) -> type:
    _, options = COMMANDS[name]
    if options is not None:
        return options
    from fastrcnn_engine.commands.training import Train

    return Train


def _defaults(name: str, arguments: list[str]) -> dict[str, Any]:
    """What --config says, as the defaults that all other options are changes of."""
    if name != "train":
        return {}
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", nargs="?")
    source = parser.parse_known_args(arguments)[0].config
    if source is None:
        return {}
    from fastrcnn_engine.commands.training import configured

    return {"default": configured(source)}


def _run(options: Any, command: str) -> None:
    """Does what the options ask for. Imports the tools of this command and of no other."""
    _keep_freed_memory()
    match options:
        case Demo():
            from fastrcnn_engine.commands.training import demo

            demo(options, command)
        case CheckData():
            from fastrcnn_engine.commands.data import check_data

            check_data(options)
        case Proposals():
            from fastrcnn_engine.commands.data import proposals

            proposals(options)
        case Eval():
            from fastrcnn_engine.commands.evaluation import evaluate

            evaluate(options, command)
        case Detect():
            from fastrcnn_engine.commands.detection import detect

            detect(options)
        case Compress():
            from fastrcnn_engine.commands.detectors import compress

            compress(options)
        case Svm():
            from fastrcnn_engine.commands.detectors import svm

            svm(options)
        case Export():
            from fastrcnn_engine.commands.detectors import export

            export(options)
        case ReportRuns():
            from fastrcnn_engine.commands.evaluation import report

            report(options)
        case Env():
            from fastrcnn_engine.report.environment import print_environment

            print_environment()
        case _:
            from fastrcnn_engine.commands.training import train

            train(options, command)


def _keep_freed_memory() -> None:
    """Has glibc keep what is freed for the next who asks.

    By itself it gives tens of megabytes back to the system after every layer, and takes them anew
    page by page, which a virtual machine takes long for. Nothing else in the package does this.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    # The last alone would have every tensor mapped anew. Older glibc take no more than 2**25.
    if mallopt and (mallopt(M_MMAP_THRESHOLD, 2**27) or mallopt(M_MMAP_THRESHOLD, 2**25)):
        mallopt(M_TRIM_THRESHOLD, 2**30)


def _print_help() -> None:
    console = plain_console()
    console.print("Fast R-CNN: train and use an object detector on precomputed proposals.\n")
    console.print(Text("usage:", "bold"), "fastrcnn-engine COMMAND [OPTIONS]\n")
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2))
    for name, (summary, _) in COMMANDS.items():
        table.add_row(Text(name, "bold"), summary)
    console.print(table)
    console.print(
        "\nfastrcnn-engine COMMAND --help explains every option, its default and its source.\n"
        "--version prints the version; --debug shows where an error came from.\n"
    )
    console.print("examples:", style="bold")
    for example in (
        "fastrcnn-engine demo",
        "fastrcnn-engine check-data --data VOC2007 --split trainval",
        "fastrcnn-engine train --data VOC2007 --network tiny --split train --test-split test",
        "fastrcnn-engine train --config voc07-L --data VOC2007 --weights VGG16.v2.caffemodel",
        "fastrcnn-engine eval --run runs/train --split val --metric 11point",
        "fastrcnn-engine detect street.jpg --checkpoint runs/train --out found",
        "fastrcnn-engine compress --checkpoint runs/train --energy 0.9",
        "fastrcnn-engine export --checkpoint runs/train --out detector.onnx",
        "fastrcnn-engine svm --checkpoint runs/train",
        "fastrcnn-engine report runs/a runs/b --out compare.html",
    ):
        console.print(f"  {example}", soft_wrap=True)
