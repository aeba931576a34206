"""The options that all commands with a model share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mistral.cli.options import operand, option
from mistral.engine.sampling import SamplingSettings
from mistral.errors import InputError
from mistral.load import check_options
from mistral.ops.device import check_device


def shipped_checkpoint() -> Path:
    """The small trained checkpoint that comes with the project: in the package when installed, else beside it."""
    package = Path(__file__).resolve().parents[1]
    beside = package.parent / "checkpoints" / "tiny"
    return beside if beside.is_dir() else package / "tiny"


@dataclass(frozen=True)
class Options:
    """The options that all commands share; `mistral/cli/options.py` turns text into their values."""

    ckpt: str | None = operand("A folder, a file in it, or org/name; the project's small checkpoint when left out.")
    max_tokens: int = option(35, "New tokens for each prompt, at most.")
    temperature: float = option(0.0, "0 takes the likeliest token; higher values spread the choice.")
    top_p: float = option(1.0, "Choose among the likeliest tokens that together reach this probability; 1 is off.")
    top_k: int = option(0, "Choose among this many of the likeliest tokens; 0 is off.")
    min_p: float = option(0.0, "Leave out tokens below this share of the likeliest one's probability; 0 is off.")
    repetition_penalty: float = option(1.0, "Above 1, tokens that occurred before become less likely; 1 is off.")
    seed: int = option(0, "Same seed, same text.")
    stop: tuple[str, ...] = option((), "End an answer before this text; a JSON list of texts for several, or @FILE.")
    chunk_size: int | None = option(None, "Prompt tokens read at once; 512 when left out. Changes no result.")
    max_context: int | None = option(None, "Prompt and answer together, in tokens, where the checkpoint allows more.")
    backend: str = option("auto", "auto, native (CPU kernels, built on first use) or portable (MindSpore operators).")
    device: str = option("auto", "auto, CPU or Ascend.")
    threads: int | None = option(None, "Threads on a CPU; one for each core when left out.")
    bits: int = option(16, "16: the weights as they lie in the file; 8 or 4: quantized while loading.")
    lora: str | None = option(None, "A folder with a LoRA adapter, Mistral's or PEFT's, merged into the weights.")
    precise: bool = option(False, "Keep activations and cache in float32.")
    num_pipeline_ranks: int = option(1, "Processes that share the layers, started by mpirun -n; 1: this process alone.")
    pipeline_split: str = option("auto", "Layers of each rank, as 20,12; auto: such that no rank is much slower.")
    num_micro_batches: int | None = option(
        None, "Parts of the batch under way between the ranks at once, at most; chosen when left out."
    )
    json: bool = option(False, "Results as JSON, one object a line.")

    def check(self) -> None:
        """Raise InputError for an option that cannot be, before anything is loaded."""
        check_options(self.num_pipeline_ranks, self.backend, self.bits, self.device)
        check_device(self.device, self.threads)
        if self.max_tokens < 0:
            raise InputError("must be 0 or more", option="max_tokens", value=self.max_tokens)
        for name in ("chunk_size", "max_context", "num_micro_batches"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError("must be at least 1", option=name, value=value)
        self.settings()

    def settings(self) -> SamplingSettings:
        """The sampling settings that the options make up. Raises InputError for one out of range."""
        return SamplingSettings(
            self.temperature, self.top_p, self.top_k, self.min_p, self.repetition_penalty, self.seed
        )
