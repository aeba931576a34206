"""Answers of a given form, written at random over real vocabularies: they always are of that form."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from mistral.cli.model_options import shipped_checkpoint
from mistral.errors import InputError
from mistral.grammar.constraint import Constraint
from mistral.grammar.grammar import Grammar
from mistral.grammar.grammar_state import GrammarState
from mistral.grammar.grammars import Grammars
from mistral.tokenizer.thoughts import ThinkTokens
from mistral.tokenizer.tokenizer import Tokenizer
from tests.support.random_schemas import SETTINGS, random_schema, written
from tests.support.small_tokenizers import byte_fallback, byte_level, hugging_face_folder
from tests.support.tool_cases import load

KINDS = ("shipped", "v3", "v3 tekken", "v13 tekken", "byte_level", "byte_fallback")
SCHEMAS = {"v3 tekken": 6, "v3": 10}  # of the large vocabularies, fewer; 40 of the others
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 99, "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizers_by_kind(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    built = {
        build.__name__: Tokenizer.from_folder(hugging_face_folder(tmp_path_factory.mktemp("grammar"), build()))
        for build in (byte_level, byte_fallback)
    }
    official = {kind: load(kind) for kind in KINDS if kind[0] == "v"}
    return {**official, **built, "shipped": Tokenizer.from_folder(shipped_checkpoint())}


@pytest.fixture(scope="module")
def all_grammars(tokenizers_by_kind: dict[str, Tokenizer]) -> dict[str, Grammars]:
    return {kind: Grammars(tokenizer) for kind, tokenizer in tokenizers_by_kind.items()}


@pytest.fixture
def tokenizer(tokenizers_by_kind: dict[str, Tokenizer], kind: str) -> Tokenizer:
    return tokenizers_by_kind[kind]


@pytest.fixture
def grammars(all_grammars: dict[str, Grammars], kind: str) -> Grammars:
    return all_grammars[kind]


def shown(tokenizer: Tokenizer, ids: list[int], after: list[int] | None = None) -> str:
    """The text of an answer, which begins a text of its own or continues `after`."""
    stream = tokenizer.stream(after or [])
    return "".join([*map(stream.push, ids), stream.flush()])


@pytest.mark.parametrize("kind", KINDS)
def test_answers_by_random_schemas_parse_and_are_valid(tokenizer: Tokenizer, grammars: Grammars, kind: str) -> None:
    ended = total = 0
    for seed in range(SCHEMAS.get(kind, 40)):
        rng = np.random.default_rng(seed)
        schema = random_schema(rng)
        begins = bool(seed % 2)
        grammar = grammars.grammar(Constraint.json_schema(schema), begins)
        after = [] if begins else tokenizer.encode("text:")
        for sample in range(2):
            options = SETTINGS[(seed + sample) % len(SETTINGS)]
            ids, complete = written(grammar, tokenizer.vocab_size, 2 * seed + sample, **options)
            text, total = shown(tokenizer, ids, after), total + 1
            if complete:
                jsonschema.validate(json.loads(text), schema, jsonschema.Draft202012Validator)
                ended += 1
            assert "\ufffd" not in text.rstrip("\ufffd")
    assert ended > 0.9 * total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize(
    "pattern",
    [
        r"[a-c]{3}",
        r" [a-c]{1,3} ",
        r"\s{2}b\d+",
        r"(é|漢|🙂){3}",
        r"^a/b\w?$",
        r"[^a-z\d]{2}",
        "x?",
        r"(a|ab)(c|bcd)(d*)",
        r"a\nb",
    ],
)
def test_the_whole_answer_matches_the_expression(
    tokenizer: Tokenizer, grammars: Grammars, begins: bool, pattern: str
) -> None:
    """Characters whose bytes lie in several tokens come out whole, and spaces are where they should be."""
    after = [] if begins else tokenizer.encode("a")
    grammar = grammars.grammar(Constraint.regex(pattern), begins)
    texts = set()
    for seed in range(4):
        ids, complete = written(grammar, tokenizer.vocab_size, seed, 60, temperature=1.0)
        text = shown(tokenizer, ids, after)
        assert complete or pattern == r"\s{2}b\d+"
        if complete:
            assert re.fullmatch(pattern, text, re.ASCII), (text, ids)
            texts.add(text)
    assert texts


@pytest.mark.parametrize("kind", KINDS)
def test_choices_and_grammars(tokenizer: Tokenizer, grammars: Grammars, kind: str) -> None:
    texts = ["yes", " yes", "ye", 'a "quoted"\nline\\', "漢字", "\x01\x7f"]
    grammar = grammars.grammar(Constraint.choice(texts))
    found = {shown(tokenizer, written(grammar, tokenizer.vocab_size, seed, temperature=1.0)[0]) for seed in range(20)}
    assert found <= set(texts) and len(found) > 2
    lark = grammars.grammar(Constraint.lark('start: sum\nsum: NUMBER ("+" NUMBER){1,3}\nNUMBER: /[0-9]{1,2}/'))
    for seed in range(3):
        ids, complete = written(lark, tokenizer.vocab_size, seed, temperature=1.0)
        assert complete and re.fullmatch(r"[0-9]{1,2}(\+[0-9]{1,2}){1,3}", shown(tokenizer, ids))
    ids, complete = written(grammars.grammar(Constraint.json_object()), tokenizer.vocab_size, 1, 40)
    assert shown(tokenizer, ids).startswith("{")
    if complete:
        assert isinstance(json.loads(shown(tokenizer, ids)), dict)


def test_ids_that_only_the_model_has_never_follow(all_grammars: dict[str, Grammars]) -> None:
    scores = np.zeros(2000, np.float32)
    grammar = all_grammars["shipped"].grammar(Constraint.choice(["yes"]))
    grammar.begin().forbid(scores)
    assert grammar.table
    found = {grammar.table.pieces[token] for token in np.flatnonzero(scores == 0)}
    assert {b"y"} <= found <= {b" ", *(space + text for space in (b"", b" ") for text in (b"y", b"ye", b"yes"))}


@pytest.mark.parametrize("kind", ["shipped", "v13 tekken"])
def test_white_space_ends(tokenizer: Tokenizer, grammars: Grammars, kind: str) -> None:
    """A model that likes nothing better writes at most one line break with its indentation in one place."""
    state = grammars.grammar(Constraint.json_schema(PERSON)).begin()
    blank = np.array([piece is not None and not piece.strip() for piece in grammars.table().pieces])
    ids, run, longest = list[int](), 0, 0
    for step in range(600):
        scores = np.random.default_rng(step).standard_normal(len(blank)).astype(np.float32) + 50 * blank
        state.forbid(scores)
        token = int(scores.argmax())
        ids.append(token)
        state.advance(token)
        run = run + len(grammars.table().pieces[token] or b"") if blank[token] else 0
        longest = max(longest, run)
        if state.ended:
            break
    assert state.ended and longest <= 35
    jsonschema.validate(json.loads(shown(tokenizer, ids)), PERSON)


@pytest.mark.parametrize("kind", ["shipped", "v3 tekken"])
def test_a_copy_of_a_state_goes_on_by_itself(grammars: Grammars, tokenizer: Tokenizer, kind: str) -> None:
    grammar = grammars.grammar(Constraint.json_schema(PERSON))
    ids, complete = written(grammar, tokenizer.vocab_size, 5)
    assert complete
    seen, copies, state = list[np.ndarray[Any, Any]](), list[GrammarState](), grammar.begin()

    def allowed(state: GrammarState) -> np.ndarray[Any, Any]:
        scores = np.zeros(tokenizer.vocab_size, np.float32)
        state.forbid(scores)
        return scores

    for token in ids:
        copies.append(state.copy())  # before and after what is allowed was asked for
        seen.append(allowed(state))
        state.advance(token)
    assert state.ended
    for place in (len(ids) - 1, len(ids) - 3, 1, 0):
        other = copies[place]
        assert not other.ended and state.ended, "neither touches the other"
        for at, token in enumerate(ids[place:], place):
            assert (allowed(other) == seen[at]).all()
            other = other.copy()
            other.advance(token)
        assert other.ended
    with pytest.raises(InputError, match="the grammar cannot go on"):
        grammar.begin().advance(tokenizer.encode("z", bos=False)[-1])


def test_a_grammar_goes_to_another_process_and_is_compiled_there(all_grammars: dict[str, Grammars]) -> None:
    grammar = all_grammars["shipped"].grammar(Constraint.json_schema(PERSON))
    sent: Grammar = pickle.loads(pickle.dumps(grammar))
    assert (sent.table, sent.matcher, sent.constraint) == (None, None, grammar.constraint)
    assert len(pickle.dumps(grammar)) < 2000
    table = pickle.loads(pickle.dumps(grammar.table))
    size = len(table.pieces)
    assert written(sent.over(table), size, 7) == written(grammar, size, 7)
    assert all_grammars["shipped"].grammar(Constraint.json_schema(PERSON)) is grammar, "it is kept"


def test_thoughts_are_free_and_the_answer_is_not(all_grammars: dict[str, Grammars]) -> None:
    grammars, tokenizer = all_grammars["v13 tekken"], load("v13 tekken")
    tokens, constraint = tokenizer.think_tokens, Constraint.choice(["yes"])
    assert isinstance(tokens, ThinkTokens)
    for thinks in (True, False):
        state = grammars.grammar(constraint, True, tokens, thinks).begin()
        scores = np.zeros(tokenizer.vocab_size, np.float32)
        state.forbid(scores)
        pieces = grammars.table().pieces
        if not thinks:
            assert {pieces[token] for token in np.flatnonzero(scores == 0)} <= {None, b"y", b"ye", b"yes"}
            assert scores[tokens.begin] == 0 and scores[tokens.end] < 0
            state.advance(tokens.begin)
            scores[:] = 0
            state.forbid(scores)
        assert set(np.flatnonzero(scores < 0)) == {tokenizer.eos_id}, "a thought is no answer"
        for token in (*tokenizer.encode("hm", bos=False), tokens.end):
            assert not state.ended
            state.advance(token)
        scores[:] = 0
        state.forbid(scores)
        assert scores[tokenizer.eos_id] < 0 and {pieces[i] for i in np.flatnonzero(scores == 0)} <= {
            None,
            b"y",
            b"ye",
            b"yes",
        }
        before = state.copy()
        for token in tokenizer.encode("yes", bos=False):
            state.advance(token)
        assert state.ended and not before.ended


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


HOSTILE: dict[str, tuple[Any, str]] = {
    "ten megabytes": ({"enum": ["x" * 1000] * 10_000}, "is longer than"),
    "deep": (nested(5000), "levels deep|recursion"),
    "itself": ({"$ref": "#"}, "no text fits it"),
    "a ring": (
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        "no text fits",
    ),
    "http": ({"items": {"$ref": "https://example.com/a"}}, "nothing outside of the schema is read"),
    "file": ({"properties": {"a": {"$ref": "/etc/passwd"}}}, "nothing outside of the schema is read"),
    "remainders": ({"type": "integer", "multipleOf": 99999989}, "it takes too much time"),
    "patterns": (
        {"type": "object", "patternProperties": {f"^a{i}.*z{i}$": {"type": "string"} for i in range(400)}},
        "it takes too much time",
    ),
    "products": (
        {"allOf": [{"anyOf": [{"type": "string", "pattern": f"a{i}b{j}"} for i in range(10)]} for j in range(10)]},
        "schema too large",
    ),
    "a number": (3, "it must be an object"),
    "NaN": ({"minimum": float("nan")}, "NaN is not a JSON number"),
    "unknown": ({"type": "string", "format": "no-such-format"}, "no-such-format"),
    "half a pair": ('{"const": "\\ud800"}', "half of a surrogate pair"),
    "no JSON": ("{", "not JSON"),
    "not of JSON": ({"const": b"x"}, "bytes is not JSON serializable"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_schemas_are_one_line(all_grammars: dict[str, Grammars], name: str) -> None:
    schema, reason = HOSTILE[name]
    with pytest.raises(InputError, match=reason) as caught:
        all_grammars["shipped"].grammar(Constraint.json_schema(schema, "response_format"))
    assert str(caught.value).startswith("response_format: ") and len(str(caught.value)) < 400
    good = all_grammars["shipped"].grammar(Constraint.json_schema(PERSON))
    assert good.matcher, "the next one is compiled as ever"


@pytest.mark.parametrize(
    ("constraint", "reason"),
    [
        (lambda: Constraint.regex("("), "regex: cannot be used .*unclosed group"),
        (lambda: Constraint.regex("(?=a)b"), "look-around"),
        (lambda: Constraint.regex("(" * 5000 + "a" + ")" * 5000), "cannot be used"),
        (lambda: Constraint.regex(""), "must be a text that is not empty"),
        (lambda: Constraint.regex("a\ud800"), "half of a surrogate pair"),
        (lambda: Constraint.regex("a" * (1 << 19)), "is longer than"),
        (lambda: Constraint.lark("start: a\na: a"), "grammar: cannot be used .no text fits it"),
        (lambda: Constraint.lark("start: " + "(" * 3000 + '"x"' + ")" * 3000), "too deeply nested"),
        (
            lambda: Constraint.lark(
                "start: A0\n" + "\n".join(f"A{i}: A{i + 1} A{i + 1} A{i + 1}" for i in range(60)) + '\nA60: "x"'
            ),
            "too much time|too big",
        ),
        (lambda: Constraint.lark("begin: /a/"), "cannot be used"),
        (lambda: Constraint.lark("start: <no_such_token>"), "no_such_token"),
        (lambda: Constraint.choice([]), "must be a list of 1 to"),
        (lambda: Constraint.choice("abc"), "must be a list of 1 to"),
        (lambda: Constraint.choice([""]), "must be a text that is not empty"),
    ],
)
def test_hostile_expressions_and_grammars_are_one_line(
    all_grammars: dict[str, Grammars], constraint: Any, reason: str
) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        all_grammars["shipped"].grammar(constraint())
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_a_schema_brings_no_options_of_how_json_is_written(
    all_grammars: dict[str, Grammars], tokenizers_by_kind: dict[str, Tokenizer]
) -> None:
    hostile = {**PERSON, "x-guidance": {"item_separator": ";", "whitespace_flexible": False}}
    grammar = all_grammars["shipped"].grammar(Constraint.json_schema(hostile))
    ids, complete = written(grammar, tokenizers_by_kind["shipped"].vocab_size, 3)
    assert complete
    json.loads(tokenizers_by_kind["shipped"].decode(ids))


class Person:
    """As a class of pydantic's."""

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        """The schema of the class."""
        return PERSON


