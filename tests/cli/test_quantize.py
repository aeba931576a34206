"""The quantize command, and checkpoints that it has written."""

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mistral.checkpoint.args_file import args_from_params, params_of
from mistral.checkpoint.checkpoint import open_checkpoint
from mistral.checkpoint.formats.stored_tensor import StoredTensor, map_file, row_major
from mistral.cli.model_options import shipped_checkpoint
from mistral.engine.sampling import log_softmax
from mistral.errors import InputError
from mistral.load import load_model
from mistral.memory import resident_memory
from mistral.model.args import Quantization
from mistral.ops.interface import Ops
from mistral.ops.quantize import quantize_array
from mistral.ops.quantized import Quantized
from tests.support.command_line import ARGS, ROOT, CommandLine, write_model

IDS = [int(i) for i in np.random.default_rng(0).integers(0, 1024, 30)]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


def dense(weight: object) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    assert isinstance(weight, Quantized)
    return weight.dense()


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantized_folder_loads_like_any_other(run: CommandLine, tmp_path: Path, ops: Ops, bits: int) -> None:
    done = run("quantize", shipped_checkpoint(), tmp_path / "out", "--bits", bits)
    assert (done.code, done.err) == (0, "")
    original, found = open_checkpoint(shipped_checkpoint()), open_checkpoint(tmp_path / "out")
    assert found.args == replace(original.args, quantization=Quantization(bits, 8))
    assert found.shapes == original.shapes
    assert sum(map(found.nbytes, found.shapes)) < sum(map(original.nbytes, original.shapes)) * (
        0.6 if bits == 8 else 0.4
    )
    for name in ("tok_embeddings.weight", "norm.weight", "layers.1.feed_forward.gate.weight"):
        assert np.array_equal(found.get(name), original.get(name))
    for name, expected in (("layers.0.attention.wq.weight", bits), ("output.weight", 8)):
        weight = found.packed(name)
        assert np.array_equal(found.get(name), dense(weight))
        assert found.in_place(name) and np.array_equal(
            dense(weight), dense(quantize_array(original.get(name), expected))
        )
    models = [
        load_model(tmp_path / "out", device="CPU", backend="portable"),
        load_model(tmp_path / "out", device="CPU", backend="native", precise=True),
        load_model(tmp_path / "out", device="CPU", backend="auto", bits=bits, precise=True),
        load_model(shipped_checkpoint(), device="CPU", backend="native", bits=bits, precise=True),
    ]
    wanted, *others = (log_softmax(model.forward(IDS, [len(IDS)]).asnumpy()) for model in models)
    for logprobs in others:
        assert np.abs(logprobs - wanted).max() < 1e-3


def test_a_tied_head_gets_its_own_copy(run: CommandLine, tmp_path: Path, ops: Ops) -> None:
    tied = write_model(tmp_path / "tied", replace(ARGS, tied_embeddings=True))
    assert run("quantize", tied, tmp_path / "out", "--bits=4", "--output_bits=4").code == 0
    found = open_checkpoint(tmp_path / "out")
    assert not found.args.tied_embeddings
    embeddings = found.get("tok_embeddings.weight")
    assert np.array_equal(dense(found.packed("output.weight")), dense(quantize_array(embeddings, 4)))
    while_loading = load_model(tied, device="CPU", backend="portable", bits=8)
    assert np.isfinite(while_loading.forward(IDS, [len(IDS)]).asnumpy()).all()


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


def test_several_files(run: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mistral.checkpoint.write.SHARD", 300_000)
    assert run("quantize", shipped_checkpoint(), tmp_path / "out").code == 0
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"consolidated-00001-of-{len(files):05}.safetensors"
    whole = open_checkpoint(tmp_path / "out")
    name = "layers.3.feed_forward.experts.2.w2.weight"
    expected = quantize_array(open_checkpoint(shipped_checkpoint()).get(name), 8)
    assert np.array_equal(dense(whole.packed(name)), expected.dense())


@pytest.mark.parametrize("bits", [16, 3])
def test_wrong_bits(run: CommandLine, tmp_path: Path, bits: int) -> None:
    assert "must be 8 or 4" in run("quantize", shipped_checkpoint(), tmp_path / "out", "--bits", bits).error


def test_what_cannot_be_written_or_read_is_refused(
    run: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "is there already" in run("quantize", shipped_checkpoint(), tmp_path / "full").error
    assert "cannot be written" in run("quantize", shipped_checkpoint(), tmp_path / "full" / "file" / "x").error
    assert "name a checkpoint folder and" in run("quantize", shipped_checkpoint()).error
    assert run("quantize", shipped_checkpoint(), tmp_path / "out").code == 0
    assert "quantized already" in run("quantize", tmp_path / "out", tmp_path / "again").error
    assert "has 8 bits" in run("demo", tmp_path / "out", "--bits=4").error
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 0, 10))
    assert "and has 0.0 MB free" in run("quantize", shipped_checkpoint(), tmp_path / "none").error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "out"]


