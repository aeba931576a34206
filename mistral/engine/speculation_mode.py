"""The words that say whether tokens are guessed."""

from __future__ import annotations

from mistral.errors import InputError

MODES = ("auto", "suffix", "off")


def check_mode(mode: str) -> None:
    """Raise InputError for a word that is none of `MODES`."""
    if mode not in MODES:
        raise InputError("must be auto, suffix or off", option="speculate", value=mode)
