"""A model in one object: texts and conversations to answers. Start with `mistral/llm/llm.py`."""

from mistral.llm.async_llm import AsyncLLM
from mistral.llm.completion import Completion
from mistral.llm.llm import LLM

__all__ = ["LLM", "AsyncLLM", "Completion"]
