"""Tokenizers written into GGUF files: read again they make the same ids, texts, ends and conversations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Library

from mistral.errors import InputError
from mistral.gguf.model_files import read_metadata
from mistral.gguf.write import header
from mistral.tokenizer.gguf.export import require_same, tokenizer_values
from mistral.tokenizer.messages import Message
from mistral.tokenizer.tokenizer import Tokenizer
from tests.tokenizer.test_gguf_tokenizer import ORIGINALS, TEXTS, tekken_values

DATA = Path(MistralTokenizer._data_path())
OFFICIAL = {
    "v1": ("tokenizer.model.v1", "tokenizer.model.v1"),
    "v2": ("mistral_instruct_tokenizer_240216.model.v2", "tokenizer.model.v2"),
    "v3": ("mistral_instruct_tokenizer_240323.model.v3", "tokenizer.model.v3"),
    "v7": ("mistral_instruct_tokenizer_241114.model.v7", "tokenizer.model.v7"),
    "tekken": ("tekken_240911.json", "tekken.json"),
}
TALK = [Message("user", "Hi there"), Message("assistant", "Hello."), Message("user", "What is 2+2?")]


def exported(tokenizer: Tokenizer, folder: Path, rows: int | None = None) -> Tokenizer:
    """What is read of a tokenizer after it was written, for a model of so many rows."""
    folder.mkdir()
    path = folder / "model.gguf"
    path.write_bytes(header(tokenizer_values(tokenizer, rows or tokenizer.vocab_size), []))
    return Tokenizer.from_folder(path)


def placed(version: str, folder: Path) -> Tokenizer:
    """One of Mistral's own tokenizers, in the folder of a model made to be asked."""
    source, name = OFFICIAL[version]
    folder.mkdir()
    shutil.copy(DATA / source, folder / name)
    return Tokenizer.from_folder(folder)


@pytest.mark.parametrize("version", OFFICIAL)
def test_mistrals_own_tokenizers(version: str, tmp_path: Path) -> None:
    original = placed(version, tmp_path / "model-instruct")
    found = exported(original, tmp_path / "out")
    for text in TEXTS:
        assert found.encode(text) == original.encode(text)
        assert found.decode(found.encode(text)) == text
    assert (found.vocab_size, found.bos_id, found.end_ids) == (
        original.vocab_size, original.bos_id, original.end_ids,
    )  # fmt: skip
    assert found.is_instruct and original.is_instruct
    assert found.vocabulary.specials.keys() >= original.vocabulary.specials.keys() - {"<unk>"}
    assert found.encode_chat(TALK) == original.encode_chat(TALK)
    told = [Message("system", "Be brief."), *TALK]
    assert found.encode_chat(told) == original.encode_chat(told)
    assert found.encode_chat(TALK[:1]) == original.encode_chat(TALK[:1])


def test_a_base_model_gets_no_template(tmp_path: Path) -> None:
    assert not exported(placed("v3", tmp_path / "model"), tmp_path / "out").can_chat


def table(path: Path, pre: str, **config: object) -> Path:
    """A folder with a tokenizer.json of byte-level merges that cuts words as one of ORIGINALS."""
    path.mkdir()
    vocabulary = {token: number for number, token in enumerate(tekken_values()["tokens"])}
    merges = [tuple(merge.split(" ")) for merge in tekken_values()["merges"]]
    library = Library(models.BPE(vocabulary, merges, ignore_merges=pre == "llama-bpe"))
    library.pre_tokenizer = pre_tokenizers.Sequence(ORIGINALS[pre])
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<s>", "</s>", "<|im_end|>", "<|turn|>"])
    library.add_tokens(["<think>", "wordword"])
    library.save(str(path / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ messages[0]['content'] }}<|im_end|>"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings | config))
    return path


