"""Tokenizers out of GGUF files: the ids of the original tokenizer, whichever of the two kinds it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
from gguf import GGUFWriter
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from tokenizers import Regex, models, pre_tokenizers
from tokenizers import Tokenizer as Library

from mistral.cli.model_options import shipped_checkpoint
from mistral.errors import InputError
from mistral.gguf.model_files import read_metadata
from mistral.tokenizer.gguf.metadata import describe_gguf
from mistral.tokenizer.messages import Message
from mistral.tokenizer.tokenizer import Tokenizer
from tests.support.gguf_files import add, tokenizer_values

DATA = Path(MistralTokenizer._data_path())
TEXTS = (
    "", " ", "  two spaces ", "Hello, world! It's 12345.67 o'clock; we'LL see.", "\n\n\tdef f(x):\r\n    return x\n",
    "L'\u00e9t\u00e9 \u00e0 Z\u00fcrich \u2014 na\u00efve", "\u6f22\u5b57\u3068\u304b\u306a \ud55c\uad6d\uc5b4",
    "\U0001f642\U0001f469\u200d\U0001f680", "[INST] no control </s> <s> <|im_start|>", "a\u0301\u0302 e\u0300",
    "\U0010fffd\x00\x7f", "    indented\n\n\n   twice", "\u0627\u0644\u0639 \u0939\u093f\u0928\u094d \u0e44\u0e17",
    "x" * 300, "1234567890" * 5, "...!!!???--//\n/ /",
)  # fmt: skip
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant{{ '\n' }}"
)


def written(path: Path, values: dict[str, Any]) -> Path:
    """A file without tensors; a list of floats is one of float32."""
    writer = GGUFWriter(path, "llama")
    for key, value in values.items():
        add(writer, key if "." in key else f"tokenizer.ggml.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", ["tokenizer.model.v1", "mistral_instruct_tokenizer_241114.model.v7"])
def test_sentencepiece_gives_the_ids_of_the_original(name: str, tmp_path: Path) -> None:
    values = tokenizer_values(DATA / name)
    ours = Tokenizer.from_folder(written(tmp_path / "m.gguf", values))
    theirs = Tokenizer.from_file(shutil.copy(DATA / name, tmp_path / f"tokenizer.model.v{name[-1]}"))
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == text
    assert (ours.vocab_size, ours.bos_id, ours.end_ids, ours.version) == (
        theirs.vocab_size, 1, (2,), "GGUF, SentencePiece",
    )  # fmt: skip
    assert [ours.piece(i) for i in range(1000)] == [theirs.piece(i) for i in range(1000)]
    assert ours.decode([1, *ours.encode("a", bos=False), 2]) == "a"


def test_sentencepiece_without_a_space_in_front_and_without_bos(tmp_path: Path) -> None:
    values = tokenizer_values(shipped_checkpoint() / "tokenizer.model.v3")
    tokenizer = Tokenizer.from_folder(
        written(tmp_path / "m.gguf", values | {"add_space_prefix": False, "add_bos_token": False})
    )
    spaced = Tokenizer.from_folder(written(tmp_path / "n.gguf", values))
    assert tokenizer.encode(" red") == spaced.encode("red", bos=False)
    assert tokenizer.decode(tokenizer.encode(" red")) == " red"
    assert tokenizer.tool_tokens is not None  # [TOOL_CALLS] is among its control tokens


def merges_of(ranks: dict[bytes, int]) -> list[str]:
    """The merges of a tokenizer that has ranks alone: of each token, the two parts that are joined last."""
    letters = byte_letters()
    found = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            parts = parts_below(ranks, token, rank)
            found.append(" ".join("".join(letters[byte] for byte in part) for part in parts))
    return found


def parts_below(ranks: dict[bytes, int], token: bytes, most: int) -> Sequence[bytes]:
    """What a token's bytes are merged to by the merges of lower rank."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, most) for a, b in pairwise(parts)]
        at = int(np.argmin(pairs))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def byte_letters() -> list[str]:
    """The character that stands for each byte in pieces of GPT-2's kind."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


@cache
def tekken() -> tiktoken.Encoding:
    """The first 20,000 tokens of Mistral's own file, with its expression."""
    raw = MistralTokenizer.from_file(str(DATA / "tekken_240911.json")).instruct_tokenizer.tokenizer
    whole: tiktoken.Encoding = raw._model  # type: ignore[attr-defined]
    ranks = {token: rank for token, rank in whole._mergeable_ranks.items() if rank < 20000}
    return tiktoken.Encoding("short", pat_str=whole._pat_str, mergeable_ranks=ranks, special_tokens={})


