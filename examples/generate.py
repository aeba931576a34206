"""Continue several texts at once: python -m examples.generate [CKPT]"""

import sys

from mistral import LLM

with LLM(sys.argv[1] if len(sys.argv) > 1 else "checkpoints/tiny") as llm:
    texts = ["This is a test", "Tom had a red ball. The ball was", "Anna went to the lake. There she met"]
    for text, answer in zip(texts, llm.generate(texts, max_tokens=12), strict=True):
        print(f"{text}|{answer}")
        print(f"    {len(answer.ids)} tokens, ended by {answer.finish_reason}")
