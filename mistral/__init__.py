"""Mistral's open-weight models in MindSpore. Importing this package loads no MindSpore; building a model does."""

from mistral.args import ModelArgs, MoeArgs
from mistral.checkpoint import Checkpoint, open_checkpoint
from mistral.engine import Engine, Work
from mistral.errors import InputError
from mistral.generate import Generated, Prefilled, Request, Timings, generate, generate_stream
from mistral.model import Transformer
from mistral.pipeline import PipelineEngine, drive, open_engine, serve
from mistral.sampling import SamplingSettings
from mistral.textstream import TextStream
from mistral.tokenizer import Message, StreamDecoder, Tokenizer
from mistral.version import __version__

__all__ = [
    "Checkpoint",
    "Engine",
    "Generated",
    "InputError",
    "Message",
    "ModelArgs",
    "MoeArgs",
    "PipelineEngine",
    "Prefilled",
    "Request",
    "SamplingSettings",
    "StreamDecoder",
    "TextStream",
    "Timings",
    "Tokenizer",
    "Transformer",
    "Work",
    "__version__",
    "drive",
    "generate",
    "generate_stream",
    "open_checkpoint",
    "open_engine",
    "serve",
]
