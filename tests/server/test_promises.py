"""What the server promises of answers side by side: each is what it would be alone, and ends when nobody wants it."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from mistral.engine.engine import Engine
from mistral.engine.work import Outcome, Work
from mistral.errors import InputError
from tests.support.local_server import PATIENCE, LocalServer
from tests.support.mixed_requests import COMPLETIONS, LONG, answered, in_company, mixed_bodies, texts_of

TEXT = "Tom had a red ball. The ball was"
BESIDE = {"prompt": TEXT, "max_tokens": 150, "ignore_eos": True, "logprobs": 0}


def made(server: LocalServer, body: dict[str, Any]) -> list[tuple[Any, ...]]:
    return texts_of(answered(server.url, body))


def test_an_answer_is_the_same_alone_and_in_any_company(server: LocalServer) -> None:
    """Texts, log-probabilities bit for bit, and reasons; while others come, go and are cancelled."""
    asked = mixed_bodies(24)
    alone = [made(server, body) for body in asked]
    for seed in range(2):
        for place, response in in_company(server.url, asked, [""], seed):
            assert texts_of(response) == alone[place]


@pytest.mark.parametrize("streams", [True, False])
def test_a_client_who_goes_ends_its_answer_and_no_other(server: LocalServer, streams: bool) -> None:
    server.wait_until_idle()
    alone = made(server, BESIDE)
    cancelled = server.figure("mistral_cancelled_total")
    with ThreadPoolExecutor(1) as pool:
        body = {"prompt": LONG, "max_tokens": 100_000, "ignore_eos": True, "stream": streams}
        with httpx.Client(base_url=server.url) as client:
            if streams:
                with client.stream("POST", COMPLETIONS, json=body) as stream:
                    parts = stream.iter_raw()
                    next(parts)
                    assert server.figure("mistral_rows") >= 1 and server.figure("mistral_reserved_tokens") > 1000
                    beside = pool.submit(made, server, BESIDE)
                    next(parts)
            else:
                beside = pool.submit(
                    made, server, {"prompt": TEXT, "max_tokens": 150, "ignore_eos": True, "logprobs": 0}
                )
                with pytest.raises(httpx.ReadTimeout):
                    client.post(COMPLETIONS, json=body, timeout=0.3)
        assert beside.result(PATIENCE) == alone
    server.wait_until_idle()
    assert server.figure("mistral_rows") == server.figure("mistral_reserved_tokens") == 0
    assert server.figure("mistral_answers_open") == server.figure("mistral_answers_waiting") == 0
    assert server.figure("mistral_cancelled_total") == cancelled + 1


def test_one_that_waits_in_the_queue_leaves_it(server: LocalServer) -> None:
    server.wait_until_idle()
    body = {"prompt": TEXT, "max_tokens": 5000, "ignore_eos": True, "stream": True, "n": 64, "temperature": 1}
    with httpx.stream("POST", f"{server.url}{COMPLETIONS}", timeout=PATIENCE, json=body) as stream:
        parts = stream.iter_raw()
        next(parts)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}{COMPLETIONS}", json={"prompt": "a"}, timeout=0.3)
        for _ in range(int(PATIENCE / 0.01)):
            if server.figure("mistral_answers_open") == 64:
                break
            time.sleep(0.01)
        assert (server.figure("mistral_answers_open"), server.figure("mistral_answers_waiting")) == (64, 0)
    server.wait_until_idle()


def test_a_fault_in_one_request_is_that_requests_alone(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged, rows = 999, set[int]()
    submit = Engine.submit

    def submitted(engine: Engine, work: list[Work]) -> int:
        ticket = submit(engine, work)
        places = [i for i, piece in enumerate(work) if piece.sample and piece.ids[-1] == damaged]
        for i in places:
            engine._outcomes[ticket][i] = Outcome(error=InputError("logits hold NaN"))
        rows.update(places)
        return ticket

    alone = made(server, {"prompt": TEXT, "max_tokens": 60, "ignore_eos": True, "logprobs": 0})
    monkeypatch.setattr(Engine, "submit", submitted)
    with ThreadPoolExecutor(2) as pool:
        beside = pool.submit(made, server, {"prompt": TEXT, "max_tokens": 60, "ignore_eos": True, "logprobs": 0})
        whole = server.post(COMPLETIONS, prompt=[1, damaged])
        streamed = server.post(COMPLETIONS, prompt=[1, damaged], stream=True)
        message = server.post("/v1/messages", messages=[{"role": "user", "content": "a"}], max_tokens=1)
        assert beside.result(PATIENCE) == alone
    assert whole.status_code == 500 and whole.json()["error"]["message"] == "logits hold NaN" and rows
    frames = streamed.text.split("\n\n")
    assert json.loads(frames[0].removeprefix("data: "))["error"]["type"] == "server_error" and "[DONE]" not in frames
    assert message.status_code == 200
    server.wait_until_idle()


def test_characters_are_never_split_between_frames(server: LocalServer) -> None:
    """Bytes of a character come as ids of their own here: no frame has a part of one."""
    tokens = server.answer("/tokenize", prompt="é漢🙂", add_special_tokens=False)["tokens"]
    grammar = 'start: "é漢🙂" "é漢🙂"'
    assert len(tokens) > 6
    texts = [
        event["choices"][0]["text"]
        for event in server.events(COMPLETIONS, prompt="a", max_tokens=60, guided_grammar=grammar)
    ]
    assert "".join(texts) == "é漢🙂é漢🙂" and set("".join(texts)) == {"é", "漢", "🙂"}
    raw = server.post(COMPLETIONS, prompt="a", max_tokens=60, guided_grammar=grammar, stream=True).content
    assert all(part.decode() for part in raw.split(b"\n\n") if part)


def test_what_was_not_computed_is_told(server: LocalServer) -> None:
    """Of two requests with one prompt at the same time, one reads it; of a single one everything is computed."""
    server.wait_until_idle()
    one = server.answer(COMPLETIONS, prompt=LONG, max_tokens=1)["usage"]
    assert one["prompt_tokens_details"] == {"cached_tokens": 0} and one["prompt_tokens"] > 1000
    several = server.answer(COMPLETIONS, prompt=[LONG, LONG], max_tokens=1)["usage"]
    assert several["prompt_tokens_details"]["cached_tokens"] == one["prompt_tokens"] - 1


def test_health_is_told_while_a_long_prompt_is_read(server: LocalServer) -> None:
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(server.answer, COMPLETIONS, prompt=LONG * 4, max_tokens=1, ignore_eos=True)
        count = 0
        with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
            while not reading.done():
                assert client.get("/health").json() == {"status": "ok"}
                count += 1
        assert reading.result()["usage"]["completion_tokens"] == 1 and count > 10
