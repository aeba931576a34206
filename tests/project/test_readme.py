"""The READMEs and the pages in docs/ say what is true: counts, commands, options, links, names, transcripts."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mistral.checkpoint.quantization import block_kind
from mistral.cli.bench.random_checkpoint import shape_args
from mistral.cli.main import COMMANDS, HELP
from mistral.cli.options import checked_arguments, converted, taken
from mistral.cli.synonyms import SAME
from mistral.model.parameters import parameters
from tests.support.command_line import CommandLine
from tools.count_lines import recounted

ROOT = Path(__file__).resolve().parents[2]
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
HISTORY = ROOT / "docs" / "LOG.md"  # names files as they were
PAGES = [ENGLISH, CHINESE, *sorted(file for file in (ROOT / "docs").glob("*.md") if file != HISTORY)]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(r"(?:mistral|tests|tools|benchmarks|docs|checkpoints|kernels)/[\w./]*")
NAMED = re.compile(r"([\w/]+\.py): ([\w., ]+)")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
BY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def spans(text: str) -> list[str]:
    """What stands between single backquotes, each in one line."""
    return [" ".join(span.split()) for span in INLINE.findall(FENCED.sub("", text))]


def blocks(text: str) -> list[str]:
    """Code that is fenced, and lines that are indented as code, without Python's comments."""
    fenced = [re.sub(r"  # .*", "", block) for _, block in FENCED.findall(text)]
    return fenced + [line.strip() for line in re.findall(r"^ {4,}\S.*$", FENCED.sub("", text), re.MULTILINE)]


def rows(text: str) -> list[str]:
    """The rows of all tables."""
    return [line for line in FENCED.sub("", text).split("\n") if line.startswith("|")]


