"""A GGUF file in place of a folder, in every command that takes one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mistral.cli.model_options import shipped_checkpoint
from mistral.gguf.header import read_gguf
from mistral.model.args import ModelArgs
from tests.support.adapters import random_factors, write_official
from tests.support.checkpoint_forms import random_tensors, write_checkpoint
from tests.support.command_line import ARGS, EOS, TOKENIZER, CommandLine
from tests.support.gguf_files import scored, write_gguf

MODEL: ModelArgs = replace(
    ARGS, dim=64, hidden_dim=96, head_dim=16, sliding_windows=(None, None), max_seq_len=512
)  # fmt: skip
TEXT = "the red ball is in the garden"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A GGUF file, and a folder with the same model widened."""
    folder = tmp_path_factory.mktemp("pair")
    tensors = random_tensors(MODEL)
    tensors["output.weight"][EOS] = 0
    path = folder / "model.gguf"
    arrays = write_gguf(path, MODEL, tensors, "Q8_0", spoil=scored(TOKENIZER))
    write_checkpoint(folder / "wide", MODEL, arrays, "consolidated.safetensors")
    (folder / "wide" / TOKENIZER.name).write_bytes(TOKENIZER.read_bytes())
    return path, folder / "wide"


def test_demo_and_score_say_what_they_say_of_the_widened_model(run: CommandLine, pair: tuple[Path, Path]) -> None:
    for command in (("demo", "--max_tokens", 12), ("demo", "--prompts", TEXT, "--seed", 3, "--temperature", 1)):
        found = [run(command[0], place, *command[1:]) for place in pair]
        assert found[0].code == 0 and found[0].out == found[1].out != ""
    text = pair[0].with_name("text")
    text.write_text(TEXT)
    scores = [run("score", place, text, "--json") for place in pair]
    assert scores[0].code == 0
    tokens = [done.out.splitlines()[:-1] for done in scores]  # the last line has timings
    assert len(tokens[0]) > 5 and tokens[0] == tokens[1]


def test_info_shows_types_and_bytes(run: CommandLine, pair: tuple[Path, Path]) -> None:
    done = run("info", pair[0], "--json")
    record = json.loads(done.out)
    sizes = {"Q8_0": 0, "float32": 0}
    for place in read_gguf(pair[0]).tensors.values():
        sizes["Q8_0" if place.kind.name == "Q8_0" else "float32"] += place.nbytes
    assert (done.code, record["form"], record["dtypes"], record["problems"]) == (0, "GGUF", sizes, [])
    assert record["tokenizer"] == {
        "file": "model.gguf", "version": "GGUF, SentencePiece", "vocab_size": 1024, "chat_template": False,
        "template": None,
    }  # fmt: skip
    assert [need["way"] for need in record["memory"]["needs"]] == [
        "native, Q8_0", "native, 8 bits", "native, 4 bits", "portable, float32",
    ]  # fmt: skip
    shown = run("info", pair[0]).out
    assert "weights       GGUF, 0.1 MB" not in shown and " of Q8_0, float32\n" in shown


def test_verify_finds_scales_that_are_no_numbers(run: CommandLine, pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert run("info", pair[0], "--verify").code == 0
    data = bytearray(pair[0].read_bytes())
    place = read_gguf(pair[0]).tensors["blk.0.attn_q.weight"]
    for block in (0, 3):
        data[place.start + 34 * block : place.start + 34 * block + 2] = np.float16(np.nan).tobytes()
    (tmp_path / "bad.gguf").write_bytes(data)
    done = run("info", tmp_path / "bad.gguf", "--verify")
    said = "tensor 'blk.0.attn_q.weight': 2 of its blocks have a scale that is NaN or infinite; download it again"
    assert done.code == 2 and done.err.endswith(f"error: {tmp_path / 'bad.gguf'}: {said}\n")
    said = said.replace("blk.0.attn_q", "layers.0.attention.wq").replace("it again", "the file again")
    assert run("demo", tmp_path / "bad.gguf").err.endswith(f"error: {tmp_path / 'bad.gguf'}: {said}\n")


def test_an_adapter_is_merged_into_the_widened_weights(
    run: CommandLine, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    adapter = write_official(tmp_path / "lora", random_factors(MODEL))
    found = [run("demo", place, "--lora", adapter, "--max_tokens", 8) for place in pair]
    assert found[0].code == 0 and found[0].out == found[1].out != run("demo", pair[0], "--max_tokens", 8).out
    assert "adapter of rank 3 for 14 matrices" in found[0].err


def test_a_kept_prompt_is_of_this_file_alone(run: CommandLine, pair: tuple[Path, Path], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first, again = (run("demo", pair[0], "--prompts", TEXT, "--prompt_cache", cache) for _ in range(2))
    assert first.code == again.code == 0 and first.out == again.out and cache.stat().st_size
    assert "was saved with another checkpoint" in run("demo", pair[1], "--prompts", TEXT, "--prompt_cache", cache).err


def test_the_native_backend_runs_it_as_it_lies_and_any_bits_made_of_it(
    run: CommandLine, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """With --precise it is the widened model; --bits 8 means what the file is made of already; --bits 4 is another."""
    text = pair[0].with_name("native text")
    text.write_text(TEXT)

    def scores(place: Path, *options: object) -> list[float]:
        done = run("score", place, text, "--json", *options)
        assert done.code == 0
        records = [json.loads(line) for line in done.out.splitlines()]
        return [record["logprob"] for record in records if record.get("id") is not None]

    wide = scores(pair[1], "--backend", "portable")
    assert np.allclose(scores(pair[0], "--backend", "native", "--precise"), wide, atol=1e-3) and len(wide) > 4
    native = scores(pair[0], "--backend", "native")
    assert np.allclose(native, wide, atol=0.3) and native != wide
    assert scores(pair[0], "--backend", "native", "--bits", 8) == native
    assert scores(pair[0], "--backend", "native", "--bits", 4) not in (native, wide)
    data = bytearray(pair[0].read_bytes())
    place = read_gguf(pair[0]).tensors["blk.0.attn_q.weight"]
    data[place.start : place.start + 2] = np.float16(np.nan).tobytes()
    (tmp_path / "bad.gguf").write_bytes(data)
    done = run("demo", tmp_path / "bad.gguf", "--backend", "native", "--prompts", TEXT)
    assert done.code == 2 and done.err.count("error: ") == 1 and "NaN" in done.err.splitlines()[-1]


def test_a_tokenizer_beside_the_file_is_said_to_be_taken(
    run: CommandLine, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "model.gguf").write_bytes(pair[0].read_bytes())
    (tmp_path / TOKENIZER.name).write_bytes(TOKENIZER.read_bytes())
    done = run("demo", tmp_path, "--max_tokens", 2)
    assert done.code == 0
    assert f"note: tokenizer: {TOKENIZER.name} taken, not the one in model.gguf (it is Mistral's own file)" in done.err


def test_a_file_that_is_something_else_is_called_what_it_is(run: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes((shipped_checkpoint() / "consolidated.safetensors").read_bytes()[:4096])
    assert run("demo", path).error == (
        f"{path}: is no GGUF file: is a safetensors file by what is in it; name the folder that it belongs to"
    )
