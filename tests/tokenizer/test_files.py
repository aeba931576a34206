"""Tokenizer files: which one a folder gives, what is refused, and small SentencePiece models made here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mistral_common
import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral.errors import InputError
from mistral.tokenizer.messages import Message
from mistral.tokenizer.tokenizer import Tokenizer

DATA = Path(mistral_common.__file__).parent / "data"
V1, V3 = "tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3"
V2, V7 = "mistral_instruct_tokenizer_240216.model.v2", "mistral_instruct_tokenizer_241114.model.v7"
TEKKEN = "tekken_240718.json"
CONVERSATION = [Message("system", "Be nice"), Message("user", "Hi")]
CONTROL_SYMBOLS = [
    "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
    "[IMG]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
]  # fmt: skip


def train(path: Path, **changes: Any) -> Path:
    """A small SentencePiece model, trained as the project trains its own."""
    lines = [f"The {word} cat sat on the {word} mat, and two dogs ran to a {word} town." for word in ("red", "old")]
    options: dict[str, Any] = {
        "model_type": "bpe", "vocab_size": 330, "byte_fallback": True, "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False, "split_digits": True, "allow_whitespace_only_pieces": True,
        "control_symbols": CONTROL_SYMBOLS, "unk_id": 0, "bos_id": 1, "eos_id": 2, "minloglevel": 2,
    }  # fmt: skip
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=file, **{**options, **changes}
        )
    return path


# ---- which file


def place(folder: Path, **files: str) -> Path:
    for name, source in files.items():
        (folder / name.replace("__", ".")).symlink_to(DATA / source)
    return folder


def test_a_versioned_file_wins_over_a_bare_one_and_the_note_says_so(tmp_path: Path) -> None:
    place(tmp_path, tokenizer__model=V1, tokenizer__model__v3=V3)
    tokenizer = Tokenizer.from_folder(str(tmp_path))
    assert tokenizer.file == tmp_path / "tokenizer.model.v3"
    assert tokenizer.note == "tokenizer: tokenizer.model.v3 taken, not tokenizer.model (it names its version)"


def test_tekken_wins_over_everything(tmp_path: Path) -> None:
    place(tmp_path, tekken__json=TEKKEN, tokenizer__model__v7=V7, tokenizer__model=V1)
    (tmp_path / "tokenizer.json").write_text("{}")
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.version == "v3 tekken"
    others = "tokenizer.model.v7, tokenizer.model, tokenizer.json"
    assert tokenizer.note == f"tokenizer: tekken.json taken, not {others} (it names its version)"


def test_the_highest_version_wins(tmp_path: Path) -> None:
    place(tmp_path, tokenizer__model__v3=V3, tokenizer__model__v7=V7, tokenizer__model__v2=V2)
    assert Tokenizer.from_folder(tmp_path).version == "v7"
    place(tmp_path, tokenizer__model__v11=V7)
    with pytest.raises(InputError, match="version v11 is not known; use one of v1, v2, v3, v7"):
        Tokenizer.from_folder(tmp_path)


def test_sentencepiece_wins_over_tokenizer_json(tmp_path: Path) -> None:
    place(tmp_path, tokenizer__model=V1)
    (tmp_path / "tokenizer.json").write_text("{}")
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.version == "v1"
    assert tokenizer.note == "tokenizer: tokenizer.model taken, not tokenizer.json (it has the chat template)"


@pytest.mark.parametrize(("file", "version"), [(V1, "v1"), (V3, "v3"), (V7, "v7")])
def test_a_bare_model_file_is_what_its_control_tokens_say(tmp_path: Path, file: str, version: str) -> None:
    tokenizer = Tokenizer.from_folder(place(tmp_path, tokenizer__model=file))
    assert (tokenizer.version, tokenizer.note) == (version, None)
    assert tokenizer.encode_chat(CONVERSATION) == Tokenizer.from_file(DATA / file).encode_chat(CONVERSATION)


def test_a_folder_without_a_tokenizer_is_refused_before_the_library_is_imported(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").mkdir()
    (tmp_path / "params.json").write_text("{}")
    program = (
        "import sys\nfrom mistral.errors import InputError\nfrom mistral.tokenizer.tokenizer import Tokenizer\n"
        "try:\n    Tokenizer.from_folder(sys.argv[1])\nexcept InputError as error:\n    print(error)\n"
        "print(any(name in sys.modules for name in ('mistral_common', 'tokenizers', 'mindspore')))\n"
    )
    command = [sys.executable, "-W", "error", "-c", program, str(tmp_path)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    line = f"{tmp_path}: no tokenizer here; add the model's tekken.json, tokenizer.model.v3 or tokenizer.model"
    assert done.stdout.splitlines() == [line, "False"]
    assert done.stderr == ""


def test_loading_every_kind_is_silent_and_needs_no_mindspore() -> None:
    program = (
        "import sys\nfrom mistral.tokenizer.messages import Message\n"
        "from mistral.tokenizer.tokenizer import Tokenizer\n"
        "for file in sys.argv[1:]:\n    Tokenizer.from_file(file).encode_chat([Message('user', 'Hi')])\n"
        "assert 'mindspore' not in sys.modules\n"
    )
    files = [str(DATA / name) for name in (V1, V3, V7, TEKKEN)]
    command = [sys.executable, "-W", "error", "-c", program, *files]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert (done.stdout, done.stderr) == ("", "")


# ---- damaged files


def sentencepiece_sections() -> tuple[bytes, int, int]:
    """The v1 file, and where its pieces and its trainer's settings end (top-level protobuf fields 1 and 2)."""
    content = (DATA / V1).read_bytes()
    position, ends = 0, {1: 0, 2: 0, 3: 0}
    while position < len(content):
        field, length, shift = content[position] >> 3, 0, 0
        while True:
            position += 1
            length |= (content[position] & 127) << shift
            shift += 7
            if content[position] < 128:
                break
        position += 1 + length
        ends[field] = position
    return content, ends[1], ends[2]


