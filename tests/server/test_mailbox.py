"""How events come to whom they are for: at once where that matters, and together where it does not."""

from __future__ import annotations

import asyncio
import socket

import pytest

from mistral.engine.requests import Event, Generated, Prefilled
from mistral.server import mailbox, start
from mistral.server.answers import Piece
from mistral.server.mailbox import Inbox, Mailbox
from mistral.server.protocol import GatheredWrites
from mistral.server.start import QUIET_TURNS, Start
from mistral.tokenizer.call_stream import CallPart

FIRST: Event = Prefilled(0, 3, 3, ())


def token(number: int, reason: str | None = None) -> Event:
    """A token of an answer."""
    return Generated(0, number, None, "a", reason)  # type: ignore[arg-type]


def test_events_are_gathered_but_for_the_first_and_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those between wait until telling of others would not take too much of the time; here that is never."""
    monkeypatch.setattr(mailbox, "LEAST", 3600.0)
    monkeypatch.setattr(mailbox, "MOST", 3600.0)

    async def taken() -> list[list[tuple[int, Event]]]:
        box, inbox, found = Mailbox(), Inbox(), list[list[tuple[int, Event]]]()
        for events in ([FIRST, token(1)], [token(2)], [token(3)], [token(4, "length")]):
            for event in events:
                await asyncio.to_thread(box.put, inbox, 7, event)
            found.append(await inbox.take(0.01))
        return found

    first, *between, last = asyncio.run(taken())
    everything = [(7, event) for event in (FIRST, token(1), token(2), token(3), token(4, "length"))]
    assert first and [*first, *last] == everything and len(first) <= 2
    assert between == [[], []]


def test_an_answer_that_nobody_watches_is_told_of_once_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or once there is so much of it that looking at more would take long."""
    monkeypatch.setattr(mailbox, "LEAST", 0.0)

    async def taken() -> list[int]:
        box, inbox, found = Mailbox(), Inbox(), list[int]()
        await asyncio.to_thread(box.put, inbox, 7, token(0))
        assert await inbox.take(3600) == [(7, token(0))]
        inbox.patience = 3
        for events in ([token(1), token(2)], [token(3, "length")], [token(number) for number in range(4)], [token(5)]):
            for event in events:
                await asyncio.to_thread(box.put, inbox, 7, event)
            found.append(len(await inbox.take(0.05)))
        return found

    assert asyncio.run(taken()) == [0, 3, 4, 0]


def test_who_hurries_does_not_hurry_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events of others wait for their own time, whoever begins or ends meanwhile."""
    monkeypatch.setattr(mailbox, "LEAST", 3600.0)
    monkeypatch.setattr(mailbox, "MOST", 3600.0)

    async def taken() -> list[int]:
        box, one, other, found = Mailbox(), Inbox(), Inbox(), list[int]()
        await asyncio.to_thread(box.put, other, 7, token(0))
        assert len(await other.take(0.01)) == 1  # the first token of an answer hurries
        for inbox, event in ((one, FIRST), (one, token(1)), (other, token(1)), (one, token(2, "length"))):
            await asyncio.to_thread(box.put, inbox, 7, event)
            found += [len(await one.take(0.01)), len(await other.take(0.01))]
        return found

    assert asyncio.run(taken()) == [0, 0, 2, 0, 0, 0, 1, 0]


def test_all_are_told_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "AT_ONCE", 2)

    async def taken() -> list[list[tuple[int, Event]]]:
        box, inboxes = Mailbox(), [Inbox() for _ in range(7)]
        waiting = [asyncio.ensure_future(inbox.take(3600)) for inbox in inboxes]
        await asyncio.sleep(0)
        for number, inbox in enumerate(inboxes):
            box.put(inbox, number, token(number))
        return await asyncio.gather(*waiting)

    found = asyncio.run(asyncio.wait_for(taken(), 60))
    assert found == [[(number, token(number))] for number in range(7)]


def test_what_comes_later_is_told_without_being_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever puts events while the loop looks by itself does not wake it, and whoever puts them later does."""
    monkeypatch.setattr(mailbox, "LEAST", 0.01)

    async def taken() -> list[int]:
        box, inbox, found = Mailbox(), Inbox(), list[int]()
        for pause in (0.0, 0.0, 0.1, 0.1):
            await asyncio.sleep(pause)
            await asyncio.to_thread(box.put, inbox, 7, token(1))
            found.append(len(await inbox.take(3600)))
        return found

    assert asyncio.run(asyncio.wait_for(taken(), 60)) == [1, 1, 1, 1]


