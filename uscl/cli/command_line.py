"""``uscl``: Lightning's verbs and the small tools, behind one command.

What a verb needs is imported when it is called, so that ``uscl --help`` answers at once.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import uscl
from uscl.cli.experiments import find_experiments
from uscl.cli.refusals import reason_in
from uscl.errors import InputError

_VERBS = {
    "fit": "train a stage: uscl fit --config experiments/vcl.yaml",
    "validate": "score the validation side as a test would: uscl validate --config experiments/eval_us.yaml",
    "test": "score at 1, 3, 5 and 10 clicks: uscl test --config experiments/eval_us.yaml",
    "predict": "segment what a table of clicks points at",
}
_TOOLS = {
    "segment": "segment one object of one image: uscl segment IMAGE --points 'i,j,k,label' --out MASK.nii.gz",
    "prepare": "check a download and write a compact store: uscl prepare amos --root DOWNLOAD --out DIR",
    "pseudo-label": "masks for a whole sweep from key frames: uscl pseudo-label SWEEP --key-frames DIR --out DIR",
    "sweep": "run the cells of a W&B sweep file here: uscl sweep experiments/sweeps/lora_rank.yaml --out DIR",
    "comparators": "what is published of the 2D methods, and whether files are that: uscl comparators selftest",
    "report": "the paper's tables from run folders: uscl report runs/ablation --out runs/ablation/report",
    "simulate": "write a phantom study: uscl simulate ultrasound --out DIR",
}


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        args: the arguments; None takes the program's.

    Returns:
        0, or 2 for input that cannot be used; the reason has been printed in one line then.
    """
    given = list(sys.argv[1:] if args is None else args)
    command, rest = _parser().parse_known_args(given[:1])[0].command, given[1:]
    _set_up_logging()
    _find_modules_here()
    try:
        if command in _VERBS:
            from uscl.cli.lightning_cli import run

            run(find_experiments(given))
        else:
            _run_tool(command, find_experiments(rest))
    except InputError as error:
        sys.stderr.write(f"uscl: error: {_reason(error)}\n")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="uscl",
        description="Promptable 3D segmentation of ultrasound sweeps. Research software, not a medical device.",
        epilog="`uscl COMMAND --help` lists what a command takes.",
    )
    parser.add_argument("--version", action="version", version=uscl.__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, help_text in {**_VERBS, **_TOOLS}.items():
        commands.add_parser(name, help=help_text, add_help=False)
    return parser


def _run_tool(name: str, args: list[str]) -> None:
    """Calls a tool's function with what its signature and docstring say it takes.

    The first parameter is positional, switches are ``--name`` alone, everything else is ``--name VALUE``.
    """
    from docstring_parser import parse
    from jsonargparse import ActionYesNo, ArgumentError, ArgumentParser

    module = name.replace("-", "_")
    function: Callable[..., None] = getattr(import_module(f"uscl.cli.commands.{module}"), module)
    text = parse(function.__doc__ or "")
    help_of = {parameter.arg_name: parameter.description for parameter in text.params}
    parameters = signature(function).parameters
    first, switches = next(iter(parameters)), [key for key, value in parameters.items() if value.default is False]
    passed_on = {_PASSED_ON} & parameters.keys()
    further = f"{_PASSED_ON}: {help_of[_PASSED_ON]}" if passed_on else None
    parser = ArgumentParser(
        prog=f"uscl {name}", description=text.short_description, epilog=further, exit_on_error=False
    )
    kind = get_type_hints(function)[first]
    if get_origin(kind) is list:
        parser.add_argument(first, type=get_args(kind)[0], nargs="+", help=help_of[first])
    else:
        parser.add_argument(first, type=kind, help=help_of[first])
    parser.add_function_arguments(function, as_positional=False, skip={first, *switches, *passed_on})
    for switch in switches:
        parser.add_argument(f"--{switch}", action=ActionYesNo, default=False, help=help_of[switch])
    own, settings = _split_settings(_plain_options(args)) if passed_on else (_plain_options(args), [])
    try:
        options = parser.instantiate_classes(parser.parse_args(own))
    except ArgumentError as error:
        raise InputError(f"{reason_in(str(error))} (`uscl {name} --help` lists the options)") from error
    function(**options.as_dict(), **dict.fromkeys(passed_on, settings))


_PASSED_ON = "settings"
"""Parameter of a tool that takes the options of the runs that it starts."""
_OF_RUNS = re.compile(r"(--(model|data|trainer|config|test_with|seed_everything)|-c)(?=[.=]|$)")


def _split_settings(args: list[str]) -> tuple[list[str], list[str]]:
    """The options of the tool itself, and those of the runs that it starts, each with its value."""
    own: list[str] = []
    settings: list[str] = []
    lacks_value = False
    for arg in args:
        if _OF_RUNS.match(arg):
            settings.append("--config" + arg[2:] if arg.startswith("-c") else arg)
            lacks_value = "=" not in arg
        elif lacks_value and not arg.startswith("--"):
            settings[-1] += f"={arg}"
            lacks_value = False
        else:
            own.append(arg)
            lacks_value = False
    return own, settings


def _plain_options(args: list[str]) -> list[str]:
    """Options as the parser knows them.

    ``--sweeps-per-patient`` is ``--sweeps_per_patient``, and ``--points -12.5,3,4`` is ``--points=-12.5,3,4``: a
    leading minus before a digit is a number, not an option.
    """
    plain: list[str] = []
    for arg in args:
        if plain and plain[-1].startswith("--") and "=" not in plain[-1] and re.match(r"-[\d.]", arg):
            plain[-1] += f"={arg}"
        elif arg.startswith("--"):
            name, *value = arg.split("=", 1)
            plain.append("=".join(["--" + name[2:].replace("-", "_"), *value]))
        else:
            plain.append(arg)
    return plain


def _find_modules_here() -> None:
    """Lets dotted paths name modules in the folder that uscl is run in, after everything that is installed."""
    here = str(Path.cwd())
    if "" not in sys.path and here not in sys.path:
        sys.path.append(here)


def _set_up_logging() -> None:
    """Our own messages go to the terminal; a program that imports uscl decides for itself."""
    logger = logging.getLogger("uscl")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def _reason(error: InputError) -> str:
    """The message itself; a data-loading process has wrapped it in its traceback."""
    text = str(error)
    marker = f"{InputError.__name__}: "
    return text.rsplit(marker, 1)[-1].strip() if "Original Traceback" in text else text
