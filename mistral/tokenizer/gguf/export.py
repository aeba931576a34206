"""A tokenizer as the metadata of a GGUF file, so that llama.cpp encodes texts to the same ids."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mistral.errors import InputError
from mistral.gguf.value import Metadata
from mistral.gguf.write import Plain
from mistral.text import read_json
from mistral.tokenizer.gguf.metadata import TEMPLATE
from mistral.tokenizer.gguf.official_templates import official_template_text
from mistral.tokenizer.gguf.pre_tokenizers import GPT2, PRE_TOKENIZERS
from mistral.tokenizer.gguf.tokens import BYTE, CONTROL, ENDS, NORMAL, PREFIX, UNKNOWN, UNUSED, USER_DEFINED
from mistral.tokenizer.huggingface_file import byte_level_alphabet
from mistral.tokenizer.template_files import find_template
from mistral.tokenizer.tokenizer import Tokenizer

_BYTE_NAME = re.compile(r"<0x[0-9A-F]{2}>")
# How the library of tokenizer.json writes an expression that GGUF's names stand for without its flag
_SPELLINGS = {"(?i:'s|'t|'re|'ve|'m|'ll|'d)": "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"}


TRIED = (
    "Hello, world!  It's 12345.67 o'clock", "\n\n\tdef f(x):\r\n    return x ",
    "e\u0301 \u00e9 \ufb01 \u2460 \u6f22\u5b57 \U0001f642",
)  # fmt: skip


@dataclass(frozen=True)
class Tokens:
    """A vocabulary: texts and types by id; scores for SentencePiece, merges and `pre` for byte-level merges."""

    texts: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    pre: str = "default"


def tokenizer_values(tokenizer: Tokenizer, rows: int, source: Metadata | None = None) -> dict[str, Plain]:
    """The values of a tokenizer for a model of so many rows, by their keys.

    source: the GGUF file that the model is out of, whose values are taken over where the tokenizer is its own. Raises
    InputError for a tokenizer that GGUF files have no words for.
    """
    if source is not None and tokenizer.file == source.path:
        return {key: value for key, value in source.values.items() if key.startswith("tokenizer.")}
    tokens = fitted(tokens_of(tokenizer), rows)
    values: dict[str, Plain] = {
        "model": "llama" if tokens.scores is not None else "gpt2",
        "pre": tokens.pre,
        "tokens": tokens.texts,
        "token_type": np.array(tokens.types, np.int32),
        "bos_token_id": tokenizer.bos_id,
        "add_bos_token": tokenizer.vocabulary.adds_bos,
        "add_eos_token": False,
    }
    if tokens.scores is not None:
        values["scores"] = np.array(tokens.scores, np.float32)
        values["add_space_prefix"] = tokenizer.codec.adds_space
        if UNKNOWN in tokens.types:
            values["unknown_token_id"] = tokens.types.index(UNKNOWN)
    if tokens.merges is not None:
        values["merges"] = tokens.merges
    return {
        f"{PREFIX}{key}": value for key, value in (values | end_values(tokenizer, tokens)).items()
    } | template_values(tokenizer)


def tokens_of(tokenizer: Tokenizer) -> Tokens:
    """The vocabulary of a tokenizer's file, control tokens and words that were added to it with it."""
    if tokenizer.file.name.endswith(".json"):
        tokens = of_tekken(tokenizer) if "tekken" in tokenizer.file.name else of_table(tokenizer)
    else:
        tokens = of_sentencepiece(tokenizer)
    vocabulary = tokenizer.vocabulary
    for number in range(len(tokens.texts), vocabulary.size):
        piece = None if number in vocabulary.missing else vocabulary.codec.piece(number)
        text = piece.decode("utf-8", "replace") if isinstance(piece, bytes) else piece
        tokens.texts.append(text or f"[PAD{number}]")
        tokens.types.append(USER_DEFINED if text else UNUSED)
        if tokens.scores is not None:
            tokens.scores.append(-1000.0)
    for text, token in vocabulary.specials.items():
        tokens.texts[token.id] = text
        tokens.types[token.id] = UNKNOWN if tokens.types[token.id] == UNKNOWN else CONTROL
    return tokens


def of_sentencepiece(tokenizer: Tokenizer) -> Tokens:
    """The pieces of a SentencePiece model, whose types have the same numbers as GGUF's."""
    from sentencepiece import sentencepiece_model_pb2

    model: Any = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(tokenizer.file.read_bytes())
    pieces = model.pieces
    return Tokens(
        [piece.piece for piece in pieces], [int(piece.type) for piece in pieces], [piece.score for piece in pieces]
    )


def of_tekken(tokenizer: Tokenizer) -> Tokens:
    """The byte-level tokens of a tekken.json, and the merges that follow from their order."""
    vocabulary, spelt = tokenizer.vocabulary, {byte: character for character, byte in byte_level_alphabet().items()}
    rank, texts, types = dict[bytes, int](), list[str](), list[int]()
    for number in range(vocabulary.size):
        piece = vocabulary.codec.piece(number)
        assert not isinstance(piece, str)
        if piece:
            rank[piece] = number
        texts.append("".join(spelt[byte] for byte in piece) if piece else f"[PAD{number}]")
        types.append(NORMAL if piece else UNUSED)
    merges = []
    for token in rank:
        halves = [(token[:n], token[n:]) for n in range(1, len(token)) if token[:n] in rank and token[n:] in rank]
        halves.sort(key=lambda pair: (rank[pair[0]], rank[pair[1]]))
        merges += [" ".join("".join(spelt[byte] for byte in half) for half in pair) for pair in halves]
    return Tokens(texts, types, merges=merges, pre="tekken")