def test_a_schema_is_a_table_a_text_or_a_class(tmp_path: Path) -> None:
    table = Constraint.json_schema(PERSON)
    assert Constraint.json_schema(json.dumps(PERSON, indent=2)) == table == Constraint.json_schema(Person)
    assert Constraint.json_schema({"const": {"$ref": "http://example.com"}}).kind == "json_schema", "that is data"


@pytest.mark.parametrize("kind", ["shipped", "v3", "byte_level"])
def test_what_is_forced_is_what_every_answer_goes_on_with(tokenizer: Tokenizer, grammars: Grammars, kind: str) -> None:
    """At every place of answers that were written at random; and asking changes nothing."""
    total = 0
    for seed in range(4):
        schema = random_schema(np.random.default_rng(seed)) if seed else PERSON
        grammar = grammars.grammar(Constraint.json_schema(schema))
        ids, _ = written(grammar, tokenizer.vocab_size, seed)
        state, other = grammar.begin(), grammar.begin()
        pieces = state._table.pieces
        for place, token in enumerate(ids):
            forced = state.forced(3)
            assert len(forced) <= 3
            total += len(forced)
            text, rest = (b"".join(pieces[each] or b"" for each in tokens) for tokens in (forced, ids[place:]))
            assert rest.startswith(text) or text.startswith(rest)
            scores = np.zeros((2, tokenizer.vocab_size), np.float32)
            state.forbid(scores[0])
            other.forbid(scores[1])
            assert (scores[0] == scores[1]).all()
            for each in (state, other):
                each.advance(token)
    assert total > 10
    state = grammars.grammar(Constraint.json_schema(PERSON)).begin()
    for token in tokenizer.encode('{"n', bos=False):
        state.advance(token)
    assert b"".join(pieces[each] or b"" for each in state.forced(9)) in (b"ame", b'ame"')


def test_nothing_is_forced_within_thoughts(all_grammars: dict[str, Grammars]) -> None:
    tokens = load("v13 tekken").think_tokens
    assert tokens
    grammars, constraint = all_grammars["v13 tekken"], Constraint.choice(["yes, of course"])
    state = grammars.grammar(constraint, True, tokens, True).begin()
    assert state.forced(9) == []
    state.advance(tokens.end)
    assert state.forced(9) == [], "it may think again"
    first, *rest = load("v13 tekken").encode("yes, of course", bos=False)
    state.advance(first)
    assert state.forced(9) == rest
