"""The command line: parse, wire, print, exit code."""

from __future__ import annotations

import inspect
import io
import os
import sys
import time
from importlib.metadata import PackageNotFoundError, version

import fire
from fire.decorators import SetParseFn

from mistral.cli.bench.command import Bench
from mistral.cli.chat.command import Interactive
from mistral.cli.complete.command import Complete
from mistral.cli.demo import Demo
from mistral.cli.info.command import Info
from mistral.cli.options import checked_arguments, converted, describe
from mistral.cli.quantize import Quantize
from mistral.cli.score import Score
from mistral.cli.status_line import START, loaded, status, status_line
from mistral.errors import InputError
from mistral.pipeline.launch import launched, work_alone
from mistral.version import __version__

AnyCommand = Demo | Interactive | Complete | Score | Info | Quantize | Bench
COMMANDS: dict[str, type[AnyCommand]] = {
    "demo": Demo, "interactive": Interactive, "complete": Complete, "score": Score,
    "info": Info, "quantize": Quantize, "bench": Bench,
}  # fmt: skip
ALONE = (Info, Quantize, Bench)  # commands that the first rank of a job does by itself
HELP = ("-h", "--help")
ANOTHER_SPEAKS = 2.0  # seconds: a process that ends with an error makes mpirun end the others, also one that must speak


def versions() -> str:
    """This project's version and MindSpore's, without loading either."""
    try:
        mindspore = version("mindspore")
    except PackageNotFoundError:
        mindspore = "not installed"
    return f"mistral-mindspore {__version__}, mindspore {mindspore}"


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


def parse(arguments: list[str]) -> AnyCommand:
    """The command that a command line asks for, all its options sound. Raises InputError naming what is not."""
    name = arguments[0]
    if name not in COMMANDS:
        raise InputError(f"{name!r} is not a command; the commands are {', '.join(COMMANDS)}")
    kind = COMMANDS[name]
    spelled = checked_arguments(arguments[1:], kind)
    parsed: list[AnyCommand] = []

    def build(*operands: str, **options: str) -> None:
        parsed.append(kind(*operands, **options))  # type: ignore[arg-type]  # text so far

    build.__signature__ = inspect.signature(kind)  # type: ignore[attr-defined]  # what fire goes by
    fire.Fire(SetParseFn(str)(build), command=spelled)  # every value stays the text that was typed
    command = converted(parsed[0])
    command.check()
    return command


def run(arguments: list[str], program: str) -> int:
    """Do what a command line asks for; returns the exit code. Raises InputError naming what cannot be."""
    if not arguments or arguments[0] in HELP:
        print(overview(program))
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(versions())
    elif arguments[0] in COMMANDS and not set(HELP).isdisjoint(arguments):
        print(describe(arguments[0], program, COMMANDS[arguments[0]]))
    else:
        launch = launched()
        if sys.stderr.isatty():
            status(START)
        if launch and launch.size > 1 and COMMANDS.get(arguments[0]) in ALONE:
            if launch.rank:
                return 0
            print(f"note: {arguments[0]} works in one process; the other ranks of mpirun have left", file=sys.stderr)
            work_alone()
        parse(arguments).run()
    return 0


def main(arguments: list[str] | None = None, program: str = "python -m main") -> int:
    """Run the command line; returns its exit code. What goes wrong is one line on standard error."""
    prepare_streams()
    if arguments is None:
        with status_line():
            code = guarded(sys.argv[1:], program)
    else:
        code = guarded(arguments, program)
    launch = launched()
    if code and launch and launch.rank and "mpi4py" not in sys.modules:
        time.sleep(ANOTHER_SPEAKS)
    return code


def guarded(arguments: list[str], program: str) -> int:
    """The exit code of a command line, after a line about what went wrong."""
    try:
        code = run(arguments, program)
        sys.stdout.flush()
        return code
    except InputError as error:
        message = error.with_flags()
    except MemoryError:
        message = "out of memory; use a smaller model, or lower --max_tokens"
    except KeyboardInterrupt as error:
        loaded()
        print(str(error) or "interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has left
        discard_output()
        return 0
    except OSError as error:
        message = f"{error.filename or 'the output'}: {error.strerror}"
        if error.filename is None:
            discard_output()
    print("error:", "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message), file=sys.stderr)
    return 2


def prepare_streams() -> None:
    """Open standard streams that are closed, lest a checkpoint's file take their number; let every character print."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  for as long as we run
    launch = launched()
    if launch and launch.rank:  # the first rank speaks for all; one that fails alone uses sys.__stderr__
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # an encoding such as ASCII has not every character


def discard_output() -> None:
    """What is still in the buffer of standard output cannot be written: let the flush at exit send it nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def console() -> None:
    """The entry point of the installed command; ends the process with the exit code."""
    sys.exit(main(program="mistral-mindspore"))
