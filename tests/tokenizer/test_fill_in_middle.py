"""Fill-in-the-middle with the official tokenizers, as mistral-common's own encoding has it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mistral_common.protocol.fim.request import FIMRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from mistral import Tokenizer, Transformer, generate
from mistral.errors import InputError
from tests.support.command_line import ARGS, TOKENIZER, CommandLine, write_model
from tests.tokenizer.test_files import DATA, TEKKEN, V1, V2, V3, V7

PAIRS = [("def f(x):\n    ", "\n    return y\n"), ("a", ""), ("", " b"), ("[PREFIX]é", "</s>漢 ")]


@pytest.mark.parametrize("name", [V3, V7, TEKKEN])
def test_two_texts_become_what_mistral_common_makes_of_them(name: str) -> None:
    tokenizer, official = Tokenizer.from_file(DATA / name), MistralTokenizer.from_file(DATA / name)
    raw: Any = official.instruct_tokenizer.tokenizer
    middle = [raw.get_special_token(token) for token in ("[SUFFIX]", "[PREFIX]")]
    for prefix, suffix in PAIRS:
        ids = tokenizer.encode_fim(prefix, suffix)
        assert ids == official.encode_fim(FIMRequest(prompt=prefix, suffix=suffix)).tokens
        at = ids.index(middle[1])
        assert ids[:2] == [tokenizer.bos_id, middle[0]] and ids.count(middle[0]) == ids.count(middle[1]) == 1
        assert tokenizer.decode(ids[at + 1 :]) == prefix and tokenizer.decode(ids[2:at]).strip() == suffix.strip()


@pytest.mark.parametrize("path", [DATA / V1, DATA / V2, TOKENIZER])
def test_other_tokenizers_are_refused_by_name(path: Path) -> None:
    with pytest.raises(InputError, match=r"has no fill-in-the-middle .* such as Codestral") as caught:
        Tokenizer.from_file(path).encode_fim("a", "b")
    assert str(path) in str(caught.value)


def test_the_command_fills_in_between_two_texts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its option, by @FILE and by a line of a file alike; the space that begins an answer stays."""
    run, (prefix, suffix) = CommandLine(capsys, monkeypatch), PAIRS[0]
    (tmp_path / "tokenizer.model.v3").symlink_to(DATA / V3)
    folder = write_model(tmp_path / "model", replace(ARGS, vocab_size=32768), tmp_path / "tokenizer.model.v3")
    (tmp_path / "suffix").write_text(suffix + "\n")
    options = ("complete", folder, "--threads=1", "--backend=portable", "--device=CPU", "--max_tokens=5", "--json")
    tokenizer, model = Tokenizer.from_folder(folder), Transformer.from_folder(folder, backend="portable", device="CPU")
    ids = generate([tokenizer.encode_fim(prefix, suffix)], model, 5, prompt_logprobs=False)[0][0]
    text = tokenizer.decode([*tokenizer.encode("x"), *ids]).removeprefix("x")
    line = json.dumps({"prompt": prefix, "suffix": suffix}).encode()
    for outcome in (
        run(*options, "--fim", prefix, f"@{tmp_path / 'suffix'}"),
        run(*options, f"--fim={json.dumps([prefix, suffix])}"),
        run(*options, "--input=-", stdin=line),
    ):
        result = json.loads(outcome.out.splitlines()[0])
        assert (result["ids"], result["text"]) == (ids, text)
        assert (result["prompt"], result["suffix"]) == (prefix, suffix)
