"""Fill-in-the-middle prompts, as mistral-common writes them for Codestral: the suffix first, then the prefix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mistral.tokenizer.codec import guarded

if TYPE_CHECKING:
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

CONTROL = ("[PREFIX]", "[SUFFIX]")
FillInMiddle = Callable[[str, str], list[int]]  # prefix and suffix -> ids that ask for what is between them
MARK = "\u263a"  # mistral-common encodes a suffix behind it and takes two ids away, lest a space come in front


def official_fim(mistral: MistralTokenizer[Any, Any, Any, Any, Any], path: Path) -> FillInMiddle | None:
    """The function that writes bos, [SUFFIX], the suffix, [PREFIX], the prefix; None for a vocabulary without these."""
    from mistral_common.protocol.fim.request import FIMRequest

    raw: Any = mistral.instruct_tokenizer.tokenizer
    if not all(map(raw.is_special, CONTROL)) or len(raw.encode(MARK, bos=False, eos=False)) != 2:
        return None

    def encode(prefix: str, suffix: str) -> list[int]:
        return list(mistral.encode_fim(FIMRequest(prompt=prefix, suffix=suffix)).tokens)

    return guarded(path, encode)
