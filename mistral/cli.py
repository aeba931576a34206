"""The command line: parse, wire, print, exit code."""

from __future__ import annotations

import inspect
import os
import sys
from importlib.metadata import PackageNotFoundError, version

import fire
from fire.decorators import SetParseFn

import mistral
from mistral.demo import Demo
from mistral.errors import InputError
from mistral.interactive import Interactive
from mistral.options import check_arguments, converted, describe

COMMANDS: dict[str, type[Demo] | type[Interactive]] = {"demo": Demo, "interactive": Interactive}
HELP = ("-h", "--help", "help")


def versions() -> str:
    """This project's version and MindSpore's, without loading either."""
    try:
        mindspore = version("mindspore")
    except PackageNotFoundError:
        mindspore = "not installed"
    return f"mistral-mindspore {mistral.__version__}, mindspore {mindspore}"


def overview(program: str) -> str:
    """The help text of the program."""
    commands = (f"  {name:14s}{(inspect.getdoc(command) or '').splitlines()[0]}" for name, command in COMMANDS.items())
    return "\n".join(
        [
            f"usage: {program} COMMAND [CKPT] [options]     {program} COMMAND --help",
            "",
            "Run Mistral's open-weight models, from a checkpoint folder as it was downloaded, with MindSpore.",
            "",
            *commands,
            "",
            "Results go to standard output; notes, progress and timings to standard error.",
            "Exit codes: 0 done, 2 wrong usage or a bad checkpoint, 130 interrupted. --version prints versions.",
        ]
    )


def parse(arguments: list[str]) -> Demo | Interactive:
    """The command that a command line asks for, all its options sound. Raises InputError naming what is not."""
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        raise InputError(f"{name!r} is not a command; the commands are {', '.join(COMMANDS)}")
    kind = COMMANDS[name]
    check_arguments(rest, kind)
    parsed: list[Demo | Interactive] = []

    def build(*operands: str, **options: str) -> None:
        parsed.append(kind(*operands, **options))  # type: ignore[arg-type]  # text so far

    build.__signature__ = inspect.signature(kind)  # type: ignore[attr-defined]  # what fire goes by
    fire.Fire(SetParseFn(str)(build), command=rest)  # every value stays the text that was typed
    command = converted(parsed[0])
    command.check()
    return command


def main(arguments: list[str] | None = None, program: str = "python -m main") -> int:
    """Run the command line; returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in HELP:
        print(overview(program))
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(versions())
        return 0
    if arguments[0] in COMMANDS and arguments[-1] in HELP:
        print(describe(arguments[0], program, COMMANDS[arguments[0]]))
        return 0
    try:
        parse(arguments).run()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except MemoryError:
        print("error: out of memory; use a smaller model, or lower --max_tokens", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def console() -> None:
    """The installed command."""
    sys.exit(main(program="mistral-mindspore"))
