"""The info command: the architecture and memory needs of a checkpoint, before anything is loaded."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mistral.checkpoint.args_file import params_of
from mistral.cli.console import ProgressLine, result_line
from mistral.cli.info.memory_estimate import memory_estimates
from mistral.cli.info.summary import Summary, active_parameters, summarize
from mistral.cli.info.verify import Verification, verify
from mistral.cli.model_options import shipped_checkpoint
from mistral.cli.options import OUTPUT, operand, option
from mistral.errors import InputError
from mistral.limits import cpu_limit, memory_limit
from mistral.memory import available_memory, gigabytes
from mistral.model.args import ModelArgs
from mistral.model.parameters import PARTS, parameters
from mistral.model.rope import FactorScaling, LinearScaling, YarnScaling

CONTEXT = 4096  # tokens of a row, where none are named and the checkpoint allows as many
MOST_ROWS, MOST_TOKENS = 1 << 20, 1 << 30


@dataclass(frozen=True)
class Info:
    """Show what a checkpoint is, what memory it needs, and whether it fits here.

    Only headers are read; a folder that is not whole is described as far as it goes. --verify reads everything.
    """

    ckpt: str | None = operand("A folder, a GGUF file, or org/name; the project's small checkpoint when left out.")
    batch: int = option(1, "Rows of the batch.")
    context: int | None = option(None, f"Tokens of each row, prompt and answer; {CONTEXT} or the checkpoint's limit.")
    ranks: int = option(1, "Processes that share the layers.")
    lora: str | None = option(None, "A folder with a LoRA adapter to merge into the weights.", file=True)
    verify: bool = option(False, "Read all files: compare checksums that came with them, look for NaN and infinity.")
    json: bool = option(False, "One JSON object.", OUTPUT)

    def check(self) -> None:
        """Raise InputError for an option that cannot be, before anything is read."""
        for name, most in (("batch", MOST_ROWS), ("context", MOST_TOKENS), ("ranks", MOST_ROWS)):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                raise InputError(f"must be from 1 to {most}", option=name, value=value)

    def run(self) -> None:
        """Print what is found, verified where that is asked for. Raises InputError for an unusable checkpoint."""
        summary = summarize(shipped_checkpoint() if self.ckpt is None else self.ckpt, self.lora)
        record = self.record(summary)
        verification = None
        if self.verify:
            adapter = summary.checkpoint.adapter if summary.checkpoint else None
            files = (*summary.files, *([adapter.file] if adapter else []))
            folder = summary.folder.parent if summary.folder.is_file() else summary.folder
            verification = verify(folder, files, summary.args, ProgressLine("verifying:", "GB", 1e9))
            record["verified"] = asdict(verification)
        if self.json:
            print(result_line(record))
        else:
            for line in (
                *lines(summary, record),
                *(verified_lines(verification, summary.problems) if verification else ()),
            ):
                print(line)
        problems = list(dict.fromkeys((*summary.problems, *(verification.problems if verification else ()))))
        if problems:
            sys.stdout.flush()
            raise InputError(problems[0] + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""))

    def record(self, summary: Summary) -> dict[str, Any]:
        """All that is shown, as a table for programs: sizes in bytes, not gigabytes."""
        tokenizer = summary.tokenizer
        record: dict[str, Any] = {
            "folder": str(summary.folder), "form": summary.form, "dtypes": dict(summary.dtypes),
            "files": {file.name: file.stat().st_size if file.exists() else None for file in summary.files},
            "tokenizer": tokenizer and {
                "file": tokenizer.file.name, "version": tokenizer.version, "vocab_size": tokenizer.vocab_size,
                "chat_template": tokenizer.can_chat, "template": tokenizer.template,
            },
            "towers": dict(summary.checkpoint.towers) if summary.checkpoint else {},
            "notes": list(summary.notes), "problems": list(summary.problems),
        }  # fmt: skip
        if summary.args:
            record |= model_record(summary, summary.args)
            record["memory"] = self.memory(summary, summary.args)
        return record

    def memory(self, summary: Summary, args: ModelArgs) -> dict[str, Any]:
        """The bytes that each way of running the model needs on each rank, and those that are free here.

        Raises InputError for more tokens or ranks than the model allows.
        """
        if self.ranks > args.n_layers:
            raise InputError(f"this model has {args.n_layers} layers to share out", option="ranks", value=self.ranks)
        limit = args.max_seq_len
        if self.context and limit and self.context > limit:
            raise InputError(f"the checkpoint is limited to {limit} tokens", option="context", value=self.context)
        context = self.context or min(CONTEXT, limit or CONTEXT)
        free, estimates = available_memory(), memory_estimates(summary, args, self.ranks, self.batch, context)
        needs = [asdict(each) | {"total": each.total, "fits": each.fits(free)} for each in estimates]
        container = memory_limit()
        limits = {"container_limit": container and container.limit, "container_cpus": cpu_limit()}
        return {"batch": self.batch, "context": context, "available": free, **limits, "needs": needs}


def model_record(summary: Summary, args: ModelArgs) -> dict[str, Any]:
    """The architecture, the number of parameters, and parameters and bytes of each part."""
    weights, parts = summary.weights(), {part: {"parameters": 0, "bytes": 0} for part in PARTS}
    for name, parameter in parameters(args).items():
        parts[parameter.part]["parameters"] += parameter.size
        parts[parameter.part]["bytes"] += weights[name]
    total = sum(part["parameters"] for part in parts.values())
    return {
        "architecture": params_of(args), "parameters": total, "active_parameters": active_parameters(args),
        "bytes": sum(weights.values()), "parts": {name: part for name, part in parts.items() if part["parameters"]},
    }  # fmt: skip


def lines(summary: Summary, record: Mapping[str, Any]) -> Iterator[str]:
    """The output as lines of text."""
    yield str(summary.folder)
    size = gigabytes(sum(summary.dtypes.values()))
    dtypes = ", ".join(sorted(summary.dtypes, key=lambda name: -summary.dtypes[name]))
    form = summary.form or f"not whole, {len(summary.files)} weight file{'' if len(summary.files) == 1 else 's'}"
    yield f"weights       {form}{f', {size} of {dtypes}' if dtypes else ''}"
    for tower, nbytes in record["towers"].items():
        yield f"not loaded    {gigabytes(nbytes)} of tensors for {tower}"
    if summary.tokenizer:
        template = summary.tokenizer.template
        version = f"template {template}" if template else "no chat template"
        yield f"tokenizer     {summary.tokenizer.file.name}: {version}, {summary.tokenizer.vocab_size} ids"
    if summary.args:
        yield from model_lines(summary.args, record)
        yield from memory_lines(record["memory"])
    for note in summary.notes:
        yield f"note: {note}"
    for problem in summary.problems:
        yield f"problem: {problem}"


def model_lines(args: ModelArgs, record: Mapping[str, Any]) -> Iterator[str]:
    """Lines with the architecture, the number of parameters, and the size of each part."""
    mixture = f", {args.moe.num_experts} experts, {args.moe.num_experts_per_tok} a token" if args.moe else ""
    yield (
        f"architecture  {args.n_layers} layers of width {args.dim}, {args.n_heads} query and {args.n_kv_heads} key"
        f" heads of {args.head_dim}, hidden_dim {args.hidden_dim}{mixture}"
    )
    limit = f"{args.max_seq_len} tokens" if args.max_seq_len else "not limited by the files"
    angles = f"rope_theta {args.rope_theta:g}{lengthened(args)}"
    yield f"context       {limit}; window {windows(args.sliding_windows)}; {angles}"
    active = f", of which a token meets {record['active_parameters']:,}" if args.moe else ""
    yield f"parameters    {record['parameters']:,}{active}"
    tied = "  (the head is the embedding)" if args.tied_embeddings else ""
    for name, part in record["parts"].items():
        share = 100 * part["bytes"] / record["bytes"]
        size = gigabytes(part["bytes"])
        yield f"  {name:12}{part['parameters']:>17,}  {size:>8}  {share:5.1f} %{tied if name == 'embedding' else ''}"


def lengthened(args: ModelArgs) -> str:
    """The RoPE scaling as the end of a line; "" without one."""
    words, scaling = "", args.rope_scaling
    if scaling:
        name = {YarnScaling: "YaRN", LinearScaling: "linear"}.get(type(scaling), "Llama 3")
        size = "factors" if isinstance(scaling, FactorScaling) else f"{scaling.factor:g}"
        words = f", {name} scaling by {size}"
    if isinstance(scaling, YarnScaling):
        words += f" from {scaling.original_max_position_embeddings}"
    if args.llama_4_scaling:
        words += f"; queries grow each {args.llama_4_scaling.original_max_position_embeddings}"
    return words


def windows(by_layer: Sequence[int | None]) -> str:
    """The sliding windows of all layers in words; of windows that repeat over the layers, one period."""
    period = next(n for n in range(1, len(by_layer) + 1) if all(w == by_layer[i % n] for i, w in enumerate(by_layer)))
    words = ", ".join("none" if window is None else str(window) for window in by_layer[:period])
    return words if period == 1 else f"{words}, repeated"


def memory_lines(memory: Mapping[str, Any]) -> Iterator[str]:
    """A table of the memory that each way of running the model needs, a line for each rank."""
    rows = "1 row" if memory["batch"] == 1 else f"{memory['batch']} rows"
    free = gigabytes(memory["available"])
    ranks = 1 + max(need["rank"] for need in memory["needs"])
    each = f" on each of {ranks} ranks" if ranks > 1 else ""
    yield f"memory for {rows} of {memory['context']} tokens{each}; {free} are free here{container_words(memory)}"
    header = f"  {'':34}" if ranks > 1 else f"  {'':20}"
    yield f"{header}{'weights':>9}{'cache':>10}{'other':>10}{'in all':>10}  fits here"
    for need in memory["needs"]:
        name = f"{need['way']:20}"
        if ranks > 1:
            name += f"{'rank ' + str(need['rank']):8}{need['first']:>3}-{need['last']:<3}"
        sizes = "".join(f"{gigabytes(need[key]):>10}" for key in ("weights", "cache", "other", "total"))
        yield f"  {name}{sizes[1:]}  {need['fits']}"


def container_words(memory: Mapping[str, Any]) -> str:
    """The memory limit of a container as the end of a line; "" without one."""
    limit, cpus = memory["container_limit"], memory["container_cpus"]
    words = [gigabytes(limit)] if limit is not None else []
    words += [f"{cpus:g} processor{'' if cpus == 1 else 's'}"] if cpus is not None else []
    return f" (the container is limited to {' and '.join(words)})" if words else ""


def verified_lines(verification: Verification, known: Sequence[str]) -> Iterator[str]:
    """Lines about what was read and what is wrong with it, problems that are `known` already left out."""
    yield f"verified      {gigabytes(verification.nbytes)} in {verification.tensors} tensors"
    for checked in verification.checksums:
        yield f"  compared: {checked}"
    for note in verification.notes:
        yield f"note: {note}"
    for problem in verification.problems:
        if problem not in known:
            yield f"problem: {problem}"
    if verification.tensors and not verification.problems:
        yield "  nothing is wrong with what was read"
