"""What mpirun tells a process in its environment. Nothing here loads MPI."""

from __future__ import annotations

import os
import select
import stat
from dataclasses import dataclass
from pathlib import Path

from mistral.errors import InputError

LAUNCHERS = (("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE"))


@dataclass(frozen=True)
class Launch:
    """This process's rank in a job of `size` ranks."""

    rank: int
    size: int


def launched() -> Launch | None:
    """This process's rank, from its environment; None if mpirun has not started it.

    Variables that are empty, or not a valid rank and size, are ignored.
    """
    for names in LAUNCHERS:
        rank, size = (os.environ.get(name, "").strip() for name in names)
        whole = all(number.isascii() and number.isdigit() and len(number) < 10 for number in (rank, size))
        if whole and int(rank) < int(size):
            return Launch(int(rank), int(size))
    return None


def work_alone() -> None:
    """Make this process look as if mpirun had not started it."""
    for rank, _ in LAUNCHERS:
        os.environ.pop(rank, None)


def keeps_lines_back() -> bool:
    """Whether mpirun shows a rank's output only in complete lines, as Open MPI does by default."""
    buffering = "OMPI_MCA_ompi_stream_buffering"  # in lower case, as mpirun sets it
    return "OMPI_COMM_WORLD_RANK" in os.environ and os.environ.get(buffering) != "0"


def launcher_input_ended() -> bool:
    """Whether mpirun's standard input has ended. Open MPI 5.0 forwards the input but not its end.

    False if that cannot be known: for a terminal, or if mpirun runs on another machine.
    """
    path = f"/proc/{os.getppid()}/fd/0"
    try:
        kind = os.stat(path)
        if stat.S_ISFIFO(kind.st_mode):
            file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                poll = select.poll()
                poll.register(file, select.POLLIN)
                return [event for _, event in poll.poll(0)] == [select.POLLHUP]  # no writers, and nothing unread
            finally:
                os.close(file)
        if stat.S_ISREG(kind.st_mode):
            info = Path(f"/proc/{os.getppid()}/fdinfo/0").read_text()
            return int(info.split("pos:")[1].split()[0]) >= kind.st_size
        return kind.st_rdev == os.stat(os.devnull).st_rdev
    except (OSError, ValueError, IndexError):
        return False


def check_ranks(num_pipeline_ranks: int) -> None:
    """Raise InputError if the number of ranks is not the number that mpirun started. Loads nothing."""

    def ranks_error(reason: str) -> InputError:
        return InputError(reason, option="num_pipeline_ranks", value=num_pipeline_ranks)

    launch = launched()
    started = launch.size if launch else 1
    if num_pipeline_ranks < 1:
        raise ranks_error("must be at least 1")
    if num_pipeline_ranks == started:
        return
    if started == 1:
        raise ranks_error(f"needs as many processes; start it with mpirun -n {num_pipeline_ranks}")
    raise ranks_error(f"mpirun has started {started} ranks; give both the same number")
