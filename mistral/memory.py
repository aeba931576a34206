"""What memory this machine can still give."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

from mistral.errors import InputError
from mistral.limits import ROOT, address_space, data_memory, memory_limit


@dataclass(frozen=True)
class Resident:
    """Bytes of this process in memory: now, at most so far, and of what is there now, its own and those of files.

    Weights used where they lie in a mapped file are pages of a file; they count from the first time they are read.
    """

    now: int
    peak: int
    anonymous: int
    mapped: int


def resident_memory() -> Resident:
    """As the system counts it; where it does not tell the parts apart, all is anonymous and there is no other peak."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        now = int(psutil.Process().memory_info().rss)
        return Resident(now, now, now, 0)
    sizes = {line.partition(":")[0]: 1024 * int(line.split()[1]) for line in lines if line.endswith(" kB")}
    anonymous, mapped = sizes.get("RssAnon", sizes["VmRSS"]), sizes.get("RssFile", 0)
    return Resident(sizes["VmRSS"], sizes.get("VmHWM", sizes["VmRSS"]), anonymous, mapped)


def forget_peak() -> bool:
    """Let the peak of `resident_memory` begin anew; False where the system does not let us."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def available_memory(root: Path = ROOT) -> int:
    """Bytes that can be had without swapping, within the limits of a container and of the shell."""
    free = [int(psutil.virtual_memory().available)]
    if container := memory_limit(root):
        free.append(container.free)
    free += [left for found in (address_space(), data_memory()) if found for left in found[1:]]
    return min(free)


def require_memory(needed: int, available: int, purpose: str, remedy: str) -> None:
    """Raise InputError, naming purpose and remedy, where `needed` bytes are more than are `available`."""
    if needed > available:
        raise InputError(f"{purpose} needs {gigabytes(needed)} of memory and {gigabytes(available)} are free: {remedy}")


def gigabytes(nbytes: int) -> str:
    """Bytes in units of 10^9, with one decimal place below 100; in units of 10^6 where they are few."""
    if nbytes < 1e8:
        return f"{nbytes / 1e6:.1f} MB"
    value = nbytes / 1e9
    return f"{value:.1f} GB" if value < 100 else f"{value:.0f} GB"


BASE_MEMORY = 600 * 10**6  # bytes that Python, MindSpore and working memory may take beside weights and cache
