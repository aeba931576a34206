"""Options of a command: declared as fields of a dataclass, checked before anything is loaded. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import Field, field, fields, replace
from types import MappingProxyType
from typing import Any, TypeVar

from mistral.cli import synonyms
from mistral.errors import InputError

CommandT = TypeVar("CommandT")
TEXTS = "tuple[str, ...]"  # the type of a field that takes one text, a JSON list of texts, or @FILE
PAIR = "tuple[str, str] | None"  # of one that takes two texts, one after the other, each of which may be @FILE
MAX_TEXT = 1 << 24  # characters of a file
SWITCHED = ("true", "false")  # what may follow a switch
MISTAKEN = ("yes", "no", "on", "off")  # what is written there by mistake, and is no operand
OFF, FILE = "off", "@"  # how a flag may mean an option, see _meant
OWN, CHOICE, FORM, MACHINE, RANKS, OUTPUT = (
    "What it works on",
    "Sampling",
    "Structured output",
    "Where it runs",
    "Several processes",
    "What comes out",
)  # parts of the help, in order


def option(default: Any, text: str, group: str = OWN, choices: Sequence[str] = (), file: bool = False) -> Any:
    """A field of a command: its default and the line that help shows.

    `group`: the part of the help it is in. For a shell's completion: the `choices`, or that it is the name of a `file`.
    """
    described = {"help": text, "group": group, "choices": tuple(choices), "file": file}
    return field(default=default, metadata=described, kw_only=True)


def text_option(text: str, group: str = OWN) -> Any:
    """A field that takes one text, or @FILE with it."""
    return field(default=None, metadata={"help": text, "group": group, "text": True}, kw_only=True)


def operand(text: str, alone: bool = False) -> Any:
    """A field that is given by its place, without a flag, or left out. `alone`: it is what a single word stands for."""
    return field(default=None, metadata={"help": text, "alone": alone, "file": True}, kw_only=False)


def fixed(default: Any) -> Any:
    """A field that a command inherits and does not take."""
    return field(default=default, kw_only=True)


def taken(command: type) -> list[Field[Any]]:
    """The fields that a command line may give."""
    return [f for f in fields(command) if "help" in f.metadata]


def checked_arguments(
    arguments: Sequence[str], command: type, settings: Mapping[str, str] = MappingProxyType({})
) -> list[str]:
    """The arguments of `command`, each as --name=value: the one form that the parser behind this cannot misread.

    `settings`: values of options that are not among the arguments. Refuses unknown, repeated and valueless flags and
    too many words; that parser would run the whole command first. Raises InputError naming the argument.
    """
    known: dict[str, Field[Any]] = {f.name: f for f in taken(command)}
    values: dict[str, str] = {}
    words: list[str] = []
    waiting = list(reversed(arguments))
    while waiting:
        argument = waiting.pop()
        if not argument.startswith("--") and not (argument.startswith("-") and argument[1:2].isalpha()):
            words.append(argument)
            continue
        flag, equals, value = argument.partition("=")
        name, form = _meant(flag, command)
        kind = known[name].type
        if name in values:
            several = "give one JSON list of all the texts" if kind == TEXTS else "leave one out"
            raise InputError(f"{flag}: given twice; {several}")
        if form == OFF:
            value = "false"
        elif is_switch(known[name]) and not equals:
            follows = bool(waiting) and waiting[-1].lower() in (*SWITCHED, *MISTAKEN)
            value = waiting.pop() if follows else "true"
        elif not equals:
            value = _following(flag, kind == PAIR, waiting)
        values[name] = form + value if form == FILE else value
    _place(words, values, known)
    rest = {name: value for name, value in settings.items() if name not in values}
    return [f"--{name}={value}" for name, value in {**values, **rest}.items()]


def _following(flag: str, pair: bool, waiting: list[str]) -> str:
    """The value, or two of them, that follow a flag; they are taken off the end of `waiting`."""
    found: list[str] = []
    while len(found) < 1 + pair:
        if not waiting:
            raise InputError(f"{flag}: needs {'two values' if pair else 'a value'}")
        if waiting[-1].startswith("--"):
            written = '["...", "..."]' if pair else waiting[-1]
            raise InputError(f"{flag}: needs a value; for a text that begins with --, write {flag}={written}")
        found.append(waiting.pop())
    return json.dumps(found) if pair else found[0]


def _place(words: Sequence[str], values: dict[str, str], known: Mapping[str, Field[Any]]) -> None:
    """Give words to the operands that have no value yet, in order."""
    free = [f for f in known.values() if not f.kw_only and f.name not in values]
    if len(words) > len(free):
        raise InputError(f"{words[len(free)]!r}: one word too many; put a text with spaces in quotes")
    if len(words) == 1:
        free = [f for f in free if f.metadata["alone"]] or free
    values.update((f.name, word) for f, word in zip(free, words, strict=False))


def _meant(flag: str, command: type) -> tuple[str, str]:
    """The option that a flag stands for, with `OFF` where it turns a switch off, and `FILE` where it names a file."""
    dashes = "--" if flag.startswith("--") else "-"
    name, known = flag.lstrip("-").replace("-", "_"), {f.name: f for f in taken(command)}
    if dashes == "--" and name in known:
        return name, ""
    off = known.get(name.removeprefix("no_"))
    if dashes == "--" and name.startswith("no_") and off is not None and is_switch(off):
        return off.name, OFF
    found = synonyms.option_of(dashes + name, known)
    if found is not None:
        return found.removeprefix(FILE), FILE if found.startswith(FILE) else ""
    hint = synonyms.option_hint(dashes + name, known)
    raise InputError(f"{flag}: {command.__name__.lower()} has no such option; {hint}")


def converted(command: CommandT) -> CommandT:
    """The command with every option's text turned into the field's type; files named by @ are read, once.

    Raises InputError naming the option.
    """
    values = {f.name: convert(f, getattr(command, f.name)) for f in fields(command)}  # type: ignore[arg-type]
    return replace(command, **values)  # type: ignore[type-var]


def convert(option: Field[Any], value: Any) -> Any:
    """The value of an option's text. Raises InputError naming the option."""
    name, kind = option.name, str(option.type)
    if not isinstance(value, str):
        return value
    if option.metadata.get("text"):
        return read_text(name, value)
    if kind.startswith("str"):
        return value
    if kind == PAIR:
        return read_pair(name, value)
    if kind == TEXTS:
        return read_texts(name, value)
    if is_switch(option):
        if value.lower() not in SWITCHED:
            raise InputError(f"--{name} {value[:40]}: is a switch; write --{name} alone, or --no_{name}")
        return value.lower() == "true"
    try:
        return int(value) if kind.startswith("int") else float(value)
    except ValueError:
        what = "a whole number" if kind.startswith("int") else "a number"
        raise InputError(f"--{name} {value[:40]}: must be {what}") from None


