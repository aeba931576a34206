"""The pieces of a GGUF file's tokenizer, their types, and the ids that it names."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mistral.errors import InputError
from mistral.gguf.value import Metadata
from mistral.tokenizer.vocabulary import MOST_IDS

PREFIX = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of tokens
# Control tokens that end an answer by their spelling, whether a key names them or not, as llama.cpp has it
ENDS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>",
    "<EOT>", "_<EOT>", "<|end_of_text|>", "<end_of_utterance>",
)  # fmt: skip


@dataclass(frozen=True)
class GgufTokens:
    """The tokens by id: their texts and types."""

    metadata: Metadata
    texts: tuple[str, ...]
    types: tuple[int, ...]

    @cached_property
    def unused(self) -> frozenset[int]:
        """The ids that stand for nothing."""
        return frozenset(number for number, kind in enumerate(self.types) if kind == UNUSED)

    def id_of(self, name: str, default: int | None = None) -> int | None:
        """The id that a key such as "eos_token_id" names; `default` where it is absent."""
        key = f"{PREFIX}{name}"
        found = self.metadata.number(key)
        if found is None:
            return default
        if isinstance(found, bool) or not isinstance(found, int):
            raise self.metadata.unfit(key, "is no id")
        if found == (1 << 32) - 1 or found < 0:  # how writers say that there is none
            return default
        if found >= len(self.texts):
            raise self.metadata.unfit(key, f"is {found}, and there are {len(self.texts)} tokens")
        return found

    def end_ids(self, eos_id: int) -> tuple[int, ...]:
        """The ids that end an answer: eos first, then the ends of a turn and of a message."""
        named = [self.id_of(f"{name}_token_id") for name in ("eot", "eom")]
        spelt = [n for n, text in enumerate(self.texts) if text in ENDS and self.types[n] in (CONTROL, USER_DEFINED)]
        return tuple(dict.fromkeys(number for number in (eos_id, *named, *spelt) if number is not None))

    def variables(self) -> dict[str, str]:
        """bos_token and their like, as chat templates call them."""
        found = {name: self.id_of(f"{key}_token_id") for name, key in (
            ("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding"),
        )}  # fmt: skip
        return {name: self.texts[number] for name, number in found.items() if number is not None}


def read_tokens(metadata: Metadata) -> GgufTokens:
    """The tokens of a file. Raises InputError where it has none, or their types are not as many."""
    key = f"{PREFIX}tokens"
    texts = metadata.texts(key)
    if not texts:
        raise InputError(f"{metadata.path}: has no tokenizer; put the model's own tokenizer file beside it")
    if len(texts) > MOST_IDS:
        raise metadata.unfit(key, f"has {len(texts)} tokens")
    types = metadata.numbers(f"{PREFIX}token_type")
    if types is None:
        types = np.full(len(texts), NORMAL)
    if len(types) != len(texts):
        raise metadata.unfit(f"{PREFIX}token_type", f"has {len(types)} entries for {len(texts)} tokens")
    return GgufTokens(metadata, tuple(texts), tuple(map(int, types)))
