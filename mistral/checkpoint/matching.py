"""The tensors in a checkpoint's files, matched with those that its model needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ml_dtypes
import numpy as np

from mistral.checkpoint.file_sets import Form, missing_file
from mistral.checkpoint.float8_tensor import Float8Tensor, is_activation_scale, take_float8
from mistral.checkpoint.foreign_names import (
    first_mixtral_name,
    hugging_face_name,
    is_ignored,
    is_in_a_layer,
    tower_of,
    wrapped_names,
)
from mistral.checkpoint.formats.safetensors_file import read_safetensors
from mistral.checkpoint.formats.stored_tensor import NOT_GATHERED, StoredTensor, quoted
from mistral.checkpoint.formats.torch_zip import read_torch_zip
from mistral.errors import InputError
from mistral.model.args import ModelArgs
from mistral.model.parameters import EMBEDDING, HEAD, Parameter, parameters
from mistral.ops.float8 import FLOAT8

_WEIGHT_DTYPES = (np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16), np.dtype(np.float32))
_MAX_TENSORS = 1 << 18
_SAMPLED_ROWS = 64
HEAD_IN_FILE = "lm_head.weight"  # the output matrix in Hugging Face files
Tensors = Mapping[str, StoredTensor]
Found = StoredTensor | Float8Tensor


@dataclass(frozen=True)
class Contents:
    """The contents of files: tensors of the decoder by their names there, and bytes of the encoders.

    `towers`: bytes of the encoders for "images" and "audio", which are not read. `warnings` are about tensors that are
    not needed.
    """

    tensors: dict[str, StoredTensor]
    towers: Mapping[str, int]
    warnings: tuple[str, ...]


def read_file(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file by their names in it. Raises InputError naming the file."""
    return read_safetensors(path) if path.suffix == ".safetensors" else read_torch_zip(path)


def read_files(form: Form, elsewhere: Mapping[str, Tensors]) -> Contents:
    """The tensors of all files by their names in the files.

    `elsewhere`: the tensors in files that only other ranks have, by file name. Raises InputError for a duplicate name
    (tensor-parallel parts are not joined), unless an index names the file, or the tensor is outside the layers and the
    files are those of the first Mixtral release, which have four layers each.
    """
    tensors: dict[str, StoredTensor] = {}
    ignored: list[str] = []
    towers = Counter[str]()
    weight_map = form.weight_map or {}
    for file in form.files:
        known = elsewhere.get(file.name)
        for name, tensor in (read_file(file) if known is None else known).items():
            if is_ignored(name):
                ignored.append(name)
                continue
            if tower := tower_of(name):
                towers[tower] += tensor.nbytes
                continue
            if is_activation_scale(name, tensor):
                continue
            before = tensors.setdefault(name, tensor)
            if before is tensor or weight_map.get(name) == before.path.name:
                continue
            if weight_map.get(name) == file.name:
                tensors[name] = tensor
            elif file.suffix == ".pt" and not is_in_a_layer(name) and _same_values(before, tensor):
                tensors[name] = tensor if before.buffer is None else before
            else:
                other = before.path.name
                raise InputError(f"{file}: tensor {quoted(name)} is in {other} too; keep files of one model only")
    more = f" and {len(ignored) - 1} more" if len(ignored) > 1 else ""
    warnings = (f"tensors ignored: {quoted(ignored[0])}{more}",) if ignored else ()
    return Contents(tensors, towers, warnings)


def require_countable(args: ModelArgs, args_file: Path) -> None:
    """Raise InputError for a model of more than 2^18 tensors: no real one has as many, and naming them takes long."""
    experts = args.moe.num_experts if args.moe else 1
    if args.n_layers * (8 + 3 * experts) > _MAX_TENSORS:
        raise InputError(f"{args_file}: asks for more than {_MAX_TENSORS} tensors; download it again")


def match_names(form: Form, args: ModelArgs, tensors: Tensors) -> dict[str, Found]:
    """Every tensor of the model by its name in Mistral's files, with its rows in the order of the file.

    Raises InputError for one that is missing, not expected, of the wrong shape or dtype, or not in the file that an
    index names. Entries of an index for tensors that the model does not need are ignored.
    """
    require_countable(args, form.args_file)
    left = dict(tensors)
    found: dict[str, Found] = {}
    for name, parameter in parameters(args).items():
        in_file, expert = _name_in_file(parameter, form, args, tensors)
        tensor = tensors.get(in_file)
        if tensor is None:
            raise InputError(_missing(in_file, name, form, tensors))
        if form.weight_map is not None and form.weight_map.get(in_file) != tensor.path.name:
            raise InputError(
                f"{tensor.path}: tensor {quoted(in_file)} is not here by the index; download the index again"
            )
        found[name] = taken = _take(in_file, tensor, parameter, expert, form, args)
        left.pop(in_file, None)
        if tensor.dtype == FLOAT8:
            found[name] = scaled = take_float8(in_file, taken, form.hugging_face, tensors)
            left.pop(scaled.name, None)
    if args.tied_embeddings:
        embeddings = found[EMBEDDING]
        assert isinstance(embeddings, StoredTensor)
        _drop_tied_output(form, args, embeddings, left)
    for name, tensor in left.items():
        raise InputError(
            f"{tensor.path}: tensor {quoted(name)} is not part of the model that {form.args_file.name} describes; "
            "download both again from one place"
        )
    return found


