"""The info command, on models of published sizes, every file form, and folders that are not whole."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mistral_common
import ml_dtypes
import numpy as np
import pytest

from mistral.checkpoint.args_file import args_from_params
from mistral.checkpoint.checkpoint import open_checkpoint
from mistral.checkpoint.weight_memory import copied_nbytes, used_nbytes
from mistral.cli.bench.random_checkpoint import SHAPES, shape_args
from mistral.cli.info.checksums import find_checksums
from mistral.cli.info.memory_estimate import MemoryEstimate
from mistral.cli.info.summary import active_parameters
from mistral.cli.model_options import shipped_checkpoint
from mistral.memory import BASE_MEMORY
from mistral.model.args import ModelArgs
from mistral.model.parameters import parameters
from mistral.tokenizer.files import read_tokenizer_file
from mistral.tokenizer.tokenizer import Tokenizer
from tests.support.adapters import random_factors, write_official
from tests.support.checkpoint_forms import (
    DENSE,
    SPARSE,
    Array,
    float8_tensors,
    forms_of,
    params_of,
    random_tensors,
    safetensors_header,
    write_checkpoint,
    write_params,
)
from tests.support.command_line import ARGS, ROOT, TOKENIZER, CommandLine, Outcome, write_model

TOKENIZERS = Path(mistral_common.__file__).parent / "data"
# Parameters as the models' pages on Hugging Face have them, and billions that a token meets, as announced.
PUBLISHED = {
    "mistral-7b": (7_241_732_096, None),
    "mixtral-8x7b": (46_702_792_704, "12.9"),
    "codestral-22b": (22_247_282_688, None),
    "nemo-12b": (12_247_782_400, None),
    "large-2": (122_610_069_504, None),
    "ministral-8b": (8_019_808_256, None),
    "mixtral-8x22b": (140_630_071_296, "39"),
}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


def record(done: Outcome, code: int = 0) -> dict[str, Any]:
    assert done.code == code, done
    found: dict[str, Any] = json.loads(done.out)
    return found


# Models of published sizes


@pytest.mark.parametrize("shape", PUBLISHED)
def test_parameters_are_those_published(shape: str) -> None:
    args = shape_args(shape)
    total = sum(each.size for each in parameters(args).values())
    published, active = PUBLISHED[shape]
    assert total == published
    found = active_parameters(args)
    assert found == total if active is None else f"{found / 1e9:.{len(active.partition('.')[2])}f}" == active


def write_sparse(folder: Path, shape: str, files: int = 1) -> Path:
    """A model's folder whose weights are holes."""
    folder.mkdir()
    write_params(folder, SHAPES[shape])
    items = list(parameters(shape_args(shape)).values())
    for number in range(files):
        header, at = dict[str, Any](), 0
        for each in items[number::files]:
            end = at + 2 * each.size
            header[each.name] = {"dtype": "BF16", "shape": list(each.shape), "data_offsets": [at, end]}
            at = end
        raw = json.dumps(header).encode()
        raw += b" " * (-len(raw) % 8)
        name = "consolidated" + (f"-{number + 1:05}-of-{files:05}" if files > 1 else "") + ".safetensors"
        with (folder / name).open("wb") as file:
            file.write(struct.pack("<Q", len(raw)) + raw)
            file.truncate(8 + len(raw) + at)
    return folder


