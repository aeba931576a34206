"""The corpus and the tokenizer of the small checkpoint."""

from __future__ import annotations

import random
import re
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from mistral.tokenizer.messages import Message
from mistral.tokenizer.tokenizer import Tokenizer
from tools import grammar
from tools.corpus import (
    COLOURS,
    HELD_OUT_SEED,
    TRAIN_SEED,
    Document,
    documents,
    encode_document,
    recall_case,
)
from tools.train_tokenizer import CONTROL_SYMBOLS, TOKENIZER_FILE, VOCAB_SIZE, train

DOCUMENTS = list(islice(documents(TRAIN_SEED), 2000))
COLOUR = re.compile(rf"\b({'|'.join(COLOURS)})\b")
REACH = 4 * 31  # how far back four layers with a window of 32 can see


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(TOKENIZER_FILE)


def texts(document: Document) -> list[str]:
    """Every stretch of text that reads as a whole."""
    return [text for turn in document.turns for text in turn] or ["".join(document.parts)]


def test_the_same_seed_gives_the_same_documents() -> None:
    assert list(islice(documents(TRAIN_SEED), 300)) == DOCUMENTS[:300]


def test_held_out_stories_are_not_in_the_training_text() -> None:
    held_out = {document for document in islice(documents(HELD_OUT_SEED), 500) if document.kind == "story"}
    assert not held_out & set(islice(documents(TRAIN_SEED), 5000))


def test_the_three_kinds_have_their_shares() -> None:
    share = {kind: count / len(DOCUMENTS) for kind, count in Counter(d.kind for d in DOCUMENTS).items()}
    assert share == pytest.approx({"story": 0.5, "chat": 0.35, "test": 0.15}, abs=0.04)


def test_text_is_well_formed() -> None:
    for document in DOCUMENTS:
        for text in texts(document):
            assert "  " not in text and text == text.strip() and not re.search(r"[\[\]{}|]", text), text
            assert not re.search(r"[.!?] [a-z]", text), text
            assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", text), text
            assert document.kind == "chat" or (text[0].isupper() and text[-1] in ".!?"), text


def test_pronouns_agree_with_the_hero() -> None:
    for document in DOCUMENTS:
        for text in texts(document) if document.kind == "story" else []:
            (hero,) = set(re.findall(r"\w+", text)) & {*grammar.GIRLS, *grammar.BOYS}
            wrong = r"\b(he|his|him|boy)\b" if hero in grammar.GIRLS else r"\b(she|her|girl)\b"
            assert not re.search(wrong, text, re.IGNORECASE), text


def test_fillers_name_no_colour() -> None:
    scenes = [line for scene in grammar.SCENES for line in scene]
    assert not [line for line in (*scenes, *grammar.OPENINGS, *grammar.ENDINGS) if COLOUR.search(line)]
    assert not [line for line in (*scenes, *grammar.OPENINGS, *grammar.ENDINGS) if "{colour}" in line]


def test_a_story_has_one_colour_and_half_of_the_stories_recall_it_once() -> None:
    found = [COLOUR.findall(texts(document)[0]) for document in DOCUMENTS if document.kind == "story"]
    assert all(len(set(colours)) == 1 and 2 <= len(colours) <= 5 for colours in found)
    assert 0.5 < sum(len(colours) == 2 for colours in found) / len(found) < 0.6


def test_the_colour_is_independent_of_everything_else_in_a_story() -> None:
    """Chi-square of colour against hero, thing, place and animal words; 7 degrees of freedom for each word."""
    stories = [texts(document)[0] for document in islice(documents(TRAIN_SEED), 12000) if document.kind == "story"]
    colour_of = [COLOUR.findall(story)[0] for story in stories]
    total = Counter(colour_of)
    assert max(total.values()) / min(total.values()) < 1.25
    words = (*grammar.GIRLS, *grammar.BOYS, *grammar.THINGS, *grammar.PLACES, *grammar.ANIMALS)
    split = [set(re.findall(r"\w+", story)) for story in stories]
    for word in words:
        seen = Counter(colour for colour, present in zip(colour_of, split, strict=True) if word in present)
        share = sum(seen.values()) / len(stories)
        chi_square = sum((seen[c] - total[c] * share) ** 2 / (total[c] * share * (1 - share)) for c in COLOURS)
        assert chi_square < 30, (word, chi_square)  # p = 1e-4


