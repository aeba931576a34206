"""mpirun as the tests start it, and what is left of a job afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support.command_line import PORTABLE, ROOT

MPIRUN = str(Path(sys.executable).parent / "mpirun")
# More ranks than cores; as root; and nothing that a machine's own settings add.
FLAGS = ("--oversubscribe", "--bind-to", "none")
ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT), **PORTABLE,
}  # fmt: skip


@dataclass
class Job:
    """A running mpirun."""

    process: subprocess.Popen[bytes]

    @classmethod
    def start(
        cls, ranks: int, program: Sequence[str], stdin: int = subprocess.DEVNULL, flags: Sequence[str] = ()
    ) -> Job:
        command = [MPIRUN, "-n", str(ranks), *FLAGS, *flags, sys.executable, *program]
        return cls(
            subprocess.Popen(
                command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
                env=os.environ | ENVIRONMENT,
            )
        )  # fmt: skip

    def end(self, seconds: float = 150) -> tuple[int, str, str]:
        """Exit code, standard output and standard error, once it has ended; what has not ended by then is killed."""
        try:
            out, err = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            out, err = self.process.communicate()
            raise AssertionError(f"still running after {seconds} s: {out!r} {err!r}") from None
        return self.process.returncode, out.decode().replace("\r\n", "\n"), err.decode().replace("\r\n", "\n")

    def ranks(self) -> list[psutil.Process]:
        """Its processes, but for mpirun's own."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if "python" in child.name()]

    def kill(self) -> None:
        for process in [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]:
            process.kill()


def wait_for(file: Path, seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not file.exists():
        assert time.monotonic() < deadline, f"no {file}"
        time.sleep(0.02)


def gone(pids: Sequence[int], seconds: float) -> bool:
    """Whether the processes are all gone within so many seconds."""
    deadline = time.monotonic() + seconds
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