def test_a_7b_before_it_is_loaded(run: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mistral.cli.info.command.available_memory", lambda: 12 * 10**9)
    folder = write_sparse(tmp_path / "7b", "mistral-7b")
    shutil.copy(TOKENIZERS / "tokenizer.model.v1", folder / "tokenizer.model")
    found = record(run("info", folder, "--json", "--batch=2", "--context=8192"))
    assert found["bytes"] == 2 * found["parameters"] == 2 * 7_241_732_096
    assert found["tokenizer"] == {
        "file": "tokenizer.model", "version": "v1", "vocab_size": 32000, "chat_template": True, "template": "v1",
    }  # fmt: skip
    needs = {need["way"]: need for need in found["memory"]["needs"]}
    cache = 2 * 32 * (4096 + 32) * 2 * 8 * 128 * 2  # rows, layers, slots, keys and values, heads, width, bytes
    assert needs["native, bfloat16"]["cache"] == cache == needs["portable, float32"]["cache"] // 2
    assert needs["native, bfloat16"]["copied"] == 0 and needs["portable, float32"]["copied"] == 4 * 7_241_732_096
    assert 7.4e9 < needs["native, 8 bits"]["weights"] < 7.9e9 and 4.0e9 < needs["native, 4 bits"]["weights"] < 4.6e9
    fits = {way: need["fits"] for way, need in needs.items()}
    assert list(fits.values()) == ["slowly, from disk", "yes", "yes", "no"]
    text = run("info", folder).out
    assert "7,241,732,096" in text and "window 4096" in text and "12.0 GB are free here" in text


def write_sparse_model(folder: Path, name: str) -> Path:
    """The folder of one of the published models since October 2024: its settings, and files of its size full of holes.

    Matrices of layers are 8-bit floats where the settings say so; a vision tower of 100 MB lies beside them.
    """
    table = json.loads((ROOT / "tests/data/published_models.json").read_text())["read"][name]["table"]
    args = args_from_params(table)
    forms: dict[str, tuple[str, list[int]]] = {}
    if args.towers:
        forms["vision_encoder.x"] = ("BF16", [1000, 50_000])
    for each in parameters(args).values():
        packed = "quantization" in table and each.is_matrix and each.layer is not None
        forms[each.name] = ("F8_E4M3" if packed else "BF16", list(each.shape))
        if packed:
            forms[each.name.replace(".weight", ".qscale_weight")] = ("F32", [])
    header, at = dict[str, Any](), 0
    for tensor, (dtype, shape) in forms.items():
        end = at + math.prod(shape) * {"F8_E4M3": 1, "BF16": 2, "F32": 4}[dtype]
        header[tensor] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with (write_params(folder, table) / "consolidated.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + at)
    shutil.copy(TOKENIZERS / "tekken_240911.json", folder / "tekken.json")
    return folder


# By name: parameters, layers, bytes of the file's weights, and with 64 GB free and 262144 tokens whether each way fits
LATER_MODELS = {
    "Ministral 3 3B Base, Reasoning": (3_429_006_336, 26, 2, ["yes", "yes", "yes", "no"]),
    "Ministral 3 8B Base, Reasoning": (8_489_553_920, 34, 2, ["yes", "yes", "yes", "no"]),
    "Ministral 3 8B Instruct": (8_489_553_920, 34, 1, ["yes", "yes", "yes", "no"]),
    "Ministral 3 14B Instruct": (13_506_073_600, 40, 1, ["yes", "yes", "yes", "no"]),
    "Mistral Small 3.1, 3.2, Magistral 2509": (23_572_403_200, 40, 2, ["slowly, from disk", "yes", "yes", "no"]),
    "Devstral Small 2": (23_572_403_200, 40, 1, ["slowly, from disk", "no", "yes", "no"]),
    "Devstral 2 123B": (125_025_988_608, 88, 1, ["no", "no", "no", "no"]),
    "Mistral Medium 3.5": (125_025_988_608, 88, 1, ["no", "no", "no", "no"]),
}


@pytest.mark.parametrize("name", LATER_MODELS)
def test_a_later_model_before_it_is_loaded(
    run: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    size, layers, width, fits = LATER_MODELS[name]
    monkeypatch.setattr("mistral.cli.info.command.available_memory", lambda: 64 * 10**9)
    folder = write_sparse_model(tmp_path, name)
    limit = open_checkpoint(folder).args.max_seq_len
    assert limit
    found = record(run("info", folder, "--json", f"--context={limit}"))
    assert found["parameters"] == size and found["problems"] == []
    outside = sum(p["parameters"] for part, p in found["parts"].items() if part in ("embedding", "head", "norms"))
    scales = 4 * 7 * layers
    assert found["bytes"] == (2 * size if width == 2 else size + outside + scales)
    assert found["towers"] == ({"images": 10**8} if name != "Devstral 2 123B" else {})
    assert ("images are not read; text only" in found["notes"]) == bool(found["towers"])
    needs = {need["way"]: need for need in found["memory"]["needs"]}
    stored = "bfloat16" if width == 2 else "float8"
    assert [*needs] == [f"native, {stored}", "native, 8 bits", "native, 4 bits", "portable, float32"]
    assert needs[f"native, {stored}"]["weights"] == found["bytes"] and needs[f"native, {stored}"]["copied"] == 0
    assert {need["cache"] for need in needs.values()} == {
        layers * limit * 2 * 8 * 128 * 2, layers * limit * 2 * 8 * 128 * 4
    }  # fmt: skip
    assert [need["fits"] for need in needs.values()] == fits
    text = run("info", folder).out
    assert f"context       {limit} tokens; window none" in text
    assert ("YaRN scaling by 16 from 16384; queries grow each 16384" in text) == name.startswith("Ministral")
    assert ("YaRN scaling by 64 from 4096\n" in text) == (layers == 88)
    assert ("not loaded    0.1 GB of tensors for images\n" in text) == bool(found["towers"])


def test_ranks_share_a_mixture_of_many_files(run: CommandLine, tmp_path: Path) -> None:
    folder = write_sparse(tmp_path / "8x22b", "mixtral-8x22b", files=59)
    shutil.copy(TOKENIZERS / "mistral_instruct_tokenizer_240323.model.v3", folder / "tokenizer.model.v3")
    shutil.copy(TOKENIZERS / "tokenizer.model.v1", folder / "tokenizer.model")
    started = time.process_time()
    found = record(run("info", folder, "--ranks=4", "--json"))
    assert found["notes"] == ["tokenizer: tokenizer.model.v3 taken, not tokenizer.model (it names its version)"]
    assert time.process_time() - started < 2
    needs = [need for need in found["memory"]["needs"] if need["way"] == "native, bfloat16"]
    assert [need["rank"] for need in needs] == [0, 1, 2, 3]
    assert sum(need["weights"] for need in needs) == found["bytes"]
    assert [need["first"] for need in needs[1:]] == [need["last"] + 1 for need in needs[:-1]]
    assert found["parts"]["experts"]["parameters"] == 56 * 8 * 3 * 6144 * 16384
    lines = run("info", folder, "--ranks=4").out.splitlines()
    assert sum("rank " in line for line in lines) == 4 * 4


@pytest.mark.parametrize("form", ["shipped", "tied", "hf", "consolidated.pth"])
def test_needs_are_what_loading_counts_with(run: CommandLine, tmp_path: Path, form: str) -> None:
    folder = shipped_checkpoint()
    if form == "tied":
        folder = write_model(tmp_path / "tied", replace(ARGS, tied_embeddings=True))
    elif form != "shipped":
        args = replace(ARGS, sliding_windows=(5, 5))
        folder = write_checkpoint(tmp_path / "m", args, random_tensors(args, dtype=ml_dtypes.bfloat16), form)
        shutil.copy(TOKENIZER, folder)
    checkpoint = open_checkpoint(folder)
    dtype = checkpoint.dtype("norm.weight").name
    found = {need["way"]: need for need in record(run("info", folder, "--json"))["memory"]["needs"]}
    ways = {f"native, {dtype}": 16, "native, 8 bits": 8, "native, 4 bits": 4, "portable, float32": 16}
    for way, bits in ways.items():
        backend = way.split(",")[0]
        assert found[way]["weights"] == sum(used_nbytes(checkpoint, bits, backend).values())
        assert found[way]["copied"] == copied_nbytes(checkpoint, bits, backend)


def test_whether_it_fits() -> None:
    def estimate(copied: int) -> MemoryEstimate:
        return MemoryEstimate("native", 0, 0, 0, weights=100, copied=copied, cache=10, other=5)

    assert [estimate(0).fits(free) for free in (14, 15, 114, 115)] == ["no", *["slowly, from disk"] * 2, "yes"]
    assert [estimate(100).fits(free) for free in (114, 115)] == ["no", "yes"]
    assert BASE_MEMORY > 10**8


# Every form


@pytest.mark.parametrize("args", [DENSE, SPARSE], ids=["dense", "sparse"])
def test_every_form_is_described_and_verified(run: CommandLine, tmp_path: Path, args: ModelArgs) -> None:
    tensors = random_tensors(args, dtype=ml_dtypes.bfloat16 if args is DENSE else np.float16)
    for form in forms_of(args):
        folder = write_checkpoint(tmp_path / form, args, tensors, form)
        shutil.copy(TOKENIZER, folder)
        found = record(run("info", folder, "--verify", "--json"), code=2)
        (problem,) = found["problems"]
        assert "has 1024 ids and the model 30" in problem  # its tokenizer is another model's
        assert found["verified"]["problems"] == []
        assert found["parameters"] == sum(tensor.size for tensor in tensors.values())
        assert found["dtypes"] == {"bfloat16" if args is DENSE else "float16": 2 * found["parameters"]}
        assert found["form"] and set(found["files"]) == {file.name for file in open_checkpoint(folder).files}


def test_it_leaves_mindspore_alone() -> None:
    program = "import sys; from mistral.cli.main import main; main(['info']); assert 'mindspore' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2,034,816, of which a token meets 1,248,384" in done.stdout


# Tokenizers


@pytest.mark.parametrize("file", sorted(TOKENIZERS.glob("*.model*")) + sorted(TOKENIZERS.glob("tekken*")), ids=str)
def test_a_tokenizer_file_says_what_the_loaded_one_does(tmp_path: Path, file: Path) -> None:
    loaded = Tokenizer.from_file(file)
    found = read_tokenizer_file(file)
    assert (found.version, found.vocab_size, found.can_chat) == (loaded.version, loaded.vocab_size, loaded.can_chat)
    if ".model." in file.name:  # without its version in the name, its pieces tell
        bare = shutil.copy(file, tmp_path / "tokenizer.model")
        assert read_tokenizer_file(Path(bare)).version == Tokenizer.from_file(bare).version


# Folders that are not whole


def broken(tmp_path: Path, form: str, change: Callable[[Path], object]) -> Path:
    tensors = random_tensors(DENSE)
    folder = write_checkpoint(tmp_path / "model", DENSE, tensors, form)
    shutil.copy(TOKENIZERS / "tokenizer.model.v1", folder / "tokenizer.model")
    params = params_of(DENSE) | {"vocab_size": 32000}
    (folder / "params.json").write_text(json.dumps(params))
    change(folder)
    return folder


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def pipe_instead(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


BROKEN: dict[str, tuple[str, Callable[[Path], object], str, bool]] = {
    "a shard": ("consolidated-sharded", lambda f: (f / "consolidated-00002-of-00003.safetensors").unlink(),
                "consolidated-00002-of-00003.safetensors: missing, 1 of 3 files are", True),
    "all weights": ("consolidated.pth", lambda f: (f / "consolidated.00.pth").unlink(), "no weights beside params.json",
                    True),
    "the end of a file": ("consolidated.safetensors", lambda f: cut(f / "consolidated.safetensors"), "truncated in",
                          True),
    "the end of an archive": ("consolidated.pth", lambda f: cut(f / "consolidated.00.pth"), "truncated or damaged",
                              True),
    "params.json": ("consolidated.safetensors", lambda f: (f / "params.json").unlink(), "params.json; download it too",
                    False),
    "sense": ("consolidated.safetensors", lambda f: (f / "params.json").write_text("{"), "not readable as JSON", False),
    "a file": ("consolidated.safetensors",
               lambda f: pipe_instead(f / "params.json"), "params.json: is no file", False),
    "a tokenizer": ("consolidated.safetensors", lambda f: (f / "tokenizer.model").unlink(), "no tokenizer here", True),
    "a sound tokenizer": ("consolidated.safetensors", lambda f: (f / "tokenizer.model").write_bytes(b"xx"),
                          "not readable as a tokenizer", True),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_folder_that_lacks(run: CommandLine, tmp_path: Path, what: str) -> None:
    form, change, message, has_args = BROKEN[what]
    folder = broken(tmp_path, form, change)
    done = run("info", folder)
    assert done.code == 2 and done.err.startswith("error: ") and done.err.count("\n") == 1
    assert any(message in line for line in done.out.splitlines() if line.startswith("problem: "))
    assert ("parameters" in done.out and "memory for" in done.out) == has_args
    assert any(message in problem for problem in record(run("info", folder, "--json"), code=2)["problems"])
    verified = run("info", folder, "--verify")
    assert not ("in 0 tensors" in verified.out and "nothing is wrong" in verified.out)
    assert verified.code == 2 and sum(message in line for line in verified.out.splitlines()) == 1


def test_nothing_of_a_model_is_refused_as_everywhere(run: CommandLine, tmp_path: Path) -> None:
    assert "no such folder" in run("info", tmp_path / "none").error
    assert "is empty" in run("info", tmp_path).error
    (tmp_path / "notes.txt").touch()
    assert "no weights" in run("info", tmp_path).error
    lora = write_official(tmp_path / "lora", random_factors(DENSE))
    assert "holds an adapter" in run("info", lora).err
    params = {**SHAPES["mixtral-8x7b"], "n_layers": 4096, "moe": {"num_experts": 1 << 20, "num_experts_per_tok": 2}}
    assert "asks for more than" in run("info", write_params(tmp_path, params)).out
    for option in ("--batch=0", "--context=0", "--ranks=0"):
        assert "must be from 1 to" in run("info", option).error
    assert run("info", "--ranks=9").error == "--ranks 9: this model has 4 layers to share out"


def test_an_adapter_counts_with_its_model(run: CommandLine, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    lora = write_official(tmp_path / "lora", random_factors(ARGS))
    plain, found = (record(run("info", folder, "--json", *more)) for more in ([], ["--lora", lora, "--verify"]))
    merged = open_checkpoint(folder, lora)
    copied = sum(merged.nbytes(name) for name in merged.shapes if merged.is_merged(name))
    assert found["memory"]["needs"][0]["copied"] == plain["memory"]["needs"][0]["copied"] + copied > 0
    assert found["notes"] == [f"{lora / 'lora.safetensors'}: adapter of rank 3 for 14 matrices"]
    assert found["verified"]["tensors"] == len(merged.shapes) + 28
    other = write_official(tmp_path / "other", random_factors(DENSE))
    assert "belongs to no matrix of this model" in run("info", shipped_checkpoint(), "--lora", other).err
    refused = run("info", folder, "--lora", tmp_path / "none")
    line = f"--lora {tmp_path / 'none'}: no such folder; name the right one"
    assert refused.err == f"error: {line}\n" and f"\nproblem: {line}\n" in refused.out


# Reading everything


def damage(folder: Path, tensor: str, values: bytes) -> None:
    """Write bytes over the beginning of a tensor."""
    file = folder / "consolidated.safetensors"
    stored = open_checkpoint(folder).tensors[tensor]
    data = bytearray(file.read_bytes())
    start = stored.parts[min(1, len(stored.parts) - 1)].start  # of the scales, if it has any
    data[start : start + len(values)] = values
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (np.float32, b"\0\0\x80\x7f"),
        (np.float32, b"\x01\0\x80\xff"),
        (np.float16, b"\0\x7c"),
        (ml_dtypes.bfloat16, b"\x81\xff"),
    ],
)
def test_nan_and_infinity_are_found_in_any_dtype(run: CommandLine, tmp_path: Path, dtype: Any, value: bytes) -> None:
    folder = tmp_path / "model"
    write_checkpoint(folder, DENSE, random_tensors(DENSE, dtype=dtype), "consolidated.safetensors")
    assert "nothing is wrong" in run("info", folder, "--verify").out
    name = "layers.1.feed_forward.w2.weight"
    damage(folder, name, value * 3)
    found = record(run("info", folder, "--verify", "--json"), code=2)
    assert found["verified"]["problems"] == [
        f"{folder / 'consolidated.safetensors'}: tensor {name!r}: 3 of its 320 values are NaN or infinite; download it"
        " again"
    ]


def test_8_bit_floats_that_are_no_numbers_are_found(run: CommandLine, tmp_path: Path) -> None:
    tensors = random_tensors(DENSE, dtype=ml_dtypes.bfloat16)
    folder = write_checkpoint(tmp_path / "model", DENSE, tensors, "consolidated.safetensors", float8_tensors)
    assert "nothing is wrong" in run("info", folder, "--verify").out
    data = bytearray((folder / "consolidated.safetensors").read_bytes())
    start = open_checkpoint(folder).tensors["layers.1.feed_forward.w2.weight"].parts[0].start
    data[start : start + 3] = b"\x7f\xff\x7e"
    (folder / "consolidated.safetensors").write_bytes(data)
    found = record(run("info", folder, "--verify", "--json"), code=2)
    (problem,) = found["verified"]["problems"]
    assert "'layers.1.feed_forward.w2.weight': 2 of its 320 values are NaN" in problem


def test_an_archive_is_held_against_its_own_checksums(run: CommandLine, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", DENSE, random_tensors(DENSE), "consolidated.pth")
    found = record(run("info", folder, "--verify", "--json"), code=2)["verified"]
    assert found["problems"] == [] and "CRC-32" in found["checksums"][0]
    name, file = "layers.0.attention.wk.weight", folder / "consolidated.00.pth"
    tensor = open_checkpoint(folder).tensors[name]
    data = bytearray(file.read_bytes())
    data[tensor.start] ^= 1  # type: ignore[union-attr]
    file.write_bytes(data)
    (problem,) = record(run("info", folder, "--verify", "--json"), code=2)["verified"]["problems"]
    assert f"{file}: tensor {name!r} does not have the archive's checksum" in problem


def test_holes_get_a_note(run: CommandLine, tmp_path: Path) -> None:
    tensors = random_tensors(DENSE)
    tensors["layers.0.attention.wv.weight"][:] = 0
    folder = write_checkpoint(tmp_path / "model", DENSE, tensors, "hf")
    assert "all zeros in tensor 'model.layers.0.self_attn.v_proj.weight'" in run("info", folder, "--verify").out


FRAME = """
 ╓──────────────────────────────────────────────╖
 ║              ·· md5sum ··                    ║
 ║                                              ║
 ║  {weights}  consolidated.safetensors         ║
 ║  {tokenizer}  tokenizer.model.v3               ║
 ╙──────────────────────────────────────────────╜
"""


def digest(algorithm: str, file: Path) -> str:
    return hashlib.new(algorithm, file.read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", ["RELEASE", "checklist.chk", "SHA256SUMS", "one file", "BSD", "huggingface", "cache"])
def test_checksums_of_every_kind(run: CommandLine, tmp_path: Path, kind: str) -> None:
    folder = write_model(tmp_path / "model")
    weights, tokenizer = folder / "consolidated.safetensors", folder / "tokenizer.model.v3"
    if kind == "RELEASE":
        text = FRAME.format(weights=digest("md5", weights), tokenizer=digest("md5", tokenizer))
        (folder / kind).write_text(text, encoding="utf-8")
    elif kind == "checklist.chk":
        absent = f"{digest('md5', tokenizer)} *x.bin\n{digest('md5', tokenizer)}  {'y' * 300}\n"  # no name is so long
        (folder / kind).write_text(f"{digest('md5', weights)}  {weights.name}\n{absent}")
    elif kind == "SHA256SUMS":
        (folder / kind).write_text(f"{digest('sha256', weights).upper()} *./{weights.name}\n")
    elif kind == "one file":
        (folder / f"{weights.name}.sha256").write_text(digest("sha256", weights))
    elif kind == "BSD":
        (folder / "checksums.txt").write_text(f"SHA256 ({weights.name}) = {digest('sha256', weights)}\n")
    elif kind == "huggingface":
        noted = folder / ".cache" / "huggingface" / "download"
        noted.mkdir(parents=True)
        (noted / f"{weights.name}.metadata").write_text(f"{'a' * 40}\n{digest('sha256', weights)}\n1700000000.0\n")
        params = (folder / "params.json").read_bytes()
        git = hashlib.sha1(b"blob %d\0" % len(params) + params).hexdigest()
        (noted / "params.json.metadata").write_text(f"{'a' * 40}\n{git}\n1700000000.0\n")
    else:
        blob = tmp_path / "blobs" / digest("sha256", weights)
        blob.parent.mkdir()
        weights.rename(blob)
        weights.symlink_to(blob)
    done = run("info", folder, "--verify")
    assert done.code == 0 and f"compared: {weights.name}: " in done.out and "nothing is wrong" in done.out
    if kind == "checklist.chk":
        assert "listed with a checksum and not here: 'x.bin' and 1 more" in done.out
    if kind in ("RELEASE", "huggingface"):
        assert sum(map(len, find_checksums(folder)[0].values())) == 2
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    done = run("info", folder, "--verify")
    assert done.code == 2 and f"error: {weights}: " in done.err and "the file has" in done.err


def test_headers_are_not_mistaken_for_tensors(tmp_path: Path) -> None:
    """Blocks begin with a tensor, whatever lies before it, and large tensors are many of them."""
    from mistral.cli.console import ProgressLine
    from mistral.cli.info.verify import BLOCK, verify

    values = np.ones((3, BLOCK // 4 + 5), np.float32)
    tensors: dict[str, Array] = {"a": np.ones((3, 1), np.float16), "b": values}
    raw = json.dumps(safetensors_header(tensors)).encode()
    for bad in (0, values.size // 2, values.size - 1):
        values[:] = 1
        values.flat[bad] = np.nan
        file = tmp_path / "consolidated.safetensors"
        file.write_bytes(struct.pack("<Q", len(raw)) + raw + b"".join(t.tobytes() for t in tensors.values()))
        found = verify(tmp_path, [file], None, ProgressLine("", ""))
        assert [p for p in found.problems if "tensor 'b': 1 of its" in p] and len(found.problems) == 1
