"""What a program may find around it: other runs, no folders, variables and signals of other programs, no reader."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import mistral.atomic_files
from mistral.atomic_files import lock, unfinished
from mistral.cli.chat.answer import Interruption
from mistral.cli.complete.result_file import ResultFile
from mistral.errors import InputError
from mistral.ops.device import _ctrl_c_waits, check_surroundings
from mistral.pipeline.launch import Launch, launched
from tests.support.command_line import ROOT, CommandLine, run_program, write_model


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


# Two at once


def test_the_second_run_that_writes_results_into_a_file_is_refused(run: CommandLine, tmp_path: Path) -> None:
    folder, out = write_model(tmp_path / "model"), tmp_path / "out"
    command = ("complete", folder, "--prompt=a", "--max_tokens=1", "--backend=portable", "--out", out)
    first = ResultFile(str(out), {})
    assert run(*command).error == f"--out {out}: another run is writing it; wait for its end, or name another"
    first.close()
    assert run(*command).code == 0 and out.read_bytes().count(b"\n") == 1
    assert run("complete", folder, "--prompt=a", "--max_tokens=1", "--out=/dev/null").code == 0


def test_a_folder_is_written_by_one_run_and_what_a_killed_one_left_goes(tmp_path: Path) -> None:
    out, left = tmp_path / "out", tmp_path / ".out.unfinished"
    (left / "deep").mkdir(parents=True)
    (left / "deep" / "file").write_text("of a run that was killed")
    (left / "link").symlink_to(tmp_path)
    with unfinished(out) as work:
        assert work == left and not list(work.iterdir()) and tmp_path.is_dir()
        (work / "file").write_text("mine")
        with pytest.raises(InputError, match="out: another run is writing it"), unfinished(out):
            pass
        assert (work / "file").read_text() == "mine", "the one that was refused has deleted nothing"
        work.rename(out)
        with pytest.raises(InputError, match="out: is there already"), unfinished(out):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_end_of_a_run_does_not_remove_what_the_next_one_writes(tmp_path: Path) -> None:
    with unfinished(tmp_path / "out") as work:
        work.rename(tmp_path / "elsewhere")
        with unfinished(tmp_path / "out") as other:
            (other / "file").write_text("of the next")
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]


def test_a_file_system_without_locks_gets_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without)
    with unfinished(tmp_path / "out"):
        pass
    assert capsys.readouterr().err.startswith(f"note: {tmp_path / 'out'}: no locks on this file system")
    assert errno.EBADF in mistral.atomic_files.WITHOUT_LOCKS
    monkeypatch.undo()
    with (tmp_path / "file").open("w") as one, (tmp_path / "file").open("w") as other:
        lock(one.fileno(), "file")
        with pytest.raises(InputError, match="file: another run"):
            lock(other.fileno(), "file")


# Folders that are not there


def test_a_removed_working_folder_is_one_line_before_mindspore(tmp_path: Path) -> None:
    """And what needs no MindSpore works there."""
    code = (
        "import os, sys; os.chdir(sys.argv[1]); os.rmdir(sys.argv[1])\n"
        "from mistral.cli.main import main\n"
        "codes = [main(['--help']), main(['info', '--json']), main(['demo']), main(['bench'])]\n"
        "assert 'mindspore' not in sys.modules\n"
        "sys.exit(codes != [0, 0, 2, 2])"
    )
    (tmp_path / "gone").mkdir()
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "gone"], env={**os.environ, "PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True)  # fmt: skip
    line = "error: the working folder was removed; change to one that is there (cd) and start again"
    assert (done.returncode, done.stderr.splitlines()) == (0, [line, line])


def test_no_temporary_folder_is_one_line(run: CommandLine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "missing")])
    message = "no temporary folder can be written; set TMPDIR to a folder that can be"
    assert run("demo", "--max_tokens=0").error == message
    assert run("quantize", "x", "y.gguf").error == message
    monkeypatch.undo()
    check_surroundings()


# Variables, signals, readers


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({"PMI_RANK": "", "PMI_SIZE": ""}, None),
        ({"PMI_RANK": "", "PMI_SIZE": "2"}, None),
        ({"PMI_RANK": "x", "PMI_SIZE": "2"}, None),
        ({"PMI_RANK": "-1", "PMI_SIZE": "2"}, None),
        ({"PMI_RANK": "2", "PMI_SIZE": "2"}, None),
        ({"PMI_RANK": "9" * 5000, "PMI_SIZE": "9" * 5001}, None),
        ({"OMPI_COMM_WORLD_SIZE": ""}, None),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "PMI_RANK": ""}, Launch(1, 2)),
        ({"OMPI_COMM_WORLD_RANK": "", "PMI_RANK": " 0 ", "PMI_SIZE": "2"}, Launch(0, 2)),
    ],
)
def test_variables_that_are_none_of_mpiruns_make_no_rank(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], found: Launch | None
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launched() == found


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with _ctrl_c_waits(), Interruption.watching(lambda: None) as interruption:
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGINT)
            assert not interruption.pressed
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with Interruption.watching(lambda: None) as interruption:
            os.kill(os.getpid(), signal.SIGINT)
            assert interruption.pressed
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_failing_rank_is_heard_when_the_reader_of_its_output_has_left() -> None:
    code = (
        "import os, sys; from mistral.pipeline.world import World\n"
        "from mistral.errors import InputError\n"
        "sys.stdout.write('text that nobody reads'); world = object.__new__(World)\n"
        "world.rank, world.size = 1, 2; world.fail_with(InputError('the reason'))"
    )
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT,
                          env={**os.environ, "PYTHONUNBUFFERED": ""})  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (2, "error: rank 1 of 2: the reason\n")


def test_an_error_is_heard_when_the_reader_of_the_output_has_left(tmp_path: Path) -> None:
    code = (
        "import sys; from mistral.cli.main import main\n"
        "from mistral.cli.demo import Demo; from mistral.errors import InputError\n"
        "def fail(self):\n"
        "    sys.stdout.write('text that nobody reads'); raise InputError('the reason')\n"
        "Demo.run = fail; sys.exit(main(['demo']))"
    )
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT,
                          env={**os.environ, "PYTHONUNBUFFERED": ""})  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (2, "error: the reason\n")


@pytest.mark.parametrize(
    ("kilobytes", "line"),
    [
        (100_000, "error: the shell's limit of memory (ulimit -v) leaves too little to begin; raise it: ulimit -v "),
        (1_000_000, "error: the shell's limit of memory (ulimit -v) is 1.0 GB, "),
    ],
)
def test_too_little_address_space_is_one_line(kilobytes: int, line: str) -> None:
    outcome = run_program("demo", shell=f"ulimit -v {kilobytes}; {{}}")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.removeprefix("loading tiny\n").startswith(line) and outcome.err.endswith(" unlimited\n")
