"""The one exception that a user is meant to read."""

from __future__ import annotations

import re
from typing import Any

_MARKED = re.compile("\x00([a-z_]+)\x00")
_MARKED_OR_ODD = re.compile("(\x00[a-z_]+\x00)|[^ -~]")


def setting(name: str) -> str:
    """The name of an option as part of a message: `max_tokens` to a library's caller, `--max_tokens` in a terminal."""
    return f"\x00{name}\x00"


def visible(text: str) -> str:
    r"""The text with every character that is not printable written out, as \n or \x1b; names of options stay marked."""
    return _MARKED_OR_ODD.sub(lambda m: m[0] if m[1] or m[0].isprintable() else ascii(m[0])[1:-1], text)


def one_line(error: BaseException) -> str:
    """The message of an exception, shortened to one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__


class InputError(Exception):
    """Something given to the program cannot be used.

    The message is one line of printable characters that names the file or option, what is wrong with it and what to do.
    The command line prints it after ``error:`` and exits with code 2; a library caller may catch it. `option` is the
    option at fault, if one is, and `value` what was given for it.
    """

    def __init__(self, message: str, *, option: str | None = None, value: object = None) -> None:
        """With `option`, the message begins with its name and value: "max_context 0: must be at least 1"."""
        if option is not None:
            message = f"{setting(option)}{'' if value is None else f' {value}'}: {message}"
        self.option, self.value, self._marked = option, value, visible(message)
        super().__init__(_MARKED.sub(r"\1", self._marked))

    def with_flags(self) -> str:
        """The message as the command line shows it: the names of options with their dashes."""
        return _MARKED.sub(r"--\1", self._marked)

    def within(self, where: str) -> InputError:
        """The same error behind the name of what it was found in, such as "prompt 3"."""
        return _restored(f"{where}: {self._marked}", self.option, self.value)

    def and_more(self, count: int) -> InputError:
        """The same error, with a word about how many others there are."""
        return _restored(f"{self._marked} (and {count} more)" if count else self._marked, self.option, self.value)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self._marked, self.option, self.value)


def _restored(marked: str, option: str | None, value: object) -> InputError:
    error = InputError(marked)
    error.option, error.value = option, value
    return error
