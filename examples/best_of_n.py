"""Draw several answers to a prompt, which is read once; which is the likeliest? python -m examples.best_of_n [CKPT]"""

import sys

from mistral import LLM, Completion


def mean_logprob(answer: Completion) -> float:
    """How likely the model finds its answer, for each token, in nats."""
    return sum(token.logprob for token in answer.logprobs) / max(1, len(answer.logprobs))


with LLM(sys.argv[1] if len(sys.argv) > 1 else "checkpoints/tiny") as llm:
    answers = llm.generate("Tom had a red ball.", n=5, temperature=1.0, seed=1, max_tokens=12, logprobs=0)
    for answer in sorted(answers, key=mean_logprob, reverse=True):
        print(f"{mean_logprob(answer):6.2f} {answer}")
