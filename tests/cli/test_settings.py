"""Options from variables and from a settings file, and completion in a shell."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mistral.cli.completion import SHELLS, script
from mistral.cli.main import COMMANDS
from mistral.cli.main import parse as parse_line
from mistral.cli.settings import settings_file
from mistral.errors import InputError
from tests.support.command_line import ROOT, CommandLine


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


def parse(line: list[str]) -> Any:
    return parse_line(line)


FILE = """
temperature = 0.5
max-tokens = 7
stop = ["a", "b"]
json = true
[demo]
temperature = 0.25
temp = 0.25
"""


def test_the_command_line_comes_before_variables_and_these_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(b"\xef\xbb\xbf" + FILE.replace("temp = 0.25\n", "").encode())
    demo, complete = parse(["demo", "--config", str(file)]), parse(["complete", f"--config={file}", "-p", "x"])
    assert (demo.temperature, demo.max_tokens, demo.stop, demo.json) == (0.25, 7, ("a", "b"), True)
    assert complete.temperature == 0.5
    assert parse(["info", "--config", str(file)]).json is True, "of what it has not, info is given nothing"
    monkeypatch.setenv("MISTRAL_CONFIG", str(file))
    monkeypatch.setenv("MISTRAL_TEMPERATURE", "0.75")
    monkeypatch.setenv("MISTRAL_API_KEY", "of another program")
    monkeypatch.setenv("MISTRAL_SEED", "")
    assert parse(["demo"]).temperature == 0.75
    typed = parse(["demo", "--temp", "1", "--no_json", "-n", "3"])
    assert (typed.temperature, typed.json, typed.max_tokens) == (1.0, False, 3)
    assert parse(["demo", "--config="]).json is False


def test_the_users_own_file_is_found_where_the_system_keeps_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MISTRAL_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert parse(["info"]).json is False
    assert settings_file() == tmp_path / "mistral-mindspore" / "config.toml"
    settings_file().parent.mkdir()
    settings_file().write_text("[info]\njson = true\n")
    assert parse(["info"]).json is True


def test_a_checkpoint_in_a_variable_leaves_a_single_word_to_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MISTRAL_CKPT", "model")
    score = parse(["score", "text"])
    assert (score.ckpt, score.file) == ("model", "text")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("temprature = 1", ": temprature: no such option; did you mean --temperature?"),
        ("[demo]\nsystem = 'x'", ": [demo] system: no such option; --help of a command lists the options"),
        ("[chat]\nseed = 1", ": [chat] is no command; they are demo, interactive"),
        ("seed = ", ": not readable as TOML ("),
        ("seed = {a = 1}", ": [seed] is no command"),
        ("seed = [1]", ": seed: must be a text, a number, true or false, or a list of texts"),
        ("seed = 1.5", ": seed: --seed 1.5: must be a whole number"),
        ("max_tokens = -1", ": max_tokens: --max_tokens -1: must be 0 or more"),
        ("gpu_layers = 3", ": gpu_layers: no such option; there are a CPU and Ascend"),
    ],
)
def test_what_the_file_has_wrong_is_named_with_the_file(
    run: CommandLine, tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    assert run("demo", "--config", file).error.startswith(f"{file}{message}")


def test_a_file_or_variable_that_cannot_be_is_named(
    run: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("demo", "--config", tmp_path / "no").error.startswith(f"{tmp_path / 'no'}: No such file")
    assert run("demo", "--config").error == "--config: needs a value"
    assert "given twice" in run("demo", "--config=", "--config=").error
    monkeypatch.setenv("MISTRAL_TOP_P", "2x")
    assert run("demo").error == "MISTRAL_TOP_P: --top_p 2x: must be a number"


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (["chat"], "'chat' is not a command; did you mean interactive?"),
        (["generate", "x"], "'generate' is not a command; did you mean complete?"),
        (["perplexity"], "'perplexity' is not a command; did you mean score?"),
        (["quantise"], "'quantise' is not a command; did you mean quantize?"),
        (["demoo"], "'demoo' is not a command; did you mean demo?"),
        (["xyzzy"], "'xyzzy' is not a command; the commands are demo, interactive"),
        (["--seed", "1"], "'--seed' is not a command; the command comes first"),
    ],
)
def test_commands_of_other_programs_get_a_hint(run: CommandLine, line: list[str], error: str) -> None:
    assert run(*line).error.startswith(error)
    assert run("help", "info").out == run("info", "--help").out
    assert run("help").out == run("--help").out


def test_each_shell_gets_a_script_and_no_other_one(run: CommandLine) -> None:
    for shell in SHELLS:
        assert "mistral-mindspore" in run("--completion", shell).out
    assert run(f"--completion={SHELLS[0]}").out == run("--completion", SHELLS[0]).out
    assert run("--completion", "tcsh").error == "--completion tcsh: choose one of bash, zsh, fish"
    assert run("--completion").error.startswith("--completion : choose one of")
    with pytest.raises(InputError):
        script("powershell", "x")
    checked = subprocess.run(["bash", "-n"], input=run("--completion", "bash").out, text=True, capture_output=True)
    assert (checked.returncode, checked.stderr) == (0, "")


COMPLETED = [
    ("mistral-mindspore ", {*COMMANDS, "--help", "--version", "--completion"}),
    ("mistral-mindspore demo --max_", {"--max_tokens", "--max_context"}),
    ("mistral-mindspore demo --backend ", {"auto", "native", "portable"}),
    ("mistral-mindspore quantize --bits ", {"8", "4"}),
    ("mistral-mindspore info pypro", {"pyproject.toml"}),
    ("mistral-mindspore complete --out pypro", {"pyproject.toml"}),
    ("mistral-mindspore complete --seed ", set()),
]


def test_completion_gives_commands_options_choices_and_files_and_loads_no_mindspore(tmp_path: Path) -> None:
    code = (
        "import os, sys, json\n"
        "from mistral.cli.main import COMMANDS\n"
        "from mistral.cli.completion import parser\n"
        "from argcomplete import CompletionFinder\n"
        "for line in json.loads(sys.argv[1]):\n"
        "    os.environ.update(_ARGCOMPLETE='1', COMP_LINE=line, COMP_POINT=str(len(line)), _ARGCOMPLETE_IFS='|')\n"
        "    with open(sys.argv[2], 'a') as out:\n"
        "        CompletionFinder()(parser(COMMANDS), exit_method=lambda code: None, output_stream=out)\n"
        "        out.write('\\n')\n"
        "assert 'mindspore' not in sys.modules\n"
    )
    lines, out = json.dumps([line for line, _ in COMPLETED]), tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", code, lines, out], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for (line, expected), found in zip(COMPLETED, out.read_text().split("\n"), strict=False):
        assert set(found.replace(" ", "").split("|")) - {"", "-h"} == expected, line


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "mistral", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("usage: python -m mistral COMMAND")


def test_help_on_a_terminal_has_the_same_words(run: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run("info", "--help").out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    shown = run("info", "--help").out
    assert re.sub(r"\x1b\[[0-9;]*m", "", shown).split() == plain.split()
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip()) for line in shown.splitlines()) <= 60
