"""The model of the schedule as the benchmarks use it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.machines import Machine, decode, prefill, table
from benchmarks.pipeline import predicted, reference
from benchmarks.pipeline_job import Case, Measured, Pass
from benchmarks.timetable import Link, bubble_share
from mistral.cli.bench.random_checkpoint import shape_args
from mistral.engine.micro_batches import CHUNK_OVERHEAD, choose_chunk

ROOT = Path(__file__).resolve().parents[2]
ARGS = shape_args("mixtral-8x22b")
NEAR = Link(0.0, float("inf"))


def test_the_table_in_the_documentation_is_the_one_printed_today() -> None:
    text = "\n".join(table(ARGS, Machine(200e9, 3e12)))
    assert text in (ROOT / "docs" / "PIPELINE.md").read_text(), "run python benchmarks/machines.py"


def test_one_row_gains_nothing_and_prompts_do() -> None:
    machine = Machine(200e9, 3e12)
    one, seven = (decode(ARGS, machine, count, NEAR, 1) for count in (1, 7))
    assert one == pytest.approx(seven)
    chunks = 4096 // choose_chunk(4096, 7)
    gained = prefill(ARGS, machine, 7, NEAR) / prefill(ARGS, machine, 1, NEAR)
    assert gained == pytest.approx(7 * chunks / (chunks + 6))


def passes(tokens: int, count: int, seconds: float, head: float) -> list[Pass]:
    starts = np.arange(count) * (seconds + head)
    return [Pass(tokens, start, start + seconds + head, head) for start in starts]


def test_a_prompt_should_take_what_the_formula_says() -> None:
    one = Measured("prefill", 1024, [8], 2, 1024, 8.0, [passes(512, 2, 4.0, 0.0)])
    case = Measured("prefill", 1024, [4, 4], 8, 1024, 0.0, [])
    seconds, idle = predicted(case, one, NEAR, 64, cores=2)
    longer = (1 + CHUNK_OVERHEAD / 128) / (1 + CHUNK_OVERHEAD / 512)
    assert (seconds, idle) == pytest.approx((8.0 / 2 * 9 / 8 * longer, bubble_share(2, 8)))


def test_groups_should_take_as_long_as_the_slowest_stage() -> None:
    one = Measured("decode", 8, [8], 1, 96, 0.0, [passes(8, 12, 2.0, 0.5)])
    case = Measured("decode", 16, [4, 4], 2, 16 * 12, 0.0, [])
    seconds, idle = predicted(case, one, NEAR, 64, cores=2)
    assert (seconds, idle) == pytest.approx((12 * 2 * 1.5, 1 - 2.5 / 3))
    assert predicted(case, one, NEAR, 64, cores=1)[0] == pytest.approx(12 * 2 * 2.5)


def test_eight_rows_to_a_rank_are_compared_with_eight_rows() -> None:
    assert reference(Case("decode", 16, 9), 2) == Case("decode", 8, 9)
    assert reference(Case("decode", 16, 9), 4) == Case("decode", 16, 9)


def test_the_benchmark_prints_what_it_measures_beside_what_it_predicts(tmp_path: Path) -> None:
    options = ["--small", "--layers=2", "--cases=decode:2", "--steps=3", "--repeats=1", "--folder", str(tmp_path / "x")]
    command = [sys.executable, "benchmarks/pipeline.py", *options, "--layer_seconds=0.02"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    link, one, two, *memories = map(json.loads, done.stdout.splitlines())
    assert link["latency_us"] > 0 and (one["layers"], two["layers"]) == ([2], [1, 1])
    assert two["ratio"] > 0
    assert 0 < two["idle_share"] < 1 and two["ideal_idle_share"] == 0.5
    assert two["predicted_seconds"] > 0 and two["seconds"] > 0
    assert [memory["rank"] for memory in memories] == [0, 1] and all(m["share_of_allowed"] < 1 for m in memories)
