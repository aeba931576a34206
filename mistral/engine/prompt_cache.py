"""A file with the cache of a prompt, whose prefix other prompts and later runs reuse."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mistral.checkpoint.checkpoint import Checkpoint
from mistral.checkpoint.fingerprint import fingerprint
from mistral.engine.engine import Engine
from mistral.engine.prefix_slot import PrefixSlot
from mistral.engine.requests import Event, Request
from mistral.engine.scheduler import MAX_ROWS, generate_stream
from mistral.engine.snapshot_file import Saved, open_saved, read_saved, write_saved
from mistral.engine.speculation import Speculation
from mistral.engine.timings import Timings


@dataclass(frozen=True)
class PromptCache:
    """A file, which may not exist yet, with the cache of one prompt; `checkpoint` is the model's fingerprint."""

    path: Path
    checkpoint: str

    @classmethod
    def open(cls, path: str, checkpoint: Checkpoint, bits: int) -> PromptCache:
        """The cache in a file, which may not exist yet. Raises InputError for a file of another kind or model.

        Needs no model, so that a wrong file is refused before one is loaded.
        """
        found = cls(Path(path), fingerprint(checkpoint, bits))
        if os.path.exists(found.path):
            open_saved(found.path, found.checkpoint)
        return found

    def stream(
        self,
        engine: Engine,
        requests: Sequence[Request],
        chunk_size: int | None = None,
        max_rows: int = MAX_ROWS,
        timings: Timings | None = None,
        speculation: Speculation | None = None,
    ) -> Generator[Event]:
        """As `generate_stream`, but every prompt reuses its common prefix with the file's prompt.

        The file is written when the first prompt has been read, unless it holds all of it already; if it cannot be
        written, the first request ends with that error.
        """
        slot, start = PrefixSlot(engine), None
        if os.path.exists(self.path):
            start = read_saved(self.path, self.checkpoint, engine.args, engine.model.ops.SLOT_BYTES).snapshot

        def write() -> None:
            if len(slot.cached_ids()) > slot.reused + 1:
                write_saved(self.path, Saved("", slot.export(copy=False)), self.checkpoint)

        try:
            if start:
                slot.restore(start)
            first = [replace(request, slot=slot, on_prompt_read=write) for request in requests[:1]]
            rest = [replace(request, start=start) for request in requests[1:]]
            yield from generate_stream(engine, [*first, *rest], chunk_size, max_rows, timings, speculation)
        finally:
            slot.leave()
