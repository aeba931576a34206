"""A downloaded checkpoint, opened as named, memory-mapped tensors."""

from mistral.checkpoint.checkpoint import Checkpoint, open_checkpoint

__all__ = ["Checkpoint", "open_checkpoint"]
