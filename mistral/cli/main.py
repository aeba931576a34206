"""The command line: parses arguments, runs the command, and returns an exit code."""

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
from mistral.cli.completion import ASKED, complete, script
from mistral.cli.demo import Demo
from mistral.cli.help_text import ELSEWHERE, Help, command_help
from mistral.cli.info.command import Info
from mistral.cli.options import checked_arguments, converted
from mistral.cli.quantize.command import Quantize
from mistral.cli.score import Score
from mistral.cli.serve import Serve
from mistral.cli.settings import found_settings, taken_apart
from mistral.cli.status_line import START, loaded, status, status_line
from mistral.cli.synonyms import command_hint
from mistral.errors import InputError, one_line, visible
from mistral.pipeline.launch import launched, work_alone
from mistral.version import __version__

AnyCommand = Demo | Interactive | Complete | Score | Serve | Info | Quantize | Bench
COMMANDS: dict[str, type[AnyCommand]] = {
    "demo": Demo, "interactive": Interactive, "complete": Complete, "score": Score,
    "serve": Serve, "info": Info, "quantize": Quantize, "bench": Bench,
}  # fmt: skip
ALONE = (Info, Quantize, Bench)  # commands that the first rank of a job does by itself
HELP = ("-h", "--help")
INSTALLED = "mistral-mindspore"  # the command that pip makes
ANOTHER_SPEAKS = 2.0  # seconds: a process that ends with an error makes mpirun end the others, also one that must speak


def versions() -> str:
    """This project's version and MindSpore's, without loading either."""
    try:
        mindspore = version("mindspore")
    except PackageNotFoundError:
        mindspore = "not installed"
    return f"mistral-mindspore {__version__}, mindspore {mindspore}"


def overview(program: str) -> Help:
    """The help of the program."""
    commands = [(name, (inspect.getdoc(command) or "").splitlines()[0]) for name, command in COMMANDS.items()]
    return Help(
        f"usage: {program} COMMAND [CKPT] [options]     {program} COMMAND --help",
        "Run Mistral's open-weight models, from a checkpoint folder as it was downloaded, with MindSpore.",
        [("Commands", commands)],
        (
            "Results go to standard output; notes, progress and timings to standard error.",
            "Exit codes: 0 done, 2 wrong usage or a bad checkpoint, 130 interrupted. --version prints versions,"
            " --completion bash (or zsh, fish) what a shell has to read to complete commands and options.",
            ELSEWHERE,
        ),
    )


def parse(arguments: list[str]) -> AnyCommand:
    """The command of a command line, with all options checked. Raises InputError naming an invalid argument."""
    name = arguments[0]
    if name not in COMMANDS:
        raise InputError(f"{name!r} is not a command; {command_hint(name, COMMANDS)}")
    kind = COMMANDS[name]
    rest, file = taken_apart(arguments[1:])
    settings = found_settings(name, COMMANDS, file)
    spelled = checked_arguments(rest, kind, {option: text for option, (text, _) in settings.items()})
    parsed: list[AnyCommand] = []

    def build(*operands: str, **options: str) -> None:
        parsed.append(kind(*operands, **options))  # type: ignore[arg-type]  # text so far

    build.__signature__ = inspect.signature(kind)  # type: ignore[attr-defined]  # what fire goes by
    fire.Fire(SetParseFn(str)(build), command=spelled)  # every value stays the text that was typed
    command = converted(parsed[0])
    try:
        command.check()
    except InputError as error:
        text, where = settings.get(error.option or "", (None, ""))
        raise error.within(where) if f"--{error.option}={text}" in spelled and where else error from None
    return command


def run(arguments: list[str], program: str) -> int:
    """Run a command line; returns the exit code. Raises InputError naming an invalid argument."""
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    if not arguments or arguments[0] in HELP:
        overview(program).show()
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(versions())
    elif arguments[0].partition("=")[0] == "--completion":
        print(script(arguments[0].partition("=")[2] or (arguments[1:] or [""])[0], INSTALLED))
    elif arguments[0] in COMMANDS and not set(HELP).isdisjoint(arguments):
        command_help(arguments[0], program, COMMANDS[arguments[0]]).show()
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
    """Run the command line; returns its exit code. An error is one line on standard error."""
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
    except ImportError as error:
        message = f"a Python package is missing or damaged ({one_line(error)}); run pip install -r requirements.txt"
    except KeyboardInterrupt as error:
        loaded()
        print(str(error) or "interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output is gone
        discard_output()
        return 0
    except OSError as error:
        message = f"{error.filename or 'the output'}: {error.strerror}"
        if error.filename is None:
            discard_output()
    print("error:", visible(message), file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # a reader who has left; the error has been said
        discard_output()
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
    if ASKED in os.environ:
        complete(COMMANDS)
    sys.exit(main(program=INSTALLED))
