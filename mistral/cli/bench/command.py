"""The bench command: how fast a model is and what memory it takes, as shares of what the machine allows."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

from mistral.checkpoint.checkpoint import open_checkpoint
from mistral.checkpoint.quantization import MIXTURE_OF_BITS, check_mixture
from mistral.cli.bench.figure import table
from mistral.cli.bench.measure import Measurement, MeasurementPlan
from mistral.cli.bench.random_checkpoint import random_checkpoint, shape_args
from mistral.cli.console import result_line
from mistral.cli.model_options import BACKENDS, BITS, shipped_checkpoint
from mistral.cli.options import MACHINE, OUTPUT, operand, option
from mistral.cli.status_line import status
from mistral.errors import InputError, setting
from mistral.load import backend_for, check_options
from mistral.model.parameters import EMBEDDING, FIRST_MATRIX
from mistral.ops import build
from mistral.ops.device import (
    DEVICES,
    check_device,
    check_surroundings,
    require_address_space,
    set_threads,
    start_device,
    thread_count,
)
from mistral.ops.library_cache import user_folder

MOST_TOKENS, MOST_ROWS, MOST_REPEATS = 1 << 20, 1024, 1000


@dataclass(frozen=True)
class Bench:
    """Measure speed and memory, as shares of what this machine allows.

    Load time, decoding, generation, prefill and memory, each the median of its repeats, and what the machine allows,
    measured before and after. decode and prefill are the model alone: tokens are not chosen (the head is run on the
    last token of a prompt only). generate is a whole answer: 64 new tokens to a prompt of 128, with the time of the
    prompt and of sampling at temperature 0.7 and top_p 0.9. Prompts are random tokens; without a checkpoint,
    weights of real dimensions can be random too.
    """

    ckpt: str | None = operand("A folder, a GGUF file, or org/name; the project's small checkpoint when left out.")
    shape: str | None = option(None, "Instead: random weights of a model's dimensions, such as mistral-7b or tiny.")
    layers: int | None = option(None, "With --shape: so many layers instead of all.")
    folder: str | None = option(None, "With --shape: where its weights are kept; the user's cache when left out.")
    type: str | None = option(
        None, "With --shape: the type of a GGUF file to write its weights into, such as Q8_0, Q4_K_M or Q4_0."
    )
    bits: int = option(
        16, "16: weights as in the file; 8 or 4: quantized, with --shape as a GGUF file of its own.", MACHINE, BITS
    )
    prefill: str = option("128,512,2048", "Lengths of the prompts, in tokens.")
    batches: str = option("1,8", "Rows that are decoded at once; answers are generated for 1 and the most of these.")
    tokens: int = option(32, "Tokens to decode for each row.")
    repeats: int = option(3, "How often each figure is measured.")
    backend: str = option(
        "auto", "auto, native (CPU kernels, built on first use) or portable (MindSpore operators).", MACHINE, BACKENDS
    )
    device: str = option("auto", "auto, CPU or Ascend.", MACHINE, DEVICES)
    threads: int | None = option(None, "Threads on a CPU; one for each core when left out.", MACHINE)
    precise: bool = option(False, "Keep activations and cache in float32.", MACHINE)
    json: bool = option(False, "Figures as JSON, one object per line.", OUTPUT)

    def check(self) -> None:
        """Raise InputError for an option that cannot be, before anything is loaded."""
        check_options(backend=self.backend, bits=self.bits, device=self.device)
        check_device(self.device, self.threads)
        for name, value, most in (("tokens", self.tokens, MOST_TOKENS), ("repeats", self.repeats, MOST_REPEATS)):
            check_number(name, value, most)
        self.plan()
        if self.shape is None:
            for name in ("layers", "folder", "type"):
                if getattr(self, name) is not None:
                    raise InputError(f"needs {setting('shape')}", option=name)
            return
        if self.ckpt is not None:
            both = f"makes a checkpoint; leave it or {self.ckpt[:40]} out"
            raise InputError(both, option="shape", value=self.shape[:40])
        shape_args(self.shape, self.layers)
        if self.type is not None:
            check_mixture("type", self.type)
            if self.bits != 16:
                raise InputError(f"says what its file has; leave {setting('bits')} out", option="type", value=self.type)
        if self.backend == "native" or self.bits != 16 or self.type:
            build.require_compiler()

    def run(self) -> None:
        """Make the checkpoint where it is to be random, measure the model, and print the figures."""
        check_surroundings()
        require_address_space()
        set_threads(self.threads)
        status(f"measuring {self.shape or Path(self.ckpt or shipped_checkpoint()).name} ...")
        checkpoint = open_checkpoint(self.find_checkpoint())
        for line in checkpoint.warnings:
            print(f"note: {line}", file=sys.stderr)
        device = start_device(self.device, self.threads)
        backend = backend_for(checkpoint, self.bits, self.backend, device)
        measurement = Measurement(checkpoint, self.bits, backend, device, self.precise, self.plan())
        figures = measurement.measure()
        stored = min(8 * checkpoint.nbytes(n) // math.prod(checkpoint.shapes[n]) for n in (EMBEDDING, FIRST_MATRIX))
        bits = stored if self.bits == 16 else self.bits
        name = checkpoint.name if self.shape is None else f"{self.shape}-{checkpoint.args.n_layers}"
        setting: dict[str, str | int] = {"model": name, "backend": backend, "threads": thread_count(), "bits": bits}
        if self.json:
            for figure in figures:
                print(result_line(figure.record(setting)))
            return
        print(f"{name}, {bits} bits, {backend} backend, {thread_count()} thread{'s' if thread_count() > 1 else ''}")
        for line in table(figures):
            print(line)

    def plan(self) -> MeasurementPlan:
        """What to measure. Raises InputError naming an option that cannot be."""
        prompts, batches = numbers("prefill", self.prefill, MOST_TOKENS), numbers("batches", self.batches, MOST_ROWS)
        return MeasurementPlan(prompts, batches, tuple(sorted({1, max(batches)})), self.tokens, self.repeats)

    def find_checkpoint(self) -> str | Path:
        """The checkpoint to measure, made where it is to be random."""
        if self.shape is None:
            return shipped_checkpoint() if self.ckpt is None else self.ckpt
        folder = user_folder() / "bench" if self.folder is None else Path(self.folder)
        return random_checkpoint(folder, self.shape, self.layers, self.type or MIXTURE_OF_BITS.get(self.bits))


def check_number(name: str, value: int, most: int) -> None:
    """Raise InputError for an option that is not from 1 to `most`."""
    if not 1 <= value <= most:
        raise InputError(f"must be from 1 to {most}", option=name, value=value)


def numbers(name: str, text: str, most: int) -> tuple[int, ...]:
    """The numbers, 1 to `most`, in a text with commas between, each once. Raises InputError for any other text."""
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        remedy = "must be whole numbers with commas between, such as 1,8"
        raise InputError(remedy, option=name, value=text[:40]) from None
    for value in found:
        check_number(name, value, most)
    return tuple(dict.fromkeys(found))