def command_lines(text: str) -> list[list[str]]:
    """The arguments of each `python -m main ...`, up to what is another command's."""
    found = []
    for code in (*spans(text), *blocks(text.replace("\\\n", " "))):
        for rest in re.findall(r"-m main +(.+)", code):
            lexer = shlex.shlex(rest, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words = list(lexer)
            end = next((place for place, word in enumerate(words) if set(word) <= set("();<>|&")), len(words))
            found.append(words[:end])
    return [words for words in found if words[0] != "COMMAND"]


def defined(file: Path) -> set[str]:
    """Functions, classes, methods, fields and constants of a file, those of a class as CLASS.NAME."""
    names = set[str]()

    def collect(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                collect(node.body, f"{prefix}{node.name}.")
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names.update(prefix + target.id for target in targets if isinstance(target, ast.Name))

    collect(ast.parse(file.read_text(encoding="utf-8")).body, "")
    return names


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", read(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# The face


@pytest.mark.parametrize("page", [ENGLISH, CHINESE], ids=lambda page: page.name)
def test_the_face_is_short_and_begins_with_a_real_model(page: Path) -> None:
    lines = read(page).splitlines()
    assert len(lines) <= 200
    first = "\n".join(lines[:40])
    assert "hf download mistralai/" in first and "python -m main interactive 7B --instruct" in first
    assert "](README.zh-CN.md)" in "\n".join(lines[:4]) or "](README.md)" in "\n".join(lines[:4])


def test_line_counts_are_those_of_today() -> None:
    command = [sys.executable, "tools/count_lines.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"run python tools/count_lines.py\n{done.stdout}{done.stderr}"


def test_a_count_that_is_wrong_would_be_noticed() -> None:
    table = "| what | lines |\n|---|---|\n| `mistral/version.py` | {} |\n| **all** | {} |"
    count = len(read(ROOT / "mistral" / "version.py").splitlines())
    assert recounted(table.format(1, 2)) == recounted(table.format(count, count)) == table.format(count, count)


@pytest.mark.parametrize("folder", ["model", "engine", "pipeline"])
def test_the_reading_path_leaves_no_file_out(folder: str) -> None:
    files = {str(file.relative_to(ROOT)) for file in (ROOT / "mistral" / folder).glob("*.py")}
    assert files - {f"mistral/{folder}/__init__.py"} <= set(spans(read(ENGLISH)))


def test_the_chinese_page_has_the_same_commands_and_figures() -> None:
    english, chinese = read(ENGLISH), read(CHINESE)
    assert blocks(chinese) == blocks(english)
    commands = ("python ", "pip ", "hf ", "mpirun ")
    assert sorted(span for span in spans(chinese) if span.startswith(commands)) == sorted(
        span for span in spans(english) if span.startswith(commands)
    )
    figures = [[sorted(NUMBER.findall(row)) for row in rows(text)] for text in (chinese, english)]
    assert figures[0] == figures[1]


MODELS = {
    "Mistral 7B v0.1": "mistral-7b", "Mistral 7B Instruct v0.2": "mistral-7b", "Ministral 8B": "ministral-8b",
    "Mistral Nemo 12B": "nemo-12b", "Codestral 22B": "codestral-22b", "Mixtral 8x7B": "mixtral-8x7b",
    "Mixtral 8x22B": "mixtral-8x22b", "Mistral Large 2": "large-2", "Mistral Small 3": "mistral-small-24b",
    "Ministral 3 8B": "ministral-3-8b",
}  # fmt: skip


@pytest.mark.parametrize(("model", "shape"), MODELS.items(), ids=lambda name: name)
def test_models_have_these_sizes(model: str, shape: str) -> None:
    (row,) = [row for row in rows(read(ENGLISH)) if row.startswith(f"| {model}")]
    args = shape_args(shape)
    _, layers, _, sizes = (cell.strip() for cell in row.strip("|").split("|"))
    assert int(layers) == args.n_layers
    for bits, shown in zip((16, 8, 4), sizes.split(", "), strict=True):
        kinds = [(each.size, block_kind(each, args, bits)) for each in parameters(args).values()]
        size = sum(size * (kind.nbytes / kind.weights if kind else 2) for size, kind in kinds) / 1e9
        assert float(shown) == pytest.approx(size, abs=0.51 * 10.0 ** -len(shown.partition(".")[2]))


# What stands there can be run


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    monkeypatch.chdir(ROOT)
    return CommandLine(capsys, monkeypatch)


def test_the_transcript_is_what_the_program_says(run: CommandLine) -> None:
    (transcript,) = (block for language, block in FENCED.findall(read(ENGLISH)) if not language)
    _, demo, chat = transcript.split("$ python -m main ")
    *answers, report = demo.splitlines()[1:]
    done = run("demo")
    assert done.out.splitlines() == answers
    assert NUMBER.sub("#", done.err) == NUMBER.sub("#", f"{report}\n")
    command, *lines = chat.splitlines()
    asked = [line.removeprefix("> ") for line in lines if line.startswith("> ")]
    done = run(*command.split(), stdin="\n".join(asked).encode())
    assert done.out.splitlines() == [line for line in lines if not line.startswith("> ")]


def test_the_scores_in_the_documentation_are_those_of_today(run: CommandLine) -> None:
    (transcript,) = [block for _, block in FENCED.findall(read(ROOT / "docs" / "COMMANDS.md")) if "score -" in block]
    command, *lines = transcript.splitlines()
    text = shlex.split(command.removeprefix("$ "))[1]
    done = run("score", "-", stdin=text.encode())
    said = re.findall(r"-?\d+\.?\d*|'[^']+'", done.out + done.err)
    for line in lines:
        for word in re.findall(r"-?\d+\.?\d*|'[^']+'", line):
            assert word in said or any(abs(float(word) - float(other)) < 2e-3 for other in said if other[0] != "'")


def test_the_lines_of_python_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    texts, ids = (block for language, block in FENCED.findall(read(ENGLISH)) if language == "python")
    exec(compile(texts, "README.md", "exec"), {})
    assert capsys.readouterr().out.splitlines()[-1] == "The bell was green."
    exec(compile(ids, "README.md", "exec"), {})
    shape = re.findall(r"# (\(.+?\))", ids)
    assert capsys.readouterr().out.splitlines()[-1:] == shape


@BY_PAGE
def test_every_command_line_parses(page: Path) -> None:
    for name, *arguments in command_lines(read(page)):
        if name.startswith("--") or not set(HELP).isdisjoint(arguments):
            assert name in ("--version", *HELP, *COMMANDS)
            continue
        kind = COMMANDS[name]
        options = dict(argument[2:].split("=", 1) for argument in checked_arguments(arguments, kind))
        texts = {name: value for name, value in options.items() if not value.startswith("@")}
        converted(kind(**texts))  # type: ignore[arg-type]  # text so far


def test_a_command_line_that_does_not_parse_would_be_noticed() -> None:
    text = "`python -m main demo --max_token 3`, and\n\n    printf x | python -m main score - | head    # all\n"
    assert command_lines(text) == [["demo", "--max_token", "3"], ["score", "-"]]
    assert command_lines("```\n$ $(which python) -m main info \\\n    CKPT && ls\n```\n") == [["info", "CKPT"]]


def test_the_page_of_commands_has_every_option_and_no_other() -> None:
    named = set(re.findall(r"--(?:no_)?([a-z]\w*)", read(ROOT / "docs" / "COMMANDS.md")))
    named -= {"help", "version", "config", "completion"}
    options = {f.name for kind in COMMANDS.values() for f in taken(kind) if f.kw_only}
    others = {name.lstrip("-") for name in SAME}
    assert options <= named <= options | others


# What is named is there


@BY_PAGE
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCED.sub("", read(page))):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@BY_PAGE
def test_files_and_names_in_code_exist(page: Path) -> None:
    for span in spans(read(page)):
        path = PATH.match(span)
        if path and " " not in span.partition(":")[0]:
            folder = ROOT / "mistral" / "ops" if path[0].startswith("kernels/") else ROOT
            assert (folder / path[0]).exists(), span
        if named := NAMED.fullmatch(span):
            missing = set(named[2].split(", ")) - defined(ROOT / named[1])
            assert not missing, f"{page.name}: {named[1]} does not define {', '.join(sorted(missing))}"


def test_a_name_that_is_not_defined_would_be_noticed() -> None:
    here = defined(Path(inspect.getfile(sys.modules[__name__])))
    assert {"defined", "MODELS"} <= here and "undefined" not in here
    assert {"ModelArgs", "ModelArgs.dim"} <= defined(ROOT / "mistral" / "model" / "args.py")


def test_the_architecture_describes_every_file() -> None:
    parts = re.split(r"^### (\w+)/.*$", read(ROOT / "docs" / "ARCHITECTURE.md"), flags=re.MULTILINE)
    described = dict(zip(parts[1::2], parts[2::2], strict=True))
    folders = {file.name for file in (ROOT / "mistral").iterdir() if (file / "__init__.py").exists()}
    assert described.keys() == folders
    for folder, text in described.items():
        first = " ".join(row.split("|")[1] for row in rows(text.partition("\n## ")[0]))
        entries = {file for file in (ROOT / "mistral" / folder).iterdir() if not file.name.startswith("__")}
        there = {f"{file.name}/" if file.is_dir() else file.name for file in entries}
        assert set(INLINE.findall(first)) == there
