"""The words that say whether tokens are guessed, and by whom."""

from __future__ import annotations

from pathlib import Path

from mistral.errors import InputError, setting

MODES = ("auto", "suffix", "off")


def check_mode(mode: str) -> None:
    """Raise InputError for a word that is none of `MODES`."""
    if mode not in MODES:
        raise InputError("must be auto, suffix or off", option="speculate", value=mode)


def check_draft(draft: str | Path | None, mode: str) -> None:
    """Raise InputError where there can be no draft, before anything is opened; `mode`: see `check_mode`."""
    if draft is not None and mode == "off":
        raise InputError(f"guesses tokens, and {setting('speculate')} is off; leave one of them out", option="draft")
