"""What the small checkpoint has learned: its loss on text it has not seen, and how far back it can recall.

    python -m tools.evaluate [FOLDER] [--out FILE]

Prints one JSON object. Losses are nats a token. The baselines are counted on the training text and smoothed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import fire
import numpy as np
from numpy.typing import NDArray

from mistral import Message, ModelArgs, Tokenizer, Transformer, generate
from mistral.engine.sampling import log_softmax
from tools.corpus import COLOURS, HELD_OUT_SEED, TRAIN_SEED, documents, encode_document, recall_case


def encoded(tokenizer: Tokenizer, seed: int, count: int) -> list[list[int]]:
    """The first `count` documents of a seed as ids."""
    return [encode_document(tokenizer, document) for document in islice(documents(seed), count)]


def model_loss(model: Transformer, texts: Sequence[Sequence[int]], rows: int = 16) -> float:
    """Mean negative logprob of every token but the first of each text."""
    total, count = 0.0, 0
    for start in range(0, len(texts), rows):
        batch = texts[start : start + rows]
        logits = model.forward(np.concatenate(batch), [len(ids) for ids in batch]).asnumpy()
        for ids, part in zip(batch, np.split(logits, np.cumsum([len(ids) for ids in batch])[:-1]), strict=True):
            logprobs = log_softmax(part[:-1])
            total -= float(logprobs[np.arange(len(ids) - 1), ids[1:]].sum())
            count += len(ids) - 1
    return total / count


def baseline_losses(
    training: Sequence[Sequence[int]], held_out: Sequence[Sequence[int]], vocab_size: int
) -> tuple[float, float]:
    """The same loss for a unigram and a bigram model; the bigram counts the unigram as one more observation."""
    counts = np.full(vocab_size, 0.1)
    pairs = np.zeros((vocab_size, vocab_size))
    for ids in training:
        np.add.at(counts, ids[1:], 1)
        np.add.at(pairs, (ids[:-1], ids[1:]), 1)
    unigram: NDArray[np.float64] = counts / counts.sum()
    bigram = (pairs + unigram) / (pairs.sum(1, keepdims=True) + 1)
    before = np.concatenate([ids[:-1] for ids in held_out])
    after = np.concatenate([ids[1:] for ids in held_out])
    return float(-np.log(unigram[after]).mean()), float(-np.log(bigram[before, after]).mean())


def recall(model: Transformer, tokenizer: Tokenizer, distances: tuple[int, int], cases: int, seed: int) -> float:
    """Share of stories, cut before the colour's second mention, whose next token is guessed right."""
    rng = random.Random(seed)
    right = 0
    for _ in range(cases):
        case = recall_case(rng, distances, tokenizer)
        ids = tokenizer.encode(case.prompt)
        guess = int(model.forward(ids, [len(ids)], wanted=[len(ids) - 1]).asnumpy()[0].argmax())
        right += guess == tokenizer.encode(case.prompt + " " + case.colour)[-1]
    return right / cases


def answered(model: Transformer, tokenizer: Tokenizer, texts: int) -> tuple[int, int]:
    """Of the first questions about a story among `texts` held-out documents: how many are answered word for word."""
    chats = [document for document in islice(documents(HELD_OUT_SEED), texts) if document.kind == "chat"]
    asked = [chat.turns[0] for chat in chats if chat.turns[0][0].endswith("?") and chat.turns[0][0].count(".") >= 2]
    prompts = [tokenizer.encode_chat([Message("user", question)]) for question, _ in asked]
    tokens, _ = generate(prompts, model, max_tokens=24, eos_id=tokenizer.eos_id, prompt_logprobs=False)
    right = sum(tokenizer.decode(ids).strip() == answer for ids, (_, answer) in zip(tokens, asked, strict=True))
    return right, len(asked)


def reach(args: ModelArgs) -> int:
    """The furthest a token can be and still have an influence: every layer looks window - 1 back."""
    return sum(window - 1 for window in args.sliding_windows if window is not None)


def evaluate(folder: str = "checkpoints/tiny", out: str = "", texts: int = 1000, cases: int = 1000) -> None:
    """Measure, print, and write to `out` if named."""
    model, tokenizer = Transformer.from_folder(folder), Tokenizer.from_folder(folder)
    args = model.args
    window = args.sliding_windows[0]
    assert window is not None
    held_out = encoded(tokenizer, HELD_OUT_SEED, texts)
    unigram, bigram = baseline_losses(encoded(tokenizer, TRAIN_SEED, 30 * texts), held_out, args.vocab_size)
    near, far = (window * 3 // 2, window * 5 // 2), (reach(args) + 6, reach(args) + 46)
    right, asked = answered(model, tokenizer, texts)
    report = {
        "held_out_tokens": sum(map(len, held_out)),
        "held_out_loss": round(model_loss(model, held_out), 3),
        "bigram_loss": round(bigram, 3),
        "unigram_loss": round(unigram, 3),
        "sliding_window": window,
        "reach": reach(args),
        "recall_cases": cases,
        "recall_within_window": recall(model, tokenizer, (6, window - 2), cases, 1),
        f"recall_at_{near[0]}_to_{near[1]}": recall(model, tokenizer, near, cases, 2),
        f"recall_at_{far[0]}_to_{far[1]}": recall(model, tokenizer, far, cases, 3),
        "chance": 1 / len(COLOURS),
        "questions": asked,
        "answered_right": round(right / asked, 3),
    }
    print(json.dumps(report, indent=2))
    if out:
        Path(out).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    fire.Fire(evaluate)
