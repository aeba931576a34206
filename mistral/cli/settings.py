"""Options from environment variables and from the user's settings file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mistral.cli.options import convert, taken
from mistral.cli.synonyms import option_hint, option_of
from mistral.errors import InputError, one_line

PREFIX = "MISTRAL_"  # of variables; the name of the option follows, in capitals
FLAG, VARIABLE = "--config", f"{PREFIX}CONFIG"
MAX_BYTES = 1 << 20

Found = dict[str, tuple[str, str]]  # by option: its text, and where it was found


def taken_apart(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """The arguments without --config FILE, and that file; None where it is not there."""
    rest, name, waiting = list[str](), None, list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if argument == FLAG or argument.startswith(f"{FLAG}="):
            if argument == FLAG and (not waiting or waiting[0].startswith("--")):
                raise InputError(f"{FLAG}: needs a value")
            if name is not None:
                raise InputError(f"{FLAG}: given twice; leave one out")
            name = waiting.pop(0) if argument == FLAG else argument.partition("=")[2]
        else:
            rest.append(argument)
    return rest, name


def settings_file() -> Path:
    """Where the user's settings are looked for when no file is named."""
    from platformdirs import user_config_path

    return user_config_path("mistral-mindspore") / "config.toml"


def found_settings(name: str, commands: Mapping[str, type], file: str | None) -> Found:
    """The options of command `name` in variables, and else in the settings file.

    `file` is the one that --config names; an empty name is none at all. Raises InputError, naming file or variable, for
    a key that no command has, and for what is no value of its option.
    """
    known = {f.name: f for f in taken(commands[name])}
    found = _in_file(name, commands, file if file is not None else os.environ.get(VARIABLE))
    for option in known:
        variable = PREFIX + option.upper()
        if os.environ.get(variable):
            found[option] = os.environ[variable], variable
    for option, (text, where) in found.items():
        try:
            convert(known[option], text)
        except InputError as error:
            raise error.within(where) from None
    return found


def _in_file(name: str, commands: Mapping[str, type], file: str | None) -> Found:
    """What the file says for command `name`: in its table, and else at the top."""
    if file == "":
        return {}
    path = settings_file() if file is None else Path(file).expanduser()
    try:
        if file is None and not path.exists():
            return {}
        table = _read(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; name a settings file with {FLAG}, or {FLAG}= for none") from None
    everywhere = {option for kind in commands.values() for option in _names(kind)}
    found: Found = {}
    for key, value in table.items():
        if not isinstance(value, dict):
            option = _known(path, key, key, everywhere)
            if option in _names(commands[name]):
                found[option] = _text(path, key, value), f"{path}: {key}"
        elif key not in commands:
            raise InputError(f"{path}: [{key[:40]}] is no command; they are {', '.join(commands)}")
    for command, kind in commands.items():
        own = table.get(command)
        for key, value in own.items() if isinstance(own, dict) else ():
            option = _known(path, key, f"[{command}] {key}", _names(kind))
            if command == name:
                found[option] = _text(path, key, value), f"{path}: [{command}] {key}"
    return found


def _names(command: type) -> set[str]:
    return {f.name for f in taken(command)}


def _read(path: Path) -> dict[str, Any]:
    import tomllib

    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise InputError(f"{path}: larger than 1 MiB, so no settings file; name another with {FLAG}")
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and TOMLDecodeError are ValueErrors
        raise InputError(f"{path}: not readable as TOML ({one_line(error)}); mend that line") from None


def _known(path: Path, key: str, shown: str, options: set[str]) -> str:
    """The option that a key of the file stands for, written as on the command line without dashes."""
    name = key.replace("-", "_")
    if name in options:
        return name
    other = option_of(f"--{name}", options)
    if other is not None and not other.startswith("@"):
        return other
    hint = option_hint(f"--{name}", sorted(options)).replace("--help lists", "--help of a command lists")
    raise InputError(f"{path}: {shown[:60]}: no such option; {hint}")


def _text(path: Path, key: str, value: Any) -> str:
    """A value of the file as it would be typed."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return json.dumps(value)
    raise InputError(f"{path}: {key[:40]}: must be a text, a number, true or false, or a list of texts")
