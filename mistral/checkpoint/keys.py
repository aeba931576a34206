"""A JSON object that describes a model, read key by key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mistral.errors import InputError
from mistral.model.args import ModelArgs
from mistral.model.rope import LinearScaling, Llama3Scaling, RopeScaling
from mistral.text import shown

SMALL = 1 << 24  # no dimension of a model is larger: bounds what a hostile file can make us compute
MAX_LAYERS = 4096
LONGEST = 1 << 40  # positions, more than any context has
# Keys that change the arithmetic in ways this project does not implement: refused unless absent, null or false.
UNSUPPORTED = frozenset(
    {
        "vision_encoder", "multimodal", "yarn", "llama_4_scaling", "q_lora_rank", "kv_lora_rank",
        "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "qk_norm", "use_qk_norm", "logit_soft_cap", "mamba",
        "ssm", "ada_rms_norm_t_cond", "use_bias", "attention_bias",
    }
)  # fmt: skip


class Keys:
    """A JSON object being read: remembers what was asked for, so that the rest can be reported.

    `source` is what messages call it. All methods raise InputError, naming source and key, for a value that cannot be.
    """

    def __init__(self, table: Mapping[str, Any], source: str) -> None:
        self.table, self.source, self.taken = table, source, set[str]()

    def take(self, key: str) -> Any:
        """The value of a key, None where it is absent; noted as asked for."""
        self.taken.add(key)
        return self.table.get(key)

    def number(self, key: str, default: float | None = None) -> float:
        """A positive, finite number; decimal text counts as one. `default` where the key is absent or null."""
        value = self.take(key)
        if value is None and default is not None:
            return default
        if value is None:
            raise InputError(f"{self.source}: {key} is missing")
        try:
            number = math.nan if isinstance(value, bool) else float(value)  # decimal strings count as numbers
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not (math.isfinite(number) and number > 0):
            raise InputError(f"{self.source}: {key} must be a positive number, not {shown(value)}")
        return number

    def integer(self, key: str, default: int | None = None, limit: int = SMALL) -> int:
        """A whole number from 1 to `limit`; `default` where the key is absent or null."""
        if default is not None and self.table.get(key) is None:
            self.taken.add(key)
            return default
        number = self.number(key)
        if number != int(number) or number > limit:
            raise InputError(f"{self.source}: {key} must be a whole number of at most {limit}, not {shown(number)}")
        return int(number)

    def boolean(self, key: str) -> bool:
        """true or false; false where the key is absent or null."""
        value = self.take(key)
        if value not in (None, True, False):
            raise InputError(f"{self.source}: {key} must be true or false, not {shown(value)}")
        return bool(value)

    def window(self, value: Any, key: str) -> int | None:
        """A sliding window out of the value of `key`: None for null, else a whole number."""
        return None if value is None else Keys({key: value}, self.source).integer(key)

    def rope_scaling(self, key: str, longest: int | None = None) -> RopeScaling | None:
        """The scaling of rotary angles in the table of this key, as `rope_type` (or `type`) calls it; None for default.

        `longest` is the context that the model had before, where the table does not say.
        """
        table = self.take(key) or {}
        if not isinstance(table, Mapping):
            raise InputError(f"{self.source}: {key} must be a table, not {shown(table)}")
        if any(isinstance(value, Mapping) for value in table.values()):
            raise InputError(f"{self.source}: {key} differs by layer type, which is not supported")
        inner, kind = Keys(table, f"{self.source}: {key}"), table.get("rope_type", table.get("type"))
        try:
            if kind in (None, "default"):
                return None
            if kind == "linear":
                return LinearScaling(inner.number("factor"))
            if kind == "llama3":
                return Llama3Scaling(
                    inner.number("factor"), inner.number("low_freq_factor"), inner.number("high_freq_factor"),
                    inner.integer("original_max_position_embeddings", default=longest, limit=LONGEST),
                )  # fmt: skip
        except InputError as error:
            raise error if str(error).startswith(inner.source) else error.within(self.source) from None
        raise InputError(
            f"{self.source}: {key} of type {shown(kind)} is not supported (default, linear and llama3 are)"
        )

    def window_list(self) -> list[int | None]:
        """The windows to repeat over the layers, of `sliding_window` or `_sliding_window`.

        Either key may be absent, null, a number, a digit string, or a list of these.
        """
        given = [key for key in ("sliding_window", "_sliding_window") if self.take(key) is not None]
        if len(given) > 1:
            raise InputError(f"{self.source}: sliding_window and _sliding_window are both set; keep the one that holds")
        value = self.table[given[0]] if given else None
        values = value if isinstance(value, list) else [value]
        if not values:
            raise InputError(f"{self.source}: {given[0]} is an empty list")
        return [self.window(v, given[0] if given else "sliding_window") for v in values]

    def refuse(self, unsupported: frozenset[str]) -> None:
        """Raise InputError for a key of these that is set: neither absent, null nor false."""
        for key in sorted(unsupported & self.table.keys()):
            if self.take(key) not in (None, False):
                raise InputError(f"{self.source}: {key} is set, and this program does not support it")

    def refuse_unknown(self) -> None:
        """Raise InputError for a key that was not asked for."""
        for key in sorted(self.table.keys() - self.taken):
            raise InputError(f"{self.source}: {shown(key)} is set, and this program does not support it")

    def build(self, harmless: frozenset[str], **fields: Any) -> ModelArgs:
        """The architecture of these fields; keys neither asked for nor `harmless` are noted as ignored."""
        ignored = tuple(sorted(str(key)[:40] for key in self.table.keys() - self.taken - harmless))
        try:
            return ModelArgs(**fields, ignored_keys=ignored)
        except InputError as error:
            raise error.within(self.source) from None
