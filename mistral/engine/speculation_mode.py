"""The values of the options for speculative decoding."""

from __future__ import annotations

from pathlib import Path

from mistral.errors import InputError, setting

MODES = ("auto", "suffix", "off")


def check_mode(mode: str) -> None:
    """Raise InputError for a value that is not in `MODES`."""
    if mode not in MODES:
        raise InputError("must be auto, suffix or off", option="speculate", value=mode)


def check_draft(draft: str | Path | None, mode: str) -> None:
    """Raise InputError for a draft model with speculation turned off, before anything is opened."""
    if draft is not None and mode == "off":
        raise InputError(
            f"is for speculative decoding, and {setting('speculate')} is off; leave one of them out", option="draft"
        )
