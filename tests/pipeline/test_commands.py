"""demo and interactive under mpirun."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mistral.checkpoint.checkpoint import open_checkpoint
from mistral.cli.chat.typed_ahead import STOP_HINT, TypedAhead
from mistral.cli.model_options import shipped_checkpoint
from tests.support.command_line import CommandLine, write_model
from tests.support.mpirun import Job


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("commands") / "model")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


def test_the_demo_says_the_same_and_only_the_first_rank_speaks(run: CommandLine) -> None:
    """With the checkpoint that ships, split by hand, in more micro-batches than it needs."""
    options = ["--max_tokens=5", "--json"]
    alone = run("demo", *options).out.splitlines()[:-1]
    pipeline = ["--num_pipeline_ranks=2", "--pipeline_split=3,1", "--num_micro_batches=3"]
    code, out, err = Job.start(2, ["-m", "main", "demo", *options, *pipeline]).end()
    *answers, timings = out.splitlines()
    assert (code, err) == (0, "")
    assert sorted(answers) == sorted(alone)
    assert json.loads(timings)["timings"]["prefill_tokens"] > 0


def test_grammars_are_kept_to_where_the_last_rank_samples(run: CommandLine, tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    forms: tuple[dict[str, object], ...] = (
        {"json_schema": {"type": "object", "properties": {"a": {"enum": ["x", 1]}}, "required": ["a"]}},
        {"regex": "[0-9]{3}[a-z]{2}", "temperature": 1.0, "seed": 3},
        {"grammar": 'start: "(" /[a-c]{2}/ ")"'},
        {"logit_bias": {"70": 50.0}, "min_tokens": 4, "presence_penalty": 1.0},
        {},
    )
    lines.write_text("".join(f"{json.dumps({'prompt': 'Tom had', 'max_tokens': 12, **form})}\n" for form in forms))
    options = ["complete", f"--input={lines}", "--n=2"]
    alone = sorted(run(*options).out.splitlines())
    code, out, err = Job.start(2, ["-m", "main", *options, "--num_pipeline_ranks=2"]).end()
    assert code == 0 and "error" not in err
    assert sorted(out.splitlines()) == alone and len(alone) == 10


def test_a_command_for_one_process_is_done_by_the_first_rank(tmp_path: Path) -> None:
    """Quantizing, then measuring what came of it; the others leave."""
    out = tmp_path / "out.gguf"
    code, shown, err = Job.start(2, ["-m", "main", "quantize", str(shipped_checkpoint()), str(out), "--bits=8"]).end()
    assert code == 0 and err.count("note: quantize works in one process; the other ranks of mpirun have left") == 1
    assert open_checkpoint(out).type_name("tok_embeddings.weight") == "Q8_0"
    few = ["--backend=portable", "--prefill=2", "--batches=1", "--tokens=2", "--repeats=1", "--json"]
    code, shown, err = Job.start(2, ["-m", "main", "bench", str(shipped_checkpoint()), *few]).end()
    assert code == 0 and "bench works in one process" in err
    figures = [json.loads(line)["figure"] for line in shown.splitlines()]
    assert len(figures) == len(set(figures)) > 3


def test_prompts_from_a_pipe_are_completed_with_logprobs_and_a_text_is_scored(run: CommandLine, model: Path) -> None:
    """Ids and logprobs come from the last rank; the first alone reads standard input."""
    lines = [{"prompt": "a red ball " * count, "max_tokens": count, "logprobs": 2} for count in range(1, 6)]
    data = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    for command in (("complete", "--input=-", "--batch_size=3"), ("score", "-", "--max_context=20")):
        options = [command[0], str(model), *command[1:], "--json"]
        job = Job.start(2, ["-m", "main", *options, "--num_pipeline_ranks=2"], subprocess.PIPE)
        out, err = job.process.communicate(data, timeout=40)
        assert (job.process.returncode, err) == (0, b"")
        found, alone = (
            sorted((json.loads(line) for line in text.splitlines()[:-1]), key=lambda each: int(each.get("index", -1)))
            for text in (out.decode(), run(*options, stdin=data).out)
        )
        if command[0] == "complete":
            assert [each["ids"] for each in found] == [each["ids"] for each in alone]
            pairs = [(one["logprobs"], other["logprobs"]) for one, other in zip(found, alone, strict=True)]
            found, alone = ([token for pair in pairs for token in pair[which]] for which in (0, 1))
            assert all(len(token["top"]) == 2 for token in found)
        else:
            found, alone = found[1:], alone[1:]  # the summary aside
        assert len(found) == len(alone) > 10
        for one, other in zip(found, alone, strict=True):
            assert one["id"] == other["id"] and abs(one["logprob"] - other["logprob"]) < 1e-4


class Conversation:
    """An interactive job: what is typed, and what it has shown."""

    def __init__(self, model: Path) -> None:
        program = ["-m", "main", "interactive", str(model), "--num_pipeline_ranks=2", "--instruct", "--temperature=0"]
        self.job = Job.start(2, [*program, "--max_tokens=20000"], subprocess.PIPE, ["--stream-buffering", "0"])
        self.out = self.err = ""

    def type(self, text: str) -> None:
        assert self.job.process.stdin is not None
        self.job.process.stdin.write(text.encode())
        self.job.process.stdin.flush()

    def read(self, seconds: float) -> None:
        """What is shown within so many seconds, or until something is."""
        out, err = self.job.process.stdout, self.job.process.stderr
        assert out is not None and err is not None
        for stream in select.select([out, err], [], [], seconds)[0]:
            text = os.read(stream.fileno(), 1 << 16).decode(errors="replace")
            if stream is out:
                self.out += text
            else:
                self.err += text

    def until(self, shown: str, count: int = 1, error: bool = False) -> None:
        deadline = time.monotonic() + 40
        while (self.err if error else self.out).count(shown) < count:
            assert time.monotonic() < deadline, (shown, self.out, self.err)
            self.read(1)


@pytest.fixture
def conversation(model: Path) -> Iterator[Conversation]:
    found = Conversation(model)
    yield found
    if found.job.process.poll() is None:
        found.job.kill()
    found.job.process.wait()
    for stream in (found.job.process.stdin, found.job.process.stdout, found.job.process.stderr):
        assert stream is not None
        stream.close()


def test_a_conversation_stops_at_a_word_and_waits_without_work(conversation: Conversation) -> None:
    conversation.until("> ", error=True)
    assert STOP_HINT in conversation.err
    ranks = conversation.job.ranks()
    assert len(ranks) == 2
    time.sleep(0.5)
    before = [sum(rank.cpu_times()[:2]) for rank in ranks]
    time.sleep(2)
    after = [sum(rank.cpu_times()[:2]) for rank in ranks]
    assert max(b - a for a, b in zip(before, after, strict=True)) < 0.05 * 2, "a waiting rank uses the processor"
    for count, stop in enumerate(("/stop\n", "\n"), 1):
        conversation.type(f"question {count}\n")
        length = len(conversation.out)
        while len(conversation.out) < length + 20:  # into the answer
            conversation.read(1)
        conversation.type(stop)
        conversation.until(" [stopped]", count)
        conversation.until("> ", count + 1, error=True)
    conversation.type("/quit\n")
    conversation.until("decode", error=True)
    assert conversation.job.process.wait(10) == 0


def test_input_that_is_there_at_once_is_answered_line_by_line(run: CommandLine, model: Path) -> None:
    """Empty lines stop nothing where nobody types; and what a pipe is told equals what one process is told."""
    lines = b"one\n\ntwo\n"
    options = ["interactive", str(model), "--max_tokens=6", "--temperature=0", "--json"]
    job = Job.start(2, ["-m", "main", *options, "--num_pipeline_ranks=2"], subprocess.PIPE)
    out, _ = job.process.communicate(lines, timeout=40)
    assert job.process.returncode == 0
    found = [json.loads(line) for line in out.decode().splitlines()[:-1]]
    alone = run(*options, stdin=lines).out.splitlines()[:-1]
    assert found == [json.loads(line) for line in alone]


@pytest.mark.parametrize(
    ("text", "ended", "stops", "lines"),
    [
        (b"\nnext\n", False, [True, False], [b"next"]),
        (b"\nnext\n", True, [False], [b"next"]),
        (b"/stop\r\nnext", True, [True, False], [b"next"]),
        (b"next\n/stop\n", True, [False], [b"next"]),
        (b"", True, [False], []),
        (b"/quit\nnext\n", False, [True, True], []),
    ],
)
def test_the_line_that_comes_next_may_stop_an_answer(
    monkeypatch: pytest.MonkeyPatch, text: bytes, ended: bool, stops: list[bool], lines: list[bytes]
) -> None:
    reading, writing = os.pipe()
    os.write(writing, text)
    stream = os.fdopen(reading, "rb")
    monkeypatch.setattr("sys.stdin", stream)
    monkeypatch.setattr("mistral.cli.chat.typed_ahead.launcher_input_ended", lambda: False)
    typed = TypedAhead()
    if ended:
        os.close(writing)
    time.sleep(0.1)
    assert [typed.stop() for _ in stops] == stops
    if not ended:
        os.close(writing)
    assert list(typed.lines()) == lines
    time.sleep(0.1)
    stream.close()
