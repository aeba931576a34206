"""--draft: a model guesses tokens, and the text is the one that comes without; what cannot guess is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mistral import LLM, InputError
from mistral.cli.model_options import shipped_checkpoint
from mistral.engine.speculation import NewDrafter, Speculation
from tests.support.checkpoint_forms import random_tensors, write_checkpoint
from tests.support.command_line import ARGS, CommandLine, write_model
from tests.support.small_tokenizers import byte_level, hugging_face_folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with the vocabulary of the project's small checkpoint."""
    return write_model(tmp_path_factory.mktemp("draft") / "small")


@pytest.fixture(autouse=True)
def only_the_model_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    """And it always does, whatever that costs."""
    of = Speculation.of

    def changed(mode: str, backend: str, computed: NewDrafter | None = None) -> Speculation | None:
        found = of(mode, backend, computed)
        return Speculation([computed], always=True) if computed else found

    monkeypatch.setattr(Speculation, "of", changed)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


def told(out: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The answers and the timings of --json."""
    lines = [json.loads(line) for line in out.splitlines()]
    return sorted(lines[:-1], key=lambda line: int(line["index"])), lines[-1]["timings"]


@pytest.mark.parametrize("temperature", ["0", "0.9"])
def test_the_text_is_the_same_by_every_command(run: CommandLine, small: Path, temperature: str) -> None:
    shipped, how = shipped_checkpoint(), ("--backend", "native", "--temperature", temperature, "--seed", "3", "--json")
    before, _ = told(run("demo", shipped, *how, "--speculate", "off").out)
    for draft in ("self", small, shipped):
        found, timings = told(run("demo", shipped, *how, "--draft", draft).out)
        assert found == before
        assert timings["drafted_tokens"] > 0
        if draft != small:
            assert timings["accepted_tokens"] > 10
    words = ("complete", shipped, "--prompt", "Anna had a", "--max_tokens", "20", *how)
    plain, drafted = (told(run(*words, *more).out)[0] for more in (("--speculate", "off"), ("--draft", "self")))
    assert plain == drafted
    talk = ("interactive", shipped, "--backend", "native", "--temperature", temperature, "--seed", "3")
    said = b"Tom got a green bell.\nAnna has a cat.\n"
    outs = [run(*talk, *more, stdin=said) for more in (("--speculate", "off"), ("--draft", small), ("--draft", "self"))]
    assert [each.code for each in outs] == [0, 0, 0] and outs[0].out == outs[1].out == outs[2].out
    assert len(outs[0].out) > 20


def test_what_cannot_guess_is_refused_in_one_line(run: CommandLine, small: Path, tmp_path: Path) -> None:
    shipped, other = shipped_checkpoint(), tmp_path / "other"
    other.mkdir()
    hugging_face_folder(other, byte_level())
    write_checkpoint(other, ARGS, random_tensors(ARGS), "consolidated.safetensors")
    error = run("demo", shipped, "--draft", other).error
    assert error.startswith(f"--draft {other}: has another vocabulary, of ") and error.endswith("the same tokenizer")
    assert run("demo", shipped, "--draft", tmp_path / "none").error.startswith(f"--draft: {tmp_path / 'none'}")
    quantized = "--draft self: the model's weights are quantized already"
    assert run("demo", shipped, "--draft", "self", "--bits", "4").error.startswith(quantized)
    assert run("demo", shipped, "--draft", "self", "--bits", "8").error.startswith(quantized)
    assert "--speculate is off" in run("demo", shipped, "--draft", "self", "--speculate", "off").error
    assert "--draft" in run("score", shipped, "file", "--draft", "self").error


def test_one_id_that_means_something_else_is_another_vocabulary(run: CommandLine, small: Path, tmp_path: Path) -> None:
    """As many ids are not enough: the pieces are compared."""
    import sentencepiece.sentencepiece_model_pb2 as sentencepiece

    changed = write_model(tmp_path / "changed")
    proto = sentencepiece.ModelProto()
    proto.ParseFromString((changed / "tokenizer.model.v3").read_bytes())
    place = next(place for place, piece in enumerate(proto.pieces) if piece.piece == "\u2581the")
    proto.pieces[place].piece = "\u2581eht"
    (changed / "tokenizer.model.v3").write_bytes(proto.SerializeToString())
    error = run("demo", shipped_checkpoint(), "--draft", changed).error
    assert f"has another vocabulary: its id {place} stands for something else" in error


def test_a_model_in_one_object_takes_a_draft(small: Path) -> None:
    options: Any = {"max_tokens": 24, "temperature": 0.8, "seed": 1, "n": 2, "logprobs": 1}
    answers = []
    for draft in (None, "self", small):
        with LLM(shipped_checkpoint(), backend="native", draft=draft, speculate="auto" if draft else "off") as llm:
            found: Any = llm.generate("Tom had", **options)
            answers.append([(each.ids, each.logprobs) for each in found])
    assert answers[0] == answers[1] == answers[2]
    with pytest.raises(InputError, match="draft: is for speculative decoding, and speculate is off"):
        LLM(shipped_checkpoint(), draft="self", speculate="off")
