"""The command line: what it takes, what it refuses, and that it never shows a crash."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields, replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

import mistral.cli.main
from mistral import __version__
from mistral.cli.bench.command import Bench
from mistral.cli.chat.command import Interactive
from mistral.cli.demo import Demo
from mistral.errors import InputError
from tests.support.command_line import ARGS, ROOT, CommandLine, run_program, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("cli") / "model")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


# Usage

WRONG_USAGE = {
    "bogus": ["bogus"],
    "'demos'": ["demos"],
    "--bogus": ["demo", "--bogus"],
    "--max_token:": ["demo", "--max_token", "3"],
    "--instruct": ["demo", "--instruct"],
    "--prompts": ["interactive", "--prompts=x"],
    "--max-tokens: given twice": ["demo", "--max_tokens=3", "--max-tokens=3"],
    "--seed: needs a value": ["demo", "--seed"],
    "--top_p: needs a value": ["demo", "--top_p", "--json"],
    "'two'": ["demo", "one", "two"],
    "--max_tokens many": ["demo", "--max_tokens", "many"],
    "--max_tokens 1.5": ["demo", "--max_tokens", "1.5"],
    "--max_tokens : must": ["demo", "--max_tokens="],
    "--max_tokens -1": ["demo", "--max_tokens", "-1"],
    "--temperature warm": ["demo", "--temperature", "warm"],
    "temperature must": ["demo", "--temperature", "-0.1"],
    "not nan": ["demo", "--temperature", "nan"],
    "top_p must": ["demo", "--top_p", "1.5"],
    "top_k must": ["demo", "--top_k", "-1"],
    "min_p must": ["demo", "--min_p", "2"],
    "repetition_penalty must": ["demo", "--repetition_penalty", "0"],
    "seed must": ["demo", "--seed", "-2"],
    "--chunk_size 0": ["demo", "--chunk_size", "0"],
    "--max_context 0": ["demo", "--max_context", "0"],
    "--bits 5": ["demo", "--bits", "5"],
    "--num_pipeline_ranks 2": ["demo", "--num_pipeline_ranks", "2"],
    "--backend fast": ["demo", "--backend", "fast"],
    "--device TPU": ["demo", "--device", "TPU"],
    "--threads 0": ["demo", "--threads", "0"],
    "--threads 5000": ["demo", "--threads", "5000"],
    "--json maybe": ["demo", "--json=maybe"],
    "--prompts @/no/such/file": ["demo", "--prompts", "@/no/such/file"],
    "--stop @/no/such/file": ["interactive", "--stop", "@/no/such/file"],
    r"--prompts @a\x00b": ["demo", "--prompts", r'["@a\u0000b"]'],
    r"--fo\no\x1b[31m": ["demo", "--fo\no\x1b[31m"],
    "--: demo has no such option": ["demo", "--", "--trace"],
}


@pytest.mark.parametrize("named", WRONG_USAGE)
def test_wrong_usage_is_one_line_that_names_it(run: CommandLine, named: str) -> None:
    assert named in run(*WRONG_USAGE[named]).error


def test_wrong_usage_and_help_do_no_work() -> None:
    """Neither MindSpore nor a tokenizer is loaded; nor for a folder that is not there."""
    lines = [
        *WRONG_USAGE.values(),
        ["--help"],
        ["demo", "--help"],
        ["interactive", "-h"],
        ["--version"],
        [],
        ["demo", "/no"],
    ]
    code = (
        "import json, sys; from mistral.cli.main import main\n"
        "for line in json.loads(sys.argv[1]): main(line)\n"
        "assert not {'mindspore', 'mistral_common', 'tokenizers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(lines)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("error: ") == len(done.stderr.splitlines()) == len(WRONG_USAGE) + 1


def test_without_arguments_the_overview_comes_with_code_2(run: CommandLine) -> None:
    nothing, helped = run(), run("--help")
    assert (nothing.code, helped.code) == (2, 0)
    assert nothing.out == helped.out == run("-h").out
    for words in ("usage: python -m main", "demo", "interactive", "--help", "--version"):
        assert words in helped.out


@pytest.mark.parametrize("command", [Demo, Interactive, Bench])
@pytest.mark.parametrize("line", [["--help"], ["-h"], ["--bogus", "--help", "3"], ["--seed", "--help"]])
def test_help_of_a_command_lists_its_options(run: CommandLine, command: type, line: list[str]) -> None:
    outcome = run(command.__name__.lower(), *line)
    assert outcome.code == 0 and outcome.err == ""
    for field in fields(command):
        assert f"--{field.name}" in outcome.out or field.name.upper() in outcome.out


def test_help_is_a_text_where_a_text_is_asked_for(run: CommandLine, model: Path) -> None:
    assert run("demo", model, "--max_tokens=0", "--prompts", "help").out.startswith("help\n")
    assert run("demo", model, "--max_tokens=0", "--prompts=--help").out.startswith("--help\n")


def test_the_version_is_ours_and_mindspores(run: CommandLine) -> None:
    outcome = run("--version")
    assert outcome.code == 0
    assert outcome.out.startswith(f"mistral-mindspore {__version__}, mindspore ")


# Text stays text

TEXTS = [
    "42", "-1", "1e5", "None", "True", "false", "[INST]", "[INST] hi [/INST]", '{"a":1}', "(1, 2)", "'quoted'", "-",
    "- -", "-x", "a=b", "--x=y", "--x", "", " ", "[]", "[1]", "two\nlines", "#", "0x10", "1_000", "help", "é漢🙂",
    "\x1b[0m", "</s>",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_a_prompt_stays_the_text_that_was_typed(run: CommandLine, model: Path, text: str) -> None:
    outcome = run("demo", model, "--max_tokens=0", "--json", f"--prompts={text}")
    assert (outcome.code, outcome.err) == (0, "")
    assert json.loads(outcome.out.splitlines()[0])["prompt"] == text
    if not text.startswith("--"):
        assert run("demo", model, "--max_tokens=0", f"--prompts={text}").out.startswith(f"{text}\n")
        apart = run("demo", model, "--prompts", text, "--json", "--max_tokens", "0")
        assert json.loads(apart.out.splitlines()[0]) == json.loads(outcome.out.splitlines()[0])


def test_the_checkpoint_may_stand_anywhere_or_have_a_flag(run: CommandLine, model: Path) -> None:
    first = run("demo", model, "--max_tokens=1").out
    assert run("demo", "--max_tokens=1", model).out == first
    assert run("demo", "--max-tokens", 1, "--ckpt", model).out == first
    plain, words = run("demo", "--json", model, "--max_tokens=1"), run("demo", model, "--max_tokens=1", "--json=true")
    assert plain.out.splitlines()[:3] == words.out.splitlines()[:3]


# Bad checkpoints


def test_a_folder_that_cannot_be_is_named(run: CommandLine, tmp_path: Path) -> None:
    for folder in (tmp_path / "missing", tmp_path, "-", "None", "42", "x" * 5000, "a\nb"):
        assert str(folder)[:200].replace("\n", "\\n") in run("demo", folder).error
    assert "'': is an empty name" in run("demo", "").error, "an empty name is not the checkpoint that ships"


@pytest.mark.parametrize(
    "file, damage",
    [
        ("params.json", lambda data: data[:-1]),
        ("params.json", lambda data: b'{"dim": 16}'),
        ("params.json", lambda data: b"\xff"),
        ("consolidated.safetensors", lambda data: data[:-1]),
        ("consolidated.safetensors", lambda data: b"\x00" * 20),
        ("tokenizer.model.v3", lambda data: data[: len(data) // 2]),
        ("tokenizer.model.v3", lambda data: b""),
    ],
)
def test_a_damaged_file_is_named(run: CommandLine, model: Path, tmp_path: Path, file: str, damage: object) -> None:
    for path in model.iterdir():
        assert callable(damage)
        (tmp_path / path.name).write_bytes(damage(path.read_bytes()) if path.name == file else path.read_bytes())
    assert str(tmp_path / file) in run("demo", tmp_path).error


def test_a_checkpoint_without_a_tokenizer_says_what_to_add(run: CommandLine, model: Path, tmp_path: Path) -> None:
    for path in model.iterdir():
        if "tokenizer" not in path.name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert f"{tmp_path}: no tokenizer here; add" in run("demo", tmp_path).error


def test_the_tokenizer_of_a_larger_model_is_refused(run: CommandLine, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", replace(ARGS, vocab_size=700))
    error = run("demo", folder).error
    assert str(folder / "tokenizer.model.v3") in error and "1024" in error and "700" in error


def test_a_prompt_longer_than_the_context_is_refused(run: CommandLine, model: Path, tmp_path: Path) -> None:
    assert "context limit is 4" in run("demo", model, "--max_context=4").error
    limited = write_model(tmp_path / "model", replace(ARGS, max_seq_len=3))
    assert "context limit is 3" in run("demo", limited, "--max_context=1000").error
    assert run("demo", limited, "--max_context=1000", "--prompts=").code == 0


def test_more_than_memory_holds_is_refused(run: CommandLine, tmp_path: Path) -> None:
    unlimited = write_model(tmp_path / "model", replace(ARGS, sliding_windows=(None, 7)))
    assert "lower --max_tokens" in run("demo", unlimited, f"--max_tokens={10**30}").error


def test_text_that_is_not_unicode_is_refused(run: CommandLine, model: Path) -> None:
    assert "not valid Unicode" in run("demo", model, "--prompts", "caf\udce9").error
    assert "not valid Unicode" in run("demo", model, "--prompts", r'["\ud800"]').error


def test_a_device_that_is_not_there_is_named(run: CommandLine, model: Path) -> None:
    """As on every machine that runs these tests; MindSpore's own words are cut to their first sentence."""
    assert "--device Ascend: MindSpore cannot use it here (" in run("demo", model, "--device=Ascend").error
    assert run("demo", model, "--device=CPU", "--max_tokens=0").code == 0