def merged(
    encoding: tiktoken.Encoding, pre: str | None, specials: Sequence[str] = ("<unk>", "<s>", "</s>")
) -> dict[str, Any]:
    """What a GGUF file says of a tokenizer of ranks, with control tokens before its own."""
    letters = byte_letters()
    ranks = encoding._mergeable_ranks
    tokens = ["".join(letters[byte] for byte in token) for token in sorted(ranks, key=lambda token: ranks[token])]
    return {
        "model": "gpt2", "pre": pre, "tokens": [*specials, *tokens], "merges": merges_of(ranks),
        "token_type": [3] * len(specials) + [1] * len(tokens), "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip


@cache
def tekken_values() -> dict[str, Any]:
    """What a GGUF file says of the tokenizer `tekken`."""
    return merged(tekken(), "tekken")


def shipped_values() -> dict[str, Any]:
    """What a GGUF file says of the tokenizer of the checkpoint that ships."""
    return tokenizer_values(shipped_checkpoint() / "tokenizer.model.v3")


def test_tekken_gives_the_ids_of_mistrals_own(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(written(tmp_path / "m.gguf", tekken_values()))
    for text in TEXTS:
        assert tokenizer.encode(text) == [1, *(number + 3 for number in tekken().encode(text, disallowed_special=()))]
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.version, tokenizer.vocab_size) == ("GGUF, tekken", 20003)


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ORIGINALS: dict[str, list[Any]] = {
    "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "llama-bpe": [
        pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
}


@pytest.mark.parametrize("pre", ORIGINALS)
def test_words_are_cut_as_in_the_tokenizer_json_of_these_models(pre: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(written(tmp_path / "m.gguf", tekken_values() | {"pre": pre}))
    vocabulary = {token: number for number, token in enumerate(tekken_values()["tokens"])}
    merges = [tuple(merge.split(" ")) for merge in tekken_values()["merges"]]
    library = Library(models.BPE(vocabulary, merges, ignore_merges=pre == "llama-bpe"))
    library.pre_tokenizer = pre_tokenizers.Sequence(ORIGINALS[pre])
    for text in TEXTS:
        assert tokenizer.encode(text, bos=False) == library.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("pre", ["default", None])
def test_default_cuts_off_punctuation_and_three_digits_at_a_time(pre: str | None, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(written(tmp_path / "m.gguf", tekken_values() | {"pre": pre}))

    def words(*parts: str) -> list[int]:
        return [number for part in parts for number in tokenizer.encode(part)]

    for parts in (
        ("Hi", ",", " you"),
        ("a", "<=", "b"),
        (" ", "123", "456", "78"),
        ("x", " ", "$", "5"),
        ("we", "'ll"),
    ):
        assert tokenizer.encode("".join(parts)) == words(*parts)
    assert not tokenizer.vocabulary.adds_bos and tokenizer.encode("a") == tokenizer.encode("a", bos=False)


def chat(path: Path, **changes: Any) -> Tokenizer:
    """A tokenizer with ChatML's control tokens and a template."""
    specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>")
    values = merged(tekken(), "smollm", specials)
    values["token_type"][3] = 4
    return Tokenizer.from_folder(written(path, values | {"tokenizer.chat_template": CHATML} | changes))


def test_conversations_are_written_in_the_files_own_template(tmp_path: Path) -> None:
    tokenizer = chat(tmp_path / "m.gguf")
    ids = tokenizer.encode_chat([Message("user", "Hi <|im_end|>")])
    assert ids == [
        1, *tokenizer.encode("user\nHi <|im_end|>"), 2, *tokenizer.encode("\n"), 1, *tokenizer.encode("assistant\n"),
    ]  # fmt: skip
    assert 2 not in tokenizer.encode("<|im_end|>") and tokenizer.decode(tokenizer.encode("<|im_end|>")) == "<|im_end|>"
    assert (tokenizer.template_source, tokenizer.is_instruct) == ("chat_template in m.gguf", True)
    assert tokenizer.end_ids == (2, 0)  # <|endoftext|> ends an answer too
    assert tokenizer.decode([3, 1]) == "<think>"  # a word in brackets, which is shown and no text becomes
    assert 3 not in tokenizer.encode("<think>")
    template = tmp_path / "own.jinja"
    template.write_text("{{ messages[0].content }}!")
    own = Tokenizer.from_folder(tmp_path / "m.gguf", template)
    assert own.encode_chat([Message("user", "Hi")]) == own.encode("Hi!")


def test_more_ends_and_unused_tokens(tmp_path: Path) -> None:
    specials = ("<s>", "</s>", "<|eot|>", "[PAD0]", "[PAD1]")
    values = merged(tekken(), "gpt-2", specials) | {"bos_token_id": 0, "eos_token_id": 1, "eot_token_id": 2}
    values["token_type"][3:5] = [5, 5]
    tokenizer = Tokenizer.from_folder(written(tmp_path / "m.gguf", values))
    assert tokenizer.end_ids == (1, 2)
    assert tokenizer.vocabulary.missing == {3, 4}
    assert tokenizer.for_rows(20005).uncovered() == (range(3, 5),)


def test_a_tokenizer_of_mistrals_beside_the_file_is_taken_where_it_is_of_this_model(tmp_path: Path) -> None:
    shipped = shipped_checkpoint() / "tokenizer.model.v3"
    path = written(tmp_path / "m.gguf", tokenizer_values(shipped))
    shutil.copy(shipped, tmp_path)
    tokenizer = Tokenizer.from_folder(path)
    assert tokenizer.file.name == "tokenizer.model.v3"
    assert tokenizer.notes == ("tokenizer: tokenizer.model.v3 taken, not the one in m.gguf (it is Mistral's own file)",)
    other = written(tmp_path / "n.gguf", tekken_values())
    tokenizer = replace(Tokenizer.from_folder(other), rows=20003)
    assert tokenizer.file == other
    assert tokenizer.notes == (
        "tokenizer: tokenizer.model.v3 not taken: it has 1024 tokens, and n.gguf has 20003",
    )  # fmt: skip


def test_a_name_that_is_no_text_names_nothing(tmp_path: Path) -> None:
    values = shipped_values() | {"general.name": 7, "general.finetune": ["Instruct"]}
    assert not Tokenizer.from_folder(written(tmp_path / "m.gguf", values)).is_instruct
    assert Tokenizer.from_folder(written(tmp_path / "m.gguf", values | {"general.name": "A 7B Instruct"})).is_instruct


def test_a_tokenizer_is_described_without_being_loaded(tmp_path: Path) -> None:
    chat(tmp_path / "m.gguf")
    found = describe_gguf(read_metadata(tmp_path / "m.gguf"))
    assert (found.version, found.vocab_size, found.end_ids, found.template) == (
        "GGUF, smollm", 20004, (2, 0), "chat_template in m.gguf",
    )  # fmt: skip


SOURCES: dict[str, Callable[[], dict[str, Any]]] = {"": dict, "tekken": tekken_values, "shipped": shipped_values}
# What the file is made from, what of it is changed, and the message
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "none": ("", {}, "has no tokenizer; put the model's own tokenizer file beside it"),
    "kind": (
        "", {"model": "bert"}, "tokenizer.ggml.model 'bert' is not supported (gpt2 and llama are); put the model's",
    ),
    "pre": ("tekken", {"pre": "qwen2"}, "tokenizer.ggml.pre 'qwen2' is not supported (default, gpt-2, smollm, "),
    "no tokens": ("", {"model": "llama"}, "has no tokenizer"),
    "types": ("tekken", {"token_type": [1, 1]}, "'tokenizer.ggml.token_type' has 2 entries for 20003 tokens"),
    "no merges": ("tekken", {"merges": None}, "has no tokenizer.ggml.merges"),
    "no eos": ("tekken", {"eos_token_id": None}, "has no tokenizer.ggml.eos_token_id"),
    "eos": ("tekken", {"eos_token_id": 99999}, "'tokenizer.ggml.eos_token_id' is 99999, and there are 20003 tokens"),
    "bytes": ("tekken", {"tokens": ["<unk>", "<s>", "</s>", *["z"] * 20000]}, "has no tokenizer.ggml.merges"),
    "no scores": ("shipped", {"scores": None}, "'tokenizer.ggml.scores' has no entries for 1024 tokens"),
    "scores": ("shipped", {"scores": [0.0]}, "'tokenizer.ggml.scores' has 1 entries for 1024 tokens"),
    "NaN": (
        "shipped", {"scores": [float("nan")] * 1024}, "'tokenizer.ggml.scores' has scores that are NaN or infinite",
    ),
    "a type": ("shipped", {"token_type": [9] * 1024}, "'tokenizer.ggml.token_type' has the type 9"),
    "twice": ("shipped", {"tokens": ["a"] * 1024}, "not readable as a tokenizer"),
    "template": (
        "tekken", {"tokenizer.chat_template": "x" * (1 << 21)}, "'tokenizer.chat_template' is larger than 1 MiB",
    ),
    "not a list": ("tekken", {"tokens": "x"}, "'tokenizer.ggml.tokens' is no list of texts"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_tokenizer_that_cannot_be_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    source, changes, message = REFUSED[name]
    values = SOURCES[source]() | changes
    path = written(tmp_path / "m.gguf", {key: value for key, value in values.items() if value is not None})
    with pytest.raises(InputError) as error:
        Tokenizer.from_folder(path)
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value) and "\n" not in str(error.value)
