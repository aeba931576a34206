"""Show an answer while it is written, and end it early: python -m examples.stream [CKPT]"""

import sys

from mistral import LLM

with LLM(sys.argv[1] if len(sys.argv) > 1 else "checkpoints/tiny") as llm:
    for piece in llm.stream("Tom had a red ball.", max_tokens=40, stop=["\n"]):
        print(piece, end="", flush=True)
    print()

    pieces = llm.stream("Anna went to the lake.", max_tokens=1000)
    print(next(pieces), next(pieces))
    pieces.close()  # the model computes no more of it
