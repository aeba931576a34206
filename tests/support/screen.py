"""A terminal's screen, as far as this program moves on it, without an end at the bottom."""

from __future__ import annotations

import io
import re

from rich.cells import get_character_cell_size

SEQUENCE = re.compile(r"\x1b\[([0-9;]*)([a-zA-Z])")


class Screen(io.StringIO):
    """Standard output at a terminal `width` cells wide; a write past its end goes on in the next row."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.cells, self.row, self.column = width, dict[tuple[int, int], str](), 0, 0

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        super().write(text)
        place = 0
        while place < len(text):
            found = SEQUENCE.match(text, place)
            if found:
                self._move(found[1], found[2])
            else:
                self._put(text[place])
            place = found.end() if found else place + 1
        return len(text)

    def _move(self, number: str, command: str) -> None:
        if command == "A":
            self.row -= int(number)
        elif command == "D":
            self.column = max(0, self.column - int(number))
        elif command in "JK":
            gone = [
                (r, c)
                for r, c in self.cells
                if (c >= self.column and r == self.row) or (command == "J" and r > self.row)
            ]
            for cell in gone:
                del self.cells[cell]
        else:
            assert command == "m", f"{number}{command}"
        assert self.row >= 0

    def _put(self, character: str) -> None:
        if character == "\r":
            self.column = 0
        elif character == "\n":
            self.row, self.column = self.row + 1, 0
        else:
            size = get_character_cell_size(character)
            if self.column + size > self.width:
                self.row, self.column = self.row + 1, 0
            self.cells[self.row, self.column] = self.cells.get((self.row, self.column), "") * (not size) + character
            self.column += size

    def rows(self) -> list[str]:
        """What stands there."""
        found = []
        for row in range(max((row for row, _ in self.cells), default=-1) + 1):
            columns = sorted(column for r, column in self.cells if r == row)
            line, at = "", 0
            for column in columns:
                line += " " * (column - at) + self.cells[row, column]
                at = column + sum(map(get_character_cell_size, self.cells[row, column]))
            found.append(line.rstrip())
        return found