def of_table(tokenizer: Tokenizer) -> Tokens:
    """The tokens of a tokenizer.json: of byte-level merges, or of SentencePiece's kind by the order of its merges."""
    table = read_json(tokenizer.file)
    model = table.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise unnamed(tokenizer, "its model is not BPE")
    ids: dict[str, int] = model["vocab"]
    count = max(ids.values()) + 1
    texts, types = [f"[PAD{number}]" for number in range(count)], [UNUSED] * count
    for text, number in ids.items():
        texts[number], types[number] = text, NORMAL
    merges = [each if isinstance(each, str) else " ".join(each) for each in model["merges"]]
    if "ByteLevel" in str(table.get("decoder")):
        return Tokens(texts, types, merges=merges, pre=pre_name(tokenizer, table, bool(model.get("ignore_merges"))))
    order = {merge.replace(" ", "", 1): -float(number) for number, merge in reversed(list(enumerate(merges)))}
    scores = [order.get(text, -float(len(merges))) for text in texts]
    types = [BYTE if _BYTE_NAME.fullmatch(text) else kind for text, kind in zip(texts, types, strict=True)]
    unknown = ids.get(str(model.get("unk_token")))
    if unknown is not None:
        types[unknown] = UNKNOWN
    return Tokens(texts, types, scores)


def pre_name(tokenizer: Tokenizer, table: Mapping[str, Any], whole_words: bool) -> str:
    """GGUF's name of a tokenizer.json's pre-tokenizer. Raises InputError for one without a name."""
    stage = table.get("pre_tokenizer") or {}
    stages = stage["pretokenizers"] if stage.get("type") == "Sequence" else [stage]
    patterns = []
    for each in stages:
        kind = each.get("type")
        if kind == "Digits" and each.get("individual_digits"):
            patterns.append(r"\p{N}")
        elif kind == "Split" and each.get("behavior") in ("Isolated", "Removed") and "Regex" in each["pattern"]:
            patterns.append(each["pattern"]["Regex"])
        elif kind == "ByteLevel" and not each.get("add_prefix_space"):
            patterns += [GPT2] if each.get("use_regex", True) else []
        else:
            raise unnamed(tokenizer, f"{kind} cuts its texts into words")
    for old, new in _SPELLINGS.items():
        patterns = [pattern.replace(old, new) for pattern in patterns]
    for name, pre in PRE_TOKENIZERS.items():
        if pre.patterns == tuple(patterns) and pre.whole_words >= whole_words:
            return name
    raise unnamed(tokenizer, "it cuts texts into words in a way of its own")


def fitted(tokens: Tokens, rows: int) -> Tokens:
    """The vocabulary with as many entries as the model has rows; those beyond are left out."""
    short = range(len(tokens.texts), rows)
    texts = tokens.texts[:rows] + [f"[PAD{number}]" for number in short]
    types = tokens.types[:rows] + [UNUSED] * len(short)
    scores = None if tokens.scores is None else tokens.scores[:rows] + [-1000.0] * len(short)
    return Tokens(texts, types, scores, tokens.merges, tokens.pre)


def end_values(tokenizer: Tokenizer, tokens: Tokens) -> dict[str, Plain]:
    """The ids that end an answer: eos, and others by keys of their own unless they end one by their spelling."""
    eos, *others = tokenizer.end_ids
    named = [number for number in others if number < len(tokens.texts) and tokens.texts[number] not in ENDS]
    values: dict[str, Plain] = {"eos_token_id": eos}
    return values | dict(zip(("eot_token_id", "eom_token_id"), named, strict=False))


def template_values(tokenizer: Tokenizer) -> dict[str, Plain]:
    """The chat templates of the tokenizer's folder, or Mistral's own of an instruct model; none for others."""
    if tokenizer.template is None:
        return {}
    found = find_template(tokenizer.file.parent)
    if found is None:
        text = official_template_text(tokenizer.version) if tokenizer.is_instruct else None
        return {} if text is None else {TEMPLATE: text}
    more = {name: text for name, text in found.templates.items() if name != "default"}
    values: dict[str, Plain] = {f"{TEMPLATE}.{name}": text for name, text in more.items()}
    if "default" in found.templates:
        values[TEMPLATE] = found.templates["default"]
    return values | ({"tokenizer.chat_templates": list(more)} if more else {})


def require_same(original: Tokenizer, written: Tokenizer) -> None:
    """Raise InputError if the exported tokenizer encodes some test texts to other ids."""
    for text in TRIED:
        if original.encode(text) != written.encode(text):
            raise unnamed(original, f"it changes texts such as {text[:12]!r} in a way of its own")


def unnamed(tokenizer: Tokenizer, what: str) -> InputError:
    """The error for a tokenizer that GGUF cannot describe."""
    return InputError(
        f"{tokenizer.file}: {what}, which GGUF files have no name for; add the model's own tokenizer file"
    )
