"""The quantize command: a checkpoint as a GGUF file, its matrices in block formats."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from mistral.atomic_files import exists, unfinished
from mistral.checkpoint.checkpoint import Checkpoint, open_checkpoint
from mistral.checkpoint.gguf.importances import Importances, read_importances
from mistral.checkpoint.gguf.write import write_gguf
from mistral.checkpoint.quantization import MIXTURE_OF_BITS, MIXTURES, check_mixture
from mistral.cli.console import ProgressLine
from mistral.cli.input_text import read_text_file
from mistral.cli.options import MACHINE, operand, option
from mistral.cli.status_line import status
from mistral.errors import InputError
from mistral.memory import gigabytes
from mistral.ops import build
from mistral.ops.device import check_surroundings
from mistral.tokenizer.gguf.export import require_same, tokenizer_values
from mistral.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Quantize:
    """Write a checkpoint as a GGUF file, which every command and llama.cpp take.

    Which matrix has how many bits is as llama.cpp has it for the type; norms and routers stay float32.
    """

    ckpt: str | None = operand("The checkpoint, in any form; its files stay as they are.")
    out: str | None = operand("The file to write, such as model.gguf; it must not exist yet.")
    type: str | None = option(
        None, "Q8_0 (when left out), Q6_K, Q5_K_M, Q4_K_M, IQ4_XS or Q4_0, BF16 or F16.", choices=tuple(MIXTURES)
    )
    bits: int | None = option(None, "Instead of --type: 8 for Q8_0, 4 for Q4_K_M.", choices=("8", "4"))
    lora: str | None = option(None, "A folder with a LoRA adapter, Mistral's or PEFT's, merged before.", file=True)
    calibrate: str | None = option(
        None,
        "A text like those that the model will read: errors are weighted by how weights are used there.",
        file=True,
    )
    importances: str | None = option(
        None, "Instead of --calibrate: a GGUF file of importances, this program's or llama.cpp's imatrix.", file=True
    )
    save_importances: str | None = option(None, "With --calibrate: a GGUF file for its result.", file=True)
    chunks: int | None = option(None, "With --calibrate: the most pieces of 512 tokens to read; 0 for all.")
    backend: str = option(
        "auto", "With --calibrate: native, portable or auto.", MACHINE, ("auto", "native", "portable")
    )

    def check(self) -> None:
        """Raise InputError for what cannot be, before anything is read."""
        if self.ckpt is None or self.out is None:
            raise InputError("quantize: name a checkpoint and a GGUF file to write")
        if self.bits is not None and self.type is not None:
            raise InputError("leave it out with a type", option="bits", value=self.bits)
        if self.bits is not None and self.bits not in MIXTURE_OF_BITS:
            raise InputError("must be 8 or 4", option="bits", value=self.bits)
        check_mixture("type", self.mixture)
        if not self.out.endswith(".gguf"):
            raise InputError(f"{self.out}: must end in .gguf: a GGUF file is written")
        if self.importances is not None and self.calibrate is not None:
            raise InputError("leave it out with a text to calibrate by", option="importances", value=self.importances)
        for name in ("save_importances", "chunks"):
            value = getattr(self, name)
            if value is not None and self.calibrate is None:
                raise InputError("needs a text to calibrate by", option=name, value=value)
        if self.chunks is not None and self.chunks < 0:
            raise InputError("must be 0 or more", option="chunks", value=self.chunks)
        require_places(Path(self.out), self.save_importances)
        build.require_compiler()

    @property
    def mixture(self) -> str:
        """The type, as llama.cpp calls it."""
        if self.type is not None:
            return self.type.upper()
        return MIXTURE_OF_BITS[8 if self.bits is None else self.bits]

    def run(self) -> None:
        """Quantize tensor by tensor; an unfinished file never has the name that was asked for."""
        assert self.ckpt is not None and self.out is not None
        check_surroundings()  # a compiler needs a temporary folder
        status(f"quantizing {Path(self.ckpt).name} ...")
        checkpoint, out = open_checkpoint(self.ckpt, self.lora), Path(self.out)
        if checkpoint.gguf:
            tokenizer = Tokenizer.from_gguf(checkpoint.gguf)
        else:
            tokenizer = Tokenizer.from_folder(checkpoint.folder)
        tokenizer = tokenizer.for_rows(checkpoint.args.vocab_size)
        values = tokenizer_values(tokenizer, checkpoint.args.vocab_size, checkpoint.gguf)
        with unfinished(out) as work:
            importances = self.found_importances(checkpoint, tokenizer)
            progress = ProgressLine("quantizing:", "GB", 1e9)
            total = write_gguf(checkpoint, work / out.name, self.mixture, values, progress, importances)
            if tokenizer.file != checkpoint.path:
                require_same(tokenizer, Tokenizer.from_folder(work / out.name))
            (work / out.name).rename(out)
        for line in (*checkpoint.warnings, *notes(checkpoint)):
            print(f"note: {line}", file=sys.stderr)
        before = sum(checkpoint.nbytes(name) for name in checkpoint.shapes)
        print(f"{out}: {gigabytes(total)} of weights, {gigabytes(before)} before")

    def found_importances(self, checkpoint: Checkpoint, tokenizer: Tokenizer) -> Importances | None:
        """The importances that were asked for; None without. Those of a text are written where that was asked for."""
        if self.importances is not None:
            found = read_importances(Path(self.importances))
            found.require_fit(Path(self.importances), checkpoint.args)
            return found
        if self.calibrate is None:
            return None
        from mistral.cli.quantize.calibrate import calibrate

        ids = tokenizer.encode(read_text_file(self.calibrate), bos=False)
        progress = ProgressLine("calibrating:", "tokens")
        name = Path(self.calibrate).name
        found = calibrate(checkpoint, tokenizer.bos_id, ids, self.chunks, self.backend, name, progress)
        if self.save_importances is not None:
            found.write(Path(self.save_importances))
        return found


def require_places(out: Path, kept: str | None) -> None:
    """Raise InputError where the file cannot have its name, or importances would take the place of something else."""
    if exists(out) and out.is_dir():
        raise InputError(f"{out}: is a folder; name a file")
    if kept is None:
        return
    if Path(kept).absolute() == out.absolute():
        raise InputError("is the name of the model to write; name another file", option="save_importances", value=kept)
    if exists(Path(kept)):
        try:
            read_importances(Path(kept))
        except InputError:
            said = "is there already and holds no importances; name another file"
            raise InputError(said, option="save_importances", value=kept) from None


def notes(checkpoint: Checkpoint) -> list[str]:
    """Lines about what llama.cpp will do otherwise than this program."""
    lines = [str(checkpoint.adapter)] if checkpoint.adapter else []
    windows = {window for window in checkpoint.args.sliding_windows if window is not None}
    if windows:
        lines.append(
            f"llama.cpp has no sliding window in this architecture: it answers otherwise beyond {min(windows)} tokens"
        )
    return lines
