"""tokenizer.model and tokenizer.model.vN, loaded by mistral-common, with the tokens that a fine-tune has added."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mistral.errors import InputError
from mistral.text import read_json
from mistral.tokenizer.added_tokens import AddedToken, read_added_tokens
from mistral.tokenizer.chat_template import official_template, tool_tokens
from mistral.tokenizer.codec import Codec, Piece, guarded, text_or_byte
from mistral.tokenizer.files import SENTENCEPIECE_NAME
from mistral.tokenizer.fill_in_middle import official_fim
from mistral.tokenizer.streaming import SPACE
from mistral.tokenizer.template_files import speaks_mistral
from mistral.tokenizer.vocabulary import SpecialToken, Vocabulary, missing_ids

if TYPE_CHECKING:
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
    from mistral_common.tokens.tokenizers.sentencepiece import SentencePieceTokenizer

CONTROL_V2 = (
    "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
)  # fmt: skip
CONTROL_V7 = (*CONTROL_V2, "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]")
CONTROL_TOKENS = {"v1": (), "v2": CONTROL_V2, "v3": CONTROL_V2, "v7": CONTROL_V7}  # SentencePiece versions
BREAK = "\n"  # a piece of its own, which takes nothing from what follows


def load_sentencepiece(path: Path) -> Vocabulary:
    """Load a SentencePiece model of one of Mistral's versions. Raises InputError for one that lacks what they have."""
    raw = _opened(path)
    for name in CONTROL_TOKENS[raw.version.value]:  # SentencePiece would give <unk> for it
        if not raw.is_special(name):
            version = raw.version.value
            raise InputError(f"{path}: has no control token {name}, as {version} needs; add the model's own tokenizer")
    if min(raw.bos_id, raw.eos_id) < 0:
        raise InputError(f"{path}: has no <s> or </s>; add the model's own tokenizer")
    added = read_added_tokens(path.parent)
    beyond = {token.id: token for token in added if token.id >= raw.n_words}
    encode: Callable[[str], list[int]] = guarded(path, lambda text: raw.encode(text, bos=False, eos=False))
    adds_space = raw.id_to_piece(raw.encode("a", bos=False, eos=False)[0]).startswith(SPACE)
    behind = _encode_part(encode, adds_space, path.parent)
    words = [token for token in beyond.values() if not token.is_control]
    mistral = _mistral_tokenizer(raw)
    ours = speaks_mistral(path.parent, raw.n_words, added)
    size = max([raw.n_words - 1, *beyond]) + 1
    return Vocabulary(
        raw.version.value, size, raw.bos_id, raw.eos_id,
        Codec(
            _with_words(encode, behind, words), _piece(raw, beyond), adds_space=adds_space, mark_each_byte=True,
        ),
        _specials(raw, added), _with_words(behind, behind, words), missing_ids(path, size, beyond, raw.n_words),
        template=official_template(mistral, path) if ours else None, tool_tokens=tool_tokens(mistral),
        fim=official_fim(mistral, path),
    )  # fmt: skip


def _opened(path: Path) -> SentencePieceTokenizer:
    from mistral_common.tokens.tokenizers.base import TokenizerVersion
    from mistral_common.tokens.tokenizers.sentencepiece import SentencePieceTokenizer

    match = SENTENCEPIECE_NAME.fullmatch(path.name)
    assert match
    if match[1] not in (None, *CONTROL_TOKENS):
        raise InputError(f"{path}: version {match[1]} is not known; use one of {', '.join(CONTROL_TOKENS)}")
    # mistral-common takes every bare tokenizer.model for v1, but Hugging Face folders have later ones under that name.
    raw = SentencePieceTokenizer(path, TokenizerVersion(match[1] or "v1"))
    if match[1] is None and raw.is_special("[INST]"):
        raw = SentencePieceTokenizer(path, TokenizerVersion("v7" if raw.is_special("[SYSTEM_PROMPT]") else "v3"))
    return raw


def _mistral_tokenizer(raw: SentencePieceTokenizer) -> MistralTokenizer[Any, Any, Any, Any, Any]:
    """As `MistralTokenizer.from_file` builds it, but with the version that `raw` has, whatever its file is called."""
    from mistral_common.protocol.instruct import normalize, validator
    from mistral_common.tokens.tokenizers import instruct
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    kind = getattr(instruct, f"InstructTokenizer{raw.version.value.upper()}")  # such as InstructTokenizerV3
    checks = validator.get_validator(raw.version, validator.ValidationMode.test)
    return MistralTokenizer(kind(raw), checks, normalize.get_normalizer(raw.version))


def _piece(raw: SentencePieceTokenizer, beyond: dict[int, AddedToken]) -> Callable[[int], Piece]:
    unknown, unknown_text = raw.unk_id, raw.decode([raw.unk_id]).encode()

    def piece(token_id: int) -> Piece:
        if token_id >= raw.n_words:
            token = beyond.get(token_id)
            return None if token is None or token.special else token.content.encode()
        if raw.is_special(token_id):
            return None
        return unknown_text if token_id == unknown else text_or_byte(raw.id_to_piece(token_id))

    return piece


def _specials(raw: SentencePieceTokenizer, added: Sequence[AddedToken]) -> dict[str, SpecialToken]:
    """The control tokens of the model, and those that were added, by their spelling."""
    found = {
        raw.id_to_piece(token_id): SpecialToken(token_id)
        for token_id in range(raw.n_words)
        if raw.is_special(token_id) or token_id == raw.unk_id
    }
    return found | {
        token.content: SpecialToken(token.id, token.lstrip, token.rstrip) for token in added if token.is_control
    }


def _with_words(
    encode: Callable[[str], list[int]], encode_part: Callable[[str], list[int]], words: Sequence[AddedToken]
) -> Callable[[str], list[int]]:
    """`encode` for a vocabulary with added words: these are ids of their own wherever they stand in a text."""
    if not words:
        return encode
    ids = {word.content: word.id for word in words}
    pattern = re.compile(f"({'|'.join(map(re.escape, sorted(ids, key=len, reverse=True)))})")

    def encode_all(text: str) -> list[int]:
        first, *rest = pattern.split(text)
        found = encode(first) if first or not rest else []
        for part in rest:
            found += [ids[part]] if part in ids else encode_part(part) if part else []
        return found

    return encode_all


def _encode_part(encode: Callable[[str], list[int]], adds_space: bool, folder: Path) -> Callable[[str], list[int]]:
    """`encode` for a text that stands behind a control token: with or without a space in front, as the folder says."""

    @cache
    def before() -> list[int]:
        return encode(BREAK) if adds_space and not _spaces_each_part(folder) else []

    def encode_part(text: str) -> list[int]:
        ids, start = encode(BREAK + text) if before() else [], len(before())
        return ids[start:] if start and ids[:start] == before() else encode(text)

    return encode_part


def _spaces_each_part(folder: Path) -> bool:
    """Whether a space comes before each part of a text, or before its beginning alone, as transformers has it.

    A tokenizer.json says so by its normalizer; without one, `legacy` in tokenizer_config.json does.
    """
    if (folder / "tokenizer.json").is_file():
        table = read_json(folder / "tokenizer.json")
        before = str(table.get("pre_tokenizer"))
        if "Metaspace" in before:
            return "'first'" not in before and "'never'" not in before
        return "Prepend" in str(table.get("normalizer"))
    config = folder / "tokenizer_config.json"
    return not config.is_file() or read_json(config).get("legacy", True) is not False
