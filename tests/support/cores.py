"""The processor's cores: one for each process of tests, all of them for the programs that would starve on one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_CAN_CHOOSE = hasattr(os, "sched_setaffinity")
_ALL = os.sched_getaffinity(0) if _CAN_CHOOSE else set[int]()


def keep_to_one(worker: int) -> None:
    """Run this process, and what it starts, on one core: the next for each `worker`."""
    if _CAN_CHOOSE:
        os.sched_setaffinity(0, {sorted(_ALL)[worker % len(_ALL)]})


@contextmanager
def all_cores() -> Iterator[None]:
    """What this thread starts meanwhile runs on any core.

    A server answers in two threads that wake each other. On one core, Linux 6.18 lets two such threads run for a
    minute while a browser beside them waits.
    """
    if not _CAN_CHOOSE:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, _ALL)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