# The edge


@pytest.mark.parametrize(
    "raised, code, line",
    [
        (InputError("a\nb\x1b[2J\u2028"), 2, r"error: a\nb\x1b[2J\u2028"),
        (MemoryError(), 2, "error: out of memory; use a smaller model, or lower --max_tokens"),
        (
            ModuleNotFoundError("No module named 'jinja2'"),
            2,
            "error: a Python package is missing or damaged (No module named 'jinja2'); run pip install -r"
            " requirements.txt",
        ),
        (OSError(5, "Input/output error", "weights"), 2, "error: weights: Input/output error"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_goes_wrong_is_one_line(
    run: CommandLine, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int, line: str
) -> None:
    def fail(self: Demo) -> None:
        raise raised

    monkeypatch.setattr(Demo, "run", fail)
    outcome = run("demo")
    assert (outcome.code, outcome.out, outcome.err) == (code, "", f"{line}\n")


@pytest.mark.parametrize("module", ["main", "mistral"])
def test_without_its_packages_the_program_says_how_to_get_them(module: str) -> None:
    done = subprocess.run([sys.executable, "-S", "-m", module, "demo"], capture_output=True, text=True, cwd=ROOT,
                          check=False)  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: a Python package is missing or damaged (No module named '")
    assert done.stderr.endswith("); run pip install -r requirements.txt\n") and done.stderr.count("\n") == 1


def test_a_fault_of_the_program_is_not_hidden(run: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Demo, "run", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("demo")


def test_versions_do_without_mindspore(run: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(mistral.cli.main, "version", missing)
    assert run("--version").out.endswith("mindspore not installed\n")


def test_a_reader_who_leaves_ends_the_program_quietly(model: Path) -> None:
    # after four bytes, when most is still to come: the lines that follow the first are written at once
    shell = '{} | head -c 4; test "${{PIPESTATUS[0]}}" = 0'
    outcome = run_program("demo", model, "--max_tokens=50", shell=shell)
    assert (outcome.code, outcome.err) == (0, "loading model\n")
    assert outcome.out == "This"
    assert run_program("--help", shell="{} | true; exit ${{PIPESTATUS[0]}}").err == ""


def test_a_full_disk_is_one_line() -> None:
    outcome = run_program("--help", shell="{} > /dev/full")
    assert outcome.error == "the output: No space left on device"


def test_messages_that_cannot_be_written_end_nothing(model: Path) -> None:
    outcome = run_program("demo", model, "--max_tokens=1", "--json", shell="{} 2> /dev/full")
    assert outcome.code == 0 and "prompt" in outcome.out
    assert run_program("demo", "--max_tokens=none", shell="{} 2> /dev/full").code == 2


def test_ctrl_c_while_the_program_is_imported_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "fire.py").write_text("raise KeyboardInterrupt")
    outcome = run_program("demo", PYTHONPATH=str(tmp_path))
    assert (outcome.code, outcome.out, outcome.err) == (130, "", "interrupted\n")


def test_closed_streams_do_not_matter(model: Path) -> None:
    assert run_program("demo", model, "--max_tokens=1", shell="{} <&- >&- 2>&-").code == 0
    outcome = run_program("interactive", model, shell="{} <&- 2>&-")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")


def test_a_terminal_without_the_characters_gets_them_escaped(model: Path) -> None:
    outcome = run_program("demo", model, "--max_tokens=0", "--prompts=é漢", PYTHONIOENCODING="ascii")
    assert (outcome.code, outcome.out.splitlines()[0]) == (0, r"\xe9\u6f22")
