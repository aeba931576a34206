"""The options that all commands with a model share."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from mistral.cli.options import CHOICE, MACHINE, OUTPUT, RANKS, operand, option
from mistral.engine.sampling import SamplingSettings
from mistral.engine.speculation_mode import MODES, check_draft, check_mode
from mistral.errors import InputError
from mistral.load import check_options
from mistral.ops.device import DEVICES, check_device

BACKENDS, BITS = ("auto", "native", "portable"), ("16", "8", "4")
SEEDS = 1 << 31  # of those that are drawn; short enough to type


def shipped_checkpoint() -> Path:
    """The small trained checkpoint that comes with the project: in the package when installed, else beside it."""
    package = Path(__file__).resolve().parents[1]
    beside = package.parent / "checkpoints" / "tiny"
    return beside if beside.is_dir() else package / "tiny"


@dataclass(frozen=True)
class Options:
    """The options that all commands share; `mistral/cli/options.py` turns text into their values."""

    ckpt: str | None = operand("A folder, a GGUF file, or org/name; the project's small checkpoint when left out.")
    max_tokens: int = option(35, "New tokens for each prompt, at most.", CHOICE)
    temperature: float = option(
        0.0, "0 takes the likeliest token; higher values make unlikely tokens more likely.", CHOICE
    )
    top_p: float = option(
        1.0, "Sample from the likeliest tokens that together reach this probability; 1 is off.", CHOICE
    )
    top_k: int = option(0, "Sample from this many of the likeliest tokens; 0 is off.", CHOICE)
    min_p: float = option(
        0.0, "Exclude tokens with less than this share of the likeliest one's probability; 0 is off.", CHOICE
    )
    repetition_penalty: float = option(
        1.0, "Above 1, tokens that occurred before become less likely; 1 is off.", CHOICE
    )
    seed: int | None = option(None, "Same seed, same text; a random one, which is shown, when left out or -1.", CHOICE)
    stop: tuple[str, ...] = option(
        (), "End an answer before this text; a JSON list of texts for several, or @FILE.", CHOICE
    )
    chunk_size: int | None = option(
        None, "Prompt tokens in one prefill step; 512 when left out. Changes no result.", MACHINE
    )
    max_context: int | None = option(
        None, "Prompt and answer together, in tokens, where the checkpoint allows more.", MACHINE
    )
    backend: str = option(
        "auto", "auto, native (CPU kernels, built on first use) or portable (MindSpore operators).", MACHINE, BACKENDS
    )
    device: str = option("auto", "auto, CPU or Ascend.", MACHINE, DEVICES)
    threads: int | None = option(None, "Threads on a CPU; one for each core when left out.", MACHINE)
    bits: int = option(16, "16: the weights as stored in the file; 8 or 4: quantized while loading.", MACHINE, BITS)
    lora: str | None = option(
        None, "A folder with a LoRA adapter, Mistral's or PEFT's, merged into the weights.", MACHINE, file=True
    )
    precise: bool = option(False, "Keep activations and cache in float32.", MACHINE)
    speculate: str = option(
        "auto", "Speculative decoding: auto (on native), suffix or off; changes no result.", MACHINE,
        MODES,
    )  # fmt: skip
    draft: str | None = option(
        None, "A draft model with the same vocabulary, or self: a 4-bit copy of this one.", MACHINE,
        file=True,
    )  # fmt: skip
    num_pipeline_ranks: int = option(
        1, "Processes that share the layers, started by mpirun -n; 1: this process alone.", RANKS
    )
    pipeline_split: str = option(
        "auto", "Layers of each rank, as 20,12; auto: such that no rank is much slower.", RANKS
    )
    num_micro_batches: int | None = option(
        None, "Most micro-batches in the pipeline at once; chosen when left out.", RANKS
    )
    json: bool = option(False, "Results as JSON, one object per line.", OUTPUT)

    def check(self) -> None:
        """Raise InputError for an option that cannot be, before anything is loaded."""
        check_options(self.num_pipeline_ranks, self.backend, self.bits, self.device)
        check_device(self.device, self.threads)
        check_mode(self.speculate)
        check_draft(self.draft, self.speculate)
        if self.max_tokens is not None and self.max_tokens < 0:
            raise InputError("must be 0 or more", option="max_tokens", value=self.max_tokens)
        for name in ("chunk_size", "max_context", "num_micro_batches"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError("must be at least 1", option=name, value=value)
        self.settings()

    @property
    def draws_seed(self) -> bool:
        """Whether answers are drawn and no seed for it is named."""
        return self.seed in (None, -1) and self.temperature > 0

    def with_seed(self, drawn: int | None = None) -> Self:
        """The options with a seed: their own, else the one given, else a random one."""
        if self.seed not in (None, -1):
            return self
        return replace(self, seed=secrets.randbelow(SEEDS) if drawn is None else drawn)

    def settings(self) -> SamplingSettings:
        """The sampling settings that the options make up, with seed 0 as long as none is there.

        Raises InputError for one out of range.
        """
        seed = 0 if self.seed is None or self.seed == -1 else self.seed
        return SamplingSettings(self.temperature, self.top_p, self.top_k, self.min_p, self.repetition_penalty, seed)
