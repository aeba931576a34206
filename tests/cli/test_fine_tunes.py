"""Fine-tunes on the command line: their own tokens, ends and templates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mistral.tokenizer.tokenizer import Tokenizer
from tests.support.checkpoint_forms import random_tensors, write_checkpoint
from tests.support.command_line import ARGS, TOKENIZER, CommandLine

DATA = Path(__file__).parents[1] / "data"
CHATML = (DATA / "chat_templates" / "chatml.jinja").read_text(encoding="utf-8")
SIZE = 330  # ids of the small tokenizer
TABLE = json.loads((DATA / "chat_golden.json").read_text(encoding="utf-8"))["tokenizers"]["byte_level"]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


def write_chatml(folder: Path, rows: int = SIZE, likeliest: int = 4, **config: Any) -> Path:
    """A ChatML fine-tune whose model answers every question with the id `likeliest`."""
    args = replace(ARGS, vocab_size=rows)
    tensors = random_tensors(args)
    tensors["norm.weight"][:] = 1
    tensors["tok_embeddings.weight"][:] = 1  # every token looks the same
    tensors["output.weight"][:] = 0
    for name in tensors:
        if "wo" in name or "w2" in name:
            tensors[name][:] = 0
    tensors["output.weight"][likeliest] = 1
    write_checkpoint(folder, args, tensors, "consolidated.safetensors")
    (folder / "tokenizer.json").write_text(json.dumps(TABLE))
    table = {"bos_token": "<s>", "eos_token": "<|im_end|>", "chat_template": CHATML, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(table))
    return folder


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if "timings" not in line]


def test_a_chatml_model_is_asked_in_its_own_template_and_ends_at_its_own_token(
    run: CommandLine, tmp_path: Path
) -> None:
    folder = write_chatml(tmp_path / "model")
    done = run("complete", folder, "--instruct", "--prompt=hello", "--max_tokens=5", "--json")
    assert (done.code, done.err) == (0, "")
    assert (records(done.out)[0]["ids"], records(done.out)[0]["finish_reason"]) == ([], "stop")
    ids = Tokenizer.from_folder(folder)
    assert ids.end_ids[0] == ids.vocabulary.specials["<|im_end|>"].id == 4


def test_a_template_of_the_users_own_is_taken_in_place_of_the_folders(run: CommandLine, tmp_path: Path) -> None:
    folder, mine = write_chatml(tmp_path / "model"), tmp_path / "mine.jinja"
    mine.write_text("{{ raise_exception('mine: ' + messages[0].content) }}")
    options = ("--instruct", "--chat_template", mine, "--max_tokens=1")
    assert (
        "does not fit the chat template (mine.jinja): mine: hello"
        in run("complete", folder, "--prompt=hello", *options).error
    )
    asked = run("interactive", folder, *options, stdin=b"hi\nho\n")
    assert asked.code == 0 and asked.err.count("mine: ") == 2, "a refused question ends no conversation"
    assert run("complete", folder, "--prompt=x", *options[:1], "--chat_template=nowhere").error.startswith("nowhere: ")


def test_ids_without_a_piece_are_said_once_and_never_chosen(run: CommandLine, tmp_path: Path) -> None:
    folder = write_chatml(tmp_path / "model", rows=SIZE + 22, likeliest=SIZE + 5)
    line = "tokenizer: 22 of the model's 352 ids have no piece in tokenizer.json (330 to 351), and are never chosen"
    done = run("complete", folder, "--prompt=hello", "--max_tokens=3", "--json", "--logprobs=1")
    assert (done.code, done.err) == (0, f"note: {line}\n")
    first = records(done.out)[0]
    assert first["ids"] == [0, 0, 0], "the likeliest of those that may be chosen"
    assert "330" not in json.dumps(first["ids"])
    shown = run("info", folder)
    assert f"note: {line}" in shown.out and "template chat_template in tokenizer_config.json, 330 ids" in shown.out
    assert run("demo", folder, "--max_tokens=2").code == 0
    assert run("interactive", folder, "--max_tokens=2", stdin=b"x\n").code == 0


def test_a_few_ids_beyond_the_model_are_said_and_another_vocabulary_is_refused(
    run: CommandLine, tmp_path: Path
) -> None:
    some = run("info", write_chatml(tmp_path / "some", rows=SIZE - 4))
    assert "tokenizer.json has 330 ids and the model 326; a text that needs one of 326 to 329 is refused" in some.out
    other = write_chatml(tmp_path / "other", rows=SIZE // 2)
    error = "has 330 ids and the model 165; it is another model's tokenizer"
    assert run("complete", other, "--prompt=x").error.endswith(error)
    assert error in run("info", other).err


def test_without_a_template_of_its_own_a_fine_tune_is_not_asked(run: CommandLine, tmp_path: Path) -> None:
    folder = write_chatml(tmp_path / "model", chat_template=None)
    for command in ("complete", "interactive"):
        error = run(
            command, folder, "--instruct", *(["--prompt=x"] if command == "complete" else []), stdin=b"x\n"
        ).error
        assert "has no chat template" in error and error.endswith("--chat_template FILE")


def test_the_shipped_tokenizer_is_no_instruct_models(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(TOKENIZER.parent)
    assert (tokenizer.is_instruct, tokenizer.template_source, tokenizer.end_ids) == (False, "v3", (2,))
    assert (tokenizer.notes, np.size(tokenizer.uncovered())) == ((), 0)
