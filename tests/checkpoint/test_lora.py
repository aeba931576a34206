"""Adapters: both layouts, merged into every form of checkpoint, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mistral.checkpoint.checkpoint import open_checkpoint
from mistral.checkpoint.lora import LoraDelta, narrowed, widened
from mistral.engine.sampling import log_softmax
from mistral.errors import InputError
from mistral.generate import generate
from mistral.load import Transformer, build, load_model
from mistral.model.args import ModelArgs
from mistral.ops.blocks.block_quantized import BlockQuantized
from mistral.ops.blocks.kind import BY_NAME
from mistral.ops.blocks.quantize import quantize_blocks
from mistral.ops.interface import Ops
from mistral.pipeline.shared_checkpoint import identity
from tests.support.adapters import Factors, peft_tensors, random_factors, write_official, write_peft
from tests.support.checkpoint_forms import DENSE, SPARSE, Array, random_tensors, write_checkpoint, write_safetensors
from tests.support.command_line import ARGS, CommandLine, write_model
from tests.support.oracle import oracle_logits

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
ADAPTERS = Path(__file__).parents[1] / "data" / "lora"
IDS = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


# What is merged


FORMS = [
    (DENSE, "consolidated.safetensors"),
    (DENSE, "hf-bin"),
    (SPARSE, "consolidated.pth"),
    (SPARSE, "hf-sharded"),
    (SPARSE, "first-mixtral"),
]


@pytest.mark.parametrize(("args", "form"), FORMS, ids=lambda value: value if isinstance(value, str) else "")
def test_both_layouts_give_the_same_weights_in_every_form(tmp_path: Path, args: ModelArgs, form: str) -> None:
    tensors = random_tensors(args)
    folder = write_checkpoint(tmp_path / "model", args, tensors, form)
    factors = random_factors(args, r"attention|experts|feed_forward\.w|output")
    adapters = [
        write_official(tmp_path / "official", factors),
        write_peft(tmp_path / "peft", args, factors),
        write_peft(tmp_path / "bin", args, factors, "adapter_model.bin"),
    ]
    expected = factors.merged(tensors)
    official, *others = (open_checkpoint(folder, adapter) for adapter in adapters)
    for name, wanted in expected.items():
        found = official.get(name)
        assert np.abs(found.astype(np.float32) - wanted).max() < 1e-6
        assert official.is_merged(name) == (name in factors.pairs)
        assert not (official.is_merged(name) and official.in_place(name))
        for other in others:
            assert np.array_equal(other.get(name), found)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_the_sum_is_rounded_once(tmp_path: Path, dtype: Any) -> None:
    tensors = random_tensors(DENSE, dtype=dtype)
    folder = write_checkpoint(tmp_path / "model", DENSE, tensors, "consolidated.safetensors")
    factors = random_factors(DENSE)
    checkpoint = open_checkpoint(folder, write_official(tmp_path / "lora", factors))
    for name, wanted in factors.merged(tensors).items():
        found = checkpoint.get(name)
        assert found.dtype == dtype
        if name in factors.pairs:
            near = np.abs(found.astype(np.float32) - wanted)
            half = np.abs(wanted) * 2.0 ** (-8 if dtype == ml_dtypes.bfloat16 else -11)
            assert (near <= half * 1.0001 + 1e-6).all() and np.any(found != tensors[name])


def test_pieces_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_checkpoint(tmp_path / "model", DENSE, random_tensors(DENSE), "consolidated.safetensors")
    checkpoint = open_checkpoint(folder, write_official(tmp_path / "lora", random_factors(DENSE)))
    name = "layers.1.feed_forward.w1.weight"
    whole = checkpoint.get(name)
    monkeypatch.setattr("mistral.checkpoint.lora.AT_ONCE", 3 * DENSE.dim)
    assert np.abs(checkpoint.get(name).astype(np.float32) - whole.astype(np.float32)).max() < 1e-6


@pytest.mark.parametrize("args", [DENSE, SPARSE], ids=["dense", "sparse"])
def test_a_model_with_an_adapter_is_the_oracle_with_the_sum(tmp_path: Path, args: ModelArgs, ops: Ops) -> None:
    tensors, factors = random_tensors(args), random_factors(args, r"layers.*(attention|w[123]|gate)|output")
    folder = write_checkpoint(tmp_path / "model", args, tensors, "hf")
    lora = write_peft(tmp_path / "lora", args, factors)
    model = Transformer.from_folder(folder, device="CPU", lora=lora)
    found = model.forward(IDS, [len(IDS)]).asnumpy()
    np.testing.assert_allclose(found, oracle_logits(factors.merged(tensors), args, IDS), rtol=0, atol=1e-4)
    plain = Transformer.from_folder(folder, device="CPU").forward(IDS, [len(IDS)]).asnumpy()
    assert np.abs(found - plain).max() > 0.1


@pytest.mark.parametrize("name", sorted(folder.name for folder in ADAPTERS.iterdir()))
def test_adapters_of_peft_give_its_figures(name: str, ops: Ops) -> None:
    golden = json.loads((ADAPTERS / name / "golden.json").read_text())
    entries = golden["entries"]
    model = Transformer.from_folder(GOLDEN / golden["model"], device="CPU", lora=ADAPTERS / name)
    tokens, logprobs = generate([e["prompt"] for e in entries], model, entries[0]["max_tokens"])
    assert tokens == [e["tokens"] for e in entries]
    for found, entry in zip(logprobs, entries, strict=True):
        np.testing.assert_allclose(found, entry["logprobs"], rtol=0, atol=1e-3)


def test_a_stage_merges_its_own_layers_only(tmp_path: Path, ops: Ops, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_checkpoint(tmp_path / "model", DENSE, random_tensors(DENSE), "consolidated.safetensors")
    checkpoint = open_checkpoint(folder, write_official(tmp_path / "lora", random_factors(DENSE)))
    asked: list[str] = []

    def spy(delta: LoraDelta, weight: Array, dtype: object) -> Array:
        asked.append(delta.names[0])
        return weight

    monkeypatch.setattr(LoraDelta, "added_to", spy)
    build(checkpoint, 16, ops, range(1, 2))
    assert len(asked) == 7 and all(name.startswith("layers.1.") for name in asked)


def test_weights_that_an_adapter_is_merged_into_already_are_weights_like_others(tmp_path: Path) -> None:
    """mistral-finetune merges when it saves a whole model, and leaves its settings in params.json."""
    folder = write_checkpoint(tmp_path / "model", DENSE, random_tensors(DENSE), "consolidated.safetensors")
    params = json.loads((folder / "params.json").read_text())
    (folder / "params.json").write_text(json.dumps(params | {"lora": {"enable": True, "rank": 8, "scaling": 2.0}}))
    checkpoint = open_checkpoint(folder)
    assert checkpoint.args == DENSE and checkpoint.warnings == () and checkpoint.adapter is None


# With 8 and 4 bits, and on the command line


def test_adapters_are_merged_before_weights_are_quantized(run: CommandLine, tmp_path: Path, ops: Ops) -> None:
    args = replace(ARGS, dim=64, n_heads=4, n_kv_heads=2, head_dim=16, hidden_dim=96, sliding_windows=(5, 5))
    folder, out = write_model(tmp_path / "model", args), tmp_path / "out.gguf"
    lora = write_official(tmp_path / "lora", random_factors(args))
    assert run("quantize", folder, out, "--lora", lora).code == 0
    merged, quantized = open_checkpoint(folder, lora), open_checkpoint(out)
    for name in ("layers.0.attention.wq.weight", "layers.1.feed_forward.w2.weight"):
        found = quantized.packed(name)
        assert isinstance(found, BlockQuantized)
        assert np.array_equal(found.values, quantize_blocks(merged.get(name), BY_NAME["Q8_0"]).values)
    models = [
        load_model(out, device="CPU", backend="portable"),
        load_model(folder, device="CPU", backend="portable", bits=8, lora=lora),
    ]
    one, other = (log_softmax(model.forward(IDS, [len(IDS)]).asnumpy()) for model in models)
    assert np.array_equal(one, other)


def test_the_command_line_takes_an_adapter(run: CommandLine, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    lora = write_official(tmp_path / "lora", random_factors(ARGS, scale=8))
    plain, done = (run("demo", folder, "--max_tokens=8", *more) for more in ([], ["--lora", lora]))
    assert plain.code == done.code == 0 and plain.out != done.out
    assert f"note: {lora / 'lora.safetensors'}: adapter of rank 3 for 14 matrices\n" in done.err
    native = run("demo", folder, "--max_tokens=1", "--backend=native", "--lora", lora)
    assert "for 14 matrices; merged copies take" in native.err


def test_two_adapters_of_one_shape_have_two_identities(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", DENSE, random_tensors(DENSE), "consolidated.safetensors")
    factors = random_factors(DENSE)
    other = Factors({name: (a, 2 * b) for name, (a, b) in factors.pairs.items()}, factors.scale)
    loras = [write_official(tmp_path / "a", factors), write_official(tmp_path / "b", other)]
    found = [identity(open_checkpoint(folder, lora)) for lora in (None, *loras)]
    assert len({json.dumps(each) for each in found}) == 3


def test_memory_counts_the_copies(run: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path / "model")
    lora = write_official(tmp_path / "lora", random_factors(ARGS))
    monkeypatch.setattr("mistral.load.available_memory", lambda: 1000)
    assert "of memory and 0.0 MB are free" in run_refused(run, "demo", folder, "--backend=native", "--lora", lora)


def run_refused(run: CommandLine, *arguments: object) -> str:
    """The last line on standard error of a command that ends with 2."""
    done = run(*arguments)
    assert done.code == 2
    return done.err.splitlines()[-1]


# Settings


def test_scales_are_those_of_peft(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", DENSE, random_tensors(DENSE), "consolidated.safetensors")
    factors = random_factors(DENSE, "attention", rank=4)
    settings: dict[str, Any] = {"lora_alpha": 6, "alpha_pattern": {"layers.1.self_attn.q_proj": 2, "[qk]_proj": 10}}
    for root in (False, True):
        lora = write_peft(tmp_path / "lora", DENSE, factors, use_rslora=root, **settings)
        adapter = open_checkpoint(folder, lora).adapter
        assert adapter
        divisor = 2 if root else 4
        scales = {name: delta.scale * divisor for name, delta in adapter.deltas.items()}
        assert scales["layers.0.attention.wq.weight"] == scales["layers.1.attention.wk.weight"] == 10
        assert scales["layers.1.attention.wq.weight"] == 2
        assert scales["layers.1.attention.wo.weight"] == 6


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"use_dora": True}, "DoRA is not supported"),
    ({"bias": "all"}, "bias 'all' is not supported"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save is set"),
    ({"use_something_new": True}, "use_something_new is set"),
    ({"peft_type": "LOHA"}, "peft_type 'LOHA'"),
    ({"init_lora_weights": "pissa_niter_4"}, "changed the model's own weights"),
    ({"lora_alpha": "2"}, "lora_alpha must be a number, not '2'"),
    ({"lora_alpha": float("nan")}, "lora_alpha must be a number"),
    ({"r": 5}, "neither r nor rank_pattern is 3"),
    ({"alpha_pattern": ["x"]}, "alpha_pattern must be a table"),
    ({"alpha_pattern": {"(a*)*": 1}}, "too complex"),
    ({"alpha_pattern": {".*.*.*.*x": 1}}, "too complex"),
    ({"alpha_pattern": {"(": 1}}, "is not a pattern"),
    ({"alpha_pattern": {"q_proj": None}}, "alpha_pattern 'q_proj' must be a number"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=[message[:20] for _, message in REFUSED])
def test_settings_that_are_not_supported(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    folder = write_checkpoint(tmp_path / "model", DENSE, random_tensors(DENSE), "consolidated.safetensors")
    lora = write_peft(tmp_path / "lora", DENSE, random_factors(DENSE), **settings)
    line = refusal(folder, lora)
    assert message in line and line.startswith(f"{lora / 'adapter_config.json'}: ")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (None, "params.json: missing"),
        ({}, "lora.scaling must be a number"),
        ({"lora": {"scaling": True}}, "lora.scaling must be a number"),
        ({"lora": {"scaling": 2.0, "rank": "\n\x1b[31m" * 900}}, "lora.rank is \\n\\x1b[31m\\n"),
        ({"lora": {"scaling": 2.0, "rank": [10**90] * 900}}, "lora.rank is [1000000"),
        ({"lora": {"scaling": 2.0, "rank": 64}}, "lora.rank is 64, and 'layers.0.attention.wq' has rank 3"),
    ],
)
def test_the_scale_is_never_guessed(tmp_path: Path, params: dict[str, Any] | None, message: str) -> None:
    folder = write_checkpoint(tmp_path / "model", DENSE, random_tensors(DENSE), "consolidated.safetensors")
    lora = write_official(tmp_path / "lora", random_factors(DENSE))
    (lora / "params.json").unlink()
    if params is not None:
        (lora / "params.json").write_text(json.dumps(params))
    assert message in refusal(folder, lora)


# Files


def refusal(folder: Path, lora: Path) -> str:
    """The one line with which an adapter is refused."""
    with pytest.raises(InputError) as caught:
        checkpoint = open_checkpoint(folder, lora)
        for name in checkpoint.shapes:
            checkpoint.get(name)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 500
    return line


Q = "base_model.model.model.layers.0.self_attn.q_proj"
PARTS = (".lora_A.weight", ".lora_B.weight")
Tensors = dict[str, Any]
CHANGES: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "no such layer": (lambda t: t.update({Q.replace("0", "9") + p: t[Q + p] for p in PARTS}), "belongs to no matrix"),
    "one half": (lambda t: t.pop(f"{Q}.lora_B.weight"), "is there without"),
    "magnitudes": (lambda t: t.update({f"{Q}.lora_magnitude_vector": np.ones(2, np.float32)}), "DoRA is not supported"),
    "bias": (lambda t: t.update({f"{Q}.lora_B.bias": np.ones(2, np.float32)}), "biases are not supported"),
    "embeddings": (
        lambda t: t.update({"base_model.model.model.embed_tokens.lora_embedding_A": np.ones((3, 2), np.float32)}),
        "embeddings are not supported",
    ),
    "another name": (lambda t: t.update({"x" * 500: np.ones(2, np.float32)}), "is not .lora_A.weight"),
    "shape of A": (lambda t: t.update({f"{Q}.lora_A.weight": np.ones((3, 17), np.float32)}), "has shape (3, 17)"),
    "shape of B": (lambda t: t.update({f"{Q}.lora_B.weight": np.ones((24, 4), np.float32)}), "has shape (24, 4)"),
    "ZeRO-3": (
        lambda t: t.update({f"{Q}.lora_A.weight": np.ones(0, np.float32)}),
        "it was saved under DeepSpeed ZeRO-3",
    ),
    "no rank": (lambda t: t.update({f"{Q}.lora_A.weight": np.ones((0, 16), np.float32)}), "has shape (0, 16)"),
    "a vector": (lambda t: t.update({f"{Q}.lora_A.weight": np.ones((), np.float32)}), "has shape ()"),
    "integers": (lambda t: t.update({f"{Q}.lora_A.weight": np.ones((3, 16), np.int64)}), "has dtype int64"),
    "NaN": (lambda t: t[f"{Q}.lora_A.weight"].__setitem__((0, 0), np.nan), "lora_A.weight' has values that are NaN"),
    "infinity": (lambda t: t[f"{Q}.lora_B.weight"].__setitem__((0, 0), np.inf), "lora_B.weight' has values that are"),
    "too large": (lambda t: t[f"{Q}.lora_B.weight"].fill(3e38), "makes weights too large for float32"),
    "nothing": (lambda t: t.clear(), "holds no adapter"),
    "another head": (
        lambda t: t.update({f"{Q}.base_layer.weight": np.ones((24, 16), np.float32)}),
        "base_layer.weight' is not this model's",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_damaged_or_foreign_adapters(tmp_path: Path, change: str) -> None:
    folder = write_checkpoint(tmp_path / "model", DENSE, random_tensors(DENSE), "consolidated.safetensors")
    factors = random_factors(DENSE, "attention")
    lora = write_peft(tmp_path / "lora", DENSE, factors)
    tensors = {name: tensor.copy() for name, tensor in peft_tensors(DENSE, factors).items()}
    alter, message = CHANGES[change]
    alter(tensors)
    write_safetensors(lora / "adapter_model.safetensors", tensors)
    line = refusal(folder, lora)
    assert message in line and line.startswith(f"{lora / 'adapter_model.safetensors'}: ")


def test_a_head_that_comes_with_the_adapter_takes_the_place_of_the_models(tmp_path: Path) -> None:
    tensors, factors = random_tensors(DENSE), random_factors(DENSE, "output")
    folder = write_checkpoint(tmp_path / "model", DENSE, tensors, "consolidated.safetensors")
    lora = write_peft(tmp_path / "lora", DENSE, factors)
    head = tensors["output.weight"].astype(np.float32) + 1
    stored = peft_tensors(DENSE, factors) | {"base_model.model.lm_head.base_layer.weight": head}
    write_safetensors(lora / "adapter_model.safetensors", stored)
    wanted = factors.merged({"output.weight": head})["output.weight"]
    found = open_checkpoint(folder, lora).get("output.weight")
    assert np.abs(found.astype(np.float32) - wanted).max() < 1e-6


def test_a_tied_head_has_no_adapter(tmp_path: Path) -> None:
    tied = replace(DENSE, tied_embeddings=True)
    folder = write_checkpoint(tmp_path / "model", tied, random_tensors(tied), "consolidated.safetensors")
    lora = write_peft(tmp_path / "lora", DENSE, random_factors(DENSE, "output"))
    assert "belongs to no matrix of this model" in refusal(folder, lora)


def test_folders_without_or_with_two_adapters(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", DENSE, random_tensors(DENSE), "consolidated.safetensors")
    assert "no such folder" in refusal(folder, tmp_path / "none")
    assert "no adapter in it" in refusal(folder, folder)
    lora = write_official(tmp_path / "lora", random_factors(DENSE))
    named = open_checkpoint(folder, lora / "lora.safetensors").adapter
    assert named and named.file == lora / "lora.safetensors"
    (tmp_path / "text").write_text("text")
    assert "text: is a file of text; name the folder" in refusal(folder, tmp_path / "text")
    write_peft(lora, DENSE, random_factors(DENSE))
    assert "is an adapter too" in refusal(folder, lora)
    (lora / "lora.safetensors").unlink()
    (lora / "adapter_config.json").unlink()
    assert "adapter_config.json: missing" in refusal(folder, lora)


def test_an_adapter_instead_of_a_model_says_so(tmp_path: Path) -> None:
    lora = write_official(tmp_path / "lora", random_factors(DENSE))
    with pytest.raises(InputError, match="holds an adapter; name the model's folder, and this one with lora") as caught:
        open_checkpoint(lora)
    assert caught.value.with_flags().endswith("this one with --lora")


def test_rounding_by_bits_is_rounding() -> None:
    """Against ml_dtypes, on all kinds of values: ties, subnormal numbers, infinity."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, 1 << 18, np.uint32)
    bits[: 1 << 16] = (bits[: 1 << 16] & np.uint32(0xFFFF0000)) | np.uint32(0x8000)
    values = bits.view(np.float32)
    values = values[np.isfinite(values)]
    for some in (values, np.append(values, np.float32(np.inf))):
        with np.errstate(over="ignore"):
            expected = some.astype(ml_dtypes.bfloat16)
        assert np.array_equal(narrowed(some.copy(), expected.dtype).view(np.uint16), expected.view(np.uint16))
    assert np.array_equal(widened(expected), expected.astype(np.float32))
