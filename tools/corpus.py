"""The text that the small checkpoint learns: stories, conversations about stories, and talk about tests.

Every sentence comes from the grammar beside this file. Each story states one colour and names it again later. The
fillers between hold no colour and are drawn independently of it: only a model that carries the colour along can
recall it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mistral.tokenizer.messages import Message
from mistral.tokenizer.tokenizer import Tokenizer
from tools import grammar
from tools.grammar import COLOURS, Cast, sentence

__all__ = [
    "COLOURS",
    "HELD_OUT_SEED",
    "TRAIN_SEED",
    "Document",
    "RecallCase",
    "documents",
    "encode_document",
    "recall_case",
]

TRAIN_SEED = 1
HELD_OUT_SEED = 2  # another stream of documents: for the held-out loss and the recall task

Turn = tuple[str, str]


@dataclass(frozen=True)
class Document:
    """One training document: plain text in `parts`, or a conversation in `turns` of (user, assistant).

    Parts are encoded one by one and joined: a part that ends in a space leaves a lone space piece, as a prompt that
    ends in a space does, and the next part goes on without one.
    """

    kind: Literal["story", "chat", "test"]
    parts: tuple[str, ...] = ()
    turns: tuple[Turn, ...] = ()


@dataclass(frozen=True)
class RecallCase:
    """A story that breaks off before its colour is named again, `distance` tokens after it was named first."""

    prompt: str
    colour: str
    distance: int


def documents(seed: int) -> Iterator[Document]:
    """Endless documents, the same for the same seed."""
    rng = random.Random(seed)
    while True:
        kind = rng.random()
        yield _story(rng) if kind < 0.5 else _chat(rng) if kind < 0.85 else _test_talk(rng)


def encode_document(tokenizer: Tokenizer, document: Document) -> list[int]:
    """Ids of a document from BOS to EOS, conversations in the checkpoint's chat template."""
    if document.turns:
        messages: list[Message] = []
        for user, assistant in document.turns:
            messages += [Message("user", user), Message("assistant", assistant)]
        ids = tokenizer.encode_chat(messages[:-1])
        return ids + tokenizer.encode(messages[-1].content, bos=False, eos=True)
    ids = tokenizer.encode(document.parts[0], bos=True, eos=False)
    for part in document.parts[1:]:
        ids += _encode_continuation(tokenizer, part)
    return [*ids, tokenizer.eos_id]


def recall_case(rng: random.Random, distances: tuple[int, int], tokenizer: Tokenizer) -> RecallCase:
    """A story with a single recall whose distance in tokens lies within `distances`, both ends included.

    The distance runs from the colour in the fact to the position that is to be predicted.
    """
    low, high = distances
    while True:
        cast = Cast.draw(rng)
        prompt = " ".join(_told(rng, cast, _scenes(rng, cast), [rng.randint(low, high)], [grammar.RECALL]))
        prompt = prompt[: prompt.rindex(f" {cast.colour}")]
        ids = tokenizer.encode(prompt, bos=True, eos=False)
        (colour_id,) = tokenizer.encode(cast.colour, bos=False, eos=False)
        distance = len(ids) - ids.index(colour_id)
        if low <= distance <= high:
            return RecallCase(prompt, cast.colour, distance)


