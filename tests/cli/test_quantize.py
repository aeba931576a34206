"""The quantize command, and the GGUF files that it writes."""

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from mistral.checkpoint.args_file import args_from_params, params_of
from mistral.checkpoint.checkpoint import open_checkpoint
from mistral.checkpoint.formats.stored_tensor import StoredTensor, map_file, row_major
from mistral.checkpoint.gguf.describe import architecture
from mistral.checkpoint.gguf.importances import read_importances
from mistral.checkpoint.quantization import MIXTURES, kind_of
from mistral.cli.model_options import shipped_checkpoint
from mistral.engine.sampling import log_softmax
from mistral.errors import InputError
from mistral.load import load_model
from mistral.memory import resident_memory
from mistral.model.parameters import parameters
from mistral.model.rope import LinearScaling, Llama3Scaling, Llama4Scaling, RopeScaling, YarnScaling, yarn_sharpness
from mistral.ops.blocks.quantize import quantize_blocks
from mistral.ops.interface import Ops
from mistral.tokenizer.tokenizer import Tokenizer
from tests.support.checkpoint_forms import random_tensors, write_checkpoint
from tests.support.command_line import ARGS, ROOT, TOKENIZER, CommandLine, write_model

PLAIN = replace(ARGS, sliding_windows=(5, 5))
IDS = [int(i) for i in np.random.default_rng(0).integers(0, 1024, 30)]
WIDE = replace(
    ARGS, dim=256, hidden_dim=512, n_layers=3, head_dim=64, sliding_windows=(5, 5, 5)
)  # rows of whole blocks of 256


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("wide") / "model", WIDE)


def logprobs(place: Path, bits: int = 16) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    model = load_model(place, device="CPU", backend="portable", bits=bits)
    return log_softmax(model.forward(IDS, [len(IDS)]).asnumpy())


@pytest.mark.parametrize("mixture", MIXTURES)
def test_a_file_of_each_type_loads_like_any_other(
    run: CommandLine, tmp_path: Path, wide: Path, ops: Ops, mixture: str
) -> None:
    out = tmp_path / "out.gguf"
    assert run("quantize", wide, out, "--type", mixture).code == 0
    original, found = open_checkpoint(wide), open_checkpoint(out)
    assert found.args == replace(original.args, max_seq_len=32768)
    for name, parameter in parameters(original.args).items():
        kind = kind_of(parameter, original.args, mixture)
        assert found.type_name(name) == (kind.name if not kind.is_plain else found.dtype(name).name)
        if kind.is_plain:
            assert np.allclose(found.get(name), original.get(name), rtol=0.004, atol=1e-6)
        else:
            wanted = quantize_blocks(original.get(name), kind)
            assert np.array_equal(found.get(name).view(np.uint32), wanted.dense().view(np.uint32))
    read = GGUFReader(out)
    assert {tensor.tensor_type.name for tensor in read.tensors if "norm" in tensor.name} == {"F32"}
    assert read.fields["general.file_type"].contents() == MIXTURES[mixture]
    ids = Tokenizer.from_folder(wide).encode("Once upon a time é\n\n  x")
    assert Tokenizer.from_folder(out).encode("Once upon a time é\n\n  x") == ids


@pytest.mark.parametrize("bits", [8, 4])
def test_bits_while_loading_are_those_of_a_file(
    run: CommandLine, tmp_path: Path, wide: Path, ops: Ops, bits: int
) -> None:
    out, plain = tmp_path / "out.gguf", tmp_path / "plain.gguf"
    assert run("quantize", wide, out, "--bits", bits).code == 0
    assert run("quantize", wide, plain, "--type", "f16").code == 0
    wanted = logprobs(out)
    assert np.array_equal(logprobs(wide, bits), wanted)
    assert np.array_equal(logprobs(out, bits), wanted)  # what is in this type already stays as it is
    assert np.abs(logprobs(plain, bits) - wanted).mean() < 0.1
    assert run("demo", out, "--prompts=a", "--max_tokens=2", f"--bits={bits}", "--backend=portable").code == 0


