"""How far one answer has come in its grammar, and which ids may follow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mistral.errors import InputError, one_line
from mistral.grammar.token_table import Bits, TokenTable
from mistral.tokenizer.thoughts import ThinkState, ThinkTokens

if TYPE_CHECKING:
    from llguidance import LLMatcher

FORBIDDEN = np.float32(-np.inf)
FEW = 64  # ids that may be ways to begin the only text that may follow


class GrammarState:
    """What may follow in one answer, to which it belongs. Ids count by their bytes: any way to write a text goes.

    While the model thinks, anything but an end may follow.
    """

    def __init__(
        self,
        table: TokenTable,
        matcher: LLMatcher,
        spaced: LLMatcher | None = None,
        think_tokens: ThinkTokens | None = None,
        thinks: bool = False,
    ) -> None:
        """`matcher` and `spaced` as `Grammar` has them; they are copied."""
        self._table, self._first = table, (matcher, spaced, think_tokens, thinks)
        self._restart()

    def _restart(self) -> None:
        matcher, spaced, think_tokens, thinks = self._first
        self._matcher: LLMatcher = matcher.deep_copy()
        self._spaced = spaced.deep_copy() if spaced else None  # while nothing that is shown has come
        self._thinking = ThinkState(think_tokens, thinks)
        self._tokens, self._matched = list[int](), 0
        self._bits: Bits | None = None  # what may follow, without ends
        self._may_end = False  # whether an end may; known once the bits are

    def forbid(self, scores: NDArray[np.float32], may_end: bool = True) -> None:
        """Set the scores (V,) of all ids that may not follow to -inf; without `may_end`, ends as well.

        Raises InputError where the grammar's limits of work are reached.
        """
        ends = [token for token in self._table.end_ids if token < len(scores)]
        kept = scores[ends]
        if self._thinking.inside:
            scores[ends] = -np.inf
            return
        forbidden = np.unpackbits(~self._allowed(), count=len(scores), bitorder="little").view(np.bool_)
        np.copyto(scores, FORBIDDEN, where=forbidden)
        scores[len(self._table.pieces) :] = FORBIDDEN
        if may_end and self._may_end:
            scores[ends] = kept

    def advance(self, token: int) -> None:
        """Take the next id of the answer. Raises InputError for one that may not follow."""
        self._tokens.append(token)
        self._bits = None
        if not self._matched and self._thinking.push(token):
            return
        if self._thinking.inside:
            if self._table.pieces[token] is not None:
                self._spaced = None
            return
        if self._spaced and token in self._table.spaced:
            self._matcher = self._spaced
        self._spaced = None
        self._matched += 1
        if not self._matcher.consume_token(token):
            raise self._failed()

    @property
    def ended(self) -> bool:
        """Whether nothing but an end may follow. Raises InputError where nothing at all may."""
        if not self._matched:
            return False
        if self._matcher.is_stopped():
            if self._matcher.is_error():
                raise self._failed()
            return True
        if self._allowed().any():
            return False
        if not self._may_end:
            raise InputError("the grammar allows no token that could follow; the vocabulary lacks what it asks for")
        return True

    def forced(self, most: int) -> list[int]:
        """The ids that follow where only one text can, as the tokenizer writes it; at most `most` of them.

        Other ids may write the same text. Raises InputError where the grammar's limits of work are reached.
        """
        found, ahead = list[int](), self
        while len(found) < most:
            token = ahead._only()
            if token is None:
                break
            if ahead is self:
                ahead = self.copy()
            ahead.advance(token)
            found.append(token)
        text = b"".join(self._table.pieces[token] or b"" for token in found)
        usual = self._table.continuation(text) if len(found) > 1 else None
        return found if usual is None else usual[:most]

    def _only(self) -> int | None:
        """The longest id that may follow, where all that may are beginnings of it."""
        if self._thinking.inside:
            return None
        bits = self._allowed()
        if self._may_end:
            return None
        ids = np.flatnonzero(np.unpackbits(bits, bitorder="little")).tolist()
        if len(ids) < 2 or len(ids) > FEW:
            return ids[0] if len(ids) == 1 else None
        pieces = {token: self._table.pieces[token] or b"" for token in ids}
        longest = max(ids, key=lambda token: len(pieces[token]))
        alike = all(piece and pieces[longest].startswith(piece) for piece in pieces.values())
        return longest if alike else None

    def rollback(self, count: int) -> None:
        """Take back the last `count` ids, at most as many as have come."""
        assert 0 <= count <= len(self._tokens), (count, len(self._tokens))
        if not count:
            return
        left = self._tokens[: len(self._tokens) - count]
        if count < self._matched and self._matcher.rollback(count):
            self._tokens, self._matched, self._bits = left, self._matched - count, None
            return
        self._restart()
        for token in left:
            self.advance(token)

    def copy(self) -> GrammarState:
        """The same state for another answer."""
        made = GrammarState(self._table, *self._first)
        made._matcher = self._matcher.deep_copy()
        made._spaced = self._spaced.deep_copy() if self._spaced else None
        made._thinking = ThinkState(self._thinking.tokens, self._thinking.inside)
        made._tokens, made._matched = list(self._tokens), self._matched
        made._bits, made._may_end = self._bits, self._may_end
        return made

    def _allowed(self) -> Bits:
        """The ids that may follow, without ends."""
        if self._bits is None:
            bits = self._mask(self._matcher)
            if self._spaced:
                spaced = self._table.spaced_bits
                bits = (bits & ~spaced) | (self._mask(self._spaced) & spaced)
            ends = self._table.end_bits
            self._may_end = self._matcher.is_accepting() or bool((bits & ends).any())
            bits &= ~ends
            if not self._matched and self._thinking.tokens:
                begin = self._thinking.tokens.begin
                bits[begin // 8] |= 1 << begin % 8
            self._bits = bits
        return self._bits

    def _mask(self, matcher: LLMatcher) -> Bits:
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)[: len(self._table.end_bits)].copy()
        if matcher.is_error():
            raise self._failed(matcher)
        return bits

    def _failed(self, matcher: LLMatcher | None = None) -> InputError:
        reason = one_line(ValueError((matcher or self._matcher).get_error().partition("\n<")[0]))
        return InputError(f"the grammar cannot go on ({reason}); make it simpler")
