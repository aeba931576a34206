"""The score command: logprobs of a text against the oracle, golden figures and the tools' own evaluation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral import Engine, Tokenizer, Transformer
from mistral.cli.model_options import shipped_checkpoint
from mistral.cli.score import CHUNK, Window, score_windows, windows
from mistral.engine.timings import Timings
from tests.end_to_end.test_golden import CASES, GOLDEN, entries_of
from tests.support.command_line import CommandLine, write_model
from tests.support.generation import Spy
from tests.support.oracle import oracle_logprobs
from tests.support.small_models import SmallModel
from tools import corpus, evaluate

IDS = np.random.default_rng(5).integers(0, 40, 31).tolist()
BOS = 1


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


def scored(model: Transformer, ids: list[int], parts: list[Window], bos: int, chunk_size: int | None) -> list[float]:
    """Logprobs of all ids; asserts that each is given once."""
    found = [math.nan] * len(ids)
    for first, logprobs in score_windows(Engine(model), ids, parts, bos, chunk_size, Timings()):
        for place, logprob in enumerate(logprobs.tolist(), first):
            assert math.isnan(found[place])
            found[place] = logprob
    return found


# Windows


@given(st.integers(1, 300), st.integers(1, 40), st.data())
def test_windows_score_each_token_once_with_enough_before_it(tokens: int, context: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, context - 1))
    parts = windows(tokens, context, overlap)
    assert [place for part in parts for place in range(part.scored, part.stop)] == list(range(tokens))
    assert all(part.stop - part.start <= context and part.scored < part.stop for part in parts)
    assert all(part.scored - part.start >= overlap for part in parts[1:])
    assert parts[0].start == 0


@pytest.mark.parametrize("chunk_size", [None, 1, 4, 7])
@pytest.mark.parametrize("name", ["windowed", "interleaved", "moe"])
def test_overlapping_windows_equal_the_oracle_on_each(
    models: dict[str, SmallModel], name: str, chunk_size: int | None
) -> None:
    model = models[name]
    parts = windows(len(IDS), 9, 5)
    expected: list[float] = []
    for part in parts:
        logprobs = oracle_logprobs(model.tensors, model.args, [BOS, *IDS[part.start : part.stop]])
        expected += logprobs[part.scored - part.start :]
    np.testing.assert_allclose(scored(model.transformer, IDS, parts, BOS, chunk_size), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_scores_are_the_golden_figures_of_transformers(name: str) -> None:
    model = Transformer.from_folder(GOLDEN / name, device="CPU")
    for entry in entries_of(name):
        first, *ids = entry["prompt"] + entry["tokens"]
        found = scored(model, ids, windows(len(ids), None, 0), first, None)
        np.testing.assert_allclose(found, entry["logprobs"], rtol=0, atol=1e-3)


def test_logits_in_memory_are_those_of_a_chunk(model: Transformer, spy: Spy) -> None:
    """Many tokens, whether in one window or in many small ones; and none for tokens that are there as context alone."""
    ids = IDS * 18
    scored(model, ids, windows(len(ids), None, 0), BOS, None)
    assert max(spy.head) <= CHUNK and sum(spy.head) == len(ids) + 1
    spy.head.clear()
    scored(model, ids, windows(len(ids), 40, 0), BOS, 80)
    assert max(spy.head) <= 80
    spy.head.clear()
    ids = ids[:300]
    scored(model, ids, windows(len(ids), 60, 30), BOS, 6)
    assert max(spy.head) <= 6 and sum(spy.head) < 1.3 * len(ids)


# The command


def lines_of(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_the_shipped_checkpoint_scores_as_the_tools_evaluate_it(run: CommandLine, tmp_path: Path) -> None:
    stories = (document for document in corpus.documents(corpus.HELD_OUT_SEED) if document.parts)
    text = "\n".join(next(stories).parts)
    file = tmp_path / "text"
    file.write_bytes(b"\xef\xbb\xbf" + text.encode().replace(b"\n", b"\r\n") + b"\r\n")
    tokenizer, model = Tokenizer.from_folder(shipped_checkpoint()), Transformer.from_folder(shipped_checkpoint())
    ids = tokenizer.encode(text)
    outcome = run("score", file, "--json")
    *tokens, summary, timings = lines_of(outcome.out)
    assert [token["id"] for token in tokens] == ids[1:] and "timings" in timings
    assert "".join(token["text"] for token in tokens).lstrip(" ") == text
    loss = evaluate.model_loss(model, [ids])
    found = summary["summary"]
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert found["logprob"] == pytest.approx(sum(token["logprob"] for token in tokens), abs=1e-3)
    assert (found["tokens"], found["bytes"], found["context"]) == (len(ids) - 1, len(text.encode()), None)
    assert found["bits_per_byte"] == pytest.approx(loss * (len(ids) - 1) / math.log(2) / len(text.encode()), rel=1e-4)
    plain = run("score", shipped_checkpoint(), "-", stdin=text.encode() + b"\n").out.splitlines()
    assert len(plain) == len(ids) and plain[-1].startswith(f"{len(ids) - 1} tokens | logprob {found['logprob']} | ")
    assert [float(line.split()[1]) for line in plain[:-1]] == pytest.approx([t["logprob"] for t in tokens], abs=1e-4)


def test_a_text_longer_than_the_context_is_read_in_windows(run: CommandLine, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    model, tokenizer = Transformer.from_folder(folder, backend="native", device="CPU"), Tokenizer.from_folder(folder)
    text = "The fox saw a red ball and went home. " * 9
    options = ("score", folder, "-", "--json", "--threads=1", "--backend=native", "--device=CPU", "--max_context=21")
    ids = tokenizer.encode(text, bos=False)
    for chosen, overlap in ((), 10), (("--stride=7",), 13), (("--min_context=5",), 4), (("--stride=20",), 0):
        *tokens, summary, _ = lines_of(run(*options, *chosen, stdin=text.encode()).out)
        expected = scored(model, ids, windows(len(ids), 20, overlap), tokenizer.bos_id, None)
        np.testing.assert_allclose([token["logprob"] for token in tokens], expected, rtol=0, atol=1e-4)
        assert (summary["summary"]["context"], summary["summary"]["min_context"]) == (21, overlap + 1)


@pytest.mark.parametrize(
    ("options", "stdin", "message"),
    [
        ([], b"", "name a text file"),
        (["-"], b"", "standard input: empty; there is nothing to score"),
        (["-"], b"a\nb\xff", "standard input: not UTF-8 text in line 2, at byte 3"),
        (["none"], b"", "none: No such file or directory"),
        ([shipped_checkpoint()], b"", "Is a directory; name a text file"),
        (["-", "--temperature=1"], b"a", "--temperature: score has no such option"),
        (["-", "--stride=0"], b"a", "--stride 0: must be at least 1"),
        (["-", "--min_context=0"], b"a", "--min_context 0: must be at least 1"),
        (["-", "--stride=1", "--min_context=1"], b"a", "leave one out"),
        (["-", "--stride=5"], b"a", "--stride: needs --max_context"),
        (["-", "--stride=5", "--max_context=5"], b"a", "--stride 5: must be less than the context of 5 tokens"),
        (["-", "--min_context=5", "--max_context=5"], b"a", "--min_context 5: must be less than the context"),
        (["-", "--max_context=1"], b"a", "--max_context 1: must be at least 2"),
    ],
)
def test_what_cannot_be_scored_is_refused(run: CommandLine, options: list[object], stdin: bytes, message: str) -> None:
    assert message in run("score", *options, stdin=stdin).error
