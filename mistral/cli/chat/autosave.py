"""Saves conversations after each turn, readable by this user alone, so that the last one can be continued."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import platformdirs

from mistral.checkpoint.checkpoint import Checkpoint
from mistral.checkpoint.fingerprint import fingerprint
from mistral.cli.chat.conversation import Conversation
from mistral.cli.chat.conversation_file import as_text, resume
from mistral.engine.snapshot_file import Saved, read_saved, write_saved
from mistral.errors import InputError
from mistral.model.args import ModelArgs

KEPT = 20  # conversations with one checkpoint


def state_folder() -> Path:
    """The folder of this user's history and conversations."""
    return Path(platformdirs.user_state_dir("mistral-mindspore"))


class Autosave:
    """The conversations with one checkpoint; each has its own file, without the cache, written after each turn.

    An error with a file is only a note.
    """

    def __init__(self, checkpoint: Checkpoint, wanted: bool) -> None:
        """`wanted`: whether the new conversation is saved."""
        self.folder, self.wanted, self.key = state_folder() / "conversations", wanted, key_of(checkpoint)
        self.args: ModelArgs = checkpoint.args
        self._start = hashlib.sha256(self.key.encode()).hexdigest()[:16]
        self._text, self._files, self._begun = "", 0, time.time_ns()

    def save(self, conversation: Conversation) -> None:
        """Save the conversation, if it has changed."""
        if not self.wanted:
            return
        if not conversation.messages:
            self._text = ""  # the next one is another conversation, with a file of its own
            return
        text = as_text(conversation)
        if text == self._text:
            return
        self._files += not self._text
        self._text = text
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_saved(self._path(), Saved(text, None), self.key)
            for file in self._found()[KEPT:]:
                file.unlink()
        except (OSError, InputError) as error:
            print(f"note: conversations are not saved ({error})", file=sys.stderr)
            self.wanted = False

    def last(self) -> Path | None:
        """The file of the last conversation; None if there is none."""
        return next(iter(self._found()), None)

    def was_instruct(self, file: Path) -> bool:
        """Whether a conversation was held in a chat template. Raises InputError for a file that cannot be used."""
        try:
            return bool(json.loads(read_saved(file, self.key, self.args, 0).text)["instruct"])
        except (ValueError, TypeError, KeyError, RecursionError):
            raise InputError(f"{file}: holds no conversation, or a damaged one") from None

    def resume(self, conversation: Conversation, file: Path) -> str:
        """Continue a saved conversation -> a line about it. Raises InputError for a file that cannot be used."""
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(file.stat().st_mtime))
        resume(conversation, file, self.key)
        return f"resumed the conversation of {when}: {len(conversation.messages)} messages"

    def _path(self) -> Path:
        return self.folder / f"{self._start}-{os.getpid()}-{self._begun}-{self._files}"

    def _found(self) -> list[Path]:
        """The files of this checkpoint, the newest first."""
        found: list[tuple[float, Path]] = []
        with suppress(OSError):
            for file in self.folder.glob(f"{self._start}-*"):
                with suppress(OSError):
                    found.append((file.stat().st_mtime, file))
        return [file for _, file in sorted(found, reverse=True)]


def key_of(checkpoint: Checkpoint) -> str:
    """The fingerprint of a checkpoint for any `bits`, since these files hold no cache."""
    return fingerprint(checkpoint)
