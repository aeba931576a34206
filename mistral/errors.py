"""The one exception that a user is meant to read."""


class InputError(Exception):
    """Something given to the program cannot be used.

    The message is one line that names the file or option, what is wrong with it and what to do. The command line prints
    it after ``error:`` and exits with code 2; a library caller may catch it.
    """