class Begun:
    """An engine's thread that counts how often it was told to begin."""

    count = 0

    def begin(self) -> None:
        self.count += 1


def test_an_engine_begins_when_the_requests_that_came_together_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn of the loop that brings one more puts the beginning off; not for longer than the time allows."""

    async def begun(turns: int) -> list[int]:
        thread, found = Begun(), list[int]()
        start = Start(thread)  # type: ignore[arg-type]
        for _ in range(turns):
            start.soon()
            await asyncio.sleep(0)
            found.append(thread.count)
        for _ in range(QUIET_TURNS):
            await asyncio.sleep(0)
        return [*found, thread.count]

    monkeypatch.setattr(start, "GATHERING_SECONDS", 3600.0)
    assert asyncio.run(begun(20)) == [0] * 20 + [1]
    monkeypatch.setattr(start, "GATHERING_SECONDS", 0.0)
    assert asyncio.run(begun(3)) == [1, 2, 3, 3]


def test_what_a_socket_does_not_take_is_sent_later() -> None:
    async def received() -> bytes:
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, ours)
        writes = GatheredWrites(transport, loop)
        for number in range(200):
            writes.write(bytes([number]) * 1000)
            await asyncio.sleep(0)
        writes.close()
        reader, writer = await asyncio.open_connection(sock=theirs)
        found = await reader.read()
        writer.close()
        return found

    assert asyncio.run(received()) == b"".join(bytes([number]) * 1000 for number in range(200))


def test_nothing_comes_in_time() -> None:
    """Whoever waits is told so, and gets what comes later."""

    async def taken() -> list[list[tuple[int, Event]]]:
        inbox = Inbox()
        nothing = await inbox.take(0.001)
        inbox.put(0, token(1))
        inbox.wake()
        return [nothing, await inbox.take(3600), await inbox.take(0.001), await inbox.take(0.002)]

    assert asyncio.run(asyncio.wait_for(taken(), 60)) == [[], [(0, token(1))], [], []]


def test_a_wait_is_not_cut_short_by_that_before_it() -> None:
    """The alarm of a take that was answered does not end the next one."""

    async def waited() -> tuple[list[list[tuple[int, Event]]], float]:
        inbox, loop = Inbox(), asyncio.get_running_loop()
        loop.call_later(0.1, inbox.put, 0, token(1))
        loop.call_later(0.1, inbox.wake)
        found = [await inbox.take(0.2)]
        begun = loop.time()
        return [*found, await inbox.take(0.4)], loop.time() - begun

    found, seconds = asyncio.run(waited())
    assert found == [[(0, token(1))], []] and seconds > 0.39


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        (Piece(0, "a"), Piece(0, "b", finish_reason="stop"), True),
        (Piece(0, thought="a"), Piece(0, "b"), True),
        (Piece(0, "a"), Piece(0, thought="b"), False),
        (Piece(0, "a"), Piece(0, parts=(CallPart(0, "id", "now"),)), True),
        (Piece(0, parts=(CallPart(0, "id", "now"),)), Piece(0, "a"), False),
        (Piece(0, parts=(CallPart(0, "id", "now"),)), Piece(0, parts=(CallPart(0, arguments="{"),)), True),
    ],
)
def test_pieces_are_told_as_one_where_their_order_stays(first: Piece, second: Piece, together: bool) -> None:
    """A piece is written as thoughts, then text, then calls."""
    assert first.goes_before(second) == together
    both = first + second
    assert both.text == first.text + second.text and both.thought == first.thought + second.thought
    assert both.parts == first.parts + second.parts and both.finish_reason == second.finish_reason
