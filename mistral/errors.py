"""The one exception that a user is meant to read."""

from __future__ import annotations


def one_line(error: BaseException) -> str:
    """The message of an exception, shortened to one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__


class InputError(Exception):
    """Something given to the program cannot be used.

    The message is one line that names the file or option, what is wrong with it and what to do. The command line prints
    it after ``error:`` and exits with code 2; a library caller may catch it.
    """
