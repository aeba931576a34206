"""Which of several endings is the likeliest, without writing any: python -m examples.choose [CKPT]"""

import sys

from mistral import Tokenizer, Transformer, generate

folder = sys.argv[1] if len(sys.argv) > 1 else "checkpoints/tiny"
tokenizer, model = Tokenizer.from_folder(folder), Transformer.from_folder(folder)

beginning = tokenizer.encode("Tom had a red ball. The ball was")
endings = [" red.", " green.", " a boy."]
prompts = [tokenizer.encode("Tom had a red ball. The ball was" + ending) for ending in endings]
_, logprobs = generate(prompts, model, max_tokens=0)
for ending, prompt, scores in zip(endings, prompts, logprobs, strict=True):
    assert len(scores) == len(prompt) - 1  # of each token but the first
    print(f"{sum(scores[len(beginning) - 1 :]):7.2f} {ending}")
