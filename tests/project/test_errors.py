"""The one exception for users: bare names of options in the library, dashes on the command line."""

from __future__ import annotations

import pickle

from mistral.errors import InputError, setting


def test_an_option_begins_the_message() -> None:
    error = InputError("must be at least 1", option="max_context", value=0)
    assert (str(error), error.option, error.value) == ("max_context 0: must be at least 1", "max_context", 0)
    assert error.with_flags() == "--max_context 0: must be at least 1"


def test_options_within_a_message_get_their_dashes_on_the_command_line_only() -> None:
    error = InputError(f"the cache is too large: lower {setting('max_tokens')} or {setting('max_context')}")
    assert str(error) == "the cache is too large: lower max_tokens or max_context"
    assert error.with_flags() == "the cache is too large: lower --max_tokens or --max_context"


def test_what_an_error_was_found_in_comes_first() -> None:
    error = InputError("must be 0 or more", option="top_k", value=-1).within("prompt 3")
    assert (str(error), error.option) == ("prompt 3: top_k -1: must be 0 or more", "top_k")
    assert error.with_flags() == "prompt 3: --top_k -1: must be 0 or more"


def test_an_error_survives_the_way_to_another_process() -> None:
    error = pickle.loads(pickle.dumps(InputError("must be 8 or 4", option="bits", value=7)))
    assert (error.with_flags(), error.option, error.value) == ("--bits 7: must be 8 or 4", "bits", 7)


def test_a_message_is_one_line_of_printable_characters() -> None:
    error = InputError("a\nb\x1b[2J\u202ec\x00\ud800 \u00e9\u6f22\u2581", option="max_tokens", value="1\n2")
    assert str(error) == r"max_tokens 1\n2: a\nb\x1b[2J\u202ec\x00\ud800 é漢▁"
    assert error.with_flags() == "--" + str(error)
    assert str(error.within("x\ny")) == r"x\ny: " + str(error)