def test_nan_in_a_weight_is_refused_with_its_name(run: CommandLine, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "bad")
    file = folder / "consolidated.safetensors"
    data = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    name = "layers.1.attention.wo.weight"
    first = start + header[name]["data_offsets"][0]
    data[first : first + 4] = b"\xff\xff\xff\xff"
    file.write_bytes(data)
    message = run("quantize", folder, tmp_path / "out").error
    assert name in message and "NaN or infinite" in message and str(file) in message
    assert run("demo", folder, "--bits=8").error.endswith("download the weights again")
    assert not (tmp_path / "out").exists()


def limited(size: int) -> None:
    """In a child: files of at most so many bytes, and no signal for it."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "main", "quantize", str(shipped_checkpoint()), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=lambda: limited(1 << 20))
    assert done.returncode == 2 and re.match(r"(quantizing tiny\n)?error: .*\n\Z", done.stderr)
    assert "cannot be written (File too large)" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_leaves_nothing_that_loads(run: CommandLine, tmp_path: Path) -> None:
    program = (
        "import os, signal, mistral.checkpoint.write as w\nfrom mistral.cli.quantize import Quantize\n"
        "def parts(*_):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "w.quantized_parts = parts\n"
        f"Quantize({str(shipped_checkpoint())!r}, {str(tmp_path / 'out')!r}).run()"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [".out.unfinished"]
    with pytest.raises(InputError):
        open_checkpoint(tmp_path / ".out.unfinished")
    assert run("quantize", shipped_checkpoint(), tmp_path / "out").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# What does not fit


def damaged(tmp_path: Path, run: CommandLine, change: dict[str, object]) -> str:
    """The refusal of a quantized folder whose header or params have been changed."""
    folder = tmp_path / "out"
    run("quantize", shipped_checkpoint(), folder, "--bits=4")
    file, params = folder / "consolidated.safetensors", folder / "params.json"
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    name = "layers.0.attention.wq.weight"
    if change.get("missing"):
        header["extra"] = header.pop(name + ".scales")
    if "dtype" in change:
        header[name]["dtype"] = change["dtype"]
    if "shape" in change:
        header[name]["shape"] = change["shape"]
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[start:])
    table = json.loads(params.read_text())
    table["quantization"] |= change.get("quantization", {})
    params.write_text(json.dumps(table))
    return run("demo", folder).error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"missing": True}, "'layers.0.attention.wq.weight.scales' is missing"),
        ({"dtype": "I8"}, "is int8 of shape (128, 64) and must be uint8"),
        ({"shape": [64, 128]}, "of shape (64, 128) and must be uint8 of shape (128, 64)"),
        ({"quantization": {"version": 2}}, "not of the form mistral-mindspore, version 1"),
        ({"quantization": {"format": "gptq"}}, "not of the form"),
        ({"quantization": {"bits": 5}}, "bits and output_bits must be 8 or 4"),
        ({"quantization": {"desc_act": True}}, "'desc_act' is set"),
    ],
)
def test_damaged_folders(run: CommandLine, tmp_path: Path, change: dict[str, object], message: str) -> None:
    assert message in damaged(tmp_path, run, change)


def test_params_round_trip() -> None:
    for args in (
        ARGS,
        replace(ARGS, quantization=Quantization(4, 8), max_seq_len=99),
        open_checkpoint(shipped_checkpoint()).args,
    ):
        assert args_from_params(params_of(args)) == args


def test_too_little_memory_names_the_bits_that_fit(run: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mistral.load.available_memory", lambda: 3_000_000)
    message = run("demo", "--backend=portable").error
    assert "needs 8.1 MB of memory and 3.0 MB are free: --bits 8 needs" in message and "--bits 4 needs" in message
    done = run("demo", "--backend=native", "--max_tokens=1")
    assert done.code == 0 and "note: the weights take 4.1 MB and 3.0 MB are free" in done.err
