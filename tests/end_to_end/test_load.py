"""From a folder to a model: what is read, what is refused, and what it costs."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
import psutil
import pytest

import mistral
from mistral.checkpoint.checkpoint import Checkpoint, open_checkpoint
from mistral.errors import InputError
from mistral.load import Transformer, check_options, load_model
from mistral.model.parameters import parameters
from mistral.ops.backend import load_backend
from mistral.ops.interface import Ops
from tests.support.checkpoint_forms import params_of, random_tensors, write_checkpoint, write_params, write_safetensors
from tests.support.oracle import oracle_logits
from tests.support.small_models import DENSE, SHAPES

pytestmark = pytest.mark.usefixtures("ops")
IDS = [3, 14, 1, 5, 9, 2, 6, 5]


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def memory(available: int) -> object:
    """What psutil says of a machine with so many bytes to give."""
    return type("Memory", (), {"available": available})()


# Public names


def test_every_public_name_can_be_imported() -> None:
    assert len(mistral.__all__) == len(set(mistral.__all__))
    assert all(getattr(mistral, name) is not None for name in mistral.__all__)
    assert {"Transformer", "ModelArgs", "Tokenizer", "generate"} <= set(mistral.__all__)


def test_no_other_class_or_function_is_in_sight() -> None:
    public = {name for name, value in vars(mistral).items() if not name.startswith("_") and not is_module(value)}
    assert public == {name for name in mistral.__all__ if not name.startswith("_")}


def is_module(value: object) -> bool:
    return type(value) is type(sys)


def test_importing_the_package_starts_no_mindspore() -> None:
    code = "import sys, mistral, mistral.load; print([name for name in sys.modules if name.startswith('mindspore')])"
    assert run(code) == "[]"


# What a model is read from


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", ["dense", "moe_windowed", "tied"])
def test_a_folder_of_any_dtype_gives_the_oracles_logits(tmp_path: Path, name: str, dtype: npt.DTypeLike) -> None:
    """The oracle has the same rounded weights, so only the arithmetic is compared."""
    tensors = random_tensors(SHAPES[name], dtype=dtype)
    folder = write_checkpoint(tmp_path / "model", SHAPES[name], tensors, "consolidated.safetensors")
    model = Transformer.from_folder(str(folder), device="CPU")
    expected = oracle_logits(tensors, SHAPES[name], IDS)
    np.testing.assert_allclose(model.forward(IDS, [len(IDS)]).asnumpy(), expected, rtol=0, atol=2e-4)


def test_trap_20_bfloat16_beyond_the_range_of_float16_is_kept(tmp_path: Path) -> None:
    tensors = random_tensors(DENSE, dtype=ml_dtypes.bfloat16)
    tensors["norm.weight"][:] = 1e6
    folder = write_checkpoint(tmp_path / "model", DENSE, tensors, "consolidated.pth")
    logits = Transformer.from_folder(folder, device="CPU").forward(IDS, [len(IDS)]).asnumpy()
    np.testing.assert_allclose(logits, oracle_logits(tensors, DENSE, IDS), rtol=1e-3, atol=1e3)
    assert np.abs(logits).max() > 65504


def test_trap_14_missing_and_misshapen_weights_do_not_pass(tmp_path: Path) -> None:
    tensors = random_tensors(DENSE)
    name = "layers.1.feed_forward.w2.weight"
    missing = {other: tensor for other, tensor in tensors.items() if other != name}
    misshapen, too_many = tensors | {name: tensors[name].T}, tensors | {"more": tensors[name]}
    for named, broken in ((name, missing), (name, misshapen), ("more", too_many)):
        folder = write_checkpoint(tmp_path / "model", DENSE, broken, "consolidated.safetensors")
        with pytest.raises(InputError, match=named):
            Transformer.from_folder(folder, device="CPU")


def test_loading_reads_each_of_its_names_once_and_reports_progress_up_to_the_total(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = SHAPES["moe"]
    tensors = random_tensors(args, dtype=np.float16)
    folder = write_checkpoint(tmp_path / "model", args, tensors, "consolidated-sharded")
    packed, read = Checkpoint.packed, list[str]()

    def recorded(self: Checkpoint, name: str) -> object:
        read.append(name)
        return packed(self, name)

    monkeypatch.setattr(Checkpoint, "packed", recorded)
    seen: list[tuple[int, int]] = []
    load_model(open_checkpoint(folder), device="CPU", progress=lambda done, total: seen.append((done, total)))
    assert sorted(read) == sorted(parameters(args))
    total = sum(tensor.nbytes for tensor in tensors.values())
    assert {of for _, of in seen} == {total}
    assert [done for done, _ in seen] == np.cumsum([tensors[name].nbytes for name in read]).tolist()
    assert seen[-1] == (total, total)


def test_trap_12_a_stage_reads_its_own_weights_alone(tmp_path: Path, ops: Ops) -> None:
    """From a file in which all other tensors are cut off by name: asking for one of them would fail."""
    args = replace(DENSE, n_layers=3, sliding_windows=(None,) * 3)
    folder = write_checkpoint(tmp_path / "model", args, random_tensors(args), "consolidated.safetensors")
    checkpoint = open_checkpoint(folder)
    own = {name: checkpoint.tensors[name] for name, each in parameters(args).items() if each.layer == 1}
    stage = replace(checkpoint, tensors=own)
    model = Transformer(args, lambda name: ops.weight(stage.get(name)), ops, range(1, 2))
    assert list(model.blocks) == [1]
    assert (model.tok_embeddings, model.norm, model.output) == (None, None, None)


def test_float32_weights_stay_in_the_file(tmp_path: Path, ops: Ops) -> None:
    """A model of half a gigabyte is loaded: this process must not grow by a tenth of that."""
    args = replace(DENSE, dim=1024, vocab_size=60_000, hidden_dim=64)
    folder = write_params(tmp_path, params_of(args))
    tensors = {name: np.broadcast_to(np.zeros((), np.float32), each.shape) for name, each in parameters(args).items()}
    write_safetensors(folder / "consolidated.safetensors", tensors, sparse=True)
    size = sum(tensor.nbytes for tensor in tensors.values())
    assert size > 450_000_000
    before = psutil.Process().memory_info().rss
    model = Transformer.from_folder(folder, device="CPU")
    grown = psutil.Process().memory_info().rss - before
    assert model.output is not None
    assert model.output.shape == (60_000, 1024)
    assert grown < size / 10


# What is refused


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint in bfloat16."""
    tensors = random_tensors(DENSE, dtype=ml_dtypes.bfloat16)
    return write_checkpoint(tmp_path / "model", DENSE, tensors, "consolidated.safetensors")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"bits": 5}, "bits 5"),
        ({"bits": 0}, "bits 0"),
        ({"num_pipeline_ranks": 2}, "num_pipeline_ranks 2"),
        ({"num_pipeline_ranks": 0}, "num_pipeline_ranks 0"),
        ({"backend": "fast"}, "backend fast"),
        ({"device": "GPU"}, "device GPU"),
    ],
)
def test_an_option_that_is_not_available_is_refused_in_one_line(
    folder: Path, options: dict[str, object], named: str
) -> None:
    for call in (lambda: Transformer.from_folder(folder, **options), lambda: check_options(**options)):  # type: ignore[arg-type]
        with pytest.raises(InputError, match=f"{named}: ") as caught:
            call()
        assert caught.value.with_flags().startswith(f"--{named}: ")
        assert "\n" not in str(caught.value)