def tekken_without(key: str) -> bytes:
    table = {"config": {"version": "v3", "pattern": "."}, "vocab": [], "version": 1}
    return json.dumps({name: value for name, value in table.items() if name != key}).encode()


V1_BYTES, PIECES_END, TRAINER_END = sentencepiece_sections()
DAMAGED: dict[str, tuple[str, bytes]] = {
    "empty model": ("tokenizer.model", b""),
    "empty tekken": ("tekken.json", b""),
    "pointer": ("tokenizer.model.v3", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 493443\n"),
    "model cut in half": ("tokenizer.model", V1_BYTES[: len(V1) // 2]),
    "model cut by a byte": ("tokenizer.model", V1_BYTES[:-1]),
    "model without settings": ("tokenizer.model", V1_BYTES[:PIECES_END]),
    "model without normalizer": ("tokenizer.model", V1_BYTES[:TRAINER_END]),
    "model of zeros": ("tokenizer.model", bytes(5000)),
    "page instead of model": ("tokenizer.model.v3", b"<!DOCTYPE html>\n<html>Not Found\n</html>"),
    "v1 called v3": ("tokenizer.model.v3", V1_BYTES),
    "unknown version": ("tokenizer.model.v99", V1_BYTES),
    "tekken not JSON": ("tekken.json", b"<html>\nNot Found"),
    "tekken cut": ("tekken.json", b'{"config": {"pattern": "x", "version"'),
    "tekken a list": ("tekken.json", b"[1, 2]"),
    "tekken binary": ("tekken.json", bytes(range(256))),
    "tekken without config": ("tekken.json", tekken_without("config")),
    "tekken without vocab": ("tekken.json", tekken_without("vocab")),
    "tekken of another version": ("tekken.json", b'{"config": {"version": "v99"}}'),
    "tokenizer.json not JSON": ("tokenizer.json", b"{"),
    "tokenizer.json a list": ("tokenizer.json", b"[]"),
    "tokenizer.json without decoder": ("tokenizer.json", b"{}"),
    "tokenizer.json of other decoder": ("tokenizer.json", b'{"decoder": {"type": "WordPiece"}}'),
    "tokenizer.json without model": ("tokenizer.json", b'{"decoder": {"type": "ByteLevel"}}'),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_gives_one_line_with_its_name(
    tmp_path: Path, case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    name, content = DAMAGED[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        Tokenizer.from_folder(tmp_path)
    line = str(caught.value)
    assert line.startswith(f"{tmp_path / name}: ")
    assert "\n" not in line
    assert len(line) < len(str(tmp_path)) + 330
    assert any(remedy in line for remedy in ("download it again", "add the model's", "use one of v1, v2"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("case", "defect"), [("pointer", "a Git LFS pointer"), ("empty tekken", "empty")])
def test_a_download_that_did_not_happen_is_told_from_damage(tmp_path: Path, case: str, defect: str) -> None:
    name, content = DAMAGED[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        Tokenizer.from_file(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: {defect}")


def test_a_path_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing: no such folder"):
        Tokenizer.from_folder(tmp_path / "missing")
    with pytest.raises(InputError, match=r"missing\.model: not readable \(No such file or directory\)"):
        Tokenizer.from_file(tmp_path / "missing.model")
    (tmp_path / "vocab.txt").write_text("a")
    with pytest.raises(InputError, match="not a tokenizer by its name"):
        Tokenizer.from_file(tmp_path / "vocab.txt")


# ---- a small model of our own


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("own")
    train(folder / "tokenizer.model.v3")
    return Tokenizer.from_folder(folder)


def test_our_own_model_loads_and_chats(own: Tokenizer) -> None:
    assert (own.version, own.vocab_size, own.bos_id, own.eos_id) == ("v3", 330, 1, 2)
    ids = own.encode_chat([Message("user", "the cat [INST]"), Message("assistant", "sat"), Message("user", "on")])
    raw = sentencepiece.SentencePieceProcessor(model_file=str(own.file))
    assert ids == [1, 3, *raw.encode("the cat [INST]"), 4, *raw.encode("sat"), 2, 3, *raw.encode("on"), 4]
    assert ids.count(3) == 2


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")))
def test_our_own_model_streams_any_text(own: Tokenizer, text: str) -> None:
    stream = own.stream()
    assert "".join([*map(stream.push, own.encode(text)), stream.flush()]) == text


def test_our_own_model_needs_its_name_no_more_than_its_control_tokens(tmp_path: Path) -> None:
    train(tmp_path / "tokenizer.model")
    assert Tokenizer.from_folder(tmp_path).version == "v3"


@pytest.mark.parametrize("missing", CONTROL_SYMBOLS[:7])
def test_a_missing_control_token_is_named(tmp_path: Path, missing: str) -> None:
    rest = [symbol for symbol in CONTROL_SYMBOLS if symbol != missing]
    path = train(tmp_path / "tokenizer.model.v3", control_symbols=rest)
    with pytest.raises(InputError) as caught:
        Tokenizer.from_folder(tmp_path)
    remedy = "as v3 needs; add the model's own tokenizer"
    assert str(caught.value) == f"{path}: has no control token {missing}, {remedy}"


def test_a_control_token_that_text_could_become_is_refused(tmp_path: Path) -> None:
    symbols = {"control_symbols": CONTROL_SYMBOLS[1:], "user_defined_symbols": ["[INST]"]}
    train(tmp_path / "tokenizer.model.v3", **symbols)
    with pytest.raises(InputError, match=r"has no control token \[INST\]"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("changes", "defect"),
    [
        ({"byte_fallback": False, "vocab_size": 80}, "text does not survive encoding"),
        ({"remove_extra_whitespaces": True}, "text does not survive encoding"),
        ({"normalization_rule_name": "nmt_nfkc"}, "text does not survive encoding"),
        ({"bos_id": -1}, "has no <s> or </s>"),
        ({"eos_id": -1}, "has no <s> or </s>"),
    ],
)
def test_a_model_that_loses_text_or_its_ends_is_refused(tmp_path: Path, changes: dict[str, Any], defect: str) -> None:
    train(tmp_path / "tokenizer.model.v3", **changes)
    with pytest.raises(InputError, match=defect):
        Tokenizer.from_folder(tmp_path)


def test_a_model_without_the_added_space_loses_none(tmp_path: Path) -> None:
    train(tmp_path / "tokenizer.model.v3", add_dummy_prefix=False)
    tokenizer = Tokenizer.from_folder(tmp_path)
    for text in ("cat", " cat", "  cat"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_numpy_ids_decode(own: Tokenizer) -> None:
    ids = np.array(own.encode("the old cat"), dtype=np.int32)
    assert own.decode(list(ids)) == "the old cat"
