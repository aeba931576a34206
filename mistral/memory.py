"""What memory this machine can still give."""

from __future__ import annotations

import psutil

from mistral.errors import InputError


def available_memory() -> int:
    """Bytes that can be had without swapping."""
    return int(psutil.virtual_memory().available)


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
