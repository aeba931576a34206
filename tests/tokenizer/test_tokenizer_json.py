"""Hugging Face's tokenizer.json, with small ones made here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from mistral.errors import InputError
from mistral.tokenizer.files import read_tokenizer_file
from mistral.tokenizer.messages import Message
from mistral.tokenizer.tokenizer import Tokenizer
from tests.support.small_tokenizers import byte_fallback, byte_level, hugging_face_folder

TEXTS = [
    "This is a test",
    " one leading space",
    "  two, and two trailing  ",
    "a   b    c",
    "line\n\n  indented\ttab\r\n",
    "\n",
    " ",
    "日本語のテキスト、漢字",
    "한국어 العربية עברית हिन्दी",
    "🙂 👩‍👩‍👧 🇫🇷 👍🏽",
    "e\u0301 a\u0308\u0323 Z\u0351\u036b\u0343",
    "\U00013080\U0010fffd\ufffd\x00\x7f",
    "1234567890 3.14 x=2**10",
    "[INST] </s><s> [/INST] <0x41> <unk>",
]
any_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"))


def streamed(tokenizer: Tokenizer, ids: list[int], after: list[int] | None = None) -> list[str]:
    stream = tokenizer.stream(after or [])
    return [*(stream.push(token_id) for token_id in ids), stream.flush()]


@pytest.mark.parametrize("build", [byte_level, byte_fallback])
@pytest.mark.parametrize("text", ["", *TEXTS])
def test_tokenizer_json_round_trips_as_its_library_does(
    tmp_path: Path, build: Callable[[], tokenizers.Tokenizer], text: str
) -> None:
    raw = build()
    tokenizer = Tokenizer.from_folder(hugging_face_folder(tmp_path, raw))
    assert (tokenizer.version, tokenizer.bos_id, tokenizer.eos_id) == ("tokenizer.json", 1, 2)
    ids = tokenizer.encode(text)
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids) == text
    assert raw.decode(ids) == text
    assert (ids.count(1), ids.count(2), ids.count(0)) == (1, 0, 0)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[Callable[[], tokenizers.Tokenizer], Tokenizer]:
    return {
        build: Tokenizer.from_folder(hugging_face_folder(tmp_path_factory.mktemp("hf"), build()))
        for build in (byte_level, byte_fallback)
    }


@pytest.mark.parametrize("build", [byte_level, byte_fallback])
@settings(max_examples=100, deadline=None)
@given(prompt=any_text, answer=any_text)
def test_tokenizer_json_streams_any_text(
    both: dict[Callable[[], tokenizers.Tokenizer], Tokenizer],
    build: Callable[[], tokenizers.Tokenizer],
    prompt: str,
    answer: str,
) -> None:
    tokenizer = both[build]
    before, generated = tokenizer.encode(prompt), tokenizer.encode(answer, bos=False)
    parts = streamed(tokenizer, generated, after=before)
    assert parts[-1] == ""
    assert tokenizer.decode(before) + "".join(parts) == tokenizer.decode(before + generated)
    assert tokenizer.decode(before) == prompt


def test_tokenizer_json_says_what_it_is_without_being_loaded(tmp_path: Path) -> None:
    for make in (byte_level, byte_fallback):
        file = hugging_face_folder(tmp_path, make()) / "tokenizer.json"
        found, loaded = read_tokenizer_file(file), Tokenizer.from_file(file)
        assert (found.version, found.vocab_size, found.can_chat) == (loaded.version, loaded.vocab_size, False)


def test_tokenizer_json_has_no_chat_template_and_says_which_file_has(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(hugging_face_folder(tmp_path, byte_level()))
    assert not tokenizer.can_chat
    with pytest.raises(InputError) as caught:
        tokenizer.encode_chat([Message("user", "Hi")])
    files = "tekken.json, tokenizer.model.v3 or tokenizer.model"
    remedy = f"add the model's {files} to {tmp_path}, or name one by chat_template FILE"
    assert str(caught.value) == f"{tokenizer.file}: has no chat template; {remedy}"


def test_tokenizer_json_ignores_the_truncation_padding_and_added_tokens_it_asks_for(tmp_path: Path) -> None:
    raw = byte_level()
    plain = raw.encode("the cat sat on the mat").ids
    raw.enable_truncation(3)
    raw.enable_padding(length=50)
    raw.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    tokenizer = Tokenizer.from_folder(hugging_face_folder(tmp_path, raw))
    assert tokenizer.encode("the cat sat on the mat") == [1, *plain]


@pytest.mark.parametrize(
    ("files", "ends"),
    [
        ({}, (1, 2)),
        ({"config": {"bos_token_id": 2, "eos_token_id": [3, 2]}}, (2, 3)),
        ({"config": {"bos_token_id": None, "eos_token_id": []}, "tokenizer_config": {"eos_token": None}}, (1, None)),
        ({"tokenizer_config": {"bos_token": "[INST]", "eos_token": {"content": "<s>"}}}, (3, 1)),
        ({"tokenizer_config": {"eos_token": "[INST]"}, "config": {"eos_token_id": 2}}, (1, 3)),
        ({"config": {"eos_token_id": 10**6}}, (1, None)),
        ({"config": {"eos_token_id": -1}}, (1, None)),
        ({"config": {"eos_token_id": "two"}}, (1, None)),
        ({"config": {"eos_token_id": True}}, (1, None)),
    ],
)
def test_tokenizer_json_takes_its_ends_from_the_files_beside_it(
    tmp_path: Path, files: dict[str, Any], ends: tuple[int, int | None]
) -> None:
    hugging_face_folder(tmp_path, byte_level(), **files)
    if ends[1] is None:
        with pytest.raises(InputError, match=r"eos_token is not known; add the model's tokenizer_config\.json"):
            Tokenizer.from_folder(tmp_path)
    else:
        tokenizer = Tokenizer.from_folder(tmp_path)
        assert (tokenizer.bos_id, tokenizer.eos_id) == ends
