"""A rank that fails ends the whole job, soon, with a line that names it; what cannot be is refused in one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command_line import ROOT
from tests.support.mpi_cases import SHAPES, write_small
from tests.support.mpirun import Job, gone, wait_for

SOON = 30  # seconds: a guard against waiting for ever; a job that goes on would take hours


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints")
    for name in ("windowed", "dense"):
        write_small(path / name, SHAPES[name])
    write_small(path / "trained", SHAPES["windowed"], seed=1)
    return path


@pytest.fixture
def folder(checkpoints: Path, tmp_path: Path) -> Path:
    """The checkpoints beside a place for a job's own files."""
    for name in ("windowed", "dense", "trained"):
        (tmp_path / name).symlink_to(checkpoints / name)
    return tmp_path


def start(folder: Path, what: str, how: str, ranks: int = 2) -> Job:
    return Job.start(ranks, ["-m", "tests.support.mpi_job", what, str(ranks), str(folder), how])


def begun(folder: Path, ranks: int = 2) -> list[int]:
    """Process ids of the ranks, once the work has begun."""
    wait_for(folder / "begun")
    for rank in range(ranks):  # the first rank does not wait for the others to say who they are
        wait_for(folder / f"pid-{rank}")
    return [int((folder / f"pid-{rank}").read_text()) for rank in range(ranks)]


@pytest.mark.parametrize(("rank", "phase"), [(0, "decode"), (1, "prefill")])
def test_a_killed_rank_ends_the_job(folder: Path, rank: int, phase: str) -> None:
    job = start(folder, "long", phase)
    pids = begun(folder)
    os.kill(pids[rank], signal.SIGKILL)
    code, _, err = job.end(SOON)
    assert code and f"rank {rank}" in err and "signal 9" in err
    assert gone(pids, SOON)


def test_ranks_whose_mpirun_is_killed_end_too(folder: Path) -> None:
    job = start(folder, "long", "decode")
    pids = begun(folder)
    job.process.kill()
    assert gone(pids, SOON)
    job.end()


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ("raise,1", "error: rank 1 of 2: ZeroDivisionError: division by zero; the job ends"),
        ("memory,1", "error: rank 1 of 2: out of memory; use more ranks, a smaller model, or lower --max_tokens"),
        ("return,1", "error: rank 1 of 2 has ended and rank 0 waits for it; the job ends"),
        ("midway,1", "error: rank 1 of 2 left before the job was done (exit code 0); the job ends"),
        ("raise,0", "error: rank 0 of 2: ZeroDivisionError: division by zero; the job ends"),
        ("return,0", "error: rank 0 of 2 has ended and rank 1 waits for it; the job ends"),
    ],
)
def test_a_rank_that_fails_or_leaves_ends_the_job_with_one_line(folder: Path, how: str, line: str) -> None:
    job = start(folder, "broken", how)
    pids = begun(folder)
    code, _, err = job.end(SOON)
    lines = [each for each in err.splitlines() if each.startswith("error:")]
    assert code and lines == [line]
    assert ("Traceback" in err) == ("raise" in how)
    assert gone(pids, SOON)


DIFFERENT = {
    "version": "rank 1 has mistral-mindspore 0.0.0, rank 0 ",
    "checkpoint": "rank 1 has a checkpoint with the digest ",
    "weights": "rank 1 has in consolidated.safetensors weights with the digest ",
    "missing": "missing: no such folder; name the folder of a downloaded model",
}


def test_ranks_that_see_different_things_all_say_so(folder: Path) -> None:
    """Before MindSpore is loaded."""
    code, _, err = start(folder, "differs", ",".join(DIFFERENT)).end()
    assert (code, err) == (0, "")
    for what, message in DIFFERENT.items():
        found = {(folder / f"{what}-{rank}").read_text() for rank in range(2)}
        assert len(found) == 1
        assert message in found.pop()


def refusal(code: int, out: str, err: str) -> str:
    """The one line of ours; mpirun adds what it thinks of an exit code that is not 0."""
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert code == 2 and out == "" and len(lines) == 1 and "Traceback" not in err, (code, out, err)
    return lines[0]


@pytest.mark.parametrize(
    ("ranks", "arguments", "line"),
    [
        (2, [], "--num_pipeline_ranks 1: mpirun has started 2 ranks"),
        (2, ["--num_pipeline_ranks=3"], "--num_pipeline_ranks 3: mpirun has started 2 ranks"),
        (2, ["--num_pipeline_ranks=2", "--num_micro_batches=0"], "--num_micro_batches 0"),
        (5, ["--num_pipeline_ranks=5"], "--num_pipeline_ranks 5: this model has 4 layers"),
        (2, ["--num_pipeline_ranks=2", "--pipeline_split=3,2"], "--pipeline_split 3,2: must be auto, or 2 numbers"),
        (2, ["--num_pipeline_ranks=2", "--max_context=3"], "context limit is 3"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(ranks: int, arguments: list[str], line: str) -> None:
    assert line in refusal(*Job.start(ranks, ["-m", "main", "demo", *arguments]).end())


def test_without_mpirun_several_ranks_are_refused() -> None:
    command = [sys.executable, "-m", "main", "demo", "--num_pipeline_ranks=2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "error: --num_pipeline_ranks 2: needs as many processes; start it with mpirun -n 2\n"


def test_help_is_shown_once() -> None:
    code, out, err = Job.start(2, ["-m", "main", "--help"]).end()
    assert (code, err, out.count("usage:")) == (0, "", 1)
