"""Handles untrusted data in a child process with limits of memory and time; it cannot hang or crash this one."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mistral.errors import InputError

CHILD = Path(__file__).with_name("bounded_child.py")
PATIENCE = 30.0  # a child may wait so many times its processor time, on a machine that has much else to do
MOST_REPLY = 1 << 30  # bytes
ONE_THREAD = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "MALLOC_ARENA_MAX": "1"}


class Failed(Exception):  # noqa: N818  an answer to be put into words by the caller
    """The child could not fulfil the request; the message says why. `refused`: the data itself is invalid."""

    def __init__(self, reason: str, refused: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused


class BoundedProcess:
    """A child process that answers requests one at a time; it is started at the first, and again after a failure.

    May be used from several threads. It ends when this process does.
    """

    def __init__(self, memory: int, setup: Mapping[str, Any] | None = None) -> None:
        """`memory`: the most bytes of address space. `setup`: the first request to every new child."""
        self.memory, self.setup = memory, setup
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def ask(self, operation: str, seconds: float, **values: Any) -> Any:
        """The child's reply within `seconds` of its processor time. Raises `Failed`."""
        with self._lock:
            if self._child is None or self._owner != os.getpid():
                self._child, self._owner = self._started(), os.getpid()
                if self.setup is not None and operation != self.setup["operation"]:
                    self._exchange(self._child, self.setup)
            return self._exchange(self._child, {"operation": operation, "seconds": seconds, **values})

    def _started(self) -> subprocess.Popen[bytes]:
        paths = os.pathsep.join(path for path in sys.path if path)
        try:
            child = subprocess.Popen(
                [sys.executable, "-P", str(CHILD), str(self.memory)], bufsize=0,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                env=os.environ | ONE_THREAD | {"PYTHONPATH": paths}, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise InputError(f"no process could be started to read the tokenizer's files ({error.strerror})") from None
        weakref.finalize(self, _end, child, os.getpid())
        return child

    def _exchange(self, child: subprocess.Popen[bytes], request: Mapping[str, Any]) -> Any:
        data = json.dumps(request).encode()
        deadline = time.monotonic() + PATIENCE * (1 + request["seconds"])
        try:
            reply = json.loads(_spoken(child, len(data).to_bytes(8, "little") + data, deadline))
        except BaseException as error:  # an interruption leaves half a message behind
            code = self._failed(child)
            if isinstance(error, EOFError | OSError | ValueError):
                raise Failed(_reason(code), refused=True) from None
            raise
        if "error" in reply:
            raise Failed(str(reply["error"]), reply["refused"])
        return reply["value"]

    def _failed(self, child: subprocess.Popen[bytes]) -> int:
        """End a failed child -> its exit code, which is the reason if it ended by itself."""
        self._child = None
        with suppress(subprocess.TimeoutExpired):
            child.wait(0.05)
        _end(child, os.getpid())
        return child.returncode


def _end(child: subprocess.Popen[bytes], owner: int) -> None:
    """End a child, in the process that has started it and no other."""
    if owner != os.getpid():
        return
    for pipe in (child.stdin, child.stdout):
        if pipe:
            pipe.close()
    child.kill()
    child.wait()


def _spoken(child: subprocess.Popen[bytes], data: bytes, deadline: float) -> bytes:
    """Send a message and wait for the reply. Raises EOFError where the child ends or the deadline passes."""
    assert child.stdin and child.stdout
    source, target = child.stdout.fileno(), child.stdin.fileno()
    os.set_blocking(target, False)
    left, reply, length = memoryview(data), bytearray(), 8
    ready = select.poll()
    ready.register(source, select.POLLIN)
    ready.register(target, select.POLLOUT)
    while True:
        wait = deadline - time.monotonic()
        events = dict(ready.poll(max(0.0, wait) * 1000))
        if wait <= 0 or not events:
            raise EOFError
        if left and target in events:
            left = left[os.write(target, left[: 1 << 16]) :]
            if not left:
                ready.unregister(target)
        if source in events:
            chunk = os.read(source, 1 << 20)
            if not chunk:
                raise EOFError
            reply += chunk
            if len(reply) >= 8:
                length = 8 + int.from_bytes(reply[:8], "little")
                if length > MOST_REPLY:
                    raise EOFError
                if len(reply) >= length:
                    return bytes(reply[8:length])


def _reason(code: int | None) -> str:
    if code in (-signal.SIGXCPU, -signal.SIGPROF, -signal.SIGKILL):
        return "it takes too much time"
    return "it takes too much memory" if code in (-signal.SIGABRT, 1) else f"the library crashes on it (code {code})"
