"""Answer many questions at once with asyncio: python -m examples.many_at_once [CKPT]"""

import asyncio
import sys

from mistral import LLM, AsyncLLM

COLOURS = ["red", "green", "blue", "yellow"]


async def main(folder: str) -> None:
    """Ask about each colour; the questions are computed together, and each answer is as if asked alone."""
    async with AsyncLLM(await asyncio.to_thread(LLM, folder)) as llm:
        story = "Tom was a little boy. That day, Tom got a {} bell. What colour was the bell?"
        asked = [llm.chat([{"role": "user", "content": story.format(colour)}]) for colour in COLOURS]
        for colour, answer in zip(COLOURS, await asyncio.gather(*asked), strict=True):
            print(f"{colour}: {answer}")


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "checkpoints/tiny"))
