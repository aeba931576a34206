"""Small tokenizer.json files of either kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers


def byte_level() -> tokenizers.Tokenizer:
    """A `tokenizer.json` in the manner of tekken: byte-level BPE."""
    raw = tokenizers.Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<unk>", "<s>", "</s>", "[INST]"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(["the cat sat on the mat and the dog"], trainer)
    raw.add_tokens(["voilà"])
    return raw


def byte_fallback() -> tokenizers.Tokenizer:
    """A `tokenizer.json` in the manner of 7B v0.1: SentencePiece's rules, spelled out."""
    named = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "c", "▁a"]
    vocabulary = {piece: number for number, piece in enumerate(named)}
    raw = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=[("▁", "a")], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    raw.add_special_tokens(["<unk>", "<s>", "</s>"])
    return raw


def hugging_face_folder(folder: Path, raw: tokenizers.Tokenizer, **files: Any) -> Path:
    raw.save(str(folder / "tokenizer.json"))
    for name, table in files.items():
        (folder / f"{name}.json").write_text(json.dumps(table))
    return folder