def _encode_continuation(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of `text` without the space that a SentencePiece model puts before a text."""
    stop = tokenizer.encode(".", bos=False, eos=False)
    ids = tokenizer.encode("." + text, bos=False, eos=False)
    assert ids[: len(stop)] == stop, text
    return ids[len(stop) :]


def _length(text: str) -> int:
    """Words and punctuation marks: close to the number of tokens, but needs no tokenizer."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def _scenes(rng: random.Random, cast: Cast) -> Iterator[list[str]]:
    """The sentences of shuffled scenes, endless; every scene has its own place, animal and food."""
    while True:
        for scene in rng.sample(grammar.SCENES, len(grammar.SCENES)):
            other = Cast.draw(rng)
            local = replace(cast, place=other.place, animal=other.animal, food=other.food)
            yield [sentence(rng, template, local) for template in scene]


def _told(
    rng: random.Random, cast: Cast, scenes: Iterator[list[str]], distances: Sequence[int], recalls: Sequence[str]
) -> list[str]:
    """Sentences from the opening to the last recall; recall i comes about `distances[i]` tokens after the fact.

    A recall may break off the scene before it.
    """
    told = [sentence(rng, rng.choice(grammar.OPENINGS), cast)]
    if rng.random() < 0.3:
        told = [sentence(rng, rng.choice(part), cast) for part in (grammar.INTRODUCTIONS, grammar.DETAILS)]
    fact = sentence(rng, rng.choice(grammar.FACTS * 2 + grammar.EXTRA_FACTS), cast)
    told.append(fact)
    passed = _length(fact.split(f" {cast.colour} ")[1])
    for distance, recall in zip(distances, recalls, strict=True):
        scene: list[str] = []
        while passed + 9 < distance:  # the recall itself takes 4 tokens up to its colour, half a filler 5
            scene = scene or next(scenes)
            told.append(scene.pop(0))
            passed += _length(told[-1])
        told.append(sentence(rng, recall, cast))
        passed += _length(told[-1])
    return told


def _story(rng: random.Random) -> Document:
    cast = Cast.draw(rng)
    if rng.random() < 0.55:
        (bounds,) = rng.choices(((5, 31), (32, 64), (64, 90), (90, 110)), weights=(2, 3, 3, 1))
        distances = [rng.randint(*bounds)]
    else:
        distances = sorted(rng.sample(range(6, 110, 13), rng.randint(2, 4)))
    recalls = [grammar.RECALL if rng.random() < 0.5 else rng.choice(grammar.RECALLS) for _ in distances]
    scenes = _scenes(rng, cast)
    told = _told(rng, cast, scenes, distances, recalls)
    wanted = rng.randint(50, 100)
    while sum(map(_length, told)) < wanted:
        told += next(scenes)
    told.append(sentence(rng, rng.choice(grammar.ENDINGS[:-1]), cast))
    if rng.random() < 0.3:
        told.append(grammar.ENDINGS[-1])
    return Document("story", parts=_parts(rng, told, share=0.05))


def _parts(rng: random.Random, sentences: Sequence[str], share: float) -> tuple[str, ...]:
    """The text, in a `share` of cases cut after a space between two sentences."""
    if rng.random() >= share:
        return (" ".join(sentences),)
    cut = rng.choice((1, rng.randint(1, len(sentences) - 1)))
    return (" ".join(sentences[:cut]) + " ", " ".join(sentences[cut:]))


def _short_story(rng: random.Random, cast: Cast, facts: Sequence[str]) -> str:
    """A story of at most 75 tokens with `facts` (of place, animal, food) beside the hero, the thing and its colour.

    Most have 40 tokens or more; some are just the facts.
    """
    bare = rng.random() < 0.25
    while True:
        blocks = [[sentence(rng, rng.choice(grammar.FACTS), cast)]]
        order = rng.sample(facts, len(facts))
        for before, fact in zip([None, *order], order, strict=False):
            choices = {"place": grammar.GO, "animal": grammar.MEET[before != "place" :], "food": grammar.EAT}[fact]
            line = sentence(rng, rng.choice(choices), cast)
            if fact == "animal" and before == "place":
                blocks[-1].append(line)  # "There she met" stays right after "went to"
            else:
                blocks.append([line])
        for scene in rng.sample(grammar.QUIET_SCENES, 0 if bare else rng.randint(1, 3)):
            quiet = [sentence(rng, template, cast) for template in scene]
            blocks.insert(rng.randint(1, len(blocks)), quiet)
        if not bare or rng.random() < 0.5:
            blocks.insert(0, [sentence(rng, rng.choice(grammar.OPENINGS), cast)])
        text = " ".join(line for block in blocks for line in block)
        if bare or 40 <= _length(text) <= 75:
            return text


def _question(rng: random.Random, cast: Cast, subject: str) -> Turn:
    question, answer = grammar.QUESTIONS[subject]
    return sentence(rng, question, cast), sentence(rng, answer, cast)


def _chat(rng: random.Random) -> Document:
    kind = rng.random()
    if kind < 0.67:
        return Document("chat", turns=tuple(_talk_about_story(rng, ask_at_once=True)))
    if kind < 0.72:
        return Document("chat", turns=(_talk_about_now(rng),))
    if kind < 0.80:
        return Document("chat", turns=tuple(_talk_about_story(rng, ask_at_once=False)))
    if kind < 0.88:
        return Document("chat", turns=(_story_request(rng),))
    said = [_small_talk(rng, lines) for lines in rng.sample(grammar.SMALL_TALK, rng.randint(1, 2))]
    if rng.random() < 0.4:
        said = [said[0], *_talk_about_story(rng, ask_at_once=True)[:1]]
    return Document("chat", turns=tuple(said))


def _small_talk(rng: random.Random, lines: Turn) -> Turn:
    cast = Cast.draw(rng)
    return sentence(rng, lines[0], cast), sentence(rng, lines[1], cast)


def _story_request(rng: random.Random) -> Turn:
    cast = Cast.draw(rng)
    about = rng.choice((".", " about {hero}.", " about {an_animal}.", " about a {child} and {an_animal}."))
    return sentence(rng, grammar.STORY_WANTED + about, cast), _short_story(rng, cast, ("place", "animal"))


def _talk_about_now(rng: random.Random) -> Turn:
    """One or two sentences in the present tense, and a question."""
    cast = Cast.draw(rng)
    told = [sentence(rng, fact, cast) for fact in grammar.PRESENT_FACTS]
    if rng.random() < 0.5:
        question, answer = _question(rng, cast, rng.choice(("colour now", "thing now")))
        told = told[:1]
    else:
        rng.shuffle(told)
        question, answer = _question(rng, cast, rng.choice(("colour now", "thing now", "place now")))
    return " ".join([*told, question]), answer


def _talk_about_story(rng: random.Random, ask_at_once: bool) -> list[Turn]:
    """A story told by the user, and one or two questions about it."""
    cast = Cast.draw(rng)
    facts = rng.sample(("place", "animal", "food"), rng.choice((1, 2, 2, 3)))
    story = _short_story(rng, cast, facts)
    colour = "colour" if rng.random() < 0.85 else "colour now"
    first = colour if rng.random() < 0.45 else rng.choice(("thing", "hero", *facts))
    second = rng.choice([subject for subject in (colour, "thing", "hero", *facts) if subject != first])
    turns = [_question(rng, cast, first)]
    if _length(story) <= 60 and rng.random() < 0.35:
        turns.append(_question(rng, cast, second))
    if not ask_at_once:
        return [(story, sentence(rng, grammar.STORY_HEARD, cast)), turns[0]]
    return [(f"{story} {turns[0][0]}", turns[0][1]), *turns[1:]]


def _test_talk(rng: random.Random) -> Document:
    cast = Cast.draw(rng)
    templates = [rng.choice(grammar.TEST_OPENINGS), *rng.sample(grammar.TEST_SENTENCES, rng.randint(2, 4))]
    told = [sentence(rng, template, cast) for template in templates]
    if rng.random() < 0.3:
        told.append(sentence(rng, grammar.STORY_LEAD, cast))
        told += _told(rng, cast, _scenes(rng, cast), [rng.randint(10, 40)], [grammar.RECALL])
    return Document("test", parts=_parts(rng, told, share=0.35))
