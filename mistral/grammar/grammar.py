"""A constraint compiled for one vocabulary: every answer that it is for begins with a state of its own."""

from __future__ import annotations

from mistral.grammar.constraint import Constraint
from mistral.grammar.grammar_state import GrammarState
from mistral.grammar.token_table import TokenTable


class Grammar:
    """A compiled constraint; any number of answers, in any threads, may begin with it.

    One that has come from another process is not compiled; `over` compiles it again.
    """

    constraint: Constraint

    @classmethod
    def compile(cls, constraint: Constraint, table: TokenTable, begins: bool = True) -> Grammar:
        """Raises InputError, naming the constraint's option, for one that cannot be used.

        `begins`: an answer is a text of its own, and does not continue that of its prompt (see `Tokenizer.stream`).
        """
        raise NotImplementedError

    @property
    def is_compiled(self) -> bool:
        """Whether `begin` may be called."""
        raise NotImplementedError

    def over(self, table: TokenTable) -> Grammar:
        """The same, compiled in this process for the same vocabulary."""
        raise NotImplementedError

    def begin(self) -> GrammarState:
        """The state before the first token of an answer."""
        raise NotImplementedError
