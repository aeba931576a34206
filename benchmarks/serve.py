"""What the server does under load, and what it costs, as JSON lines.

    python benchmarks/serve.py [CKPT] [--parts load,throughput,overhead,gap,cancel,peer] [--llama_server COMMAND]

`load`: many clients at once: nothing lost, nothing answered twice, equal requests answered alike, and how memory grows
after the first 500 requests. `throughput`: 16 clients against `generate` at batch 16, with answers that are streamed
and whole ones; and against the engine alone, which then computes nothing but ids. `overhead`: milliseconds a token for
one client, beside the engine's own. `gap`: the longest wait in a stream while a long prompt is read, against the time
of a step. `cancel`: how soon the rows of clients who have gone are free. `peer`: beside llama-server, given as a
command, with the same GGUF file: tokens a second and the time to the first token for 1, 4 and 16 clients.

Both sides are loaded at the same time and take turns, so that what else the machine does falls on both; medians count.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import pairwise
from operator import truediv
from pathlib import Path
from statistics import median
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.http_load import Answer, Connection, at_once, side_by_side
from mistral.cli.model_options import shipped_checkpoint
from mistral.engine.engine import Engine
from mistral.engine.requests import Generated, Request
from mistral.engine.scheduler import generate_stream
from mistral.generate import generate
from mistral.load import Transformer, load_model

ROOT = Path(__file__).resolve().parent.parent
TEXT = "Tom had a red ball. Anna went to the lake, and the ball was in the boat. "
WARM = 500  # requests after which memory should not grow
PROMPT = 32  # tokens
CLIENTS = 16
Line = dict[str, Any]


@contextmanager
def started(command: Sequence[str], url: str) -> Iterator[int]:
    """A server as a process, whose number is given once /health says that it is there."""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while process.poll() is None:
                with suppress(OSError), urllib.request.urlopen(f"{url}/health"):
                    break
                time.sleep(0.05)
            if process.poll() is not None:
                raise SystemExit(f"{shlex.join(command)} has ended with code {process.returncode}")
            yield process.pid
        finally:
            process.terminate()


def free_url() -> tuple[str, int]:
    """An address that nobody listens at."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    return f"http://127.0.0.1:{port}", port


