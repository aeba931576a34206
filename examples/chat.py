"""Hold a conversation, with a begun answer at its end: python examples/chat.py [CKPT]"""

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

    messages.append({"role": "assistant", "content": "The one with the bell is", "prefix": True})
    print("The one with the bell is" + llm.chat(messages))
