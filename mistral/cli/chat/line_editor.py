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

from mistral.cli.status_line import dim

if TYPE_CHECKING:
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

MARK, MORE = "> ", ". "
HINT = "press Ctrl-C again or Ctrl-D to leave"


def typed_lines(commands: Sequence[str], history: Path | None) -> Iterator[str]:
    """What a person types, until Ctrl-D; Tab completes `commands`. Ctrl-C twice at an empty line is KeyboardInterrupt.

    Lines are kept in the file `history`; where it is None, in memory alone. Where answers go to a file, the prompt mark
    and all else that is not an answer go to standard error.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.output import create_output

    leave = Leave()

    def changed(_: object) -> None:
        leave.hinted = False  # something has been typed since

    session: PromptSession[str] = PromptSession(
        MARK,
        history=_history(history),
        multiline=True,
        prompt_continuation=MORE,
        key_bindings=_keys(leave),
        completer=WordCompleter(list(commands), sentence=True),
        complete_while_typing=False,
        output=None if sys.stdout.isatty() else create_output(sys.stderr),
    )
    session.default_buffer.on_text_changed += changed
    while True:
        try:
            line = session.prompt()
        except EOFError:
            print(file=sys.stderr)
            return
        except KeyboardInterrupt:
            if leave.asked:
                raise
            leave.hint()  # was pressed before the prompt was there, such as for an answer that has just ended
            continue
        leave.hinted = False
        yield line


class Leave:
    """Whether Ctrl-C at an empty line has been answered by a hint, and whether it was pressed again after that."""

    def __init__(self) -> None:
        self.hinted = self.asked = False

    def hint(self) -> None:
        """Say how to leave."""
        self.hinted = True
        print(dim(HINT), file=sys.stderr, flush=True)


def _keys(leave: Leave) -> KeyBindings:
    """Enter ends a prompt, Alt-Enter or a backslash before Enter does not. Ctrl-C empties it, hints, and leaves."""
    from prompt_toolkit.application import run_in_terminal
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
    @keys.add("<sigint>")
    def _stop(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
            leave.hinted = False
        elif leave.hinted:
            leave.asked = True
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")
        else:
            run_in_terminal(leave.hint)

    return keys


def _history(file: Path | None) -> History:
    """What was typed before, from a file; in memory alone where none is wanted or can be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    if file is None:
        return InMemoryHistory()

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
