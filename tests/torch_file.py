"""The name that `tests/support/torch_file.py` had before, for scripts that import it."""

from tests.support.torch_file import *  # noqa: F403  all of it
