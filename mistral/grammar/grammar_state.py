"""The state of one answer in its grammar, and the ids allowed next."""

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
FEW = 64  # most allowed ids for which `forced` checks that they are prefixes of one text


class GrammarState:
    """The state of one answer. Ids are matched by their bytes, so any tokenization of an allowed text is allowed.

    While the model thinks, any id but an end id is allowed.
    """

    def __init__(
        self,
        table: TokenTable,
        matcher: LLMatcher,
        spaced: LLMatcher | None = None,
        think_tokens: ThinkTokens | None = None,
        thinks: bool = False,
    ) -> None:
        """`matcher` and `spaced` are those of `Grammar`; they are copied."""
        self._table = table
        self._matcher: LLMatcher = matcher.deep_copy()
        self._spaced = spaced.deep_copy() if spaced else None  # until the first visible token
        self._thinking = ThinkState(think_tokens, thinks)
        self._matched = 0  # ids that the matcher has consumed
        self._bits: Bits | None = None  # the allowed ids, without end ids
        self._may_end = False  # whether an end id is allowed; valid with the bits

    def forbid(self, scores: NDArray[np.float32], may_end: bool = True) -> None:
        """Set the scores (V,) of all ids that are not allowed to -inf, and without `may_end` those of end ids.

        Raises InputError if the grammar's limits of work are reached.
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
        """Add the next id of the answer. Raises InputError for one that is not allowed."""
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
        """Whether only an end id is allowed. Raises InputError if no id is."""
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
        """If only one text is allowed next, its ids as the tokenizer encodes it, at most `most` of them.

        Other ids may write the same text. Raises InputError if the grammar's limits of work are reached.
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
        """The allowed id with the longest bytes, if the bytes of all other allowed ids are prefixes; otherwise None."""
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

    def copy(self) -> GrammarState:
        """A copy of the state."""
        thinking = self._thinking
        made = GrammarState(self._table, self._matcher, self._spaced, thinking.tokens, thinking.inside)
        made._matched, made._bits, made._may_end = self._matched, self._bits, self._may_end
        return made

    def _allowed(self) -> Bits:
        """The allowed ids, without end ids."""
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