class Bench:
    """One server and, where it is compared with it, the engine in this process."""

    def __init__(self, options: argparse.Namespace, url: str, pid: int) -> None:
        self.options, self.url, self.pid = options, url, pid
        gc.collect()
        gc.freeze()  # or the libraries' objects would be looked through for 0.3 s while something is measured

    @cached_property
    def model(self) -> Transformer:
        """The same checkpoint, loaded here."""
        return load_model(self.options.checkpoint, threads=self.options.threads)

    @cached_property
    def engine(self) -> Engine:
        """The engine of `model`."""
        engine = Engine(self.model)
        gc.collect()
        gc.freeze()  # as the server does
        return engine

    def prompts(self, count: int, tokens: int = PROMPT, first: int = 0) -> list[list[int]]:
        """Ids of so many prompts, no two of which begin alike."""

        async def ids(number: int) -> list[int]:
            text = f"{number} {TEXT * (tokens // 8 + 1)}"
            answer = await Connection(self.url).post({"prompt": text}, "/tokenize")
            found: list[int] = answer.events[0]["tokens"][:tokens]
            return found

        async def all_ids() -> list[list[int]]:
            return [await ids(first + number) for number in range(count)]

        return asyncio.run(all_ids())

    def figure(self, name: str, page: str | None = None) -> float:
        """One of the server's metrics."""
        page = asyncio.run(Connection(self.url).get("/metrics")) if page is None else page
        return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith(name))

    def memory(self) -> int:
        """Bytes of the server that are its own."""
        return int(psutil.Process(self.pid).memory_full_info().uss)

    # The parts

    def load(self) -> Line:
        """Many clients at once, with short answers, half of them streamed; every request is there several times."""
        count, drawn = self.options.requests, random.Random(0)
        kinds = [
            {"prompt": TEXT[: 5 + 3 * kind], "seed": kind, "temperature": 1, "max_tokens": 1 + kind % 16}
            for kind in range(50)
        ]
        chosen = [drawn.randrange(len(kinds)) for _ in range(count)]
        bodies: list[Line] = [{**kinds[kind], "stream": drawn.random() < 0.5} for kind in chosen]
        for body in bodies:
            body |= {"stream_options": {"include_usage": True}} if body["stream"] else {}
        name = 'mistral_requests_total{path="/v1/completions",status="200"}'
        before, begun = self.figure(name), time.perf_counter()
        first = asyncio.run(side_by_side(self.url, bodies[:WARM], self.options.clients))
        warm = self.memory()
        found = first + asyncio.run(side_by_side(self.url, bodies[WARM:], self.options.clients))
        seconds, grown = time.perf_counter() - begun, self.memory() - warm
        texts: dict[int, set[str]] = {}
        for kind, answer in zip(chosen, found, strict=True):
            texts.setdefault(kind, set()).add(answer.text)
        return {
            "clients": self.options.clients, "requests": count, "seconds": round(seconds, 1),
            "lost": sum(answer.status != 200 or not answer.ended for answer in found),
            "answered_twice": sum(answer.extra > 0 for answer in found)
            + count - len({answer.events[0]["id"] for answer in found}),
            "served": int(self.figure(name) - before),
            "answered_differently": sum(len(each) - 1 for each in texts.values()),
            "memory_mb": warm >> 20, "growth_percent": round(100 * grown / warm, 2),
        }  # fmt: skip

    def throughput(self) -> Line:
        """Tokens a second of 16 clients, by streams and by whole answers, of `generate` with 16 prompts, and of ids.

        `generate` also gives log-probabilities, and the server texts; an engine that is asked for neither gives ids.
        """
        names = "ids", "generate", "streamed", "whole"
        found: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(self.options.rounds + 1):
            prompts = self.prompts(CLIENTS, first=200 * turn)
            rates = [self._ids_rate(prompts), self._generate_rate(prompts)]
            for stream in (True, False):  # not the same prompts again, whose beginnings would be known
                asked = prompts if stream else self.prompts(CLIENTS, first=200 * turn + 100)
                answers, seconds = self.timed(self.url, asked, stream)
                rates.append(sum(answer.tokens for answer in answers) / seconds)
            if turn:  # the first is not counted
                for name, rate in zip(names, rates, strict=True):
                    found[name].append(rate)
        medians = {f"{name}_tokens_per_second": round(median(rates), 1) for name, rates in found.items()}
        ratios = {
            f"{name}_of_{own}": round(median(map(truediv, found[name], found[own])), 3)
            for own in names[:2]
            for name in names[2:]
        }
        return {"clients": CLIENTS, "answer_tokens": self.options.answer, **medians, **ratios}

    def _generate_rate(self, prompts: list[list[int]]) -> float:
        """Tokens a second of `generate`."""
        begun = time.perf_counter()
        ids, _ = generate(prompts, self.model, self.options.answer, prompt_logprobs=False, speculate="off")
        return sum(map(len, ids)) / (time.perf_counter() - begun)

    def _ids_rate(self, prompts: list[list[int]]) -> float:
        """Tokens a second of the engine, without log-probabilities and texts."""
        begun = time.perf_counter()
        requests = [Request(ids, self.options.answer, logprobs=False, ignore_eos=True) for ids in prompts]
        count = sum(isinstance(event, Generated) for event in generate_stream(self.engine, requests))
        return count / (time.perf_counter() - begun)

    def timed(self, url: str, prompts: list[list[int]], stream: bool = True) -> tuple[list[Answer], float]:
        """The answers to prompts that come at the same time, as streams or whole, and the seconds of them all."""
        usage = {"stream_options": {"include_usage": True}, "stream": True} if stream else {}
        body = {"max_tokens": self.options.answer, "temperature": 0, "ignore_eos": True, **usage}
        return asyncio.run(at_once(url, [{"prompt": ids, **body} for ids in prompts]))

    def overhead(self) -> Line:
        """Milliseconds a token after the first, of one client and of the engine."""
        served, own = list[float](), list[float]()
        for turn in range(3 * self.options.rounds + 1):
            ids = self.prompts(1, first=5000 + turn)[0]
            (answer,), _ = self.timed(self.url, [ids])
            times = list[float]()
            for event in generate_stream(self.engine, [Request(ids, self.options.answer, ignore_eos=True)]):
                times += [time.perf_counter()] * isinstance(event, Generated)
            if turn:
                served.append((answer.times[-2] - answer.times[0]) / (answer.tokens - 1))
                own.append((times[-1] - times[0]) / (len(times) - 1))
        return {
            "served_ms_per_token": round(1000 * median(served), 3), "engine_ms_per_token": round(1000 * median(own), 3),
            "overhead_ms_per_token": round(1000 * (median(served) - median(own)), 3),
        }  # fmt: skip

    def gap(self) -> Line:
        """The longest wait in a stream while a long prompt is read; twice, and the first time is told apart."""
        found = list[Line]()
        for turn in range(2):
            long = self.prompts(1, self.options.prompt, first=9000 + turn)[0]
            found.append(asyncio.run(self._gap(long)))
        longest = found[1]["longest_gap_ms"]
        return {**found[1], "first_time_ms": found[0]["longest_gap_ms"], "of_step": round(longest / self.step_ms, 2)}

    @property
    def step_ms(self) -> int:
        """The time of a step."""
        step: int = self.options.step_ms
        return step

    async def _gap(self, long: list[int]) -> Line:
        ready, beside = asyncio.Event(), Connection(self.url)
        body = {"prompt": TEXT, "max_tokens": 4000, "temperature": 0, "ignore_eos": True, "stream": True}
        answer = Answer()
        task = asyncio.create_task(beside.post(body, ready=ready, into=answer))
        await ready.wait()
        begun = time.perf_counter()
        reading = await Connection(self.url).post({"prompt": long, "max_tokens": 1, "temperature": 0})
        ended = time.perf_counter()
        task.cancel()
        beside.close()
        times = [begun, *(each for each, _ in answer.pieces if begun <= each <= ended)]
        gaps = [after - before for before, after in pairwise(times)]
        return {
            "prompt_tokens": len(long), "reading_seconds": round(reading.seconds, 2), "tokens_beside": len(gaps),
            "step_ms": self.step_ms, "longest_gap_ms": round(1000 * max(gaps, default=0.0), 1),
        }  # fmt: skip

    def cancel(self) -> Line:
        """Clients go while another streams: steps of the engine until their rows are free."""
        return asyncio.run(self._cancel())

    async def _cancel(self) -> Line:
        body = {"prompt": TEXT, "max_tokens": 4000, "ignore_eos": True, "stream": True}
        stays, ready, steps, seconds = Connection(self.url), asyncio.Event(), list[int](), list[float]()
        task = asyncio.create_task(stays.post(body, ready=ready))
        await ready.wait()
        for _ in range(5):
            begun = [asyncio.Event() for _ in range(4)]
            going = [Connection(self.url) for _ in begun]
            tasks = [
                asyncio.create_task(each.post(body, ready=event)) for each, event in zip(going, begun, strict=True)
            ]
            await asyncio.gather(*(event.wait() for event in begun))
            for each in tasks:
                each.cancel()
            for connection in going:
                connection.close()
            gone, page = time.perf_counter(), await stays.get("/metrics")
            before = self.figure("mistral_steps ", page)
            while self.figure("mistral_rows ", page) > 1:
                page = await stays.get("/metrics")
            steps.append(int(self.figure("mistral_steps ", page) - before))
            seconds.append(time.perf_counter() - gone)
        task.cancel()
        stays.close()
        return {"clients": 4, "steps": steps, "ms": [round(1000 * each, 1) for each in seconds]}

    def peer(self) -> Iterator[Line]:
        """Beside llama-server, for 1, 4 and 16 clients."""
        url, port = free_url()
        context = CLIENTS * (2 * PROMPT + self.options.answer + 64)
        command = [
            *shlex.split(self.options.llama_server), "-m", str(self.options.checkpoint), "--port", str(port), "-np",
            str(CLIENTS), "-c", str(context),
        ]  # fmt: skip
        if self.options.threads:
            command += ["-t", str(self.options.threads)]
        with started(command, url):
            for clients in (1, 4, 16):
                yield self._beside(url, clients)

    def _beside(self, peer: str, clients: int) -> Line:
        rates: dict[str, list[float]] = {self.url: [], peer: []}
        firsts: dict[str, list[float]] = {self.url: [], peer: []}
        for turn in range(self.options.rounds + 1):
            prompts = self.prompts(clients, first=20_000 + 1000 * clients + 100 * turn)
            for url in (self.url, peer) if turn % 2 else (peer, self.url):
                answers, seconds = self.timed(url, prompts)
                if turn:
                    rates[url].append(sum(answer.tokens for answer in answers) / seconds)
                    firsts[url] += [answer.first_seconds for answer in answers]
        ours, theirs = median(rates[self.url]), median(rates[peer])
        first, their_first = median(firsts[self.url]), median(firsts[peer])
        return {
            "clients": clients, "tokens_per_second": round(ours, 1), "llama_tokens_per_second": round(theirs, 1),
            "ratio": round(ours / theirs, 2), "first_token_ms": round(1000 * first, 1),
            "llama_first_token_ms": round(1000 * their_first, 1), "first_token_ratio": round(first / their_first, 2),
        }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path, nargs="?", default=shipped_checkpoint())
    parser.add_argument("--parts", default="load,throughput,overhead,gap,cancel,peer")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--clients", type=int, default=200, help="of load")
    parser.add_argument("--answer", type=int, default=128, help="tokens")
    parser.add_argument("--prompt", type=int, default=8000, help="tokens of the long prompt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--step_ms", type=int, default=200)
    parser.add_argument("--speculate", default="off", help="auto as a user has it; off compares like with like")
    parser.add_argument("--llama_server", help="command that starts llama-server, for `peer`")
    options = parser.parse_args()
    url, port = free_url()
    command = [sys.executable, "-m", "main", "serve", str(options.checkpoint.resolve()), f"--port={port}"]
    command += [f"--threads={options.threads}"] if options.threads else []
    with started([*command, f"--step_ms={options.step_ms}", f"--speculate={options.speculate}"], url) as pid:
        bench = Bench(options, url, pid)
        for part in options.parts.split(","):
            if part == "peer" and not options.llama_server:
                continue
            found = getattr(bench, part)()
            for line in [found] if isinstance(found, dict) else found:
                print(json.dumps({"part": part, **line}), flush=True)


if __name__ == "__main__":
    main()
