"""The fuzzer finds what it is to find, and what is known to read strangers' input holds."""

from __future__ import annotations

import os
import random
import resource
import sys
import time
from pathlib import Path

import pytest

from mistral.engine.engine import Engine
from mistral.engine.scheduler import generate_stream
from mistral.errors import InputError
from tools import fuzz
from tools.fuzzing import drafts
from tools.fuzzing.mutators import mutated
from tools.fuzzing.targets import Target


def fails(data: bytes) -> None:
    raise ZeroDivisionError("two\nlines")


def refuses(data: bytes) -> None:
    raise InputError("no such thing")


def exits(data: bytes) -> None:
    raise SystemExit(3)


def test_what_is_no_input_error_escapes() -> None:
    found = [fuzz.run_one(Target("x", [b""], run), b"") for run in (fails, refuses, exits, len)]
    assert found[0] and found[0].startswith("ZeroDivisionError: two lines (test_fuzz.py:")
    assert found[2] and found[2].startswith("SystemExit: 3")
    assert found[1] is found[3] is None


def test_what_takes_too_long_escapes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sleeps = Target("sleeps", [b"x"], lambda data: time.sleep(60))
    monkeypatch.setattr(fuzz, "PATIENCE", 0.01)
    monkeypatch.setattr(fuzz, "all_targets", lambda folder: [sleeps])
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    report = fuzz.work([], 0.1, 1, tmp_path)
    assert report["escapes"] == [
        {"target": "sleeps", "what": "more than 0.01 seconds", "file": str(tmp_path / "sleeps-1-1")}
    ]
    assert not (tmp_path / "current-1").exists()


def test_a_process_that_dies_is_an_escape_with_its_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dying = tmp_path / "python"
    dying.write_text(f"#!/bin/sh\nprintf 'json\\n[1' > {tmp_path}/current-7; kill -9 $$\n")
    dying.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dying))
    count, escapes = fuzz.run_workers([], 1, 7, 1, tmp_path)
    assert (count, [escape.what for escape in escapes]) == (0, ["the process ended with -9"])
    assert Path(escapes[0].file).read_bytes() == b"[1"


def test_inputs_are_changed_and_the_same_seed_gives_the_same() -> None:
    def inputs(seed: int) -> list[bytes]:
        chance = random.Random(seed)
        return [mutated([b'{"a": [1, 2]}', b"other"], chance) for _ in range(300)]

    assert inputs(1) == inputs(1) != inputs(2)
    assert len(set(inputs(1))) > 150


def test_nothing_escapes_in_ten_seconds(tmp_path: Path) -> None:
    seed = int(os.environ.get("FUZZ_SEED", time.time()))
    count, escapes = fuzz.run_workers([], 10, seed, 1, tmp_path)
    assert not escapes, f"FUZZ_SEED={seed}"
    assert count > 150


def test_answers_with_guesses_are_those_without_and_others_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = drafts.DraftCases()
    for number in range(12):
        cases.run(b"case %d" % number)
    other = cases.copies["dense"]
    monkeypatch.setattr(drafts, "NAMES", ("windowed",))
    monkeypatch.setattr(drafts, "generate_stream", lambda engine, *more: generate_stream(Engine(other), *more))
    monkeypatch.setattr(random.Random, "choice", lambda chance, options: options[0])
    found = fuzz.run_one(Target("drafts", [], cases.run), b"1")
    assert found and found.startswith("AssertionError: answer 0 of") and "by windowed differs" in found
