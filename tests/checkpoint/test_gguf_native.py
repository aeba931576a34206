"""GGUF files on the native backend: used where they lie in the file, and the same model as everywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mistral.checkpoint.checkpoint import open_checkpoint
from mistral.checkpoint.weight_memory import copied_nbytes, used_in_place
from mistral.engine.sampling import log_softmax
from mistral.errors import InputError
from mistral.generate import generate
from mistral.gguf.header import read_gguf
from mistral.load import Transformer, build, load_model
from mistral.model.args import ModelArgs, MoeArgs
from mistral.model.parameters import parameters
from mistral.ops.backend import load_backend
from mistral.ops.blocks.kind import SUPPORTED
from mistral.ops.interface import Ops, Weight
from tests.support.checkpoint_forms import random_tensors
from tests.support.gguf_files import write_gguf

WINDOW = 20
DENSE = ModelArgs(
    dim=256, n_layers=3, head_dim=32, hidden_dim=512, n_heads=8, n_kv_heads=2, vocab_size=40, norm_eps=1e-5,
    rope_theta=1e4, sliding_windows=(WINDOW,) * 3, max_seq_len=4096,
)  # fmt: skip
SPARSE = replace(DENSE, moe=MoeArgs(3, 2))
PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
IDS = [int(i) for i in np.random.default_rng(5).integers(0, 40, 50)]
pytestmark = pytest.mark.usefixtures("ops")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that gives the path of a file whose matrices are of a type; IQ4_XS is a mixture of experts."""
    folder = tmp_path_factory.mktemp("gguf")

    def path_of(kind: str) -> Path:
        path, args = folder / f"{kind}.gguf", SPARSE if kind == "IQ4_XS" else DENSE
        if not path.exists():
            write_gguf(path, args, random_tensors(args), kind, changes={"attention.sliding_window": WINDOW})
        return path

    return path_of


def logprobs(model: Transformer) -> NDArray[np.float32]:
    """Of the tokens that follow each of IDS."""
    return log_softmax(model.forward(IDS, [len(IDS)]).asnumpy())


@pytest.mark.parametrize("kind", SUPPORTED)
def test_precise_is_portable_and_rounded_activations_are_close(file: Callable[[str], Path], kind: str) -> None:
    path = file(kind)
    exact = logprobs(load_model(path, backend="portable", device="CPU"))
    precise = logprobs(load_model(path, backend="native", device="CPU", precise=True))
    assert np.abs(precise - exact).max() <= 1e-4
    error = np.abs(logprobs(load_model(path, backend="native", device="CPU")) - exact)
    assert error.mean() <= 0.04


def lies_in(array: NDArray[np.generic], path: Path) -> bool:
    """Whether an array is part of a mapped file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(path)):
            first, last = (int(part, 16) for part in line.split()[0].split("-"))
            if first <= array.ctypes.data and array.ctypes.data + array.nbytes <= last:
                return True
    return False


@pytest.mark.parametrize("kind", SUPPORTED)
def test_nothing_is_copied(file: Callable[[str], Path], kind: str) -> None:
    """Every weight is a view of the mapped file, in its type there."""
    checkpoint, found = open_checkpoint(file(kind)), dict[str, Weight]()
    build(checkpoint, 16, load_backend("native"), range(checkpoint.args.n_layers), loaded=found.__setitem__)
    assert sorted(found) == sorted(parameters(checkpoint.args))
    for name, weight in found.items():
        assert lies_in(weight.data.arrays[0], file(kind)), name
        is_matrix = parameters(checkpoint.args)[name].is_matrix and not name.endswith("gate.weight")
        assert weight.dtype == (PLAIN.get(kind, kind) if is_matrix else "float32")
    assert copied_nbytes(checkpoint, 16, "native") == 0
    assert len(used_in_place(checkpoint, 16, "native", range(checkpoint.args.n_layers))) == len(found)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "Q4_K", "Q6_K", "IQ4_XS"])
def test_batch_chunk_and_ranks_change_not_one_bit(file: Callable[[str], Path], kind: str) -> None:
    path = file(kind)
    model = load_model(path, backend="native", device="CPU")
    prompts = [IDS, IDS[:3], IDS[7:24], IDS[30:39]]
    together = generate(prompts, model, 4)
    for chunk_size in (1, 7, None):
        for index, prompt in enumerate(prompts):
            alone = generate([prompt], model, 4, chunk_size=chunk_size)
            assert alone[0][0] == together[0][index]
            assert np.array_equal(alone[1][0], together[1][index])
    assert np.array_equal(by_stages(path, model.ops), model.forward(IDS, [len(IDS)]).asnumpy())


def by_stages(path: Path, ops: Ops) -> NDArray[np.float32]:
    """The logits after IDS, of a model whose layers are those of three ranks."""
    checkpoint = open_checkpoint(path)
    stages = [build(checkpoint, 16, ops, range(layer, layer + 1)) for layer in range(3)]
    x = stages[0].embed(np.array(IDS))
    for stage in stages:
        cache = stage.new_cache()
        cache.add(0, len(IDS))
        x = stage.run_blocks(x, cache.begin([len(IDS)], [0]), cache)
    return np.asarray(stages[-1].head(x).asnumpy(), np.float32)


@pytest.mark.parametrize(("kind", "offset"), [("Q8_0", 0), ("Q4_1", 2), ("Q6_K", 208)])
@pytest.mark.parametrize("precise", [False, True])
def test_a_scale_that_is_no_number_ends_in_one_line(
    file: Callable[[str], Path], tmp_path: Path, kind: str, offset: int, precise: bool
) -> None:
    """Blocks are not read before they are used; their NaN reaches the logits, which the sampler refuses."""
    path = tmp_path / "m.gguf"
    place, data = read_gguf(file(kind)).tensors["blk.1.ffn_down.weight"], bytearray(file(kind).read_bytes())
    at = place.start + 5 * place.kind.nbytes + offset
    data[at : at + 2] = np.float16(np.nan).tobytes()
    path.write_bytes(data)
    model = load_model(path, backend="native", device="CPU", precise=precise)
    with pytest.raises(InputError, match=r"logits .*NaN") as error:
        generate([IDS[:9]], model, 3, prompt_logprobs=False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bits", [8, 4])
def test_bits_are_made_of_a_file_of_another_type(file: Callable[[str], Path], bits: int) -> None:
    """Those of the type that the bits stand for stay where they lie; all others are made anew."""
    kinds = {8: "Q8_0", 4: "Q4_K"}
    for kind in ("Q8_0", "Q4_K", "F16"):
        checkpoint, found = open_checkpoint(file(kind)), dict[str, Weight]()
        model = build(checkpoint, bits, load_backend("native"), range(3), loaded=found.__setitem__)
        assert found["layers.1.attention.wq.weight"].dtype == kinds[bits]
        copied = copied_nbytes(checkpoint, bits, "native")
        assert (copied == 0) == (kind == "Q8_0" and bits == 8)
        assert np.isfinite(model.forward(IDS, [len(IDS)]).asnumpy()).all()
