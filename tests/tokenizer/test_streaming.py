"""Text of an answer as it comes, and where it stops."""

from __future__ import annotations

from pathlib import Path

import mistral_common
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral.tokenizer.streaming import TextStream
from mistral.tokenizer.tokenizer import Tokenizer
from tests.support.pieces import PieceDecoder

TOKENIZER = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"


def shown(pieces: list[str], *stop: str, rest: str = "") -> tuple[list[str], bool]:
    """What each piece makes certain, then what the end does; and whether a stop string came."""
    stream = TextStream(PieceDecoder(pieces, rest), stop)
    texts = [stream.push(i) for i in range(len(pieces))]
    return [*texts, stream.flush()], stream.stopped


def test_without_stop_strings_text_passes_at_once() -> None:
    assert shown(["a", "", "bc"], rest="\ufffd") == (["a", "", "bc", "\ufffd"], False)


def test_a_stop_string_ends_the_text_and_is_not_shown() -> None:
    assert shown(["one", "END two"], "END") == (["one", "", ""], True)


def test_text_before_a_stop_string_in_the_same_piece_is_shown() -> None:
    assert shown(["one END two"], "END") == (["one ", ""], True)


def test_a_stop_string_split_over_pieces() -> None:
    assert shown(["one E", "N", "D two"], "END") == (["one ", "", "", ""], True)


def test_what_only_began_like_a_stop_string_is_shown_in_the_end() -> None:
    assert shown(["one E", "N", "d", "E"], "END") == (["one ", "", "ENd", "", "E"], False)


def test_a_stop_string_that_begins_inside_its_own_beginning() -> None:
    assert shown(["a", "a", "a", "b", "c"], "aab") == (["", "", "a", "", "", ""], True)


def test_of_several_stop_strings_the_first_in_the_text_ends_it() -> None:
    assert shown(["x", "one two"], "two", "one") == (["x", "", ""], True)


def test_the_longer_of_two_possible_stops_is_held_back() -> None:
    assert shown(["xab", "q"], "bz", "abc") == (["x", "abq", ""], False)


def test_a_stop_string_completed_by_what_the_decoder_still_held() -> None:
    assert shown(["one E"], "E\ufffd", rest="\ufffd") == (["one ", ""], True)


def test_nothing_comes_after_a_stop() -> None:
    assert shown(["END", "more", "END"], "END", rest="\ufffd") == (["", "", "", ""], True)


def test_an_empty_stop_string_stops_nothing() -> None:
    assert shown(["a", "b"], "") == (["a", "b", ""], False)


@given(st.lists(st.text("abE", max_size=4), max_size=8), st.lists(st.text("abE", max_size=4), max_size=3))
def test_the_pieces_make_the_text_up_to_the_first_stop(pieces: list[str], stop: list[str]) -> None:
    """However the text is cut into pieces; and nothing is held back that cannot become a stop string."""
    begun = ["".join(pieces[: i + 1]) for i in range(len(pieces))]
    hits = [[so_far.find(text) for text in stop if text and text in so_far] for so_far in begun]
    whole, ends = "".join(pieces), next(filter(None, hits), [])  # of those that are whole first, the first that begins
    stream = TextStream(PieceDecoder(pieces), stop)
    given_out = ""
    for i in range(len(pieces)):
        given_out += stream.push(i)
        so_far = "".join(pieces[: i + 1])
        if not stream.stopped:
            held = so_far[len(given_out) :]
            assert so_far == given_out + held
            assert not held or any(text.startswith(held) for text in stop)
    assert given_out + stream.flush() == (whole[: min(ends)] if ends else whole)
    assert stream.stopped == bool(ends)


@pytest.mark.parametrize("text", ["caf\u00e9 \u6f22\u5b57 \U0001f9ff end", "  two  spaces\n\nand \U0001f9ff lines"])
def test_trap_17_ids_decoded_one_by_one_lose_no_space_and_split_no_character(text: str) -> None:
    tokenizer = Tokenizer.from_file(TOKENIZER)
    ids = tokenizer.encode(text, bos=False)
    stream = TextStream(tokenizer.stream(), ["never"])
    parts = [*map(stream.push, ids), stream.flush()]
    assert "".join(parts) == text
    assert not any("\ufffd" in part for part in parts)
    assert "" in parts[:-1]  # a character of several ids waited for its last one


def test_a_stop_string_of_several_bytes_per_character_is_found_across_byte_tokens() -> None:
    tokenizer = Tokenizer.from_file(TOKENIZER)
    ids = tokenizer.encode("good \U0001f9ff bad", bos=False)
    stream = TextStream(tokenizer.stream(), ["\U0001f9ff"])
    assert "".join([*map(stream.push, ids), stream.flush()]) == "good "
    assert stream.stopped
