"""Lines that a person types, with line editing, a history and more than one line where wanted: prompt_toolkit's work.

It is imported only here, and only where standard input is a terminal.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

MARK, MORE = "> ", ". "


def history_file() -> Path:
    """Where what has been typed is kept, for this user alone."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(state) / "mistral-mindspore" / "history"


def typed_lines(commands: Sequence[str]) -> Iterator[str]:
    """What a person types, until Ctrl-D; Tab completes `commands`. Ctrl-C at an empty line is a KeyboardInterrupt.

    The mark in front, and all else that is not an answer, goes to standard error where answers go to a file.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.output import create_output

    session: PromptSession[str] = PromptSession(
        MARK,
        history=_history(history_file()),
        multiline=True,
        prompt_continuation=MORE,
        key_bindings=_keys(),
        completer=WordCompleter(list(commands), sentence=True),
        complete_while_typing=False,
        output=None if sys.stdout.isatty() else create_output(sys.stderr),
    )
    while True:
        try:
            yield session.prompt()
        except EOFError:
            print(file=sys.stderr)
            return


def _keys() -> KeyBindings:
    """Enter ends a prompt, Alt-Enter or a backslash before Enter does not; Ctrl-C empties it or leaves."""
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def _end(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def _stop(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    return keys


def _history(file: Path) -> History:
    """What was typed before, from a file; in memory alone where there can be none."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class Kept(FileHistory):
        """A full disk, or a text that is not valid Unicode, is no reason to end."""

        def store_string(self, string: str) -> None:
            """Append one entry."""
            with suppress(OSError, UnicodeError):
                super().store_string(string)

    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError:
        return InMemoryHistory()
    return Kept(str(file))
