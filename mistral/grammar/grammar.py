"""A constraint compiled for one vocabulary; each answer gets a state of its own from it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mistral.errors import InputError, one_line
from mistral.grammar.constraint import Constraint
from mistral.grammar.grammar_state import GrammarState
from mistral.grammar.source import source
from mistral.grammar.token_table import TokenTable
from mistral.tokenizer.thoughts import ThinkTokens

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits

LEXER_STATES = 50_000  # most, of some 400 bytes each
ROW_ITEMS = 10_000  # most Earley items at one position; an object of 2,400 optional properties has as many
NOISE = re.compile(r"<non-verbose|\s*\d+ \|")  # lines of the generated grammar in error messages
NO_TEXT = ("NoExtension", "NoExtensionBias")  # llguidance's errors for an empty language


@dataclass(frozen=True, eq=False)
class Grammar:
    """A compiled constraint, which any number of answers in any threads may use.

    begins: the answer is a text of its own, and does not continue that of its prompt (see `Tokenizer.stream`). With
    `think_tokens`, thinking may precede the constrained answer; `thinks`: the prompt ends within thinking. After it was
    sent to another process it is not compiled; `over` compiles it again.
    """

    constraint: Constraint
    begins: bool = True
    think_tokens: ThinkTokens | None = None
    thinks: bool = False
    table: TokenTable | None = None
    matcher: LLMatcher | None = None
    spaced: LLMatcher | None = None
    """If a space at the start is not shown: the matcher of a space followed by the answer."""

    @classmethod
    def compile(
        cls,
        constraint: Constraint,
        table: TokenTable,
        begins: bool = True,
        think_tokens: ThinkTokens | None = None,
        thinks: bool = False,
    ) -> Grammar:
        """Compile a constraint; `Grammars.grammar` does so within limits of time and memory.

        Raises InputError, naming the constraint's option, for one that cannot be used.
        """
        return cls(constraint, begins, think_tokens, thinks).over(table)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "table": None, "matcher": None, "spaced": None}

    def over(self, table: TokenTable) -> Grammar:
        """The grammar compiled for a vocabulary in this process. Raises InputError as `compile` does."""
        space, spaced = table.space if self.begins and table.spaced else None, None
        if space is None:
            matcher = _matcher(self.constraint, table, False)
        else:
            spaced = _matcher(self.constraint, table, True)
            matcher = spaced.deep_copy()
            matcher.consume_token(space)
        return replace(self, table=table, matcher=matcher, spaced=spaced)

    def begin(self) -> GrammarState:
        """The state before the first token of an answer."""
        assert self.table and self.matcher
        return GrammarState(self.table, self.matcher, self.spaced, self.think_tokens, self.thinks)


def limits() -> LLParserLimits:
    """The limits of a grammar's memory and of its work for each token."""
    from llguidance import LLParserLimits

    return LLParserLimits(max_items_in_row=ROW_ITEMS, max_lexer_states=LEXER_STATES, verbose_errors=False)


def _matcher(constraint: Constraint, table: TokenTable, behind_space: bool) -> LLMatcher:
    from llguidance import LLMatcher

    matcher = LLMatcher(table.tokenizer, source(constraint, behind_space), log_level=0, limits=limits())
    if matcher.is_error():
        raise refused(constraint, matcher.get_error())
    return matcher


def refused(constraint: Constraint, reason: str) -> InputError:
    """The error for a constraint that cannot be used."""
    lines = [line for line in reason.splitlines() if line.strip(" ^)") and not NOISE.match(line)]
    said = one_line(ValueError(" ".join(lines)))
    if said in NO_TEXT:
        said = "no text fits it"
    return InputError(f"cannot be used ({said}); change it", option=constraint.name or constraint.kind)
