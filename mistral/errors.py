"""The exception for wrong input, whose message is for the user."""

from __future__ import annotations

import re
from typing import Any

_MARKED = re.compile("\x00([a-z_]+)\x00")
_MARKED_OR_ODD = re.compile("(\x00[a-z_]+\x00)|[^ -~]")


def setting(name: str) -> str:
    """The name of an option as part of a message: `max_tokens` to a library's caller, `--max_tokens` in a terminal."""
    return f"\x00{name}\x00"


def visible(text: str) -> str:
    r"""The text with characters that are not printable escaped, as \n or \x1b; names of options stay marked."""
    return _MARKED_OR_ODD.sub(lambda m: m[0] if m[1] or m[0].isprintable() else ascii(m[0])[1:-1], text)


def one_line(error: BaseException) -> str:
    """The message of an exception, shortened to one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__


class InputError(Exception):
    """Wrong input: a file, an option, or an argument.

    The message is one line of printable characters that names the file or option, what is wrong with it and what to do.
    The command line prints it after ``error:`` and exits with code 2; a library caller may catch it. `option` is the
    option at fault, if any, and `value` its value.
    """

    def __init__(self, message: str, *, option: str | None = None, value: object = None) -> None:
        """With `option`, the message starts with its name and value: "max_context 0: must be at least 1"."""
        if option is not None:
            message = f"{setting(option)}{'' if value is None else f' {value}'}: {message}"
        self.option, self.value, self._marked = option, value, visible(message)
        super().__init__(_MARKED.sub(r"\1", self._marked))

    def with_flags(self) -> str:
        """The message for the command line, with dashes before the names of options."""
        return _MARKED.sub(r"--\1", self._marked)

    def within(self, where: str) -> InputError:
        """The same error, preceded by the name of its context, such as "prompt 3"."""
        return _restored(f"{where}: {self._marked}", self.option, self.value)

    def and_more(self, count: int) -> InputError:
        """The same error, with the number of other errors."""
        return _restored(f"{self._marked} (and {count} more)" if count else self._marked, self.option, self.value)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self._marked, self.option, self.value)


def _restored(marked: str, option: str | None, value: object) -> InputError:
    error = InputError(marked)
    error.option, error.value = option, value
    return error
