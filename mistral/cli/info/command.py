"""The info command: what a checkpoint is and what running it takes, before anything is loaded."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mistral.checkpoint.args_file import params_of
from mistral.cli.console import Progress
from mistral.cli.info.memory_estimate import all_needs
from mistral.cli.info.summary import Survey, active_parameters, survey
from mistral.cli.info.verify import Verification, verify
from mistral.cli.model_options import shipped_checkpoint
from mistral.cli.options import operand, option
from mistral.errors import InputError
from mistral.memory import available_memory, gigabytes
from mistral.model.args import ModelArgs
from mistral.model.parameters import PARTS, parameters

CONTEXT = 4096  # tokens of a row, where none are named and the checkpoint allows as many
MOST_ROWS, MOST_TOKENS = 1 << 20, 1 << 30


@dataclass(frozen=True)
class Info:
    """Show what a checkpoint is, what memory it needs, and whether it fits here.

    Only headers are read; a folder that is not whole is described as far as it goes. --verify reads everything.
    """

    ckpt: str | None = operand("The checkpoint folder; the small one that ships with the project when left out.")
    batch: int = option(1, "Rows that are answered at once.")
    context: int | None = option(None, f"Tokens of each row, prompt and answer; {CONTEXT} or the checkpoint's limit.")
    ranks: int = option(1, "Processes that share the layers.")
    lora: str | None = option(None, "A folder with a LoRA adapter that is to be merged into the weights.")
    verify: bool = option(False, "Read all files: compare checksums that came with them, look for NaN and infinity.")
    json: bool = option(False, "One JSON object.")

    def check(self) -> None:
        """Raise InputError for an option that cannot be."""
        for name, most in (("batch", MOST_ROWS), ("context", MOST_TOKENS), ("ranks", MOST_ROWS)):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                raise InputError(f"--{name} {value}: must be from 1 to {most}")

    def run(self) -> None:
        """Look, and perhaps read; show; then raise InputError for a checkpoint that cannot be used."""
        found = survey(shipped_checkpoint() if self.ckpt is None else Path(self.ckpt), self.lora)
        record = self.record(found)
        verification = None
        if self.verify:
            adapter = found.checkpoint.adapter if found.checkpoint else None
            files = (*found.files, *([adapter.file] if adapter else []))
            verification = verify(found.folder, files, found.args, Progress("verifying:", "GB", 1e9))
            record["verified"] = asdict(verification)
        if self.json:
            print(json.dumps(record))
        else:
            for line in (
                *lines(found, record),
                *(verified_lines(verification, found.problems) if verification else ()),
            ):
                print(line)
        problems = list(dict.fromkeys((*found.problems, *(verification.problems if verification else ()))))
        if problems:
            sys.stdout.flush()
            raise InputError(problems[0] + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""))

    def record(self, found: Survey) -> dict[str, Any]:
        """All that is shown, for programs: bytes, not gigabytes."""
        record: dict[str, Any] = {
            "folder": str(found.folder), "form": found.form, "dtypes": dict(found.dtypes),
            "files": {file.name: file.stat().st_size if file.exists() else None for file in found.files},
            "tokenizer": found.tokenizer and {
                "file": found.tokenizer.file.name, "version": found.tokenizer.version,
                "vocab_size": found.tokenizer.vocab_size, "chat_template": found.tokenizer.can_chat,
            },
            "notes": list(found.notes), "problems": list(found.problems),
        }  # fmt: skip
        if found.args:
            record |= model_record(found, found.args)
            record["memory"] = self.memory(found, found.args)
        return record

    def memory(self, found: Survey, args: ModelArgs) -> dict[str, Any]:
        """What each way of running it needs. Raises InputError for a context or ranks that the model does not have."""
        if self.ranks > args.n_layers:
            raise InputError(f"--ranks {self.ranks}: this model has {args.n_layers} layers to share out")
        limit = args.max_seq_len
        if self.context and limit and self.context > limit:
            raise InputError(f"--context {self.context}: the checkpoint is limited to {limit} tokens")
        context = self.context or min(CONTEXT, limit or CONTEXT)
        needs, free = all_needs(found, args, self.ranks, self.batch, context), available_memory()
        ways = [asdict(each) | {"total": each.total, "fits": each.fits(free)} for each in needs]
        return {"batch": self.batch, "context": context, "available": free, "needs": ways}


def model_record(found: Survey, args: ModelArgs) -> dict[str, Any]:
    """Architecture, parameters, and bytes by part."""
    weights, parts = found.weights(), {part: {"parameters": 0, "bytes": 0} for part in PARTS}
    for name, parameter in parameters(args).items():
        parts[parameter.part]["parameters"] += parameter.size
        parts[parameter.part]["bytes"] += weights[name]
    total = sum(part["parameters"] for part in parts.values())
    return {
        "architecture": params_of(args), "parameters": total, "active_parameters": active_parameters(args),
        "bytes": sum(weights.values()), "parts": {name: part for name, part in parts.items() if part["parameters"]},
    }  # fmt: skip


def lines(found: Survey, record: Mapping[str, Any]) -> Iterator[str]:
    """The record for people."""
    yield str(found.folder)
    size = gigabytes(sum(found.dtypes.values()))
    dtypes = ", ".join(sorted(found.dtypes, key=lambda name: -found.dtypes[name]))
    form = found.form or f"not whole, {len(found.files)} weight file{'' if len(found.files) == 1 else 's'}"
    yield f"weights       {form}{f', {size} of {dtypes}' if dtypes else ''}"
    if found.tokenizer:
        version = f"template {found.tokenizer.version}" if found.tokenizer.can_chat else "no chat template"
        yield f"tokenizer     {found.tokenizer.file.name}: {version}, {found.tokenizer.vocab_size} ids"
    if found.args:
        yield from model_lines(found.args, record)
        yield from memory_lines(record["memory"])
    for note in found.notes:
        yield f"note: {note}"
    for problem in found.problems:
        yield f"problem: {problem}"


def model_lines(args: ModelArgs, record: Mapping[str, Any]) -> Iterator[str]:
    """Architecture, parameters, and bytes by part."""
    mixture = f", {args.moe.num_experts} experts, {args.moe.num_experts_per_tok} a token" if args.moe else ""
    yield (
        f"architecture  {args.n_layers} layers of width {args.dim}, {args.n_heads} query and {args.n_kv_heads} key"
        f" heads of {args.head_dim}, hidden_dim {args.hidden_dim}{mixture}"
    )
    limit = f"{args.max_seq_len} tokens" if args.max_seq_len else "not limited by the files"
    yield f"context       {limit}; window {windows(args.sliding_windows)}; rope_theta {args.rope_theta:g}"
    if args.quantization:
        yield f"quantized     {args.quantization.bits} bits, output matrix {args.quantization.output_bits}"
    active = f", of which a token meets {record['active_parameters']:,}" if args.moe else ""
    yield f"parameters    {record['parameters']:,}{active}"
    tied = "  (the head is the embedding)" if args.tied_embeddings else ""
    for name, part in record["parts"].items():
        share = 100 * part["bytes"] / record["bytes"]
        size = gigabytes(part["bytes"])
        yield f"  {name:12}{part['parameters']:>17,}  {size:>8}  {share:5.1f} %{tied if name == 'embedding' else ''}"


def windows(found: Sequence[int | None]) -> str:
    """The windows of all layers, as short as they can be said."""
    period = next(n for n in range(1, len(found) + 1) if all(w == found[i % n] for i, w in enumerate(found)))
    shown = ", ".join("none" if window is None else str(window) for window in found[:period])
    return shown if period == 1 else f"{shown}, repeated"


def memory_lines(memory: Mapping[str, Any]) -> Iterator[str]:
    """What each way of running it needs, a line for each rank."""
    rows = "1 row" if memory["batch"] == 1 else f"{memory['batch']} rows"
    free = gigabytes(memory["available"])
    ranks = 1 + max(need["rank"] for need in memory["needs"])
    each = f" on each of {ranks} ranks" if ranks > 1 else ""
    yield f"memory for {rows} of {memory['context']} tokens{each}; {free} are free here"
    header = f"  {'':34}" if ranks > 1 else f"  {'':20}"
    yield f"{header}{'weights':>9}{'cache':>10}{'other':>10}{'in all':>10}  fits here"
    for need in memory["needs"]:
        name = f"{need['way']:20}"
        if ranks > 1:
            name += f"{'rank ' + str(need['rank']):8}{need['first']:>3}-{need['last']:<3}"
        sizes = "".join(f"{gigabytes(need[key]):>10}" for key in ("weights", "cache", "other", "total"))
        yield f"  {name}{sizes[1:]}  {need['fits']}"


def verified_lines(found: Verification, known: Sequence[str]) -> Iterator[str]:
    """What was read, and what is wrong with it beside what is `known` already."""
    yield f"verified      {gigabytes(found.nbytes)} in {found.tensors} tensors"
    for checked in found.checksums:
        yield f"  compared: {checked}"
    for note in found.notes:
        yield f"note: {note}"
    for problem in found.problems:
        if problem not in known:
            yield f"problem: {problem}"
    if found.tensors and not found.problems:
        yield "  nothing is wrong with what was read"