def test_of_a_mixture_and_of_tied_embeddings(run: CommandLine, tmp_path: Path, ops: Ops) -> None:
    done = run("quantize", shipped_checkpoint(), tmp_path / "tiny.gguf", "--type=Q4_K_M")
    assert done.code == 0 and "llama.cpp has no sliding window in this architecture" in done.err
    names = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "tiny.gguf").tensors}
    experts, router = names["blk.2.ffn_down_exps.weight"], names["blk.2.ffn_gate_inp.weight"]
    assert experts.tensor_type.name == "Q6_K" and list(experts.shape) == [256, 128, 4]
    assert router.tensor_type.name == "F32" and names["blk.1.attn_q.weight"].tensor_type.name == "Q5_0"
    tied = write_model(tmp_path / "tied", replace(WIDE, tied_embeddings=True))
    assert run("quantize", tied, tmp_path / "tied.gguf", "--type=Q4_K_M").code == 0
    found = open_checkpoint(tmp_path / "tied.gguf")
    assert found.args.tied_embeddings and found.type_name("tok_embeddings.weight") == "Q6_K"
    assert np.isfinite(logprobs(tmp_path / "tied.gguf")).all()


SCALINGS: dict[str, tuple[RopeScaling | None, Llama4Scaling | None, str]] = {
    "linear": (LinearScaling(4.0), None, "llama"),
    "llama3": (Llama3Scaling(8.0, 1.0, 4.0, 64), None, "llama"),
    "yarn": (YarnScaling(4.0, 64, attention_factor=yarn_sharpness(4.0)), None, "llama"),
    "bounds": (YarnScaling(4.0, 64, 20.0, 2.0), None, "mistral3"),
    "growing": (YarnScaling(16.0, 64), Llama4Scaling(64, 0.1), "mistral3"),
}


@pytest.mark.parametrize("name", SCALINGS)
def test_longer_contexts_are_described(run: CommandLine, tmp_path: Path, ops: Ops, name: str) -> None:
    scaling, growing, called = SCALINGS[name]
    args = replace(PLAIN, rope_scaling=scaling, llama_4_scaling=growing, max_seq_len=200)
    folder, out = write_model(tmp_path / "model", args), tmp_path / "out.gguf"
    assert run("quantize", folder, out, "--type=F16").code == 0
    assert GGUFReader(out).fields["general.architecture"].contents() == called
    assert np.abs(logprobs(out) - logprobs(folder)).max() < 0.01
    found = open_checkpoint(out).args
    assert (found.max_seq_len, found.sliding_windows) == (200, args.sliding_windows) or name == "llama3"


def test_what_gguf_cannot_say_is_refused(run: CommandLine, tmp_path: Path) -> None:
    many = write_model(tmp_path / "many", replace(ARGS, sliding_windows=(5, 9)))
    assert "GGUF files have one window and this model 2" in run("quantize", many, tmp_path / "x.gguf").error
    for args, message in (
        (replace(PLAIN, rope_scaling=YarnScaling(4.0, 64, truncate=False)), "no YaRN without truncation"),
        (
            replace(PLAIN, rope_scaling=YarnScaling(4.0, 64), llama_4_scaling=Llama4Scaling(32, 0.1)),
            "one original context length for",
        ),
    ):
        with pytest.raises(InputError, match=message):
            architecture(args)
    assert not list(tmp_path.glob("*x.gguf*"))


