"""Trains the tokenizer of the small checkpoint: `python -m tools.train_tokenizer [FILE]`.

A byte-fallback SentencePiece model with the control tokens of Mistral's third tokenizer version at their usual ids, so
that mistral-common loads it and applies the same chat template. Same corpus, same file: one thread, nothing sampled.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import sentencepiece

from tools.corpus import TRAIN_SEED, documents

TOKENIZER_FILE = Path(__file__).resolve().parent.parent / "checkpoints" / "tiny" / "tokenizer.model.v3"
VOCAB_SIZE = 1024
DOCUMENTS = 4000
CONTROL_SYMBOLS = (  # ids 3 to 13, the order of Mistral's own files
    "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[IMG]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
)  # fmt: skip


def corpus_lines() -> Iterator[str]:
    """The texts that the tokenizer is fitted to."""
    for document in islice(documents(TRAIN_SEED), DOCUMENTS):
        yield from (text.strip() for text in document.parts)
        yield from (text for turn in document.turns for text in turn)


def train(path: Path) -> None:
    """Fit the tokenizer and write it to `path`, whose folder is made if need be."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=corpus_lines(),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        character_coverage=1.0,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        control_symbols=list(CONTROL_SYMBOLS),
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        shuffle_input_sentence=False,
        num_threads=1,
        minloglevel=1,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())


if __name__ == "__main__":
    train(Path(sys.argv[1]) if len(sys.argv) > 1 else TOKENIZER_FILE)
