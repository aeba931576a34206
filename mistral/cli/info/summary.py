"""What a checkpoint folder holds, from its headers alone: as much as can be said of one that is not whole, too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mistral.checkpoint.args_file import read_args
from mistral.checkpoint.checkpoint import Checkpoint, open_checkpoint
from mistral.checkpoint.file_sets import weight_files
from mistral.checkpoint.lora import open_adapter
from mistral.checkpoint.matching import read_file, require_countable
from mistral.errors import InputError
from mistral.model.args import ModelArgs
from mistral.model.parameters import Parameter, parameters
from mistral.ops.float8 import FLOAT8
from mistral.places import find_checkpoint
from mistral.tokenizer.coverage import check_rows, coverage_note, uncovered_runs
from mistral.tokenizer.files import TokenizerFile, choice_note, read_tokenizer_file, tokenizer_files
from mistral.tokenizer.gguf.metadata import describe_gguf, file_beside


@dataclass(frozen=True)
class Summary:
    """What is in a checkpoint folder. `checkpoint` is None, and `problems` says why, where no model can be loaded.

    `form` is None then too, and `args` and `tokenizer` where they cannot be read. `dtypes`: bytes of the readable
    tensors by the name of their dtype.
    """

    folder: Path
    form: str | None
    args: ModelArgs | None
    files: tuple[Path, ...]
    dtypes: Mapping[str, int]
    tokenizer: TokenizerFile | None
    checkpoint: Checkpoint | None
    notes: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def dtype(self) -> str:
        """The dtype that most bytes of the weights have; bfloat16 as long as there are none."""
        return max(self.dtypes, key=lambda name: self.dtypes[name], default="bfloat16")

    def weights(self) -> dict[str, int]:
        """Bytes of each tensor of the model in its files; for an incomplete folder, as if all had `dtype`."""
        assert self.args
        if self.checkpoint:
            return {name: self.checkpoint.nbytes(name) for name in self.checkpoint.shapes}
        return {name: stored_nbytes(parameter, self.dtype) for name, parameter in parameters(self.args).items()}


def stored_nbytes(parameter: Parameter, dtype: str) -> int:
    """Bytes of a parameter in files of mainly this dtype.

    8-bit floats are the matrices of the layers; the other tensors beside them are bfloat16.
    """
    if dtype == FLOAT8.name and parameter.is_matrix and parameter.layer is not None:
        return parameter.size
    return (4 if dtype == "float32" else 2) * parameter.size


def active_parameters(args: ModelArgs) -> int:
    """The number of parameters that a token meets: of a mixture's experts, those that are chosen for it."""
    share = (args.moe.num_experts_per_tok, args.moe.num_experts) if args.moe else (1, 1)
    model = parameters(args).values()
    experts = sum(parameter.size for parameter in model if parameter.part == "experts")
    return sum(parameter.size for parameter in model) - experts + experts * share[0] // share[1]


def summarize(place: str | Path, lora: str | None = None) -> Summary:
    """What is in a folder, and in the one of an adapter. Raises InputError only where nothing of a model is there."""
    folder = find_checkpoint(place)
    if folder.is_file():
        return summarize_gguf(folder, lora)
    problems, dtypes = list[str](), Counter[str]()
    checkpoint: Checkpoint | None = None
    try:
        checkpoint = open_checkpoint(folder)
    except InputError as error:
        problems.append(error.with_flags())
        files = weight_files(folder)
        args = readable_args(folder, problems)
        if not files and args is None and len(problems) == 1:
            raise
    if checkpoint:
        files, args = checkpoint.files, checkpoint.args
        for name in checkpoint.shapes:
            dtypes[checkpoint.type_name(name)] += checkpoint.nbytes(name)
    else:
        for file in files:
            try:
                for tensor in read_file(file).values():
                    dtypes[tensor.dtype.name] += tensor.nbytes
            except InputError as error:
                problems.append(error.with_flags())
    notes = checkpoint.warnings if checkpoint else ()
    if checkpoint and lora is not None:
        try:
            checkpoint = replace(checkpoint, adapter=open_adapter(lora, checkpoint.args))
            notes = (*notes, str(checkpoint.adapter))
        except InputError as error:
            problems.append(error.with_flags())
    tokenizer = readable_tokenizer(folder, args, problems)
    notes = (*notes, *tokenizer_notes(folder, args, tokenizer))
    form = checkpoint.form if checkpoint else None
    found = tuple(dict.fromkeys(problems))
    return Summary(folder, form, args, files, dtypes, tokenizer, checkpoint, notes, found)


def summarize_gguf(path: Path, lora: str | None) -> Summary:
    """What is in a GGUF file. Raises InputError for one that is not sound; its tokenizer may be wanting."""
    checkpoint = open_checkpoint(path, lora)
    assert checkpoint.gguf
    dtypes, problems = Counter[str](), list[str]()
    for name in checkpoint.shapes:
        dtypes[checkpoint.type_name(name)] += checkpoint.nbytes(name)
    tokenizer, notes = None, list(checkpoint.warnings)
    try:
        beside, note = file_beside(checkpoint.gguf)
        tokenizer = describe_gguf(checkpoint.gguf) if beside is None else read_tokenizer_file(beside)
        notes += [note] if note else []
        check_rows(tokenizer.file, tokenizer.vocab_size, checkpoint.args.vocab_size)
    except InputError as error:
        problems.append(error.with_flags())
    notes += [str(checkpoint.adapter)] if checkpoint.adapter else []
    return Summary(
        path, checkpoint.form, checkpoint.args, checkpoint.files, dtypes, tokenizer, checkpoint, tuple(notes),
        tuple(problems),
    )  # fmt: skip


def readable_args(folder: Path, problems: list[str]) -> ModelArgs | None:
    """The architecture in params.json or config.json; None, and a line in `problems`, where there is none to read."""
    for name in ("params.json", "config.json"):
        if (folder / name).is_file():
            try:
                args = read_args(folder / name)
                require_countable(args, folder / name)
                return args
            except InputError as error:
                problems.append(error.with_flags())
    return None


def readable_tokenizer(folder: Path, args: ModelArgs | None, problems: list[str]) -> TokenizerFile | None:
    """The folder's tokenizer; None where there is none to read. `problems` gets a line about what is wrong."""
    found = tokenizer_files(folder)
    if not found:
        problems.append(f"{folder}: no tokenizer here; add the model's tekken.json or tokenizer.model")
        return None
    try:
        tokenizer = read_tokenizer_file(found[0])
    except InputError as error:
        problems.append(error.with_flags())
        return None
    try:
        if args:
            check_rows(tokenizer.file, tokenizer.vocab_size, args.vocab_size)
    except InputError as error:
        problems.append(error.with_flags())
    return tokenizer


def tokenizer_notes(folder: Path, args: ModelArgs | None, tokenizer: TokenizerFile | None) -> list[str]:
    """Lines about which file was taken as the tokenizer, and what it does not cover of the model."""
    covered = None
    if args and tokenizer:
        size, rows = tokenizer.vocab_size, args.vocab_size
        runs = uncovered_runs(size, tokenizer.missing, rows, tokenizer.end_ids)
        covered = coverage_note(tokenizer.file, size, rows, runs)
    return [note for note in (choice_note(tokenizer_files(folder)), covered) if note]
