"""Help: what there is, in groups; with colour on a terminal, plain elsewhere, and as wide as there is room."""

from __future__ import annotations

import inspect
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass
from types import MappingProxyType
from typing import Any

from mistral.cli.options import CHOICE, FORM, MACHINE, OUTPUT, OWN, PAIR, RANKS, is_switch, taken
from mistral.cli.synonyms import short_names

LEAST, MOST = 40, 88  # columns
EXAMPLES: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "demo": ("demo", "demo CKPT -p \"Tom had a red ball.\" -n 20"),
    "interactive": ("interactive CKPT --instruct", "interactive CKPT --instruct --system \"Answer in one sentence.\""),
    "complete": ("complete CKPT -p @prompt.txt", "complete CKPT --input prompts.jsonl --out answers.jsonl"),
    "score": ("score CKPT text.txt", "score CKPT - --json < text.txt"),
    "serve": ("serve CKPT", "serve CKPT --host 0.0.0.0 --api_key @keys.txt"),
    "info": ("info CKPT", "info CKPT --verify"),
    "quantize": ("quantize CKPT model.gguf --type Q4_K_M",),
    "bench": ("bench CKPT", "bench --shape mistral-7b --layers 4"),
})  # fmt: skip
ELSEWHERE = (
    "Options may also be in a file (--config FILE, or config.toml in the user's folder for settings) and in variables"
    " such as MISTRAL_TEMPERATURE. The command line comes first, then variables, then the file."
)


@dataclass(frozen=True)
class Help:
    """A page of help: how to call it, what it does, and groups of names with what they mean; notes come last."""

    usage: str
    text: str
    groups: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    notes: Sequence[str] = ()

    def plain(self, width: int = MOST) -> str:
        """The page without colour."""
        width = max(LEAST, min(width, MOST))
        lines = [*textwrap.wrap(self.usage, width, subsequent_indent="    "), ""]
        for part in self.text.split("\n\n"):
            lines += [*textwrap.wrap(" ".join(part.split()), width), ""]
        for title, rows in self.groups:
            lines.append(f"{title}:")
            for name, text in rows:
                lines += [f"  {name}", *(f"        {line}" for line in textwrap.wrap(text, width - 8))]
            lines.append("")
        for note in self.notes:
            lines += textwrap.wrap(note, width, subsequent_indent="    ")
        return "\n".join(lines).rstrip("\n")

    def show(self) -> None:
        """Print the page on standard output."""
        if not sys.stdout.isatty():
            print(self.plain(shutil.get_terminal_size((MOST, 24)).columns))
            return
        from rich.console import Console
        from rich.padding import Padding
        from rich.text import Text

        console = Console(highlight=False, markup=False, width=min(shutil.get_terminal_size((MOST, 24)).columns, 100))
        console.print(Text(self.usage, style="bold"), end="\n\n")
        for part in self.text.split("\n\n"):
            console.print(" ".join(part.split()), end="\n\n")
        for title, rows in self.groups:
            console.print(Text(f"{title}:", style="bold underline"))
            for name, text in rows:
                console.print(Padding(Text(name, style="cyan"), (0, 2)), Padding(text, (0, 2, 0, 8)), sep="")
            console.print()
        for note in self.notes:
            console.print(Text(note, style="dim"))


def command_help(name: str, program: str, command: type) -> Help:
    """The help of a command: usage, what it does, and each option with its default and its short names."""
    operands = " ".join(f"[{f.name.upper()}]" for f in taken(command) if not f.kw_only)
    by_group: dict[str, list[tuple[str, str]]] = {group: [] for group in (OWN, CHOICE, FORM, MACHINE, RANKS, OUTPUT)}
    for f in taken(command):
        by_group[f.metadata.get("group", OWN)].append((_flag(f), _meaning(f)))
    examples = [f"example: {program} {line}" for line in EXAMPLES.get(name, ())]
    return Help(
        f"usage: {program} {name} {operands} [options]",
        inspect.getdoc(command) or "",
        [(group, rows) for group, rows in by_group.items() if rows],
        [*examples, ELSEWHERE],
    )


def describe(name: str, program: str, command: type) -> str:
    """The help of a command as plain text."""
    return command_help(name, program, command).plain()


def _flag(f: Field[Any]) -> str:
    if not f.kw_only:
        return f.name.upper()
    if is_switch(f):
        return f"--{f.name}"
    return f"--{f.name} TEXT TEXT" if f.type == PAIR else f"--{f.name} {f.name.rpartition('_')[2].upper()}"


def _meaning(f: Field[Any]) -> str:
    default = "" if f.default in (None, ()) or is_switch(f) else f" [{f.default}]"
    short = short_names(f.name)
    return str(f.metadata["help"]) + default + (f" Also {', '.join(short)}." if short else "")