@pytest.mark.parametrize("pre", ORIGINALS)
def test_a_tokenizer_json_of_byte_level_merges(pre: str, tmp_path: Path) -> None:
    folder = table(tmp_path / "model", pre)
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [2, len(tekken_values()["tokens"]) + 1]})
    )
    original = Tokenizer.from_folder(folder)
    found = exported(original, tmp_path / "out", original.vocab_size + 61)
    assert found.version == f"GGUF, {pre}" and found.vocab_size == original.vocab_size + 61
    for text in (*TEXTS, "a wordword b", "a <think> b"):
        assert found.encode(text) == original.encode(text)
        assert found.decode(found.encode(text)) == original.decode(original.encode(text))
    assert set(found.end_ids) >= set(original.end_ids)
    assert found.encode_chat([Message("user", "Hi")]) == original.encode_chat([Message("user", "Hi")])
    assert found.uncovered() == (range(original.vocab_size, found.vocab_size),) or found.vocabulary.missing


def test_a_tokenizer_json_of_sentencepiece(tmp_path: Path) -> None:
    """Its vocabulary with the merges by rank, as transformers makes it out of a tokenizer.model."""
    original = placed("v3", tmp_path / "v3")
    from sentencepiece import SentencePieceProcessor

    raw = SentencePieceProcessor(model_file=str(original.file))
    pieces = {raw.id_to_piece(number): number for number in range(raw.get_piece_size())}
    rank = {piece: -raw.get_score(number) for piece, number in pieces.items()}
    merges = sorted(
        ((piece[:at], piece[at:]) for piece in pieces if pieces[piece] > 770 for at in range(1, len(piece))
         if piece[:at] in pieces and piece[at:] in pieces),
        key=lambda pair: (rank[pair[0] + pair[1]], pieces[pair[0]], pieces[pair[1]]),
    )  # fmt: skip
    library = Library(models.BPE(pieces, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.add_special_tokens(["<unk>", "<s>", "</s>", "[INST]", "[/INST]"])
    folder = tmp_path / "json"
    folder.mkdir()
    library.save(str(folder / "tokenizer.json"))
    table = Tokenizer.from_folder(folder)
    found = exported(table, tmp_path / "out")
    for text in TEXTS[1:]:
        assert found.encode(text) == table.encode(text)


def test_words_cut_in_a_way_without_a_name_are_refused(tmp_path: Path) -> None:
    folder = table(tmp_path / "model", "gpt-2")
    library = Library.from_file(str(folder / "tokenizer.json"))
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("X"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    library.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer.from_folder(folder)
    with pytest.raises(InputError, match=r"cuts texts into words in a way of its own, which GGUF files have no name"):
        tokenizer_values(tokenizer, tokenizer.vocab_size)


def test_a_normalizer_that_gguf_has_no_words_for_is_found(tmp_path: Path) -> None:
    folder = table(tmp_path / "model", "gpt-2")
    library = Library.from_file(str(folder / "tokenizer.json"))
    library.normalizer = normalizers.NFC()
    library.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer.from_folder(folder)
    found = exported(tokenizer, tmp_path / "out")
    require_same(found, found)
    with pytest.raises(InputError, match=r"it changes texts such as .* which GGUF files have no name for"):
        require_same(tokenizer, found)


def test_the_values_of_another_file_are_taken_over(tmp_path: Path) -> None:
    first = exported(placed("v3", tmp_path / "x-instruct"), tmp_path / "one")
    source = read_metadata(first.file)
    (tmp_path / "two").mkdir()
    path = tmp_path / "two" / "model.gguf"
    path.write_bytes(header(tokenizer_values(first, first.vocab_size, source), []))
    again = read_metadata(path)
    for key, value in source.values.items():
        assert key in again.values and again.values[key].count == value.count
    assert Tokenizer.from_folder(path).encode(TEXTS[3]) == first.encode(TEXTS[3])


def test_rows_that_the_tokenizer_has_no_piece_for_and_pieces_without_a_row(tmp_path: Path) -> None:
    tokenizer = placed("v3", tmp_path / "model")
    more, fewer = exported(tokenizer, tmp_path / "more", 33000), exported(tokenizer, tmp_path / "fewer", 32760)
    assert (more.vocab_size, fewer.vocab_size) == (33000, 32760)
    assert more.encode(TEXTS[3]) == fewer.encode(TEXTS[3]) == tokenizer.encode(TEXTS[3])
    assert more.for_rows(33000).uncovered() == (range(32768, 33000),)