def is_switch(option: Field[Any]) -> bool:
    """Whether an option is on or off, and needs no value to be on."""
    return str(option.type).startswith("bool")


def read_text(name: str, text: str) -> str:
    """The text itself, or the contents of FILE for @FILE (without its last line break); @@ begins a text with @."""
    if not text.startswith("@"):
        return text
    if text.startswith("@@"):
        return text[1:]
    try:
        with open(text[1:], encoding="utf-8-sig") as file:
            contents = file.read(MAX_TEXT + 1)
    except OSError as error:
        raise InputError(
            f"--{name} {text}: {error.strerror}; name a text file, or write @@ for a text with @"
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"--{name} {text}: is not UTF-8 text; name a text file") from None
    except ValueError:  # such as a NUL in the name
        raise InputError(f"--{name} {text}: cannot be a file; name a text file") from None
    if len(contents) > MAX_TEXT:
        raise InputError(f"--{name} {text}: longer than {MAX_TEXT} characters; name a shorter text")
    return contents.removesuffix("\n")


def read_texts(name: str, text: str) -> tuple[str, ...]:
    """The text, or the texts of a JSON list of strings; each may be @FILE."""
    text = read_text(name, text)
    try:
        items = json.loads(text) if text.lstrip().startswith("[") else None
    except (ValueError, RecursionError):
        items = None  # "[INST] ..." is a text like any other
    if isinstance(items, list) and items and all(isinstance(item, str) for item in items):
        return tuple(read_text(name, item) for item in items)
    return (text,)


def read_pair(name: str, text: str) -> tuple[str, str]:
    """The texts of a JSON list of two; each may be @FILE."""
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        items = None
    if isinstance(items, list) and len(items) == 2 and all(isinstance(item, str) for item in items):
        return read_text(name, items[0]), read_text(name, items[1])
    raise InputError(f"--{name} {text[:40]}: needs two texts; give them one after the other, or as a JSON list of two")
