"""Completion of commands, options and names in a shell: argcomplete's work, from the fields of the commands."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from mistral.cli.options import is_switch, taken
from mistral.cli.synonyms import short_names
from mistral.errors import InputError

SHELLS = ("bash", "zsh", "fish")
ASKED = "_ARGCOMPLETE"  # the variable by which a shell's script asks for what could follow


def script(shell: str, program: str) -> str:
    """What a shell has to read so that it completes the words of `program`. Raises InputError for another shell."""
    if shell not in SHELLS:
        raise InputError(f"--completion {shell[:40]}: choose one of {', '.join(SHELLS)}")
    from argcomplete.shell_integration import shellcode

    return shellcode([program], use_defaults=False, shell=shell)


def complete(commands: Mapping[str, type]) -> None:
    """Answer the shell, and end the process."""
    import argcomplete

    argcomplete.autocomplete(parser(commands), always_complete_options="long")


def parser(commands: Mapping[str, type]) -> argparse.ArgumentParser:
    """All commands and options, for completion alone: the command line itself is not parsed by it."""
    from argcomplete.completers import ChoicesCompleter, FilesCompleter

    files, nothing = FilesCompleter(), ChoicesCompleter({})
    top = argparse.ArgumentParser(allow_abbrev=False)
    top.add_argument("--version", action="store_true")
    top.add_argument("--completion", choices=SHELLS)
    parts = top.add_subparsers()
    for name, command in commands.items():
        part = parts.add_parser(name, allow_abbrev=False)
        part.add_argument("--config").completer = files  # type: ignore[attr-defined]  # what argcomplete looks for
        for f in taken(command):
            names = (f"--{f.name}", *short_names(f.name))
            if is_switch(f):
                part.add_argument(*names, action="store_true")
            elif f.metadata.get("choices"):
                part.add_argument(*names, choices=f.metadata["choices"])
            else:
                action = part.add_argument(*names) if f.kw_only else part.add_argument(f.name, nargs="?")
                action.completer = files if f.metadata.get("file") else nothing  # type: ignore[attr-defined]
    return top
