"""What a checkpoint's files hold, matched against what its model needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from mistral.checkpoint.file_sets import Form
from mistral.checkpoint.foreign_names import first_mixtral_name, hugging_face_name, is_ignored
from mistral.checkpoint.formats.safetensors_file import read_safetensors
from mistral.checkpoint.formats.stored_tensor import StoredTensor, quoted
from mistral.checkpoint.formats.torch_zip import read_torch_zip
from mistral.checkpoint.quantized_tensor import QuantizedTensor, part_names, take_quantized
from mistral.errors import InputError
from mistral.model.args import ModelArgs
from mistral.model.parameters import quantized_bits, tensor_shapes

_WEIGHT_DTYPES = (np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16), np.dtype(np.float32))
_MAX_TENSORS = 1 << 18
_SAMPLED_ROWS = 64
Tensors = Mapping[str, StoredTensor]


def read_file(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file by their names in it. Raises InputError naming the file."""
    return read_safetensors(path) if path.suffix == ".safetensors" else read_torch_zip(path)


def read_files(form: Form, elsewhere: Mapping[str, Tensors]) -> tuple[dict[str, StoredTensor], tuple[str, ...]]:
    """The tensors of all files by their names in the files, and warnings about those that no model needs.

    `elsewhere`: what is in the files that are not here, by their names.

    Raises InputError if a name is there twice (tensor-parallel parts are not joined) or an index says otherwise. Only
    the first Mixtral release, whose files have four layers each, may repeat what belongs to no layer.
    """
    tensors: dict[str, StoredTensor] = {}
    ignored: list[str] = []
    for file in form.files:
        known = elsewhere.get(file.name)
        for name, tensor in (read_file(file) if known is None else known).items():
            if name in tensors:
                if file.suffix == ".pt" and not name.startswith("layers.") and _same_values(tensors[name], tensor):
                    if tensors[name].buffer is None:
                        tensors[name] = tensor
                    continue
                other = tensors[name].path.name
                raise InputError(f"{file}: tensor {quoted(name)} is in {other} too; keep files of one model only")
            if form.weight_map is not None and form.weight_map.get(name) != file.name:
                raise InputError(f"{file}: tensor {quoted(name)} is not here by the index; download the index again")
            tensors[name] = tensor
    for name, file_name in (form.weight_map or {}).items():
        if name not in tensors:
            where = form.args_file.parent / file_name
            raise InputError(f"{where}: tensor {quoted(name)} is missing, and the index lists it; download it again")
    ignored = [name for name in tensors if is_ignored(name)]
    for name in ignored:
        del tensors[name]
    more = f" and {len(ignored) - 1} more" if len(ignored) > 1 else ""
    return tensors, (f"tensors ignored: {quoted(ignored[0])}{more}",) if ignored else ()


def require_countable(args: ModelArgs, args_file: Path) -> None:
    """Raise InputError for a model of more tensors than there are in any: naming them all would take for ever."""
    experts = args.moe.num_experts if args.moe else 1
    if args.n_layers * (8 + 3 * experts) > _MAX_TENSORS:
        raise InputError(f"{args_file}: asks for more than {_MAX_TENSORS} tensors; download it again")


def match_names(
    form: Form, args: ModelArgs, tensors: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor | QuantizedTensor]:
    """Mistral name -> tensor for every tensor of the model; its rows still as the file has them.

    Raises InputError for a tensor that is missing, not expected, or of the wrong shape or dtype.
    """
    require_countable(args, form.args_file)
    experts = args.moe.num_experts if args.moe else 1
    left = dict(tensors)
    found: dict[str, StoredTensor | QuantizedTensor] = {}
    for name, shape in tensor_shapes(args).items():
        if bits := quantized_bits(name, args):
            found[name] = take_quantized(name, bits, shape, tensors, _files(form))
            for part in part_names(name):
                del left[part]
            continue
        in_file, expert = _name_in_file(name, form, tensors)
        tensor = tensors.get(in_file)
        if tensor is None:
            also = "" if in_file == name else f" (the model's {name})"
            raise InputError(
                f"{_files(form)}: tensor {quoted(in_file)}{also} is missing; download the weights and "
                f"{form.args_file.name} again from one place"
            )
        stored = shape if expert is None else (experts * args.hidden_dim, args.dim)
        _check_tensor(in_file, tensor, stored, form)
        found[name] = tensor if expert is None else _expert(tensor, expert, args.hidden_dim, name)
        left.pop(in_file, None)
    if args.tied_embeddings:
        embeddings = found["tok_embeddings.weight"]
        assert isinstance(embeddings, StoredTensor)
        _drop_tied_output(form, embeddings, left)
    for name, tensor in left.items():
        raise InputError(
            f"{tensor.path}: tensor {quoted(name)} is not part of the model that {form.args_file.name} describes; "
            "download both again from one place"
        )
    return found


def _name_in_file(name: str, form: Form, tensors: Mapping[str, StoredTensor]) -> tuple[str, int | None]:
    """What the files call a tensor, and its place in a stack of experts if they stack them."""
    if form.hugging_face:
        return hugging_face_name(name), None
    old_name, expert = first_mixtral_name(name)
    return (old_name, expert) if name not in tensors and old_name in tensors else (name, None)


def _expert(stack: StoredTensor, expert: int, hidden_dim: int, name: str) -> StoredTensor:
    rows = stack.rows(expert * hidden_dim, (expert + 1) * hidden_dim)
    return rows.transposed() if name.endswith(".w2.weight") else rows


def _check_tensor(name: str, tensor: StoredTensor, shape: tuple[int, ...], form: Form) -> None:
    if tensor.shape != shape:
        raise InputError(
            f"{tensor.path}: tensor {quoted(name)} has shape {tensor.shape} and {form.args_file.name} asks for {shape};"
            " download both again from one place"
        )
    if tensor.dtype not in _WEIGHT_DTYPES:
        raise InputError(
            f"{tensor.path}: tensor {quoted(name)} has dtype {tensor.dtype};"
            " use weights in bfloat16, float16 or float32"
        )


def _drop_tied_output(form: Form, embeddings: StoredTensor, left: dict[str, StoredTensor]) -> None:
    """An output matrix is allowed beside tied embeddings if it is the same: the same bytes, or equal in 64 rows."""
    name = hugging_face_name("output.weight") if form.hugging_face else "output.weight"
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
