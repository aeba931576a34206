"""Fill-in-the-middle prompts, as mistral-common writes them for Codestral: the suffix first, then the prefix."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mistral.errors import InputError
from mistral.text import check_unicode

if TYPE_CHECKING:
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    from mistral.tokenizer.tokenizer import Tokenizer

CONTROL = ("[PREFIX]", "[SUFFIX]")
MARK = "\u263a"  # mistral-common encodes a suffix behind it and takes two ids away, lest a space come in front


def official_fim(mistral: MistralTokenizer[Any, Any, Any, Any, Any]) -> Callable[[str, str], list[int]] | None:
    """(prefix, suffix) -> ids: bos, [SUFFIX], the suffix, [PREFIX], the prefix. None for a vocabulary without these."""
    from mistral_common.protocol.fim.request import FIMRequest

    raw: Any = mistral.instruct_tokenizer.tokenizer
    if not all(map(raw.is_special, CONTROL)) or len(raw.encode(MARK, bos=False, eos=False)) != 2:
        return None

    def encode(prefix: str, suffix: str) -> list[int]:
        return list(mistral.encode_fim(FIMRequest(prompt=prefix, suffix=suffix)).tokens)

    return encode


def encode_fim(tokenizer: Tokenizer, prefix: str, suffix: str) -> list[int]:
    """Ids that ask for what is missing between two texts. Raises InputError where the tokenizer has no form for it."""
    if tokenizer.fim is None:
        raise InputError(
            f"{tokenizer.file}: has no fill-in-the-middle ({' and '.join(CONTROL)}); use a model made for it, such as"
            " Codestral"
        )
    for text in (prefix, suffix):
        check_unicode(text)
    return tokenizer.fim(prefix, suffix)