def test_options_are_refused_before_the_folder_is_looked_at() -> None:
    with pytest.raises(InputError, match=r"^bits 5: "):
        Transformer.from_folder("/nowhere", bits=5)


def test_a_backend_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InputError, match=r"^backend fast: "):
        load_backend("fast")


def test_a_device_that_this_machine_lacks_is_refused_in_one_line(folder: Path) -> None:
    """In a process of its own, which may not have chosen a device before; it can still choose another."""
    code = (
        "from mistral import InputError, Transformer\n"
        "try: Transformer.from_folder({folder!r}, device='Ascend')\n"
        "except InputError as error: print(error)\n"
        "print(Transformer.from_folder({folder!r}).forward([1, 2], [2]).shape)"
    )
    refused, shape = run(code.format(folder=str(folder))).splitlines()
    assert refused.startswith("device Ascend: MindSpore cannot use it")
    assert shape == "(2, 40)"


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=str(tmp_path)):
        Transformer.from_folder(tmp_path, device="CPU")


def test_too_little_memory_is_refused_before_anything_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 is widened to float32, so a model takes four bytes for each weight; a byte less is too little."""
    needed = 4 * sum(each.size for each in parameters(DENSE).values())
    with monkeypatch.context() as patch:
        patch.setattr(psutil, "virtual_memory", lambda: memory(needed - 1))
        patch.delattr(Checkpoint, "get")
        with pytest.raises(InputError, match=rf"{folder.name}: .* needs 0\.0 MB of memory .* are free") as caught:
            Transformer.from_folder(folder, device="CPU")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(needed))
    assert isinstance(Transformer.from_folder(folder, device="CPU"), Transformer)


def test_float32_needs_no_memory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_checkpoint(tmp_path / "m", DENSE, random_tensors(DENSE), "consolidated.safetensors")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(0))
    assert isinstance(Transformer.from_folder(folder, device="CPU"), Transformer)


@pytest.mark.parametrize("form", ["first-mixtral", "hf"])
def test_float32_that_must_be_copied_counts_as_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """Transposed stacks (w2) and rows in Hugging Face's order (wq, wk) cannot stay in the file."""
    args = SHAPES["moe"]
    folder = write_checkpoint(tmp_path / "m", args, random_tensors(args), form)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(0))
    with pytest.raises(InputError, match="of memory"):
        Transformer.from_folder(folder, device="CPU")


def test_the_documented_signature_of_from_folder() -> None:
    """A path or a string; then num_pipeline_ranks, backend and bits with their defaults."""
    parameters = inspect.signature(Transformer.from_folder).parameters
    assert [(p.name, p.default) for p in parameters.values()][1:4] == [
        ("num_pipeline_ranks", 1),
        ("backend", "auto"),
        ("bits", 16),
    ]
    generate = inspect.signature(mistral.generate).parameters
    assert list(generate)[:6] == ["encoded_prompts", "model", "max_tokens", "temperature", "chunk_size", "eos_id"]
    assert [p.default for p in generate.values()][2:6] == [35, 0.0, None, None]
    assert all(p.kind is p.KEYWORD_ONLY for p in list(generate.values())[6:])
