"""Completion of commands, options and names in a shell: argcomplete's work, from the fields of the commands."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from mistral.cli.options import taken
from mistral.cli.synonyms import short_names
from mistral.errors import InputError

SHELLS = ("bash", "zsh", "fish")
ASKED = "_ARGCOMPLETE"  # the variable by which a shell's script asks for what could follow


def script(shell: str, program: str) -> str:
    """What a shell has to read so that it completes the words of `program`. Raises InputError for another shell."""
    if shell not in SHELLS:
        raise InputError(f"--completion {shell[:40]}: choose one of {', '.join(SHELLS)}")
    from argcomplete.shell_integration import shellcode

    return shellcode([program], shell=shell)


def complete(commands: Mapping[str, type]) -> None:
    """Answer the shell, and end the process."""
    import argcomplete

    argcomplete.autocomplete(parser(commands), always_complete_options="long")


def parser(commands: Mapping[str, type]) -> argparse.ArgumentParser:
    """All commands and options, for completion alone: the command line itself is not parsed by it."""
    from argcomplete.completers import FilesCompleter, SuppressCompleter

    files, nothing = FilesCompleter(), SuppressCompleter()
    top = argparse.ArgumentParser(allow_abbrev=False)
    top.add_argument("--version", action="store_true")
    top.add_argument("--completion", choices=SHELLS)
    parts = top.add_subparsers()
    for name, command in commands.items():
        part = parts.add_parser(name, allow_abbrev=False)
        setattr(part.add_argument("--config"), "completer", files)  # noqa: B010  what argcomplete looks for
        for f in taken(command):
            if not f.kw_only:
                action = part.add_argument(f.name, nargs="?")
            elif f.type == "bool":
                part.add_argument(f"--{f.name}", action="store_true")
                continue
            else:
                choices = f.metadata.get("choices") or None
                action = part.add_argument(f"--{f.name}", *short_names(f.name), choices=choices)
            setattr(action, "completer", files if f.metadata.get("file") else nothing)  # noqa: B010
            if f.metadata.get("choices"):
                delattr(action, "completer")
    return top
