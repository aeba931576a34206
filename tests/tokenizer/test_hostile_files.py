"""Tokenizer files made to harm: each is one line, and neither takes the memory nor the time of this process."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mistral_common
import pytest

from mistral.errors import InputError
from mistral.tokenizer.bounded_process import BoundedProcess, Failed
from mistral.tokenizer.files import read_tokenizer_file
from mistral.tokenizer.messages import Message
from mistral.tokenizer.tokenizer import Tokenizer

DATA = Path(mistral_common.__file__).parent / "data"
SMALL = json.loads((Path(__file__).parents[1] / "data" / "chat_golden.json").read_text(encoding="utf-8"))["tokenizers"]
PATTERN = "[^\\s]+|\\s+"


def tekken(**config: Any) -> dict[str, Any]:
    """A small tekken.json: the bytes, and the settings that a test changes."""
    vocab = [{"rank": i, "token_bytes": base64.b64encode(bytes([i])).decode(), "token_str": None} for i in range(256)]
    settings = {"pattern": PATTERN, "num_vocab_tokens": 256, "default_vocab_size": 356,
                "default_num_special_tokens": 100, "version": "v3"}  # fmt: skip
    return {"config": settings | config, "vocab": vocab}


def test_the_small_tekken_file_is_sound(tmp_path: Path) -> None:
    (tmp_path / "tekken.json").write_text(json.dumps(tekken()))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.decode(tokenizer.encode("a é")) == "a é"


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path) -> None:
    text = "a b \u00e9"
    for folder, name, table in (("t", "tekken.json", tekken()), ("h", "tokenizer.json", SMALL["byte_level"])):
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / name
        file.write_text(json.dumps(table))
        expected = Tokenizer.from_folder(file.parent).encode(text)
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
        found = Tokenizer.from_folder(file.parent)
        assert found.encode(text) == expected and found.file == file
        assert read_tokenizer_file(file).vocab_size == found.vocab_size


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"default_num_special_tokens": 1 << 32}, "default_num_special_tokens is 4294967296, not a number up to 65536"),
        ({"default_num_special_tokens": -5}, "default_num_special_tokens is -5"),
        ({"default_num_special_tokens": "9"}, "default_num_special_tokens is 9"),
        ({"default_num_special_tokens": True}, "default_num_special_tokens is True"),
        ({"default_vocab_size": 1 << 60}, "default_vocab_size is"),
        ({"default_vocab_size": 1e9}, "default_vocab_size is"),
        ({"num_vocab_tokens": 1 << 60}, "num_vocab_tokens is"),
        ({"default_vocab_size": 500}, "not readable as a tokenizer"),
        ({"pattern": None}, "pattern is no regular expression"),
        ({"pattern": "a" * 5000}, "pattern is no regular expression"),
        ({"pattern": "("}, "its pattern is not usable"),
        ({"pattern": "(?:(?:\\w{1000}){1000}){1000}"}, "its pattern is not usable"),
        ({"pattern": "(?=(a+)+$)b|(?:a|a)+(?<!a)$"}, "its pattern is not usable"),
    ],
)
def test_numbers_of_a_tekken_file_are_bounded_before_they_are_used(
    tmp_path: Path, config: dict[str, object], says: str
) -> None:
    path = tmp_path / "tekken.json"
    path.write_text(json.dumps(tekken(**config)))
    with pytest.raises(InputError) as caught:
        Tokenizer.from_folder(tmp_path)
    assert str(caught.value).startswith(f"{path}: ") and says in str(caught.value)
    if "not readable" not in says:
        with pytest.raises(InputError, match="download it again"):
            read_tokenizer_file(path)


@pytest.mark.parametrize(
    "text",
    [
        '{{"config": {good}, "vocab": [], "config": {bad}}}',
        '{{"config": {good}, "vocab": [], "\\u0063onfig": {bad}}}',
        '{{"vocab": [], "config": {bad}}}',
        '{{"config": {good}, "audio": {{"sampling_rate": 1e12}}}}',
        '{{"config": {good}, "image": {{"max_image_size": [99999999]}}}}',
        '{{"config": 5}}',
    ],
)
def test_settings_that_hide_behind_others_are_bounded_too(tmp_path: Path, text: str) -> None:
    good, bad = (json.dumps(tekken(**c)["config"]) for c in ({}, {"default_num_special_tokens": 1 << 32}))
    (tmp_path / "tekken.json").write_text(text.format(good=good, bad=bad))
    with pytest.raises(InputError, match=r"default_num_special_tokens is|out of bounds|config is no table"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"normalizer": {"type": "Replace", "pattern": {"Regex": "."}, "content": "x" * 5000}}, "many times|survive"),
        ({"normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 4000}] * 9}},
         "memory|time|crash|many times"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(bytes(4)).decode()}}, ""),
        ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, ""),
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}}, ""),
        ({"model": {"type": "BPE"}}, ""),
        ({"model": {"type": "BPE", "vocab": {"a": 1 << 31}, "merges": []}}, ""),
        ({"added_tokens": 5}, ""),
        ({"added_tokens": [{"id": 0}]}, ""),
        ({"post_processor": {"type": "Nothing"}}, ""),
    ],
)  # fmt: skip
def test_a_tokenizer_json_that_harms_is_refused_in_one_line(
    tmp_path: Path, changes: dict[str, object], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mistral.tokenizer.huggingface_file.MEMORY", 1 << 30)
    monkeypatch.setattr("mistral.tokenizer.huggingface_file.ENCODING", 0)  # and what the limit rounds up to
    (tmp_path / "tokenizer.json").write_text(json.dumps({**SMALL["byte_level"], **changes}))
    with pytest.raises(InputError) as caught:
        Tokenizer.from_folder(tmp_path)
    assert re.search(says, str(caught.value)) and "\n" not in str(caught.value)
    assert "tokenizer.json" in str(caught.value)


def test_an_expression_that_explodes_over_a_text_ends_that_text_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mistral.tokenizer.huggingface_file.ENCODING", 0)  # and what the limit rounds up to
    split = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
    table = {**SMALL["byte_level"], "pre_tokenizer": {
        "type": "Sequence", "pretokenizers": [split, SMALL["byte_level"]["pre_tokenizer"]]}}  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(table))
    tokenizer = Tokenizer.from_folder(tmp_path)
    before = tokenizer.encode("the cat")
    for _ in range(2):
        with pytest.raises(InputError, match=r"tokenizer\.json: cannot encode this text"):
            tokenizer.encode("x" * 4000)
    assert tokenizer.encode("the cat") == before


@pytest.mark.parametrize("text", [" " * 10**6, "a" + "\t" * 10**6 + "b"])
def test_a_run_of_white_space_under_the_official_file_is_one_line_or_whole(text: str) -> None:
    tokenizer = Tokenizer.from_file(DATA / "tekken_240718.json")
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_chat([Message("user", text)]),
                   lambda text: tokenizer.encode_fim(text, "")):  # fmt: skip
        try:
            assert text in tokenizer.decode(encode(text))
        except InputError as error:
            assert "cannot encode this text (it has 1000000 white-space characters in a row)" in str(error)
    assert tokenizer.decode(tokenizer.encode("the cat")) == "the cat"


def test_a_panic_in_a_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        pass

    def panic(*_: object, **__: object) -> None:
        raise PanicException("index out of bounds:\n the len is 0")

    for name in ("tekken_240718.json", "mistral_instruct_tokenizer_240323.model.v3"):
        tokenizer = Tokenizer.from_file(DATA / name)
        with monkeypatch.context() as patch:
            patch.setattr("tiktoken.Encoding.encode", panic)
            patch.setattr("sentencepiece.SentencePieceProcessor.encode", panic)
            uses: tuple[Callable[[], object], ...] = (
                partial(tokenizer.encode, "a"),
                partial(tokenizer.encode_chat, [Message("user", "a")]),
                partial(tokenizer.encode_fim, "a", "b"),
            )
            for use in uses:
                with pytest.raises(InputError, match="cannot encode this text"):
                    use()


def test_a_child_that_dies_is_there_again() -> None:
    child = BoundedProcess(1 << 30)
    ask = {"template": "{{ 'a' }}", "variables": {}}
    assert child.ask("render", 5, **ask) == "a"
    assert child._child
    child._child.kill()
    with pytest.raises(Failed):
        child.ask("render", 5, **ask)
    assert child.ask("render", 5, **ask) == "a"
