"""The quantize command: a checkpoint's matrices in 8 or 4 bits, as a folder that loads like any other."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from mistral.atomic_files import unfinished
from mistral.checkpoint.args_file import params_of
from mistral.checkpoint.checkpoint import open_checkpoint
from mistral.checkpoint.quantization import quantized_args
from mistral.checkpoint.write import write_model
from mistral.cli.console import ProgressLine
from mistral.cli.options import operand, option
from mistral.cli.status_line import status
from mistral.errors import InputError
from mistral.memory import gigabytes
from mistral.ops import build
from mistral.ops.device import check_surroundings
from mistral.text import read_json
from mistral.tokenizer.files import behaviour_files
from mistral.tokenizer.tokenizer import Tokenizer


def check_bits(name: str, bits: int) -> None:
    """Raise InputError, naming the option, for a number of bits that there is no format for."""
    if bits not in (8, 4):
        raise InputError("must be 8 or 4", option=name, value=bits)


@dataclass(frozen=True)
class Quantize:
    """Write a checkpoint's matrices in 8 or 4 bits, as a folder that every command takes.

    Embeddings, norms and routers stay as they are.
    """

    ckpt: str | None = operand("The checkpoint folder; its files stay as they are.")
    out: str | None = operand("The folder to write; it must not exist yet, or be empty.")
    bits: int = option(8, "8 (nothing to be seen of it) or 4 (a little over half the size of 8).", choices=("8", "4"))
    lora: str | None = option(None, "A folder with a LoRA adapter, Mistral's or PEFT's, merged before.", file=True)
    output_bits: int = option(8, "Bits of the output matrix, whose errors reach every word: 8 or 4.")

    def check(self) -> None:
        """Raise InputError for what cannot be, before anything is read."""
        if self.ckpt is None or self.out is None:
            raise InputError("quantize: name a checkpoint folder and a folder to write")
        check_bits("bits", self.bits)
        check_bits("output_bits", self.output_bits)
        build.require_compiler()

    def run(self) -> None:
        """Quantize tensor by tensor; an unfinished folder never has the name that was asked for."""
        assert self.ckpt is not None and self.out is not None
        check_surroundings()  # a compiler needs a temporary folder
        status(f"quantizing {Path(self.ckpt).name} ...")
        checkpoint, out = open_checkpoint(self.ckpt, self.lora), Path(self.out)
        if checkpoint.gguf:
            raise InputError(f"{checkpoint.path}: GGUF is not quantized again; name the original weights")
        if checkpoint.args.quantization:
            raise InputError(f"{checkpoint.folder}: is quantized already; name the original weights")
        if checkpoint.adapter:
            print(f"note: {checkpoint.adapter}", file=sys.stderr)
        tokenizer = Tokenizer.from_folder(checkpoint.folder)
        args = quantized_args(checkpoint.args, self.bits, self.output_bits)
        with unfinished(out) as work:
            total = write_model(checkpoint, args, work, ProgressLine("quantizing:", "GB", 1e9))
            (work / "params.json").write_text(json.dumps(params_of(args) | family(checkpoint.folder), indent=2) + "\n")
            copy_behaviour(checkpoint.folder, tokenizer, work)
            work.rename(out)
        before = sum(checkpoint.nbytes(name) for name in checkpoint.shapes)
        print(f"{out}: {gigabytes(total)} of weights, {gigabytes(before)} before")


def copy_behaviour(folder: Path, tokenizer: Tokenizer, out: Path) -> None:
    """Copy what decides how the model is spoken to, and where an answer ends; config.json, which may say it, stays."""
    for name in behaviour_files(folder, tokenizer.file):
        (out / name.parent).mkdir(exist_ok=True)
        shutil.copyfile(folder / name, out / name)
    config = out / "generation_config.json"
    table = {"bos_token_id": tokenizer.bos_id} | (read_json(config) if config.is_file() else {})
    config.write_text(json.dumps(table | {"eos_token_id": list(tokenizer.end_ids)}, indent=2) + "\n")


def family(folder: Path) -> dict[str, str]:
    """The model_type of a folder's config.json, which says that a model is not one of Mistral's own."""
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    return {"model_type": "llama"} if config.get("model_type") == "llama" else {}
