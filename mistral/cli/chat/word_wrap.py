"""Text that comes in pieces, its lines broken between words at a terminal's width."""

from __future__ import annotations

from rich.cells import get_character_cell_size

TAB = 8


class WordWrap:
    """Breaks lines so that no word is cut in two, but for one that is longer than a line.

    A word is kept back until it is whole. What is pushed comes out with nothing lost but the spaces where a line is
    broken. `breaks`: the line breaks put in since the last one of the text itself. `column`: where the cursor is.
    """

    def __init__(self, width: int) -> None:
        """`width`: cells of a line."""
        self.width, self.breaks, self.column = max(1, width), 0, 0
        self._cells = self._gap_cells = 0
        self._word = self._gap = ""  # what is kept back: spaces, and the word after them

    def push(self, text: str) -> str:
        """More of the text -> what can be shown of it now."""
        return "".join(map(self._next, text))

    def flush(self) -> str:
        """What is kept back, the text being at its end."""
        gap, cells = self._gap if not self._word else "", self._gap_cells
        shown = self._place()
        if gap and self.column + cells <= self.width:
            shown, self.column = shown + gap, self.column + cells
        self._gap, self._gap_cells = "", 0
        return shown

    def _next(self, character: str) -> str:
        if character == "\n":
            shown = self.flush() + "\n"
            self.column = self.breaks = 0
            return shown
        if character in " \t":
            shown = self._place()
            cells = 1 if character == " " else TAB - (self.column + self._gap_cells) % TAB
            self._gap, self._gap_cells = self._gap + character, self._gap_cells + cells
            return shown
        cells = get_character_cell_size(character)
        alone = cells > 1  # such as Chinese: a line may be broken on either side
        shown = self._place() if alone or (cells and self._cells + cells > self.width) else ""
        self._word, self._cells = self._word + character, self._cells + cells
        return shown + self._place() if alone or (not cells and self._cells == 0) else shown

    def _place(self) -> str:
        """Put the word that is kept back on this line or the next."""
        word, gap = self._word, self._gap
        if not word:
            return ""
        if self.column + self._gap_cells + self._cells > self.width and self.column:
            gap, self._gap_cells, self.column = "\n", 0, 0
            self.breaks += 1
        self.column += self._gap_cells + self._cells
        self._word, self._gap, self._cells, self._gap_cells = "", "", 0, 0
        return gap + word
