"""The checkpoint that ships has learned what it should have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mistral import Tokenizer, Transformer, generate, open_checkpoint
from mistral.cli.demo import PROMPTS
from mistral.cli.model_options import shipped_checkpoint
from tools import corpus, evaluate

ANSWERED = 0.8  # share of questions about stories it has not seen
SEED = 11  # of the recall cases; the report uses others


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(shipped_checkpoint())


@pytest.fixture(scope="module")
def model() -> Transformer:
    """On the native backend, which reads thousands of tokens in a fraction of the time."""
    return Transformer.from_folder(shipped_checkpoint(), backend="native", device="CPU")


def test_it_is_a_mixtral_in_small_in_the_official_form() -> None:
    checkpoint = open_checkpoint(shipped_checkpoint())
    args = checkpoint.args
    assert checkpoint.form == "consolidated.safetensors" and checkpoint.warnings == ()
    assert args.moe and args.moe.num_experts >= 4 and args.moe.num_experts_per_tok == 2
    assert args.n_kv_heads < args.n_heads
    assert {str(checkpoint.dtype(name)) for name in checkpoint.shapes} == {"bfloat16"}
    assert sum(map(checkpoint.nbytes, checkpoint.shapes)) < 5e6


def test_its_loss_on_unseen_text_beats_counting(model: Transformer, tokenizer: Tokenizer) -> None:
    held_out = evaluate.encoded(tokenizer, corpus.HELD_OUT_SEED, 60)
    training = evaluate.encoded(tokenizer, corpus.TRAIN_SEED, 3000)
    unigram, bigram = evaluate.baseline_losses(training, held_out, model.args.vocab_size)
    assert evaluate.model_loss(model, held_out) < 0.4 * bigram < 0.4 * unigram


def test_it_recalls_what_only_a_relay_through_the_layers_can_bring(model: Transformer, tokenizer: Tokenizer) -> None:
    window = model.args.sliding_windows[0]
    assert window is not None
    assert evaluate.recall(model, tokenizer, (window * 3 // 2, window * 5 // 2), 100, SEED) >= 0.95


def test_beyond_its_reach_it_guesses(model: Transformer, tokenizer: Tokenizer) -> None:
    reach = evaluate.reach(model.args)
    cases = 100
    share = evaluate.recall(model, tokenizer, (reach + 6, reach + 46), cases, SEED)
    chance = 1 / len(corpus.COLOURS)
    assert abs(share - chance) < 4 * np.sqrt(chance * (1 - chance) / cases)


def test_every_expert_is_used(tokenizer: Tokenizer) -> None:
    """On the portable backend, which chooses experts in a step of its own."""
    model = Transformer.from_folder(shipped_checkpoint(), backend="portable", device="CPU")
    used: list[set[int]] = []
    blocks: list[Any] = list(model.blocks.values())
    experts = [block.feed_forward for block in blocks]
    original = model.ops.route

    class Watching:
        def __getattr__(self, name: str) -> object:
            return getattr(model.ops, name)

        def route(self, logits: object, k: int) -> object:
            weights, chosen = original(logits, k)
            used.append(set(chosen.reshape(-1).tolist()))
            return weights, chosen

    texts = evaluate.encoded(tokenizer, corpus.HELD_OUT_SEED, 20)
    for layer in experts:
        layer.ops = Watching()
    model.forward(np.concatenate(texts), [len(ids) for ids in texts])
    assert model.args.moe and used == [set(range(model.args.moe.num_experts))] * model.args.n_layers


def test_the_demo_prompts_are_continued_in_words_of_the_corpus(model: Transformer, tokenizer: Tokenizer) -> None:
    prompts = [tokenizer.encode(text) for text in PROMPTS]
    tokens, _ = generate(prompts, model, max_tokens=35, eos_id=tokenizer.eos_id, prompt_logprobs=False)
    known = set(" ".join(" ".join(d.parts) for d in corpus_documents(4000)).split())
    for prompt, ids in zip(prompts, tokens, strict=True):
        words = tokenizer.decode([*prompt, *ids]).split()[:-1]  # the last one may be cut
        assert len(ids) > 10 and set(words) <= known, words


def corpus_documents(count: int) -> list[corpus.Document]:
    return [document for document, _ in zip(corpus.documents(corpus.TRAIN_SEED), range(count), strict=False)]


def test_it_answers_questions_about_a_story(model: Transformer, tokenizer: Tokenizer) -> None:
    right, asked = evaluate.answered(model, tokenizer, 250)
    assert asked > 40 and right / asked >= ANSWERED


def test_the_report_beside_it_is_its_own(model: Transformer, tokenizer: Tokenizer) -> None:
    report = json.loads((Path(shipped_checkpoint()) / "evaluation.json").read_text())
    held_out = evaluate.encoded(tokenizer, corpus.HELD_OUT_SEED, 1000)
    assert report["held_out_tokens"] == sum(map(len, held_out))
    assert report["held_out_loss"] == pytest.approx(evaluate.model_loss(model, held_out[:150]), abs=0.03)
    assert report["recall_at_48_to_80"] >= 0.95
