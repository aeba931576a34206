"""Limits of this process: those of its container (cgroups) and of the shell (ulimit).

The files are those of Linux: https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1. On other systems there
are no limits. `root` is the root folder, which differs from / only in tests.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
UNLIMITED = 1 << 60  # bytes: cgroup v1 writes a number of about this size for no limit


@dataclass(frozen=True)
class MemoryLimit:
    """The memory limit of a control group in bytes, and the free part; pages of files count as free."""

    limit: int
    free: int


def memory_limit(root: Path = ROOT) -> MemoryLimit | None:
    """The memory limit with the least free, of this process's group and its parents; None without one."""
    found = [*_memory_v2(root), *_memory_v1(root)]
    return min(found, key=lambda limit: limit.free, default=None)


def cpu_limit(root: Path = ROOT) -> float | None:
    """The processor quota of this process's groups, in processors; None without one."""
    found = []
    for folder in _groups(root, "", "cgroup"):
        quota, _, period = _text(folder / "cpu.max").strip().partition(" ")
        if quota.isdecimal() and period.isdecimal() and int(period):
            found.append(int(quota) / int(period))
    for folder in _groups(root, "cpu", "cgroup/cpu", "cgroup/cpu,cpuacct"):
        limited, each = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if limited and each:
            found.append(limited / each)
    return min(found, default=None)


def whole_cpus(root: Path = ROOT) -> int | None:
    """The number of threads for `cpu_limit`, at least 1; None without a limit."""
    cpus = cpu_limit(root)
    return None if cpus is None else max(1, math.ceil(cpus))


def address_space() -> tuple[int, int] | None:
    """The limit of mapped bytes of this process (ulimit -v), and the free part; None without a limit."""
    return _of_process("RLIMIT_AS", "VmSize")


def data_memory() -> tuple[int, int] | None:
    """The limit of bytes of this process that are not files' (ulimit -d), and those that are left; None without one."""
    return _of_process("RLIMIT_DATA", "VmData")


def _of_process(name: str, counted: str) -> tuple[int, int] | None:
    try:
        import resource
    except ImportError:  # not on this system
        return None
    limit = resource.getrlimit(getattr(resource, name))[0]
    if limit == resource.RLIM_INFINITY:
        return None
    lines = _text(ROOT / "proc/self/status").splitlines()
    used = next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{counted}:")), 0)
    return limit, max(0, limit - used)


def _memory_v2(root: Path) -> Iterator[MemoryLimit]:
    for folder in _groups(root, "", "cgroup"):
        limits = [found for name in ("memory.max", "memory.high") if (found := _number(folder / name)) is not None]
        if limits:
            used, files = _number(folder / "memory.current") or 0, _stat(folder, "inactive_file")
            yield MemoryLimit(min(limits), max(0, min(limits) - max(0, used - files)))


def _memory_v1(root: Path) -> Iterator[MemoryLimit]:
    for folder in _groups(root, "memory", "cgroup/memory"):
        limit = _number(folder / "memory.limit_in_bytes")
        if limit is not None and limit < UNLIMITED:
            used, files = _number(folder / "memory.usage_in_bytes") or 0, _stat(folder, "total_inactive_file")
            yield MemoryLimit(limit, max(0, limit - max(0, used - files)))


def _groups(root: Path, controller: str, *mounts: str) -> Iterator[Path]:
    """The folders of the group of this process and of all around it, by one controller; "" is version 2.

    A container sees its own group at the mount's root, whatever the name that /proc gives it.
    """
    group = ""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers == controller or (controller and controller in controllers.split(",")):
            group = path
    parts = [part for part in group.split("/") if part not in ("", "..")]
    for mount in mounts:
        top = root / "sys/fs" / mount
        if top.is_dir():
            for depth in range(len(parts), -1, -1):
                yield top.joinpath(*parts[:depth])
            return


def _stat(folder: Path, name: str) -> int:
    lines = _text(folder / "memory.stat").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)


def _number(path: Path) -> int | None:
    """The number in a file; None where it has another text ("max", -1) or is not there."""
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