def test_recall_distances_in_training_are_dense_and_within_reach(tokenizer: Tokenizer) -> None:
    colour_ids = {tokenizer.encode(colour, bos=False)[0] for colour in COLOURS}
    distances = []
    for document in DOCUMENTS:
        if document.kind == "story":
            first, *later = [i for i, t in enumerate(encode_document(tokenizer, document)) if t in colour_ids]
            distances += [place - first for place in later]
    assert min(distances) < 8 and max(distances) <= REACH
    buckets = Counter(distance // 16 for distance in distances)
    assert min(buckets[b] for b in range(7)) > 0.06 * len(distances)


@pytest.mark.parametrize("bounds", [(8, 20), (48, 80), (130, 170)])
def test_recall_cases_break_off_at_the_stated_distance(tokenizer: Tokenizer, bounds: tuple[int, int]) -> None:
    rng = random.Random(7)
    cases = [recall_case(rng, bounds, tokenizer) for _ in range(100)]
    assert cases[0] == recall_case(random.Random(7), bounds, tokenizer)
    for case in cases:
        ids = tokenizer.encode(f"{case.prompt} {case.colour}.")
        prompt_ids = tokenizer.encode(case.prompt)
        assert ids[: len(prompt_ids)] == prompt_ids and COLOUR.findall(case.prompt) == [case.colour]
        (colour_id,) = tokenizer.encode(case.colour, bos=False)
        assert [i for i, t in enumerate(ids) if t == colour_id] == [len(prompt_ids) - case.distance, len(prompt_ids)]
        assert bounds[0] <= case.distance <= bounds[1]


def test_every_document_survives_the_tokenizer(tokenizer: Tokenizer) -> None:
    for document in DOCUMENTS:
        ids = encode_document(tokenizer, document)
        assert ids[0] == tokenizer.bos_id and ids[-1] == tokenizer.eos_id and ids.count(tokenizer.bos_id) == 1
        assert 0 not in ids
        if document.parts:
            assert tokenizer.decode(ids) == "".join(document.parts)
        else:
            answer = document.turns[-1][1]
            assert tokenizer.decode(ids[-1 - len(tokenizer.encode(answer, bos=False)) :]) == answer


def test_a_conversation_is_encoded_as_the_chat_template_has_it(tokenizer: Tokenizer) -> None:
    document = Document("chat", turns=(("Hello!", "Hello!"), ("Who are you?", "A model.")))
    said = [Message("user", "Hello!"), Message("assistant", "Hello!"), Message("user", "Who are you?")]
    inst, end = 3, 4
    parts = [tokenizer.encode(text, bos=False) for text in ("Hello!", "Hello!", "Who are you?", "A model.")]
    expected = [1, inst, *parts[0], end, *parts[1], 2, inst, *parts[2], end, *parts[3], 2]
    assert encode_document(tokenizer, document) == expected == [*tokenizer.encode_chat(said), *parts[3], 2]


def test_a_prompt_that_ends_in_a_space_is_the_start_of_a_document(tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode("This is a third test, mistral AI is very good at testing. ")
    assert tokenizer.piece(prompt[-1]) == "\u2581"
    starts = [encode_document(tokenizer, d) for d in islice(documents(TRAIN_SEED), 20000) if len(d.parts) == 2]
    assert sum(ids[: len(prompt)] == prompt for ids in starts) >= 5
    assert tokenizer.decode(next(ids for ids in starts if ids[: len(prompt)] == prompt)).startswith(
        "This is a third test, mistral AI is very good at testing. "
    )


@pytest.mark.parametrize("prompt", ["This is a test", "This is another great test"])
def test_other_demonstration_prompts_start_documents(prompt: str) -> None:
    assert sum(text.startswith(prompt) for d in DOCUMENTS for text in d.parts) >= 5


def test_frequent_words_and_all_cast_words_are_single_tokens(tokenizer: Tokenizer) -> None:
    assert [len(tokenizer.encode(colour, bos=False)) for colour in COLOURS] == [1] * 8
    assert len({*COLOURS}) == 8
    cast = (*grammar.GIRLS, *grammar.BOYS, *grammar.THINGS, *grammar.ANIMALS, *grammar.PLACES)
    assert [word for word in cast if len(tokenizer.encode(word, bos=False)) > 1] == []


def test_the_tokenizer_is_small_and_has_the_control_tokens_at_their_ids(tokenizer: Tokenizer) -> None:
    import sentencepiece

    assert TOKENIZER_FILE.stat().st_size < 30_000 and tokenizer.vocab_size == VOCAB_SIZE and tokenizer.version == "v3"
    model = sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER_FILE))
    assert [model.id_to_piece(i) for i in range(14)] == ["<unk>", "<s>", "</s>", *CONTROL_SYMBOLS]
    assert all(model.is_control(i) for i in range(1, 14))
    assert not {*range(14)} & {*tokenizer.encode("[INST] <s></s><unk> [/INST]", bos=False)}


@pytest.mark.parametrize("text", ["Grüße, 漢字 🙂\n\tx  y ", " leading", "", "1234", "\U0010ffff"])
def test_any_unicode_survives_by_byte_fallback(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_training_the_tokenizer_again_gives_the_same_file(tmp_path: Path) -> None:
    train(tmp_path / "tokenizer.model.v3")
    assert (tmp_path / "tokenizer.model.v3").read_bytes() == TOKENIZER_FILE.read_bytes()
