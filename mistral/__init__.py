"""Mistral's open-weight models in MindSpore. Importing this package does not load MindSpore; building a model does."""

import sys

try:
    from mistral.checkpoint import Checkpoint, open_checkpoint
    from mistral.engine.engine import Engine
    from mistral.engine.prefix_slot import PrefixSlot
    from mistral.engine.requests import Generated, Prefilled, Request
    from mistral.engine.sampling import SamplingSettings
    from mistral.engine.scheduler import Handle, Scheduler, generate_stream
    from mistral.engine.timings import Timings
    from mistral.engine.work import Work
    from mistral.errors import InputError
    from mistral.generate import drive, generate, open_engine, serve
    from mistral.llm import LLM, AsyncLLM, Completion
    from mistral.load import Transformer
    from mistral.model.args import ModelArgs, MoeArgs
    from mistral.pipeline.engine import PipelineEngine
    from mistral.tokenizer.messages import Message, Tool, ToolCall
    from mistral.tokenizer.streaming import StreamDecoder, TextStream
    from mistral.tokenizer.tokenizer import Tokenizer
    from mistral.tokenizer.tool_calls import Reply, ReplyStream, parse_reply
    from mistral.tokenizer.tool_file import load_tools
    from mistral.version import __version__
except ImportError as error:
    if sys.argv[:1] != ["-m"]:  # imported, and not started as `python -m mistral`
        raise
    print(
        f"error: a Python package is missing or damaged ({error}); run pip install -r requirements.txt", file=sys.stderr
    )
    sys.exit(2)

KeptRow = PrefixSlot  # the name it had before

__all__ = [
    "LLM",
    "AsyncLLM",
    "Checkpoint",
    "Completion",
    "Engine",
    "Generated",
    "Handle",
    "InputError",
    "KeptRow",
    "Message",
    "ModelArgs",
    "MoeArgs",
    "PipelineEngine",
    "Prefilled",
    "PrefixSlot",
    "Reply",
    "ReplyStream",
    "Request",
    "SamplingSettings",
    "Scheduler",
    "StreamDecoder",
    "TextStream",
    "Timings",
    "Tokenizer",
    "Tool",
    "ToolCall",
    "Transformer",
    "Work",
    "__version__",
    "drive",
    "generate",
    "generate_stream",
    "load_tools",
    "open_checkpoint",
    "open_engine",
    "parse_reply",
    "serve",
]
