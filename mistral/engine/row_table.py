"""The rows of a scheduler: which requests have one, which are parked, and which is next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress

from mistral.engine.active_row import ActiveRow, reserved_at_first
from mistral.engine.prefix_store import BLOCK, PrefixStore
from mistral.engine.request_queue import Handle, RequestQueue
from mistral.engine.requests import Event, Generated
from mistral.engine.row_engine import RowEngine
from mistral.engine.shares import Shares
from mistral.errors import InputError
from mistral.model.kv_cache import Snapshot


class RowTable:
    """Assigns rows to requests, and parks rows.

    The key that was served least is next. If no row or no memory is free, and another key has at least two rows more,
    one of these is parked. If an answer outgrows the memory, the row that came last is parked; such rows continue
    before new requests start.
    """

    def __init__(self, engine: RowEngine, queue: RequestQueue, store: PrefixStore | None, max_rows: int) -> None:
        self.engine, self.queue, self.store, self.max_rows = engine, queue, store, max_rows
        self.active: dict[Handle, ActiveRow] = {}
        self.parked: dict[Handle, ActiveRow] = {}
        self.shares = Shares()
        self.cached_tokens = 0

    def come(self, handles: Iterable[Handle]) -> None:
        """Note requests that were added to the queue."""
        for handle in handles:
            self.shares.come(handle.key)

    def slots_wait(self, handles: set[Handle]) -> bool:
        """Whether a step is being computed for one of these requests that uses a prefix slot."""
        rows = (self.active[handle] for handle in handles & self.active.keys())
        return any(row.waits and row.request.slot for row in rows)

    def cancel(self, handles: set[Handle]) -> list[Event]:
        """End requests in any state, and release their memory -> their last events."""
        events: list[Event] = []
        for handle in [each for each in (*self.active, *self.parked) if each in handles]:
            row = self.active.pop(handle, None)
            if row is not None and not row.waits and not (row.reads and self.engine.num_pipeline_ranks > 1):
                self.keep(row)
            self._gone(handle, row or self.parked.pop(handle))
            events.append(_ended(handle, None))
        for handle in sorted(handles, key=lambda each: each.index):
            if self.queue.remove(handle):
                self._gone(handle, None)
                events.append(_ended(handle, None))
        return events

    def end(self, indices: set[int], keep: bool = True) -> None:
        """Release the rows of ended requests; with `keep`, store them in the prefix cache."""
        for handle in [each for each in self.active if each.index in indices]:
            row = self.active.pop(handle)
            if keep:
                self.keep(row)
            self._gone(handle, row)

    def clear(self) -> None:
        """Release all rows."""
        for row in (*self.active.values(), *self.parked.values()):
            row.leave(self.engine)
        self.active.clear()
        self.parked.clear()
        self.shares = Shares()

    def _gone(self, handle: Handle, row: ActiveRow | None) -> None:
        if row is not None:
            row.leave(self.engine)
        self.queue.end(handle)
        self.shares.go(handle.key)

    # Who is next

    def admit(self) -> list[Event]:
        """Give rows to requests while there are rows and memory -> last events of those that do not fit even alone."""
        ended = self._resume_parked()
        if not self.parked and not len(self.queue):
            return ended
        yielded: dict[str, list[Handle]] = {}
        for handle in sorted(self.parked, key=lambda each: each.index):
            if not self.parked[handle].yielded:
                return ended
            yielded.setdefault(handle.key, []).append(handle)
        keys = {handle.key for handle in self.active} | yielded.keys() | self.queue.keys()
        if len(self.active) >= self.max_rows and len(keys) == 1:
            return ended
        return self._give_rows(yielded, ended)

    def _give_rows(self, yielded: dict[str, list[Handle]], ended: list[Event]) -> list[Event]:
        kept_back = 0  # rows for requests that start when another one has read their prompt
        unread = Counter[str]()
        for handle, row in self.active.items():
            unread[handle.key] += len(row.ids) - row.sent

        def load(key: str) -> tuple[int, int]:
            return self.shares.served(key) + unread[key], sum(handle.key == key for handle in self.active)

        for handle in self.queue.in_order(load, yielded):
            full = len(self.active) + kept_back >= self.max_rows
            if handle not in self.parked and self.queue.must_wait(handle):
                if full:
                    break
                kept_back += 1
                continue
            if full and not self._yield_to(handle.key, keep=True):
                break
            begun = self._begin(handle)
            while begun is not None and (self._yield_to(handle.key, keep=False) or self._last_resort()):
                begun = self._begin(handle)
            if begun is None:
                unread[handle.key] += len(self.active[handle].ids) - self.active[handle].sent
            elif self.active:
                break
            else:
                ended.append(self._refused(handle, begun))
        return ended

    def _begin(self, handle: Handle) -> InputError | None:
        """Give a request a row -> the error if it cannot have one."""
        try:
            if handle in self.parked:
                self._unpark(handle, ample=False)
            else:
                start = self.queue.start(handle) or self._stored(handle)
                row = ActiveRow(handle, self.engine, start)
                self.active[handle] = row
                self.queue.begin(handle)
                self.cached_tokens += row.reused
        except InputError as error:
            return error
        return None

    def _refused(self, handle: Handle, error: InputError) -> Event:
        """The last event of a request for which there is no memory, even alone."""
        row = self.parked.pop(handle, None)
        event: Event = row.cut() if row else _ended(handle, error)
        self._gone(handle, row)
        return event

    def _yield_to(self, key: str, keep: bool) -> bool:
        """Park a row of the key with the most rows -> whether one was: that key must have two rows more than `key`."""
        counts = Counter(handle.key for handle in self.active)
        most = max(counts, key=lambda each: counts[each], default=key)
        if counts[most] < counts[key] + 2:
            return False
        for handle in sorted(self.active, key=lambda each: each.index, reverse=True):
            row = self.active[handle]
            if handle.key == most and row.can_park:
                try:
                    row.park(self.engine, keep)
                except InputError:  # no memory for a copy
                    return False
                row.yielded = True
                self.parked[handle] = self.active.pop(handle)
                return True
        return False

    # Memory

    def grow(self) -> list[Event]:
        """Reserve memory for the next token of every row in decode -> last events of those that cannot continue.

        If memory is short, copies of parked rows are released, then the row that came last is parked. A row that does
        not fit even alone ends.
        """
        ended: list[Event] = []
        for handle in sorted(self.active, key=lambda each: each.index):
            row = self.active.get(handle)
            while row and row.can_park and not self._grown(row):
                if self._forget_copy():
                    continue
                if len(self.active) == 1:
                    ended.append(row.cut())
                    self.end({row.index})
                else:
                    last = max((each for each in self.active if self.active[each].can_park), key=lambda h: h.index)
                    self.parked[last] = self.active.pop(last)
                    self._park(self.parked[last])
                row = self.active.get(handle)
        return ended

    def _park(self, row: ActiveRow) -> None:
        """Park a row, with a copy if there is memory for one."""
        try:
            row.park(self.engine, keep=True)
        except InputError:
            row.park(self.engine)

    def _forget_copy(self) -> bool:
        """Release the copy of the parked row that came last -> whether there was one."""
        kept = [handle for handle, row in self.parked.items() if row.kept]
        if kept:
            self.parked[max(kept, key=lambda each: each.index)].forget_kept(self.engine)
        return bool(kept)

    def _last_resort(self) -> bool:
        """If no row is active whose end could free memory, release a copy -> whether one was released."""
        return not self.active and self._forget_copy()

    def _grown(self, row: ActiveRow) -> bool:
        try:
            row.grow(self.engine)
        except InputError:
            return False
        return True

    def _resume_parked(self) -> list[Event]:
        """Continue rows that were parked for memory, in order of arrival; one that does not fit even alone ends.

        Beside active rows they wait for more memory than the next token needs, so that they are not parked again at
        once.
        """
        ended: list[Event] = []
        waiting = [handle for handle, row in self.parked.items() if not row.yielded]
        for handle in sorted(waiting, key=lambda each: each.index):
            if len(self.active) >= self.max_rows:
                break
            try:
                self._unpark(handle, ample=bool(self.active))
            except InputError as error:
                if self.active:
                    break
                if not self._forget_copy():
                    ended.append(self._refused(handle, error))
        return ended

    def _unpark(self, handle: Handle, ample: bool) -> None:
        row, found = self.parked[handle], None
        if self.store and not row.kept and self.engine.has_room(len(row.ids) + 1):
            found = self.store.find(handle.space, row.ids, len(row.ids))
        row.unpark(self.engine, ample, found)
        self.active[handle] = self.parked.pop(handle)

    # The prefix cache

    def _stored(self, handle: Handle) -> Snapshot | None:
        """The longest stored prefix of a prompt that need not be scored, if any."""
        request = handle.request
        if self.store is None or request.slot or request.start:
            return None
        most = len(request.prompt) - 1
        if request.prompt_logprobs:
            most = min(most, request.scored_from - 1)
        if most < 1 or not self.engine.has_room(reserved_at_first(request, self.engine.context_limit)):
            return None
        return self.store.find(handle.space, request.prompt, most)

    def keep(self, row: ActiveRow) -> None:
        """Store a row, of which no step is being computed, in the prefix cache."""
        if self.store is None or row.request.slot:
            return
        with suppress(InputError, MemoryError):  # without memory it is not stored
            ids = [*row.request.prompt, *row.answer][: self.engine.kv_seqlen(row.row)]
            if len(ids) > row.stored:
                if len(ids) < self.engine.kv_seqlen(row.row):  # a stop string ended the answer within a step's tokens
                    self.engine.resume(row.row, len(ids), len(ids))
                snapshot = self.engine.export(row.row, ids, copy=False)
                self.store.add(row.handle.space, snapshot, self.engine.spare_bytes)
                row.stored = len(ids)

    def keep_chunk(self, row: ActiveRow) -> None:
        """Store the part of a prompt read so far, if any length can be reused and at least BLOCK tokens are new."""
        any_length = self.store is not None and not self.store.windowed and self.engine.num_pipeline_ranks == 1
        if any_length and row.read - row.stored >= BLOCK:
            self.keep(row)


def _ended(handle: Handle, error: InputError | None) -> Generated:
    """The last event of a request that was cancelled or has an error."""
    return Generated(handle.index, None, None, "", "error" if error else "cancelled", error=error)