def _missing(in_file: str, name: str, form: Form, tensors: Tensors) -> str:
    """The message for a missing tensor, which the files would call `in_file`."""
    file_name = (form.weight_map or {}).get(in_file)
    if file_name is not None and form.index and file_name not in {file.name for file in form.files}:
        return missing_file(form.index.parent, file_name, form.index.name)
    bare = {f"model.{other}" for other in tensors} | set(tensors)  # an encoder's names lack what leads to its decoder
    if form.hugging_face and HEAD_IN_FILE not in tensors and (in_file == HEAD_IN_FILE or in_file in bare):
        settings = (
            f"; a decoder with tied embeddings says so in {form.args_file.name}" if in_file == HEAD_IN_FILE else ""
        )
        return (
            f"{_files(form)}: has no output head ({HEAD_IN_FILE}): an encoder or embedding model, which cannot generate"
            f" text; name a model that can{settings}"
        )
    also = "" if in_file == name else f" (the model's {name})"
    return (
        f"{_files(form)}: tensor {quoted(in_file)}{also} is missing; download the weights and"
        f" {form.args_file.name} again from one place"
    )


def _name_in_file(parameter: Parameter, form: Form, args: ModelArgs, tensors: Tensors) -> tuple[str, int | None]:
    """The name of a parameter in the files, and its index in a stack of experts if they are stacked.

    Of two tied matrices a file may have either.
    """
    if form.hugging_face:
        names = wrapped_names(hugging_face_name(parameter))
        if parameter.name == EMBEDDING and args.tied_embeddings:
            names += wrapped_names(HEAD_IN_FILE)
        return next((name for name in names if name in tensors), _spelt(names, tensors)), None
    old_name = first_mixtral_name(parameter)
    if parameter.name in tensors or old_name not in tensors:
        return parameter.name, None
    return old_name, parameter.expert


def _spelt(names: Sequence[str], tensors: Tensors) -> str:
    """Of the possible names of a missing tensor, the one in the files' spelling."""
    _, outer, inner = names[:3]
    if any(name.startswith("model.language_model.") for name in tensors):
        return inner if outer.startswith("language_model.model.") else names[0]
    return outer if any(name.startswith("language_model.") for name in tensors) else names[0]


def _take(
    name: str, tensor: StoredTensor, parameter: Parameter, expert: int | None, form: Form, args: ModelArgs
) -> StoredTensor:
    """A parameter from a file's tensor, or from the given `expert` of a stack, with shape and dtype checked."""
    if expert is None:
        _check_tensor(name, tensor, parameter.shape, form, _may_be_float8(parameter))
        return tensor
    assert args.moe
    _check_tensor(name, tensor, (args.moe.num_experts * args.hidden_dim, args.dim), form)
    rows = tensor.rows(expert * args.hidden_dim, (expert + 1) * args.hidden_dim)
    return rows.transposed() if parameter.weight == "w2" else rows


def _may_be_float8(parameter: Parameter) -> bool:
    """Whether a parameter may be FP8: a matrix of a layer, or the output matrix."""
    return parameter.is_matrix and parameter.part not in ("embedding", "router")


def _check_tensor(name: str, tensor: StoredTensor, shape: tuple[int, ...], form: Form, float8: bool = False) -> None:
    if tensor.is_empty:
        raise InputError(f"{tensor.path}: tensor {quoted(name)} is empty: {NOT_GATHERED}")
    if tensor.shape != shape:
        raise InputError(
            f"{tensor.path}: tensor {quoted(name)} has shape {tensor.shape} and {form.args_file.name} asks for {shape};"
            " download both again from one place"
        )
    if tensor.dtype not in _WEIGHT_DTYPES and not (float8 and tensor.dtype == FLOAT8):
        raise InputError(
            f"{tensor.path}: tensor {quoted(name)} has dtype {tensor.dtype};"
            " use weights in bfloat16, float16 or float32"
        )


def _drop_tied_output(form: Form, args: ModelArgs, embeddings: StoredTensor, left: dict[str, StoredTensor]) -> None:
    """An output matrix is allowed beside tied embeddings if it is the same: the same bytes, or equal in 64 rows."""
    head = parameters(replace(args, tied_embeddings=False))[HEAD]
    name, _ = _name_in_file(head, form, args, left)
    output = left.get(name)
    if output is None:
        return
    if not _same_values(embeddings, output):
        raise InputError(
            f"{output.path}: tensor {quoted(name)} differs from the embeddings, and {form.args_file.name} ties the two;"
            " correct the setting or download both again"
        )
    del left[name]


def _same_values(one: StoredTensor, other: StoredTensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if (one.path, one.start, one.strides) == (other.path, other.start, other.strides):
        return True
    if one.buffer is None or other.buffer is None:
        return True  # as far as can be seen here; a rank that has both compares them
    rows = np.linspace(0, one.shape[0] - 1, _SAMPLED_ROWS).astype(int)
    return bool(one.array()[rows].tobytes() == other.array()[rows].tobytes())


def _files(form: Form) -> Path | str:
    more = len(form.files) - 1
    return f"{form.files[0]} and {more} more" if more else form.files[0]