def test_from_another_gguf_file_all_that_it_says_is_kept(run: CommandLine, tmp_path: Path, wide: Path) -> None:
    (tmp_path / "template.jinja").write_text("{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}")
    folder = shutil.copytree(wide, tmp_path / "folder")
    shutil.copy(tmp_path / "template.jinja", folder / "chat_template.jinja")
    first, second = tmp_path / "first.gguf", tmp_path / "sub" / "second.gguf"
    assert run("quantize", folder, first, "--type=Q6_K").code == 0
    second.parent.mkdir()
    assert run("quantize", first, second, "--type=Q4_0").code == 0
    one, other = (GGUFReader(path).fields for path in (first, second))
    for key in one:
        if key != "general.file_type" and not key.startswith("GGUF."):
            assert one[key].contents() == other[key].contents()
    assert one["tokenizer.chat_template"].contents() == (tmp_path / "template.jinja").read_text()
    assert Tokenizer.from_folder(second).template_source == "chat_template in second.gguf"


# Importances


def test_importances_of_a_text_are_kept_and_used_again(run: CommandLine, tmp_path: Path, wide: Path) -> None:
    text, kept = tmp_path / "text", tmp_path / "importances.gguf"
    text.write_text("Once upon a time there was a small model that read a text. " * 400)
    out, again, plain = (tmp_path / f"{name}.gguf" for name in ("out", "again", "plain"))
    given = ["--calibrate", text, "--save_importances", kept, "--chunks", 2, "--backend=portable"]
    assert run("quantize", wide, out, "--type=Q4_K_M", *given).code == 0
    assert run("quantize", wide, again, "--type=Q4_K_M", "--importances", kept).code == 0
    assert run("quantize", wide, plain, "--type=Q4_K_M").code == 0
    assert out.read_bytes() == again.read_bytes() != plain.read_bytes()
    found, fields = read_importances(kept), GGUFReader(kept).fields
    assert fields["general.type"].contents() == "imatrix" and fields["imatrix.datasets"].contents() == ["text"]
    assert (found.chunks, found.chunk_size) == (2, 512) and found.counts["blk.0.attn_q.weight"] == 1024
    assert len(found.sums) == 7 * WIDE.n_layers and found.sums["blk.1.ffn_down.weight"].shape == (1, 512)
    assert np.array_equal(found.sums["blk.2.attn_q.weight"], found.sums["blk.2.attn_v.weight"])
    other = write_model(tmp_path / "other", PLAIN)
    line = run("quantize", other, tmp_path / "x.gguf", "--importances", kept).error
    assert "they are another model's" in line and str(kept) in line


def test_importances_are_the_mean_squares_of_the_inputs(run: CommandLine, tmp_path: Path, ops: Ops) -> None:
    """The first norm's weights are all that reaches wq of a model whose embeddings are rows of ones."""
    args = replace(ARGS, n_layers=1, sliding_windows=(5,))
    tensors = random_tensors(args)
    tensors["tok_embeddings.weight"][:] = 1
    write_checkpoint(tmp_path / "model", args, tensors, "consolidated.safetensors")
    shutil.copy(TOKENIZER, tmp_path / "model")
    (tmp_path / "text").write_text("a b c d " * 600)
    kept = tmp_path / "kept.gguf"
    given = ["--calibrate", tmp_path / "text", "--save_importances", kept, "--chunks=1", "--backend=portable"]
    assert run("quantize", tmp_path / "model", tmp_path / "out.gguf", *given).code == 0
    found = read_importances(kept)
    wanted = np.square(tensors["layers.0.attention_norm.weight"].astype(np.float64))
    assert np.allclose(found.sums["blk.0.attn_k.weight"][0] / 512, wanted, rtol=1e-3)


def test_experts_are_counted_each_by_itself(run: CommandLine, tmp_path: Path) -> None:
    kept, text = tmp_path / "kept.gguf", tmp_path / "text"
    text.write_text("The cat and the dog went to the park. " * 300)
    given = ["--calibrate", text, "--save_importances", kept, "--chunks=1"]
    for backend in ("portable", "native"):
        out = tmp_path / f"{backend}.gguf"
        assert run("quantize", shipped_checkpoint(), out, *given, f"--backend={backend}").code == 0
        found = read_importances(kept)
        counts = found.counts["blk.0.ffn_gate_exps.weight"]
        assert counts.shape == (4,) and counts.sum() == 2 * 512  # two experts a token
        assert found.sums["blk.0.ffn_down_exps.weight"].shape == (4, 256)


