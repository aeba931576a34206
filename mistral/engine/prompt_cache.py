"""--prompt_cache FILE: what was computed of a prompt outlives the program, and other prompts may begin with it."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mistral.checkpoint.checkpoint import Checkpoint
from mistral.checkpoint.fingerprint import fingerprint
from mistral.checkpoint.quantization import model_args
from mistral.engine.engine import Engine
from mistral.engine.requests import Generated, KeptRow, Prefilled, Request
from mistral.engine.scheduler import MAX_ROWS, Timings, generate_stream
from mistral.engine.snapshot_file import Saved, open_saved, read_saved, write_saved
from mistral.pipeline.engine import PipelineEngine


@dataclass(frozen=True)
class PromptCache:
    """A file that holds the cache of one prompt, or will; `checkpoint` is the fingerprint of the model it is of."""

    path: Path
    checkpoint: str

    @classmethod
    def open(cls, path: str, checkpoint: Checkpoint, bits: int) -> PromptCache:
        """The cache in a file that is there already, or will be. Raises InputError for a file that is something else.

        Needs no model, so that a wrong file is refused before one is loaded.
        """
        found = cls(Path(path), fingerprint(checkpoint, model_args(checkpoint, bits)))
        if os.path.exists(found.path):
            open_saved(found.path, found.checkpoint)
        return found

    def stream(
        self,
        engine: Engine | PipelineEngine,
        requests: Sequence[Request],
        chunk_size: int | None = None,
        max_rows: int = MAX_ROWS,
        timings: Timings | None = None,
    ) -> Generator[Prefilled | Generated]:
        """As `generate_stream`, but every prompt begins with what it has in common with the file's.

        The file is written when the first prompt has been read, unless it held all of that.
        """
        kept, start = KeptRow(engine), None
        if os.path.exists(self.path):
            start = read_saved(self.path, self.checkpoint, engine.args, engine.model.ops.SLOT_BYTES).snapshot
        if start:
            kept.restore(start)
        first = [replace(request, kept=kept) for request in requests[:1]]
        try:
            rest = [replace(request, start=start) for request in requests[1:]]
            for event in generate_stream(engine, [*first, *rest], chunk_size, max_rows, timings):
                if isinstance(event, Prefilled) and event.index == 0 and event.done == event.total > kept.reused + 1:
                    write_saved(self.path, Saved("", kept.export()), self.checkpoint)
                yield event
        finally:
            kept.leave()
