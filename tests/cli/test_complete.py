"""The complete command: one prompt, many in a file, and what a run that was interrupted leaves and goes on from."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mistral import Message, Tokenizer, Transformer, generate
from mistral.cli.model_options import shipped_checkpoint
from mistral.engine.sampling import log_softmax
from tests.support.command_line import ROOT, CommandLine, run_program, write_model

pytestmark = pytest.mark.usefixtures("all_compiled")
RAGGED = 200
QUICK = ("--threads=1", "--backend=native", "--device=CPU")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("complete") / "model")


@pytest.fixture(scope="module")
def model(folder: Path) -> Transformer:
    return Transformer.from_folder(folder, backend="native", device="CPU")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(folder)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if "timings" not in line]


def ragged() -> list[dict[str, Any]]:
    """Prompts of 1 to 40 words, some of which have options of their own."""
    rng = np.random.default_rng(3)
    words = ["the", "red", "ball", "a", "fox", "went", "home", "and", "saw", "green", "é", "漢", "[INST]", "  "]
    lines = []
    for number in range(RAGGED):
        line: dict[str, Any] = {"prompt": " ".join(rng.choice(words, rng.integers(1, 40 if number % 9 == 0 else 6)))}
        line |= {"id": f"row {number}"} if number % 2 else {}
        line |= {"max_tokens": int(rng.integers(0, 7))} if number % 3 else {}
        line |= {"temperature": 0.9, "seed": number} if number % 4 == 0 else {}
        lines.append(line)
    return lines


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in ragged()), encoding="utf-8")
    return file


@pytest.fixture
def command(folder: Path, prompts: Path, tmp_path: Path) -> tuple[object, ...]:
    return (
        "complete",
        folder,
        *QUICK,
        "--max_tokens=3",
        "--chunk_size=64",
        f"--input={prompts}",
        f"--out={tmp_path / 'out'}",
    )


# Many prompts


def test_ragged_prompts_of_a_file_are_completed_as_each_would_be_alone(
    run: CommandLine, command: tuple[object, ...], tmp_path: Path, model: Transformer, tokenizer: Tokenizer
) -> None:
    outcome = run(*command, "--logprobs=0", "--batch_size=20")
    assert (outcome.code, outcome.out) == (0, "")
    found = sorted(records((tmp_path / "out").read_text()), key=lambda each: int(each["index"]))
    assert [each["index"] for each in found] == list(range(RAGGED))
    for line, result in list(zip(ragged(), found, strict=True))[::4]:
        assert {key: result.get(key) for key in ("prompt", "id")} == {"prompt": line["prompt"], "id": line.get("id")}
        tokens, logprobs = generate(
            [tokenizer.encode(line["prompt"])], model, line.get("max_tokens", 3), line.get("temperature", 0.0),
            chunk_size=200, seed=line.get("seed", 0), eos_id=tokenizer.eos_id, prompt_logprobs=False,
        )  # fmt: skip
        assert result["ids"] == tokens[0]
        assert [token["id"] for token in result["logprobs"]] == tokens[0]
        scores = [token["logprob"] for token in result["logprobs"]]
        np.testing.assert_allclose(scores, logprobs[0], rtol=0, atol=1e-4)


def test_a_short_answer_makes_room_for_the_next_prompt(run: CommandLine, folder: Path) -> None:
    """Results come in the order in which they are finished: with two places, the long one is last but begins first."""
    lines = "".join(json.dumps({"prompt": "a", "max_tokens": count}) + "\n" for count in (30, 1, 2, 1))
    outcome = run("complete", folder, *QUICK, "--input=-", "--batch_size=2", stdin=lines.encode())
    assert [result["index"] for result in records(outcome.out)] == [1, 2, 3, 0]


def test_a_run_that_was_cut_off_goes_on_to_the_same_results(
    run: CommandLine, command: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert run(*command).code == 0
    whole = sorted(out.read_text().splitlines())
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:50]) + lines[50][:25])  # as a killed process leaves it

    asked: list[int] = []
    original = Transformer.run_blocks

    def counted(self: Transformer, x: Any, metadata: Any, *rest: Any) -> Any:
        asked.append(sum(metadata.seqlens))
        return original(self, x, metadata, *rest)

    monkeypatch.setattr(Transformer, "run_blocks", counted)
    outcome = run(*command)
    assert outcome.code == 0 and f"has 50 of {RAGGED} results already" in outcome.err
    assert sorted(out.read_text().splitlines()) == whole and asked
    asked.clear()
    assert run(*command).code == 0
    assert sorted(out.read_text().splitlines()) == whole and not asked, "nothing is computed twice"


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_was_written_before_a_failure_stays(
    run: CommandLine,
    command: tuple[object, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
) -> None:
    write, calls = os.write, []

    def failing(file: int, data: Any) -> int:
        calls.append(file)
        if len(calls) > 7:
            raise failure
        return write(file, data[:40] if len(calls) == 7 else data)

    with monkeypatch.context() as patched:
        patched.setattr("mistral.cli.complete.result_file.os.write", failing)
        outcome = run(*command)
    if isinstance(failure, OSError):
        assert outcome.error.startswith(f"--out {tmp_path / 'out'}: No space left on device; ")
    else:
        kept = f"interrupted; 6 of {RAGGED} results are in {tmp_path / 'out'}, and the same command goes on\n"
        assert (outcome.code, outcome.err) == (130, kept)
    assert (tmp_path / "out").read_text().count("\n") == 6
    assert run(*command).code == 0
    assert sorted(each["index"] for each in records((tmp_path / "out").read_text())) == list(range(RAGGED))


def test_a_full_disk_is_one_line(run: CommandLine, folder: Path, prompts: Path) -> None:
    outcome = run("complete", folder, *QUICK, f"--input={prompts}", "--out=/dev/full")
    assert "--out /dev/full: No space left on device" in outcome.error


def test_ctrl_c_ends_with_one_line_and_keeps_the_results(folder: Path, prompts: Path, tmp_path: Path) -> None:
    """A line of the file asks for an answer without end."""
    lines = prompts.read_text(encoding="utf-8").splitlines()
    (tmp_path / "in").write_text("\n".join([json.dumps({"prompt": "a", "max_tokens": 10**6}), *lines]))
    out = tmp_path / "out"
    program = [sys.executable, "-m", "main", "complete", str(folder), f"--input={tmp_path / 'in'}", f"--out={out}"]
    with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            deadline = time.monotonic() + 60
            while not (out.exists() and out.read_text().count("\n") >= 3):
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            shown, error = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, shown) == (130, b"")
    assert error.startswith(b"loading model\ninterrupted; ") and error.count(b"\n") == 2
    assert len(records(out.read_text())) >= 3


def test_a_file_of_other_results_is_refused_and_left_as_it_is(
    run: CommandLine, command: tuple[object, ...], tmp_path: Path, folder: Path
) -> None:
    out = tmp_path / "out"
    for contents in ("text of mine", "text\n", '{"index": 0}\n', "[1]\n", '{"index": [], "key": ""}\n', "\xff\n"):
        out.write_bytes(contents.encode("latin-1"))
        assert "line 1 is not a result of this command" in run(*command).error
        assert out.read_bytes() == contents.encode("latin-1")
    out.unlink()
    assert run(*command).code == 0
    before = out.read_text()
    for change in ("--seed=2", "--top_k=3", "--logprobs=1", "--precise", "--n=2"):
        assert "answers another prompt, model or setting" in run(*command, change).error
    assert out.read_text() == before
    assert "Is a directory" in run("complete", folder, "--prompt=a", f"--out={tmp_path}").error


# What a line may hold


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"', "not JSON"),
        ("prompt", "not JSON"),
        ("[" * 100_000, "64 levels deep"),
        ("3", "not an object"),
        ("{}", "needs either a prompt or messages"),
        ('{"promt": "a"}', "needs either a prompt or messages, not 'promt'"),
        ('{"prompt": "a", "messages": []}', "needs either a prompt or messages"),
        ('{"prompt": "a", "id": Infinity}', "Infinity is not a JSON number"),
        ('{"prompt": "a", "prompt": "b"}', "key 'prompt' is there twice"),
        ('{"prompt": 3}', "prompt must be a text"),
        ('{"suffix": "a", "messages": [{"role": "user", "content": "a"}]}', "suffix needs a prompt"),
        ('{"prompt": "a", "id": []}', "id must be"),
        ('{"prompt": "\\ud800"}', "not valid Unicode"),
        ('{"prompt": "\udcff"}', "not UTF-8 text at byte 12"),
        ('{"prompt": "a", "max_tokens": 2.5}', "max_tokens must be a whole number"),
        ('{"prompt": "a", "max_tokens": true}', "max_tokens must be a whole number"),
        ('{"prompt": "a", "max_tokens": -1}', "max_tokens -1: must be 0 or more"),
        ('{"prompt": "a", "temperature": "hot"}', "temperature must be a number"),
        ('{"prompt": "a", "temperature": NaN}', "NaN is not a JSON number"),
        ('{"prompt": "a", "top_p": 2}', "top_p must be"),
        ('{"prompt": "a", "stop": [1]}', "stop must be"),
        ('{"prompt": "a", "n": 0}', "n 0: must be from 1"),
        ('{"messages": [{"role": "dog", "content": "a"}]}', "message 1 needs a role"),
        ('{"messages": [{"role": "user", "content": 1}]}', "message 1 needs a text as content"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', 'add "prefix": true to go on from it'),
        ('{"prompt": "a", "suffix": "b"}', "has no fill-in-the-middle"),
        (json.dumps({"prompt": "word " * 90_000}), "tokens and the context limit is 30000: shorten the prompt"),
    ],
)
def test_a_line_that_cannot_be_is_named(run: CommandLine, folder: Path, line: str, message: str) -> None:
    lines = b'{"prompt": "a"}\n\n' + line.encode(errors="surrogateescape") + b"\n"
    error = run("complete", folder, "--input=-", "--max_context=30000", stdin=lines).error
    assert error.startswith("standard input: line 3: ") or error.startswith("standard input: line 3 has ")
    assert message in error


def test_refusals_come_before_mindspore_is_loaded(folder: Path, tmp_path: Path) -> None:
    """Also where only the tokenizer can tell."""
    (tmp_path / "in").write_text(json.dumps({"prompt": "word " * 9000}))
    options = (f"--input={tmp_path / 'in'}", "--max_context=9000")
    outcome = run_program("complete", folder, *options, shell="{} 2>&1", PYTHONVERBOSE="1")
    assert re.search(r"error: .*/in: line 1 has \d+ tokens and the context limit is 9000: shorten", outcome.out)
    assert "import 'mistral.cli.complete'" in outcome.out and "import 'mindspore'" not in outcome.out


def test_an_empty_file_and_a_missing_one(run: CommandLine, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    assert "has no prompts" in run("complete", folder, f"--input={tmp_path / 'empty'}").error
    assert "No such file" in run("complete", folder, f"--input={tmp_path / 'none'}").error
    assert "standard input: empty" in run("complete", folder).error
    assert "standard input: not UTF-8 text in line 2, at byte 3" in run("complete", folder, stdin=b"ab\n\xff").error


def test_a_conversation_goes_through_the_template_and_unused_keys_are_named(
    run: CommandLine, folder: Path, model: Transformer, tokenizer: Tokenizer
) -> None:
    turns = [("system", "Be brief."), ("user", "Who?"), ("assistant", "Tom."), ("user", "Where?")]
    line = {"messages": [{"role": role, "content": text} for role, text in turns], "category": 1}
    outcome = run("complete", folder, *QUICK, "--max_tokens=4", "--input=-", stdin=json.dumps(line).encode())
    assert "note: standard input: keys that are not used: 'category'" in outcome.err
    ids = tokenizer.encode_chat([Message(role, text) for role, text in turns])  # type: ignore[arg-type]
    assert records(outcome.out)[0]["ids"] == generate([ids], model, 4, prompt_logprobs=False)[0][0]
    outcome = run(
        "complete", folder, *QUICK, "--max_tokens=4", "--instruct", "--system=Be brief.", "--prompt=Who?", "--json"
    )
    ids = tokenizer.encode_chat([Message("system", "Be brief."), Message("user", "Who?")])
    assert records(outcome.out)[0]["ids"] == generate([ids], model, 4, prompt_logprobs=False)[0][0]


# One prompt


def test_a_prompt_is_given_by_an_option_a_file_or_standard_input(
    run: CommandLine, folder: Path, tmp_path: Path, model: Transformer, tokenizer: Tokenizer
) -> None:
    (tmp_path / "prompt").write_text("[1, 2]\n\n", encoding="utf-8")
    ids = generate([tokenizer.encode("[1, 2]\n")], model, 4, prompt_logprobs=False)[0][0]
    wanted = tokenizer.decode([*tokenizer.encode("x"), *ids]).removeprefix("x") + "\n"
    options = ("complete", folder, *QUICK, "--max_tokens=4")
    for outcome in (
        run(*options, "--prompt=[1, 2]\n"),
        run(*options, f"--prompt=@{tmp_path / 'prompt'}"),
        run(*options, stdin=b"[1, 2]\n\n"),
    ):
        assert (outcome.code, outcome.out) == (0, wanted)
        assert outcome.err.startswith("note: the answer is cut at --max_tokens 4\nload ")


def test_samples_are_those_of_generate_and_stop_strings_end_them(
    run: CommandLine, folder: Path, model: Transformer, tokenizer: Tokenizer
) -> None:
    options = ("complete", folder, *QUICK, "--max_tokens=6", "--prompt=a", "--temperature=1", "--seed=4", "--json")
    found = sorted(records(run(*options, "--n=3").out), key=lambda each: int(each["sample"]))
    ids = tokenizer.encode("a")
    for sample in range(3):
        alone = generate([ids], model, 6, 1.0, seed=4, sample=sample, eos_id=2, prompt_logprobs=False)
        assert found[sample]["ids"] == alone[0][0]
    stop = found[0]["text"][3:5]
    stopped = records(run(*options, f"--stop={stop}").out)[0]
    assert (stopped["text"], stopped["finish_reason"]) == (found[0]["text"][: found[0]["text"].index(stop)], "stop")
    assert (
        "all samples of a prompt are the same"
        in run("complete", folder, *QUICK, "--prompt=a", "--n=2", "--max_tokens=2").err
    )


def test_logprobs_are_those_of_the_raw_logits(
    run: CommandLine, folder: Path, model: Transformer, tokenizer: Tokenizer
) -> None:
    options = (
        "complete",
        folder,
        *QUICK,
        "--max_tokens=3",
        "--prompt=a",
        "--temperature=2",
        "--seed=3",
        "--logprobs=4",
    )
    result = records(run(*options, "--json").out)[0]
    ids = tokenizer.encode("a") + result["ids"]
    scores = log_softmax(model.forward(ids, [len(ids)]).asnumpy())[-4:-1]
    for token, row in zip(result["logprobs"], scores, strict=True):
        assert token["logprob"] == pytest.approx(row[token["id"]], abs=1e-4)
        assert [each["id"] for each in token["top"]] == np.argsort(-row)[:4].tolist()
        np.testing.assert_allclose([each["logprob"] for each in token["top"]], np.sort(row)[:-5:-1], atol=1e-4)
    lines = run(*options).out.splitlines()
    assert [float(line.split()[0]) for line in lines] == pytest.approx(
        [token["logprob"] for token in result["logprobs"]], abs=1e-4
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt=a", "--input=b"], "--input: cannot be together with --prompt"),
        (["--fim", "a", "b", "--prompt", "c"], "--fim: cannot be together with --prompt"),
        (["--fim", "a"], "--fim: needs two values"),
        (["--fim=a"], "--fim a: needs two texts"),
        (["--fim", "a", "b", "--instruct"], "--instruct: a chat template has no place for --fim"),
        (["--system=a"], "--system: needs --instruct"),
        (["--n=0"], "--n 0: must be from 1"),
        (["--logprobs=-1"], "--logprobs -1: must be 0 or more"),
        (["--batch_size=0"], "--batch_size 0: must be at least 1"),
        (["--prompt=@none"], "--prompt @none: No such file"),
    ],
)
def test_options_that_cannot_be_are_refused(run: CommandLine, options: list[str], message: str) -> None:
    assert message in run("complete", *options).error


def test_a_prompt_that_fails_ends_alone_and_is_named_at_the_end(run: CommandLine, tmp_path: Path) -> None:
    """One id's embedding is not a number. With --out its result is left out, so that the same command tries again."""
    shutil.copytree(shipped_checkpoint(), tmp_path / "model")
    file = tmp_path / "model" / "consolidated.safetensors"
    data = bytearray(file.read_bytes())
    size = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + size])["tok_embeddings.weight"]
    width = 2 * table["shape"][1]
    damaged = Tokenizer.from_folder(tmp_path / "model").encode("The zebra")[-1]
    start = 8 + size + table["data_offsets"][0] + damaged * width
    data[start : start + width] = b"\xc0\x7f" * (width // 2)  # NaN in bfloat16
    file.write_bytes(data)
    lines = "".join(json.dumps({"prompt": text}) + "\n" for text in ("This is a test", "The zebra", "Tom had a"))
    command = ("complete", tmp_path / "model", *QUICK, "--input=-", "--max_tokens=3")
    outcome = run(*command, stdin=lines.encode())
    found = sorted(records(outcome.out), key=lambda each: int(each["index"]))
    assert [each["finish_reason"] for each in found] == ["length", "error", "length"]
    assert found[1]["error"].startswith("logits hold NaN")
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1].startswith("error: standard input: line 2: logits hold NaN")
    assert run(*command, f"--out={tmp_path / 'out'}", stdin=lines.encode()).code == 2
    assert sorted(each["index"] for each in records((tmp_path / "out").read_text())) == [0, 2]
