"""Options of a command: declared as fields of a dataclass, checked before anything is loaded. Standard library only."""

from __future__ import annotations

import difflib
import inspect
import json
import textwrap
from collections.abc import Sequence
from dataclasses import Field, field, fields, replace
from typing import Any, TypeVar

from mistral.errors import InputError

CommandT = TypeVar("CommandT")
TEXTS = "tuple[str, ...]"  # the type of a field that takes one text, a JSON list of texts, or @FILE
PAIR = "tuple[str, str] | None"  # of one that takes two texts, one after the other, each of which may be @FILE
SWITCH = ("true", "false")
MAX_TEXT = 1 << 24  # characters of a file


def option(default: Any, text: str) -> Any:
    """A field of a command: its default and the line that help shows."""
    return field(default=default, metadata={"help": text}, kw_only=True)


def text_option(text: str) -> Any:
    """A field that takes one text, or @FILE with it."""
    return field(default=None, metadata={"help": text, "text": True}, kw_only=True)


def operand(text: str) -> Any:
    """A field that is given by its place, without a flag, or left out."""
    return field(default=None, metadata={"help": text}, kw_only=False)


def fixed(default: Any) -> Any:
    """A field that a command inherits and does not take."""
    return field(default=default, kw_only=True)


def taken(command: type) -> list[Field[Any]]:
    """The fields that a command line may give."""
    return [f for f in fields(command) if "help" in f.metadata]


def checked_arguments(arguments: Sequence[str], command: type) -> list[str]:
    """The arguments of `command`, each as --name=value: the one form that the parser behind this cannot misread.

    Refuses unknown, repeated and valueless flags and too many words; that parser would run the whole command first.
    Raises InputError naming the argument.
    """
    known: dict[str, Field[Any]] = {f.name: f for f in taken(command)}
    operands = [f.name for f in known.values() if not f.kw_only]
    values: dict[str, str] = {}
    flag = name = switch = ""  # a flag whose value comes next; a switch, behind which true or false may come
    pair: list[str] = []  # the first of its two values
    for argument in arguments:
        switched, switch = switch, ""
        if switched and argument.lower() in SWITCH:
            values[switched] = argument
        elif flag:
            two = known[name].type == PAIR
            if argument.startswith("--"):
                written = '["...", "..."]' if two else argument
                raise InputError(f"{flag}: needs a value; for a text that begins with --, write {flag}={written}")
            if two and not pair:
                pair.append(argument)
                continue
            values[name], flag = json.dumps([*pair, argument]) if two else argument, ""
        elif argument.startswith("--") or (argument.startswith("-") and argument[1:2].isalpha()):
            flag, equals, value = argument.partition("=")
            off = None if equals else switched_off(flag, command)
            name = off or _known_name(flag, command)
            if name in values:
                several = "give one JSON list of all the texts" if known[name].type == TEXTS else "leave one out"
                raise InputError(f"{flag}: given twice; {several}")
            if is_switch(known[name]) and not equals:
                value, switch, flag = "false" if off else "true", "" if off else name, ""
            values[name], flag = value, "" if equals else flag
        elif not operands or operands[0] in values:
            raise InputError(f"{argument!r}: one word too many; put a text with spaces in quotes")
        else:
            values[operands.pop(0)] = argument
    if flag:
        raise InputError(f"{flag}: needs {'two values' if known[name].type == PAIR else 'a value'}")
    return [f"--{name}={value}" for name, value in values.items()]


def is_switch(option: Field[Any]) -> bool:
    """Whether an option is on or off, and needs no value to be on."""
    return str(option.type).startswith("bool")


def switched_off(flag: str, command: type) -> str | None:
    """The switch that a flag such as --no_instruct turns off; None for any other flag."""
    name = flag.replace("-", "_").removeprefix("__no_")
    switches = [f.name for f in taken(command) if is_switch(f)]
    return name if flag.startswith("--no") and name in switches else None


def _known_name(flag: str, command: type) -> str:
    name, known = flag.lstrip("-").replace("-", "_"), [f.name for f in taken(command)]
    if flag.startswith("--") and name in known:
        return name
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean --{close[0]}?" if close else "--help lists the options"
    raise InputError(f"{flag}: {command.__name__.lower()} has no such option; {hint}")


def converted(command: CommandT) -> CommandT:
    """The command with every option's text turned into the field's type; files named by @ are read, once.

    Raises InputError naming the option.
    """
    values = {f.name: _convert(f, getattr(command, f.name)) for f in fields(command)}  # type: ignore[arg-type]
    return replace(command, **values)  # type: ignore[type-var]


def _convert(option: Field[Any], value: Any) -> Any:
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
        if value.lower() not in SWITCH:
            raise InputError(f"--{name} {value[:40]}: is a switch; write --{name} alone, or --no_{name}")
        return value.lower() == "true"
    try:
        return int(value) if kind.startswith("int") else float(value)
    except ValueError:
        what = "a whole number" if kind.startswith("int") else "a number"
        raise InputError(f"--{name} {value[:40]}: must be {what}") from None


def describe(name: str, program: str, command: type) -> str:
    """The help text of a command: usage, what it does, and a line or two for each option."""
    operands = " ".join(f"[{f.name.upper()}]" for f in taken(command) if not f.kw_only)
    lines = [f"usage: {program} {name} {operands} [options]", "", inspect.getdoc(command) or "", ""]
    for f in taken(command):
        flag = f"--{f.name}" if f.kw_only else f.name.upper()
        if f.type == PAIR:
            flag += " TEXT TEXT"
        elif f.kw_only and not is_switch(f):
            flag += f" {f.name.rpartition('_')[2].upper()}"
        shown = "" if f.default in (None, ()) or is_switch(f) else f" [{f.default}]"
        wrapped = textwrap.wrap(f.metadata["help"] + shown, 78)
        lines += [f"  {flag}", *(f"        {line}" for line in wrapped)]
    return "\n".join(lines)


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
