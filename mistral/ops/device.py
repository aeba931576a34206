"""The device and threads that MindSpore uses, and the lock that lets one thread at a time use it."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from mistral.errors import InputError, one_line
from mistral.limits import address_space, data_memory, whole_cpus

DEVICES = ("auto", "CPU", "Ascend")
MAX_THREADS = 1024
# Bytes that MindSpore and the smallest model need (2.06 and 1.34 GB on 2 cores), with a margin
ADDRESS_SPACE, DATA_MEMORY = 23 * 10**8, 15 * 10**8

device_lock = threading.RLock()
"""Held during every use of MindSpore: to run an operator, make or copy a tensor, or choose a device.

There is one lock for the process, not one for each model or backend: all operators share state in MindSpore, and two
threads in it at once cause a segmentation fault, even with different models. Operators already compute on all cores, so
that taking turns costs no speed. The lock is reentrant.
"""


def check_device(device: str, threads: int | None = None) -> None:
    """Raise InputError for an invalid device name or number of threads. Loads nothing."""
    if device not in DEVICES:
        raise InputError(f"choose one of {', '.join(DEVICES)}", option="device", value=device)
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise InputError(f"must be from 1 to {MAX_THREADS}", option="threads", value=threads)


def start_device(device: str = "auto", threads: int | None = None) -> str:
    """Select the device, before the first operator runs -> its name; "auto" is Ascend where there is one.

    The default of `threads` is OMP_NUM_THREADS, or one for each core this process may use. If MindSpore has been
    imported already, OMP_NUM_THREADS holds, and where that is not set, `threads` counts for the kernels only. Raises
    InputError if the device is not available, the shell allows too little memory, or there is no working or temporary
    folder.
    """
    check_device(device, threads)
    check_surroundings()
    with device_lock:
        set_threads(threads)
        require_address_space()
        with _ctrl_c_waits():
            import mindspore as ms

        if device == "auto":
            device = "Ascend" if ms.hal.is_available("Ascend") else "CPU"
        try:
            ms.set_device(device)
        except (RuntimeError, ValueError) as error:
            reason = one_line(error).partition(". ")[0]
            message = f"MindSpore cannot use it here ({reason}); leave it at auto"
            raise InputError(message, option="device", value=device) from None
        if device == "CPU":
            ms.runtime.launch_blocking()  # the default queue costs 0.8 ms at every read-back and keeps a core busy
    return device


def check_surroundings() -> None:
    """Raise InputError if the working folder was removed, or no temporary folder is writable.

    MindSpore's import needs both, and aborts the process without them.
    """
    try:
        os.getcwd()
    except OSError:
        raise InputError("the working folder was removed; change to one that is there (cd) and start again") from None
    try:
        tempfile.gettempdir()
    except OSError:
        raise InputError("no temporary folder can be written; set TMPDIR to a folder that can be") from None


def set_threads(threads: int | None) -> None:
    """Set the number of threads; see `start_device`. Called directly where kernels run without MindSpore."""
    first = "mindspore" not in sys.modules
    if first:
        os.environ.setdefault("GLOG_v", "3")  # errors only: without Ascend libraries, each start would warn four times
        os.environ.setdefault("GOMP_SPINCOUNT", "30000")  # about a millisecond, longer than between two operators
    # Where the variable is not set, MindSpore's import makes it 1 for the kernels, and `os.environ` does not show that.
    if (first and threads) or "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(threads or _cores())


def thread_count() -> int:
    """Threads that operators and kernels use on a CPU."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(asked) if asked.isdecimal() and int(asked) else _cores()


@contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    """Delay Ctrl-C to the end of the block: interrupting MindSpore's import aborts the process with pages of traces."""
    elsewhere = threading.current_thread() is not threading.main_thread()  # signals arrive only on the main thread
    if elsewhere or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as after nohup
        yield
        return
    presses, before = list[int](), signal.getsignal(signal.SIGINT)

    def press(number: int, frame: FrameType | None) -> None:
        presses.append(number)
        with suppress(KeyboardInterrupt):  # the handler may show at once that Ctrl-C was received
            before(number, frame) if callable(before) else None

    if before not in (signal.SIG_IGN, None):  # not ignored, and Python can restore it
        signal.signal(signal.SIGINT, press)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)
    if presses:
        raise KeyboardInterrupt


def _cores() -> int:
    """Cores that this process may use, within a container's processor quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, whole_cpus() or cores)


def require_address_space() -> None:
    """Raise InputError if a limit of the shell leaves less memory than MindSpore needs: it would end without a message.

    Nothing is checked if MindSpore is already imported.
    """
    if "mindspore" in sys.modules:
        return
    for found, needed, name in ((address_space(), ADDRESS_SPACE, "-v"), (data_memory(), DATA_MEMORY, "-d")):
        if found and found[1] < needed:
            limit, left = (f"{size / 1e9:.1f} GB" for size in found)
            raise InputError(
                f"the shell's limit of memory (ulimit {name}) is {limit}, {left} of it are left, and MindSpore needs"
                f" {needed / 1e9:.1f} GB; raise it: ulimit {name} unlimited"
            )