def test_files_that_hold_no_importances(run: CommandLine, tmp_path: Path, wide: Path) -> None:
    out, model = tmp_path / "out.gguf", tmp_path / "model.gguf"
    assert run("quantize", wide, model).code == 0
    assert "holds no importances (general.type is 'model')" in run("quantize", wide, out, "--importances", model).error
    untyped = tmp_path / "untyped.gguf"
    untyped.write_bytes(model.read_bytes().replace(b"general.type", b"general.kind"))
    assert "(general.type is 'absent')" in run("quantize", wide, out, "--importances", untyped).error
    assert "no such file" in run("quantize", wide, out, "--importances", tmp_path / "none").error
    (tmp_path / "short").write_text("too short")
    assert "tokens, and 511 are needed" in run("quantize", wide, out, "--calibrate", tmp_path / "short").error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf", "short", "untyped.gguf"]


# What cannot be


REFUSED: Mapping[str, tuple[list[str], str]] = {
    "no model": ([], "name a checkpoint and a GGUF file to write"),
    "a folder": (["out"], "out: must end in .gguf: a GGUF file is written"),
    "a type": (["out.gguf", "--type=Q3_K"], "--type Q3_K: must be one of Q8_0, Q6_K, "),
    "bits": (["out.gguf", "--bits=3"], "--bits 3: must be 8 or 4"),
    "bits and a type": (["out.gguf", "--bits=4", "--type=Q8_0"], "--bits 4: leave it out with a type"),
    "nothing to keep": (["out.gguf", "--save_importances=x"], "--save_importances x: needs a text to calibrate by"),
    "chunks": (["out.gguf", "--calibrate=x", "--chunks=-1"], "--chunks -1: must be 0 or more"),
    "two sources": (["out.gguf", "--calibrate=x", "--importances=y"], "--importances y: leave it out with a text"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_options_that_cannot_be(run: CommandLine, case: str) -> None:
    words, message = REFUSED[case]
    assert message in run("quantize", *([shipped_checkpoint()] if words else []), *words).error


@pytest.mark.parametrize("option", ["", "--importances=", "--save_importances="])
def test_a_name_that_is_too_long_is_named_itself(run: CommandLine, tmp_path: Path, option: str) -> None:
    long, out = tmp_path / ("x" * 300 + ".gguf"), tmp_path / "out.gguf"
    text = ["--calibrate=none"] if "save" in option else []
    words = [out, f"{option}{long}", *text] if option else [long]
    error = run("quantize", shipped_checkpoint(), *words).error
    assert f"{long}: cannot be accessed (File name too long); name another file" in error and "out.gguf:" not in error
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_refused(run: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there.gguf").touch()
    assert "is there already" in run("quantize", shipped_checkpoint(), tmp_path / "there.gguf").error
    place = tmp_path / "there.gguf" / "x.gguf"
    assert "cannot be written" in run("quantize", shipped_checkpoint(), place).error
    (tmp_path / "d.gguf").mkdir()
    assert "d.gguf: is a folder; name a file" in run("quantize", shipped_checkpoint(), tmp_path / "d.gguf").error
    (tmp_path / "d.gguf").rmdir()
    given = ("quantize", shipped_checkpoint(), tmp_path / "none.gguf", "--calibrate=none", "--save_importances")
    for kept, message in (
        ("there.gguf", "is there already and holds no importances; name another file"),
        ("none.gguf", "is the name of the model to write"),
    ):
        assert f"--save_importances {tmp_path / kept}: {message}" in run(*given, tmp_path / kept).error
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 0, 10))
    assert "and 0.0 MB are free" in run("quantize", shipped_checkpoint(), tmp_path / "none.gguf").error
    assert [path.name for path in tmp_path.iterdir()] == ["there.gguf"]
    assert (tmp_path / "there.gguf").stat().st_size == 0


def test_nan_in_a_weight_is_refused_with_its_name(run: CommandLine, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "bad", WIDE)
    file = folder / "consolidated.safetensors"
    data = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    name = "layers.1.attention.wo.weight"
    first = start + header[name]["data_offsets"][0]
    data[first : first + 4] = b"\xff\xff\xff\xff"
    file.write_bytes(data)
    message = run("quantize", folder, tmp_path / "out.gguf").error
    assert name in message and "NaN or infinite" in message and str(file) in message
    assert run("demo", folder, "--bits=8", "--backend=portable").error.endswith("download the weights again")
    assert (
        "beyond float16, NaN or infinite; write BF16"
        in run("quantize", folder, tmp_path / "out.gguf", "--type=F16").error
    )
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def limited(size: int) -> None:
    """In a child: files of at most so many bytes, and no signal for it."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "main", "quantize", str(shipped_checkpoint()), str(tmp_path / "out.gguf")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=lambda: limited(1 << 20))
    assert done.returncode == 2 and re.match(r"(quantizing tiny\n)?error: .*\n\Z", done.stderr)
    assert "cannot be written (File too large)" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_leaves_nothing_that_loads(run: CommandLine, tmp_path: Path) -> None:
    program = (
        "import os, signal, mistral.checkpoint.gguf.write as w\nfrom mistral.cli.quantize.command import Quantize\n"
        "def parts(*_):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "w.tensor_bytes = parts\n"
        f"Quantize({str(shipped_checkpoint())!r}, {str(tmp_path / 'out.gguf')!r}).run()"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [".out.gguf.unfinished"]
    with pytest.raises(InputError):
        open_checkpoint(tmp_path / ".out.gguf.unfinished" / "out.gguf")
    assert run("quantize", shipped_checkpoint(), tmp_path / "out.gguf").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


def test_folders_of_earlier_releases_are_refused_with_the_remedy(run: CommandLine, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "old")
    table = {"format": "mistral-mindspore", "version": 1, "bits": 4, "output_bits": 8}
    (folder / "params.json").write_text(json.dumps(params_of(ARGS) | {"quantization": table}))
    for command in ("demo", "quantize"):
        line = run(command, folder, *(["x.gguf"] if command == "quantize" else [])).error
        assert line.endswith("quantize the original checkpoint again, to a GGUF file")
        assert "quantized by an earlier release, in a format that is not read any more" in line


def test_pages_of_the_source_are_given_back(tmp_path: Path) -> None:
    """Quantizing reads every tensor once; a model's worth of mapped pages must not pile up."""
    (tmp_path / "zeros").write_bytes(bytes(1 << 26))
    shape = (1 << 12, 1 << 12)
    tensor = StoredTensor(
        tmp_path / "zeros", map_file(tmp_path / "zeros"), 0, np.dtype(np.float32), shape, row_major(shape)
    )
    before = resident_memory().mapped
    assert not tensor.array().any()
    assert resident_memory().mapped - before > 1 << 25
    tensor.release()
    assert resident_memory().mapped - before < 1 << 24
    assert not tensor.array()[-1].any()


def test_params_round_trip() -> None:
    for args in (ARGS, replace(ARGS, max_seq_len=99), open_checkpoint(shipped_checkpoint()).args):
        assert args_from_params(params_of(args)) == args


def test_too_little_memory_names_the_bits_that_fit(run: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mistral.load.available_memory", lambda: 3_000_000)
    message = run("demo", "--backend=portable").error
    assert "needs 8.1 MB of memory and 3.0 MB are free: --bits 8 needs" in message and "--bits 4 needs" in message
    done = run("demo", "--backend=native", "--max_tokens=1")
    assert done.code == 0 and "note: the weights take 4.1 MB and 3.0 MB are free" in done.err
