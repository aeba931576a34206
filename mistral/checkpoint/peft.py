"""The settings of an adapter in the layout of Hugging Face's PEFT: adapter_config.json.

Its tensors have Hugging Face's names after `base_model.model.`. B A is scaled by lora_alpha / r, or by lora_alpha /
sqrt(r) with use_rslora (arXiv:2312.03732); `alpha_pattern` gives some matrices another lora_alpha.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mistral.checkpoint.formats.stored_tensor import quoted
from mistral.errors import InputError
from mistral.text import read_json, shown

PREFIX = "base_model.model."
# Settings that change the arithmetic in unsupported ways: refused unless absent, null, false or empty.
UNSUPPORTED = (
    "modules_to_save", "lora_bias", "fan_in_fan_out", "trainable_token_indices", "target_parameters",
    "layer_replication", "alora_invocation_tokens", "arrow_config", "kasa_config",
)  # fmt: skip
# Initialisations that change the model's own weights, so that the adapter does not fit the original ones.
CHANGES_WEIGHTS = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Patterns are regular expressions from an untrusted file: only those that match in bounded time are accepted.
MOST_PATTERNS, LONGEST_PATTERN, MOST_REPEATS = 4096, 200, 2
MOST_MATCHES = 1 << 21  # of all modules with all patterns: some seconds


def read_scales(path: Path) -> Callable[[str, int], float]:
    """The function (module without PREFIX, rank of its tensors) -> scale for an adapter of PEFT.

    Raises InputError for settings that are not supported; the function does for a rank that the file does not name.
    """
    if not path.is_file():
        raise InputError(f"{path}: missing; it has the adapter's scale, copy it from where the adapter was trained")
    config = read_json(path)
    refuse_unsupported(path, config)
    default = number(path, "lora_alpha", config.get("lora_alpha"))
    found = [config.get("r"), *table(path, config, "rank_pattern").values()]
    ranks = {rank for rank in found if isinstance(rank, int)}
    alphas = [
        (compiled(path, key), number(path, f"alpha_pattern {shown(key)}", value))
        for key, value in table(path, config, "alpha_pattern").items()
    ]
    root, tried = bool(config.get("use_rslora")), 0

    def scale_of(module: str, rank: int) -> float:
        nonlocal tried
        tried += len(alphas)
        if tried > MOST_MATCHES:
            raise InputError(f"{path}: alpha_pattern has too many patterns for so many modules; train with fewer")
        if rank not in ranks:
            raise InputError(
                f"{path}: neither r nor rank_pattern is {rank}, the rank of {quoted(module)}; copy both files from one"
                " place"
            )
        alpha = next((value for pattern, value in alphas if pattern.match(module)), default)
        return alpha / (math.sqrt(rank) if root else rank)

    return scale_of


def refuse_unsupported(path: Path, config: Mapping[str, Any]) -> None:
    """Raise InputError for a setting that changes the arithmetic in an unsupported way."""
    kind, bias, begin = config.get("peft_type"), config.get("bias", "none"), config.get("init_lora_weights")
    if kind != "LORA":
        raise InputError(f"{path}: peft_type {shown(kind)} is not supported (LORA is)")
    if bias not in ("none", None):
        raise InputError(f"{path}: bias {shown(bias)} is not supported (none is)")
    uses = sorted(key for key in config if key.startswith("use_") and key != "use_rslora")
    for key in (*uses, *UNSUPPORTED):
        if config.get(key):
            name = key[:40] if key.isidentifier() else shown(key)
            what = "DoRA" if key == "use_dora" else name
            raise InputError(f"{path}: {name} is set, and {what} is not supported; train without it")
    if isinstance(begin, str) and begin.startswith(CHANGES_WEIGHTS):
        raise InputError(
            f"{path}: init_lora_weights {shown(begin)} changed the model's own weights; save the adapter with PEFT's"
            " path_initial_model_for_weight_conversion"
        )


def number(path: Path, name: str, value: Any) -> float:
    """The value of the setting `name` as a float. Raises InputError unless it is a finite number up to 1e9."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or abs(value) > 1e9:
        raise InputError(f"{path}: {name} must be a number, not {shown(value)}")
    return float(value)


def table(path: Path, config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The setting `name`, a dictionary of values by pattern; empty if absent. Raises InputError for anything else."""
    found = config.get(name) or {}
    if not isinstance(found, dict) or len(found) > MOST_PATTERNS:
        raise InputError(f"{path}: {name} must be a table of patterns")
    return found


def compiled(path: Path, pattern: str) -> re.Pattern[str]:
    """A pattern of the file, compiled as in PEFT: it must match the end of a module's name, after a dot.

    Raises InputError for an invalid pattern, or one that could take long to match.
    """
    repeats = len(re.findall(r"[*+?{]", pattern))
    try:
        if len(pattern) > LONGEST_PATTERN or repeats > MOST_REPEATS or re.search(r"\)\s*[*+{]", pattern):
            raise InputError(f"{path}: alpha_pattern {shown(pattern)} is too complex; name the modules one by one")
        return re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, OverflowError, RecursionError):
        raise InputError(f"{path}: alpha_pattern {shown(pattern)} is not a pattern") from None
