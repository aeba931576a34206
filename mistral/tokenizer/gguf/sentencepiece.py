"""A tokenizer of SentencePiece's kind, which merges pieces by their scores: read by that library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mistral.errors import InputError, one_line
from mistral.tokenizer.codec import BYTE_PIECE, Codec, Piece, guarded
from mistral.tokenizer.gguf.tokens import BYTE, CONTROL, PREFIX, UNKNOWN, GgufTokens
from mistral.tokenizer.huggingface_file import tool_tokens_of
from mistral.tokenizer.vocabulary import SpecialToken, Vocabulary


def load_by_scores(tokens: GgufTokens) -> Vocabulary:
    """The vocabulary of a file whose tokenizer is "llama". Raises InputError for one that cannot be used."""
    import sentencepiece

    metadata = tokens.metadata
    bos, eos, unknown = (tokens.id_of(f"{name}_token_id", default)
                         for name, default in (("bos", 1), ("eos", 2), ("unknown", 0)))  # fmt: skip
    assert bos is not None and eos is not None
    if max(bos, eos) >= len(tokens.texts):
        raise InputError(f"{metadata.path}: has no {PREFIX}bos_token_id or {PREFIX}eos_token_id; download it again")
    space = metadata.flag(f"{PREFIX}add_space_prefix", True)
    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=model_of(tokens, space))
    except Exception as error:  # the library raises what it likes on a damaged model
        raise InputError(
            f"{metadata.path}: not readable as a tokenizer ({one_line(error)}); download it again"
        ) from None
    unknown_text: bytes = model.decode([model.unk_id()]).encode()

    def piece(token_id: int) -> Piece:
        text, kind = tokens.texts[token_id], tokens.types[token_id]
        if kind == CONTROL:
            return None
        if kind == UNKNOWN:
            return unknown_text
        match = BYTE_PIECE.fullmatch(text) if kind == BYTE else None
        return bytes([int(match[1], 16)]) if match else text

    encode: Callable[[str], list[int]] = guarded(metadata.path, lambda text: list(model.encode(text)))
    specials = {
        text: SpecialToken(number)
        for number, (text, kind) in enumerate(zip(tokens.texts, tokens.types, strict=True))
        if kind in (CONTROL, UNKNOWN) or number in (bos, eos, unknown)
    }
    return Vocabulary(
        "GGUF, SentencePiece", len(tokens.texts), bos, eos,
        Codec(encode, piece, adds_space=space, mark_each_byte=True), specials, encode, tokens.unused,
        metadata.flag(f"{PREFIX}add_bos_token", True),
        tool_tokens=tool_tokens_of({name: token.id for name, token in specials.items()}),
    )  # fmt: skip


def model_of(tokens: GgufTokens, space: bool) -> bytes:
    """A tokenizer.model of these tokens; `space`: a text is given a space in front."""
    from sentencepiece import sentencepiece_model_pb2

    metadata = tokens.metadata
    scores = metadata.numbers(f"{PREFIX}scores")
    if scores is None or len(scores) != len(tokens.texts):
        count = "no" if scores is None else str(len(scores))
        raise metadata.unfit(f"{PREFIX}scores", f"has {count} entries for {len(tokens.texts)} tokens")
    if not np.isfinite(scores).all():
        raise metadata.unfit(f"{PREFIX}scores", "has scores that are NaN or infinite")
    model: Any = sentencepiece_model_pb2.ModelProto()
    has_bytes = False
    for text, score, kind in zip(tokens.texts, scores.tolist(), tokens.types, strict=True):
        if not UNKNOWN - 1 <= kind <= BYTE:
            raise metadata.unfit(f"{PREFIX}token_type", f"has the type {kind}")
        has_bytes |= kind == BYTE
        model.pieces.add(piece=text, score=score, type=kind)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type, trainer.byte_fallback, trainer.vocab_size = trainer.BPE, has_bytes, len(tokens.texts)
    normalizer.name, normalizer.add_dummy_prefix = "identity", space
    normalizer.remove_extra_whitespaces = metadata.flag(f"{PREFIX}remove_extra_whitespaces", False)
    normalizer.escape_whitespaces = True
    data: bytes = model.SerializeToString()
    return data
