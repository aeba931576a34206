"""Tokens as text: of every kind of tokenizer."""

from __future__ import annotations

import pytest

from mistral import Generated, Tokenizer
from mistral.cli.token_records import finite, piece_text, token_line, token_record
from tests.tokenizer.test_files import DATA, TEKKEN, V1, V3

TEXT = "Tom's red  ball,\n\t2024"


@pytest.mark.parametrize("name", [V1, V3, TEKKEN])
def test_the_texts_of_tokens_make_the_text(name: str) -> None:
    tokenizer = Tokenizer.from_file(DATA / name)
    ids = tokenizer.encode(TEXT)
    assert piece_text(tokenizer, ids[0]) == "", "a control token"
    texts = [piece_text(tokenizer, token) for token in ids[1:]]
    assert "".join(texts).removeprefix(" ").replace("\\x0a", "\n").replace("\\x09", "\t") == TEXT
    broken = [piece_text(tokenizer, token) for token in tokenizer.encode("\U0010fffd", bos=False)]
    assert "".join(broken).removeprefix(" ") in ("\\xf4\\x8f\\xbf\\xbd", "\U0010fffd")
    assert any(text.startswith("\\x") for text in broken)


def test_a_token_is_shown_with_its_neighbours() -> None:
    tokenizer = Tokenizer.from_file(DATA / V3)
    token, other = tokenizer.encode("red ball", bos=False)[:2]
    step = Generated(0, token, -0.25, "red", None, ((token, -0.25), (other, -float("inf"))))
    assert token_record(step, tokenizer) == {
        "id": token, "text": " red", "logprob": -0.25,
        "top": [{"id": token, "text": " red", "logprob": -0.25}, {"id": other, "text": " ball", "logprob": None}],
    }  # fmt: skip
    assert token_line(step, tokenizer).split() == ["-0.2500", "'", "red'", "-0.250", "'", "red'", "-inf", "'", "ball'"]
    assert token_line(Generated(0, None, None, "", "stop"), tokenizer) == ""
    assert finite(-1.23456789) == -1.234568
