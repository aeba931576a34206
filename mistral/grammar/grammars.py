"""The grammars of one tokenizer. Each is first compiled in a child process with limits, since it is untrusted."""

from __future__ import annotations

import threading
from collections import OrderedDict

from mistral.errors import one_line
from mistral.grammar.constraint import Constraint
from mistral.grammar.grammar import LEXER_STATES, Grammar, refused
from mistral.grammar.source import source
from mistral.grammar.token_table import TokenTable
from mistral.tokenizer.bounded_process import BoundedProcess, Failed
from mistral.tokenizer.thoughts import ThinkTokens
from mistral.tokenizer.tokenizer import Tokenizer

MEMORY, SECONDS = 1 << 30, 0.5  # of address space, and of processor time to compile
KEPT = 16  # most recently used grammars that are cached; one near the limits takes some 30 MB


class Grammars:
    """Compiles constraints for a tokenizer, with a cache. May be used from several threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Computes nothing before the first grammar, which takes a second for a large vocabulary."""
        names = {token.id: name for name, token in tokenizer.vocabulary.specials.items()}
        setup = {"operation": "learn_names", "seconds": 10, "size": tokenizer.vocab_size, "names": names}
        self._tokenizer, self._child = tokenizer, BoundedProcess(MEMORY, setup)
        self._table: TokenTable | None = None
        self._lock = threading.Lock()
        self._kept = OrderedDict[object, Grammar]()

    def grammar(
        self,
        constraint: Constraint,
        begins: bool = True,
        think_tokens: ThinkTokens | None = None,
        thinks: bool = False,
    ) -> Grammar:
        """The compiled grammar of a constraint; see `Grammar` for the other arguments.

        Raises InputError, naming the constraint's option, for one that is invalid or exceeds the limits.
        """
        key = constraint, begins, think_tokens, thinks
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        try:
            error = self._child.ask("compile_grammar", SECONDS, grammar=source(constraint), states=LEXER_STATES)
        except Failed as failure:
            raise refused(constraint, one_line(failure)) from None
        if error:
            raise refused(constraint, error)
        grammar = Grammar.compile(constraint, self.table(), begins, think_tokens, thinks)
        with self._lock:
            self._kept[key] = grammar
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return grammar

    def table(self) -> TokenTable:
        """The vocabulary; building it in advance saves the first grammar that time."""
        with self._lock:
            if self._table is None:
                self._table = TokenTable.of(self._tokenizer)
            self._table.tokenizer  # noqa: B018  built now
            return self._table
