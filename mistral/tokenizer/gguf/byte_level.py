"""A byte-level BPE tokenizer (GPT-2): loaded by the library of tokenizer.json, in its child process."""

from __future__ import annotations

from functools import partial
from typing import Any

from mistral.errors import InputError, one_line
from mistral.text import shown
from mistral.tokenizer.added_tokens import AddedToken
from mistral.tokenizer.bounded_process import BoundedProcess, Failed
from mistral.tokenizer.codec import Codec
from mistral.tokenizer.gguf.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from mistral.tokenizer.gguf.tokens import CONTROL, PREFIX, UNKNOWN, UNUSED, USER_DEFINED, GgufTokens
from mistral.tokenizer.huggingface_file import LOADING, MEMORY, TableEncoder, table_piece, tool_tokens_of
from mistral.tokenizer.vocabulary import SpecialToken, Vocabulary


def load_byte_level(tokens: GgufTokens) -> Vocabulary:
    """The vocabulary of a file whose tokenizer is "gpt2". Raises InputError for an invalid one."""
    metadata = tokens.metadata
    name = metadata.text(f"{PREFIX}pre") or "default"
    pre = PRE_TOKENIZERS.get(name)
    if pre is None:
        known = ", ".join(PRE_TOKENIZERS)
        raise InputError(
            f"{metadata.path}: {PREFIX}pre {shown(name)} is not supported ({known} are); put the model's own tokenizer"
            " file beside it"
        )
    eos = tokens.id_of("eos_token_id")
    if eos is None:
        raise InputError(f"{metadata.path}: has no {PREFIX}eos_token_id; download it again")
    bos = tokens.id_of("bos_token_id", eos)
    assert bos is not None
    added = added_tokens(tokens)
    table, path = table_of(tokens, pre, added), str(metadata.path)
    child = BoundedProcess(MEMORY, {"operation": "load_table", "seconds": LOADING, "path": path, "table": table})
    try:
        child.ask("load_table", LOADING, path=path, table=table)
    except Failed as failure:
        raise InputError(f"{path}: not readable as a tokenizer ({one_line(failure)}); download it again") from None
    hidden = {token.id for token in added if token.special} - shown_ids(tokens)
    pieces = {number: text for number, text in enumerate(tokens.texts) if number not in tokens.unused}
    encode = TableEncoder(metadata.path, child)
    return Vocabulary(
        f"GGUF, {name}", len(tokens.texts), bos, eos,
        Codec(encode, table_piece(pieces, hidden, byte_level=True)),
        {token.content: SpecialToken(token.id) for token in added if token.is_control},
        encode, tokens.unused, metadata.flag(f"{PREFIX}add_bos_token", pre.adds_bos),
        tool_tokens=tool_tokens_of({token.content: token.id for token in added}),
        encode_whole=partial(encode, control=True),
    )  # fmt: skip


def added_tokens(tokens: GgufTokens) -> list[AddedToken]:
    """Control tokens, and words that are tokens wherever they stand; those in brackets become no part of a text."""
    found = []
    for number, (text, kind) in enumerate(zip(tokens.texts, tokens.types, strict=True)):
        if kind in (CONTROL, UNKNOWN, USER_DEFINED) and text:
            token = AddedToken(number, text, kind != USER_DEFINED)
            found.append(AddedToken(number, text, token.is_control))
    return found


def shown_ids(tokens: GgufTokens) -> set[int]:
    """The words among the added tokens: an answer shows them, also those in brackets."""
    return {number for number, kind in enumerate(tokens.types) if kind == USER_DEFINED}


def table_of(tokens: GgufTokens, pre: PreTokenizer, added: list[AddedToken]) -> dict[str, Any]:
    """The equivalent tokenizer.json."""
    vocabulary = {
        text: number
        for number, (text, kind) in enumerate(zip(tokens.texts, tokens.types, strict=True))
        if kind != UNUSED
    }
    splits = [{"type": "Split", "pattern": {"Regex": each}, "behavior": "Isolated", "invert": False}
              for each in pre.patterns]  # fmt: skip
    bytes_of = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [
            {"id": token.id, "content": token.content, "special": token.special, "normalized": False,
             "single_word": False, "lstrip": False, "rstrip": False}
            for token in added
        ],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, bytes_of]},
        "decoder": bytes_of,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": pre.whole_words,
            "vocab": vocabulary, "merges": merges_of(tokens, vocabulary),
        },
    }  # fmt: skip


def merges_of(tokens: GgufTokens, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """The merges, by priority, without those that make no token."""
    found = []
    for merge in tokens.metadata.texts(f"{PREFIX}merges") or []:
        left, space, right = merge.partition(" ")
        if space and left in vocabulary and right in vocabulary and left + right in vocabulary:
            found.append((left, right))
    if not found:
        raise InputError(f"{tokens.metadata.path}: has no {PREFIX}merges; download it again")
    return found
