"""The name that `tests/support/checkpoint_forms.py` had before, for scripts that import it."""

from tests.support.checkpoint_forms import *  # noqa: F403  all of it
