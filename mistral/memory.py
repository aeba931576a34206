"""The memory that is available on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

from mistral.errors import InputError
from mistral.limits import ROOT, address_space, data_memory, memory_limit


@dataclass(frozen=True)
class Resident:
    """Resident bytes of this process: now, at the peak, and of those now the anonymous ones and those of mapped files.

    Weights that are used in a mapped file are pages of that file; they count once they have been read.
    """

    now: int
    peak: int
    anonymous: int
    mapped: int


def resident_memory() -> Resident:
    """The system's figures; if it does not separate the parts, all is anonymous and the peak is the current value."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        now = int(psutil.Process().memory_info().rss)
        return Resident(now, now, now, 0)
    sizes = {line.partition(":")[0]: 1024 * int(line.split()[1]) for line in lines if line.endswith(" kB")}
    anonymous, mapped = sizes.get("RssAnon", sizes["VmRSS"]), sizes.get("RssFile", 0)
    return Resident(sizes["VmRSS"], sizes.get("VmHWM", sizes["VmRSS"]), anonymous, mapped)


def forget_peak() -> bool:
    """Reset the peak of `resident_memory`; False if the system does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def available_memory(root: Path = ROOT) -> int:
    """Bytes that are free without swapping, within the limits of the container and the shell."""
    free = [int(psutil.virtual_memory().available)]
    if container := memory_limit(root):
        free.append(container.free)
    free += [left for found in (address_space(), data_memory()) if found for left in found[1:]]
    return min(free)


def require_memory(needed: int, available: int, purpose: str, remedy: str) -> None:
    """Raise InputError, naming purpose and remedy, if `needed` bytes exceed `available`."""
    if needed > available:
        raise InputError(f"{purpose} needs {gigabytes(needed)} of memory and {gigabytes(available)} are free: {remedy}")


def gigabytes(nbytes: int) -> str:
    """Bytes in units of 10^9, with one decimal place below 100; small numbers in units of 10^6."""
    if nbytes < 1e8:
        return f"{nbytes / 1e6:.1f} MB"
    value = nbytes / 1e9
    return f"{value:.1f} GB" if value < 100 else f"{value:.0f} GB"


BASE_MEMORY = 600 * 10**6  # most bytes of Python, MindSpore and working memory, beside weights and cache
