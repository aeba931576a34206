"""Mistral's open-weight models in MindSpore. Importing this package loads no MindSpore; building a model does."""

from mistral.args import ModelArgs, MoeArgs
from mistral.checkpoint import Checkpoint, open_checkpoint
from mistral.engine import Engine, Work
from mistral.errors import InputError
from mistral.generate import Generated, KeptRow, Prefilled, Request, Timings, generate, generate_stream
from mistral.messages import Message, Tool, ToolCall
from mistral.model import Transformer
from mistral.pipeline import PipelineEngine, drive, open_engine, serve
from mistral.sampling import SamplingSettings
from mistral.textstream import TextStream
from mistral.tokenizer import StreamDecoder, Tokenizer
from mistral.toolcalls import Reply, ReplyStream, parse_reply
from mistral.toolfile import load_tools
from mistral.version import __version__

__all__ = [
    "Checkpoint",
    "Engine",
    "Generated",
    "InputError",
    "KeptRow",
    "Message",
    "ModelArgs",
    "MoeArgs",
    "PipelineEngine",
    "Prefilled",
    "Reply",
    "ReplyStream",
    "Request",
    "SamplingSettings",
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
