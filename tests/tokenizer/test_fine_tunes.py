"""What a fine-tune adds beside its tokenizer's file: tokens, ends of an answer, a fuller tokenizer.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mistral_common
import pytest

from mistral.errors import InputError
from mistral.tokenizer.coverage import check_rows
from mistral.tokenizer.files import read_tokenizer_file
from mistral.tokenizer.messages import Message
from mistral.tokenizer.tokenizer import Tokenizer

DATA = Path(mistral_common.__file__).parent / "data"
V1, V3, TEKKEN = "tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3", "tekken_240718.json"
TOKENIZERS = json.loads((Path(__file__).parents[1] / "data" / "chat_golden.json").read_text(encoding="utf-8"))[
    "tokenizers"
]
SMALL = TOKENIZERS["byte_level"]
SIZE = 330  # of its ids
ENDS = {"bos_token": "<s>", "eos_token": "</s>"}


def write(folder: Path, source: str | None = V1, name: str = "tokenizer.model", **files: Any) -> Path:
    if source:
        (folder / name).symlink_to(DATA / source)
    for stem, table in files.items():
        (folder / f"{stem}.json").write_text(json.dumps(table))
    return folder


def small(**changes: Any) -> dict[str, Any]:
    return {**SMALL, **changes}


def added(number: int, content: str, **flags: bool) -> dict[str, Any]:
    base = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return {"id": number, "content": content, **base, **flags}


# ---- ids beyond the file


@pytest.mark.parametrize(
    "files",
    [
        {"added_tokens": {"<unk>": 0, "<|im_end|>": 32000, "<|im_start|>": 32001}},
        {"tokenizer": {"added_tokens": [added(32000, "<|im_end|>", special=True), added(32001, "<|im_start|>")]}},
        {"tokenizer_config": {"added_tokens_decoder": {
            "32000": {"content": "<|im_end|>", "special": True}, "32001": {"content": "<|im_start|>"}}}},
    ],
)  # fmt: skip
def test_tokens_beyond_a_sentencepiece_file_are_read_wherever_they_are_named(
    tmp_path: Path, files: dict[str, Any]
) -> None:
    tokenizer = Tokenizer.from_folder(write(tmp_path, **files))
    plain = Tokenizer.from_file(DATA / V1)
    assert (tokenizer.vocab_size, read_tokenizer_file(tokenizer.file).vocab_size) == (32002, 32002)
    assert tokenizer.file.name == "tokenizer.model"
    assert tokenizer.encode("<|im_start|>user") == plain.encode("<|im_start|>user"), "text is no control token"
    assert tokenizer.decode([*plain.encode("one"), 32000]) == "one"
    assert tokenizer.piece(32000) is None


def test_a_word_that_was_added_is_one_id_wherever_it_stands(tmp_path: Path) -> None:
    decoder = {"32000": {"content": "flibber"}, "32001": {"content": "flib"}}
    tokenizer = Tokenizer.from_folder(write(tmp_path, tokenizer_config={"added_tokens_decoder": decoder}))
    plain = Tokenizer.from_file(DATA / V1)
    assert tokenizer.encode("flibber") == [1, 32000]
    ids = [*plain.encode("one "), 32000, 32001, *plain.encode("two", bos=False)]
    assert tokenizer.encode("one flibberflibtwo") == ids
    assert tokenizer.decode([1, 32000, 32001]) == "flibberflib"


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("added_tokens", {"a": "b"}),
        ("added_tokens", {"a": True}),
        ("added_tokens", {"a": 1.5}),
        ("tokenizer_config", {"added_tokens_decoder": {"x": {"content": "a"}}}),
        ("tokenizer_config", {"added_tokens_decoder": {"32000": {}}}),
        ("tokenizer_config", {"added_tokens_decoder": {"32000": 5}}),
        ("tokenizer_config", {"added_tokens_decoder": [1]}),
    ],
)
def test_a_damaged_table_of_added_tokens_is_named(tmp_path: Path, name: str, table: object) -> None:
    files: dict[str, Any] = {name: table}
    with pytest.raises(InputError, match=rf"{name}\.json: its table of added tokens is damaged"):
        Tokenizer.from_folder(write(tmp_path, **files))


@pytest.mark.parametrize("number", [-1, 1 << 24, 1 << 63, 1 << 22])
def test_an_id_that_no_vocabulary_has_is_refused(tmp_path: Path, number: int) -> None:
    with pytest.raises(InputError, match=r"has (the|an) id \d+|has the id -1"):
        Tokenizer.from_folder(write(tmp_path, added_tokens={"<x>": number}))


# ---- which file


def test_a_fuller_tokenizer_json_beside_an_older_model_is_taken(tmp_path: Path) -> None:
    vocabulary = {**SMALL["model"]["vocab"], **{f"<w{i}>": i for i in range(SIZE, 32003)}}
    table = small(model={**SMALL["model"], "vocab": vocabulary})
    tokenizer = Tokenizer.from_folder(write(tmp_path, tokenizer=table, tokenizer_config=ENDS))
    assert (tokenizer.file.name, tokenizer.vocab_size) == ("tokenizer.json", 32003)
    assert tokenizer.note == "tokenizer: tokenizer.json taken, not tokenizer.model (it has ids that the other has not)"
    write(tmp_path, None, params={"vocab_size": 32000})  # the model has none of the ids that are more
    assert Tokenizer.from_folder(tmp_path).file.name == "tokenizer.model"


@pytest.mark.parametrize(
    ("source", "name", "size"), [(V3, "tokenizer.model.v3", 32768), (TEKKEN, "tekken.json", 131072)]
)
def test_a_file_that_names_its_version_gives_way_to_tokens_beyond_it_alone(
    tmp_path: Path, source: str, name: str, size: int
) -> None:
    write(tmp_path, source, name, tokenizer=small(), tokenizer_config=ENDS)
    assert Tokenizer.from_folder(tmp_path).file.name == name
    beyond = small(added_tokens=[*SMALL["added_tokens"], *(added(size + i, f"<{i}>") for i in range(2))])
    write(tmp_path, None, tokenizer=beyond)
    assert Tokenizer.from_folder(tmp_path).file.name == "tokenizer.json"


# ---- rows of the model and ids of the tokenizer


def test_rows_beyond_the_ids_are_said_and_decode_to_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path, None, tokenizer=small(), tokenizer_config=ENDS, config={"vocab_size": SIZE + 22})
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.uncovered() == (range(SIZE, SIZE + 22),)
    assert tokenizer.notes == (
        "tokenizer: 22 of the model's 352 ids have no piece in tokenizer.json (330 to 351), and are never chosen",
    )
    ids = tokenizer.encode("the cat")
    assert tokenizer.decode([*ids, SIZE, SIZE + 21, *ids]) == "the catthe cat"
    with pytest.raises(InputError, match="has 330 ids, not id 352"):
        tokenizer.decode([SIZE + 22])


def test_gaps_between_ids_have_no_piece_either(tmp_path: Path) -> None:
    table = small(added_tokens=[*SMALL["added_tokens"], added(SIZE + 4, "<end>", special=True)])
    tokenizer = Tokenizer.from_folder(write(tmp_path, None, tokenizer=table, tokenizer_config=ENDS)).for_rows(SIZE + 6)
    # the library gives added tokens the ids that come next, and its word is law
    covered = {i for i in range(SIZE + 6) if tokenizer.stands_for(i)}
    assert covered | {i for run in tokenizer.uncovered() for i in run} == set(range(SIZE + 6))
    assert tokenizer.decode([i for run in tokenizer.uncovered() for i in run]) == ""


def test_an_end_without_a_piece_is_no_id_to_exclude(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(write(tmp_path, config={"vocab_size": 32003, "eos_token_id": [2, 32001]}))
    assert tokenizer.end_ids == (2, 32001)
    assert tokenizer.uncovered() == (range(32000, 32001), range(32002, 32003))


def test_a_text_that_needs_a_token_beyond_the_rows_is_refused_by_name(tmp_path: Path) -> None:
    template = "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}"
    folder = write(
        tmp_path, added_tokens={"<|im_start|>": 32000}, config={"vocab_size": 32000},
        tokenizer_config={"chat_template": template},
    )  # fmt: skip
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.notes == (
        "tokenizer: tokenizer.model has 32001 ids and the model 32000; a text that needs one of 32000 is refused",
    )
    assert tokenizer.encode("<|im_start|>")
    with pytest.raises(InputError, match=r"needs the token '<\|im_start\|>' \(id 32000\), and the model has 32000 ids"):
        tokenizer.encode_chat([Message("user", "hi")])


@pytest.mark.parametrize(
    ("size", "rows", "fits"),
    [(32000, 32000, True), (32002, 32000, True), (32256, 32000, True), (32257, 32000, False), (32768, 32000, False),
     (131072, 32768, False), (330, 100000, True), (340, 330, True), (360, 330, False)],
)  # fmt: skip
def test_a_tokenizer_may_have_a_few_ids_more_and_no_other_vocabulary(size: int, rows: int, fits: bool) -> None:
    if fits:
        check_rows(Path("t"), size, rows)
    else:
        with pytest.raises(InputError, match=f"has {size} ids and the model {rows}; it is another model's tokenizer"):
            check_rows(Path("t"), size, rows)


# ---- ends of an answer


@pytest.mark.parametrize(
    ("files", "ends"),
    [
        ({}, (2,)),
        ({"generation_config": {"eos_token_id": [2, 7]}, "config": {"eos_token_id": 5}}, (2, 7, 5)),
        ({"config": {"text_config": {"eos_token_id": 9}}}, (2, 9)),
        ({"added_tokens": {"<|im_end|>": 32000}, "tokenizer_config": {"eos_token": "<|im_end|>"}}, (2, 32000)),
        ({"special_tokens_map": {"eos_token": {"content": "<unk>"}}}, (2, 0)),
        ({"tokenizer_config": {"eos_token": ["</s>", "<s>", 4, None]}}, (2, 1)),
        ({"generation_config": {"eos_token_id": [True, -1, "2", None, 1.0, 1 << 40, [3], {}]}}, (2,)),
        ({"config": {"eos_token_id": {"a": 1}}, "tokenizer_config": {"eos_token": 5}}, (2,)),
        ({"tokenizer_config": {"eos_token": "nowhere"}}, (2,)),
    ],
)
def test_every_file_may_name_ends_of_an_answer(tmp_path: Path, files: dict[str, Any], ends: tuple[int, ...]) -> None:
    tokenizer = Tokenizer.from_folder(write(tmp_path, **files))
    assert (tokenizer.end_ids, tokenizer.eos_id) == (ends, 2)


# ---- bos


@pytest.mark.parametrize(
    ("config", "first"),
    [({}, True), ({"add_bos_token": False}, False), ({"tokenizer_class": "GPT2Tokenizer"}, False),
     ({"tokenizer_class": "GPT2TokenizerFast", "add_bos_token": True}, True)],
)  # fmt: skip
def test_a_text_begins_with_bos_where_the_configuration_has_it_so(
    tmp_path: Path, config: dict[str, object], first: bool
) -> None:
    tokenizer = Tokenizer.from_folder(write(tmp_path, None, tokenizer=small(), tokenizer_config={**ENDS, **config}))
    assert (tokenizer.encode("the cat")[0] == 1) == first


# ---- answers that have begun


@pytest.mark.parametrize("name", [V1, V3, TEKKEN, "mistral_instruct_tokenizer_241114.model.v7"])
def test_an_answer_that_has_begun_is_encoded_without_its_end(name: str) -> None:
    tokenizer = Tokenizer.from_file(DATA / name)
    asked = [Message("user", "What is it?")]
    begun = tokenizer.encode_chat([*asked, Message("assistant", "The cat", prefix=True)])
    assert begun == [*tokenizer.encode_chat(asked), *tokenizer.encode("The cat", bos=False)]
    assert tokenizer.encode_chat([*asked, Message("assistant", "", prefix=True)]) == tokenizer.encode_chat(asked)
    whole = tokenizer.encode_chat([*asked, Message("assistant", "The cat"), *asked])
    assert whole[: len(begun) + 1] == [*begun, tokenizer.eos_id]


@pytest.mark.parametrize(
    "messages",
    [
        [Message("user", "a", prefix=True)],
        [Message("user", "a"), Message("assistant", "b", prefix=True), Message("user", "c")],
        [Message("user", "a"), Message("assistant", "b")],
    ],
)
def test_a_prefix_is_the_last_message_and_the_assistants(messages: list[Message]) -> None:
    with pytest.raises(InputError, match=r"prefix is for the last message|must end with a user's message"):
        Tokenizer.from_file(DATA / V3).encode_chat(messages)
