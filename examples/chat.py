"""Hold a conversation, with a begun answer at its end: python -m examples.chat [CKPT]"""

import sys

from mistral import LLM

with LLM(sys.argv[1] if len(sys.argv) > 1 else "checkpoints/tiny") as llm:
    messages = [
        {"role": "user", "content": "Tom was a little boy. That day, Tom got a green bell. What colour was it?"}
    ]
    answer = llm.chat(messages)
    print(answer)

    messages += [{"role": "assistant", "content": str(answer)}, {"role": "user", "content": "Who got a bell?"}]
    print(llm.chat(messages))

    begun = {"role": "assistant", "content": "The bell was", "prefix": True}
    print("The bell was" + llm.chat([messages[0], begun]))
