"""The bench command: what it counts, what it makes, what it asks the engine for, and what it shows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import namedtuple
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mistral.cli.bench.measure
import mistral.cli.bench.random_checkpoint
import mistral.cli.bench.roofline
from mistral.checkpoint.checkpoint import open_checkpoint
from mistral.checkpoint.weight_memory import used_nbytes
from mistral.cli.bench.command import Bench
from mistral.cli.bench.figure import Figure, table
from mistral.cli.bench.measure import ANSWER, Measurement, MeasurementPlan, read_prompt
from mistral.cli.bench.random_checkpoint import SHAPES, random_checkpoint, shape_args
from mistral.cli.bench.roofline import decode_nbytes, keys_seen, prefill_flops, resident_limit
from mistral.engine.engine import Engine
from mistral.engine.requests import Generated, Prefilled, Request
from mistral.engine.sampling import SamplingSettings
from mistral.engine.scheduler import generate_stream
from mistral.engine.work import Work
from mistral.errors import InputError
from mistral.memory import forget_peak, resident_memory
from mistral.model.args import MoeArgs
from mistral.model.attention_plan import visible
from mistral.model.parameters import Parameter, parameters
from mistral.ops.blocks.kind import BY_NAME
from mistral.ops.device import thread_count
from tests.support.command_line import ARGS, ROOT, CommandLine, Outcome, write_model

QUICK = ("--prefill=3,40", "--batches=1,3", "--tokens=2", "--repeats=2", "--json")
KEYS = ["figure", "model", "backend", "threads", "bits", "batch", "prompt", "value", "unit", "limit", "share_of_limit",
        "note", "least", "most"]  # fmt: skip


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine measured in no time, and not well; answers of four tokens."""
    for name, value in (("BUFFER", 1 << 22), ("PRODUCT", 64), ("ROUNDS", 1000)):
        monkeypatch.setattr(mistral.cli.bench.roofline, name, value)
    monkeypatch.setattr(mistral.cli.bench.measure, "ANSWER", 4)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Path:
    """One layer of random weights, made once."""
    return random_checkpoint(folder, "tiny", 1)


def figures(outcome: Outcome) -> list[dict[str, Any]]:
    assert outcome.code == 0, outcome
    return [json.loads(line) for line in outcome.out.splitlines()]


# What is counted

LAYER = 2 * 4096 * 4096 + 2 * 1024 * 4096  # weights of the attention of Mistral 7B
EXPERT = 3 * 4096 * 14336
HEAD = 32000 * 4096


def bfloat16_nbytes(shape: str, layers: int) -> dict[str, int]:
    return {name: 2 * each.size for name, each in parameters(shape_args(shape, layers)).items()}


def test_a_step_reads_each_weight_once_and_an_embedding_and_a_cache_for_each_row() -> None:
    args, weights = shape_args("mistral-7b", 4), bfloat16_nbytes("mistral-7b", 4)
    fixed = 2 * (4 * (LAYER + EXPERT) + 9 * 4096 + HEAD)
    assert fixed == 2_007_048_192
    assert decode_nbytes(args, weights, 1, 1000) == fixed + 2 * 4096 + 1000
    assert decode_nbytes(args, weights, 8, 8000) == fixed + 8 * 2 * 4096 + 8000
    tied = replace(args, tied_embeddings=True)
    shared = {name: size for name, size in weights.items() if name != "output.weight"}
    assert decode_nbytes(tied, shared, 1, 1000) == fixed + 2 * 4096 + 1000


@pytest.mark.parametrize("batch, touched", [(1, 2 / 8), (2, 1 - (6 / 8) ** 2), (8, 1 - 0.75**8)])
def test_a_step_reads_the_experts_that_are_expected_to_be_chosen(batch: int, touched: float) -> None:
    found = decode_nbytes(shape_args("mixtral-8x7b", 1), bfloat16_nbytes("mixtral-8x7b", 1), batch, 0)
    assert found == pytest.approx(2 * (LAYER + 8 * EXPERT * touched + 8 * 4096 + 3 * 4096 + HEAD + batch * 4096))


def test_a_prompt_takes_its_matrices_its_attention_and_one_row_of_the_head() -> None:
    args = shape_args("mistral-7b", 4)
    pairs = 128 * 129 // 2
    beyond = 4096 * 4096 + EXPERT  # attention, in the last layer for the last token alone
    layers = 128 * (4 * (LAYER + EXPERT) - beyond) + beyond
    assert prefill_flops(args, 128) == 2 * (layers + 4 * pairs * 2 * 32 * 128 + HEAD)
    mixture = replace(args, moe=MoeArgs(8, 2))
    assert prefill_flops(mixture, 1) == 2 * (4 * (LAYER + 2 * EXPERT + 8 * 4096) + 4 * 2 * 32 * 128 + HEAD)


@pytest.mark.parametrize("window", [None, 1, 4, 10, 11])
def test_pairs_of_query_and_key_are_those_of_the_mask(window: int | None) -> None:
    positions = np.arange(10)
    assert keys_seen(10, window) == visible(positions, positions, window).sum()


def test_memory_has_weights_cache_and_600_mb() -> None:
    args, weights = shape_args("mistral-7b", 1), bfloat16_nbytes("mistral-7b", 1)
    total = sum(weights.values())
    assert resident_limit(args, weights, 7, None) == total + 7 + 600_000_000
    assert resident_limit(args, weights, 7, 0) == total - 2 * HEAD + 7 + 600_000_000
    one = resident_limit(args, weights, 7, 1) - resident_limit(args, weights, 7, 0)
    assert one == pytest.approx(65536)
    assert resident_limit(args, weights, 7, 10**6) == pytest.approx(total + 7 + 600_000_000)


def test_weights_count_as_the_backend_reads_them(tiny: Path) -> None:
    checkpoint = open_checkpoint(tiny)
    name, size = "layers.0.feed_forward.w1.weight", 1024 * 256
    assert used_nbytes(checkpoint, 16, "native")[name] == 2 * size
    assert used_nbytes(checkpoint, 16, "portable")[name] == 4 * size
    for bits, kind in ((8, BY_NAME["Q8_0"]), (4, BY_NAME["Q4_K"])):
        found = used_nbytes(checkpoint, bits, "native")
        assert found[name] == size // kind.weights * kind.nbytes
        assert found["tok_embeddings.weight"] == 32000 * 256 // kind.weights * kind.nbytes
        assert found["norm.weight"] == 2 * 256


def test_the_peak_of_memory_begins_anew() -> None:
    held = np.ones(1 << 26, np.uint8)
    high = resident_memory()
    assert held.nbytes < high.anonymous <= high.now <= high.peak and high.mapped > 0
    del held
    if forget_peak():
        assert resident_memory().peak < high.peak - (1 << 25)


@pytest.mark.parametrize("text, threads", [("3", 3), ("2,4", 2), ("0", None), ("x", None), (None, None)])
def test_the_threads_are_those_asked_for_or_the_cores(
    monkeypatch: pytest.MonkeyPatch, text: str | None, threads: int | None
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = thread_count()
    if text is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert cores >= 1 and thread_count() == (threads or cores)


# Random checkpoints

PUBLISHED = {  # billions of parameters
    "mistral-7b": 7.24, "ministral-8b": 8.02, "nemo-12b": 12.25, "codestral-22b": 22.25, "large-2": 122.6,
    "mixtral-8x7b": 46.7, "mixtral-8x22b": 140.6, "mistral-small-24b": 23.57, "ministral-3-8b": 8.49,
    "ministral-3-8b-fp8": 8.49,
}  # fmt: skip


def test_shapes_have_as_many_parameters_as_the_models() -> None:
    assert {*PUBLISHED, "tiny"} == set(SHAPES)
    for shape, billions in PUBLISHED.items():
        found = sum(each.size for each in parameters(shape_args(shape)).values()) / 1e9
        assert found == pytest.approx(billions, rel=0.002), shape
    assert shape_args("ministral-8b", 6).sliding_windows == (None, 32768, 32768, 32768, None, 32768)
    assert shape_args("mistral-7b", 2).sliding_windows == (4096, 4096)


def test_a_random_checkpoint_has_the_dimensions_and_the_distribution_promised(tiny: Path, folder: Path) -> None:
    assert tiny == folder / "tiny-1"
    checkpoint = open_checkpoint(tiny)
    assert (checkpoint.args, checkpoint.warnings) == (shape_args("tiny", 1), ())
    for name, parameter in parameters(checkpoint.args).items():
        weight = np.asarray(checkpoint.get(name), np.float32)
        assert checkpoint.dtype(name).name == "bfloat16" and checkpoint.in_place(name)
        if parameter.part == "norms":
            assert (weight == 1).all()
            continue
        deviation = 1 if parameter.part == "embedding" else 0.02
        assert weight.std() == pytest.approx(deviation, rel=0.02) and abs(weight.mean()) < 0.02 * deviation
        assert (np.abs(weight) < deviation).mean() == pytest.approx(0.6827, abs=0.02), "normally distributed"
        assert abs(np.corrcoef(weight[0], weight[1])[0, 1]) < 0.3
    assert not np.array_equal(checkpoint.get("tok_embeddings.weight"), checkpoint.get("output.weight"))


def test_a_random_checkpoint_is_made_once(
    tiny: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: object, folder: Path, float8: bool) -> int:
        raise AssertionError("made again")

    monkeypatch.setattr(mistral.cli.bench.random_checkpoint, "write_random", fail)
    assert random_checkpoint(folder, "tiny", 1) == tiny
    assert capsys.readouterr().err == f"note: random weights, 34.7 MB, are kept in {tiny}\n"
    with pytest.raises(AssertionError):
        random_checkpoint(folder, "tiny", 2)


def test_a_random_checkpoint_of_8_bit_floats(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = SHAPES["tiny"] | {"quantization": SHAPES["ministral-3-8b-fp8"]["quantization"]}
    monkeypatch.setitem(SHAPES, "tiny-fp8", tiny)
    checkpoint = open_checkpoint(random_checkpoint(folder, "tiny-fp8", 1))
    for name, each in parameters(checkpoint.args).items():
        packed = each.is_matrix and each.layer is not None
        assert checkpoint.dtype(name).name == ("float8_e4m3fn" if packed else "bfloat16") and checkpoint.in_place(name)
        if packed:
            values = checkpoint.get(name)
            assert np.isfinite(values).all() and values.std() == pytest.approx(0.02, rel=0.02)
    found = open_checkpoint(random_checkpoint(folder, "tiny-fp8", 1, "Q8_0"))
    assert found.type_name("layers.0.attention.wq.weight") == "Q8_0"


def test_a_quantized_one_lies_beside_it_and_does_without_it(tiny: Path, folder: Path) -> None:
    found = random_checkpoint(folder, "tiny", 1, "Q4_K_M")
    assert found == folder / "tiny-1-Q4_K_M.gguf"
    checkpoint = open_checkpoint(found)
    assert checkpoint.args == replace(shape_args("tiny", 1), max_seq_len=checkpoint.args.max_seq_len)
    assert checkpoint.type_name("layers.0.feed_forward.w1.weight") == "Q4_K"
    moved = tiny.rename(folder / "moved")
    try:
        assert random_checkpoint(folder, "tiny", 1, "Q4_K_M") == found and not tiny.exists()
    finally:
        moved.rename(tiny)


def test_what_is_not_finished_has_not_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(parameter: Parameter, seed: int, float8: bool) -> Sequence[np.ndarray[Any, Any]]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(mistral.cli.bench.random_checkpoint, "random_weights", interrupt)
        random_checkpoint(tmp_path, "tiny", 1)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    (tmp_path / "tiny-1").mkdir()
    (tmp_path / "tiny-1" / "mine").touch()
    with pytest.raises(InputError, match="tiny-1: is there already"):
        random_checkpoint(tmp_path, "tiny", 1)
    assert (tmp_path / "tiny-1" / "mine").exists()


# Refusals

REFUSED = {
    "--shape small: not known; choose one of tiny, mistral-7b,": ["--shape=small"],
    "--layers: needs --shape": ["--layers=4"],
    "--folder: needs --shape": ["somewhere", "--folder=/tmp"],
    "--type: needs --shape": ["--type=Q4_0"],
    "--type Q2_K: must be one of Q8_0,": ["--shape=tiny", "--type=Q2_K"],
    "--type Q4_0: says what its file has; leave --bits out": ["--shape=tiny", "--type=Q4_0", "--bits=4"],
    "--shape tiny: makes a checkpoint; leave it or here out": ["here", "--shape=tiny"],
    "--layers 0: tiny has from 1 to 4": ["--shape=tiny", "--layers=0"],
    "--layers 33: mistral-7b has from 1 to 32": ["--shape=mistral-7b", "--layers=33"],
    "--bits 5": ["--bits=5"],
    "--tokens 0": ["--tokens=0"],
    "--repeats 0": ["--repeats=0"],
    "--prefill 1,x": ["--prefill=1,x"],
    "--prefill : must": ["--prefill="],
    "--batches 0": ["--batches=8,0"],
    "--batches 1025": ["--batches=1025"],
    "--seed: bench has no such option": ["--seed=1"],
    "--backend fast": ["--backend=fast"],
    "/no/such": ["/no/such"],
    "/proc/bench: cannot be written": ["--shape=tiny", "--folder=/proc/bench"],
    "/dev/null/x: cannot be written": ["--shape=tiny", "--folder=/dev/null/x"],
    "name another folder with --folder": ["--shape=large-2", "--folder=FULL"],
}


def test_what_cannot_be_is_one_line_before_mindspore_is_imported(tmp_path: Path) -> None:
    lines = [[argument.replace("FULL", str(tmp_path)) for argument in line] for line in REFUSED.values()]
    code = (
        "import json, shutil, sys; from collections import namedtuple; from mistral.cli.main import main\n"
        "shutil.disk_usage = lambda folder: namedtuple('Usage', 'free')(10**9)\n"
        "codes = [main(['bench', *line]) for line in json.loads(sys.argv[1])]\n"
        "assert set(codes) == {2} and not {'mindspore', 'mistral_common'} & set(sys.modules), codes"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(lines)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for named, line in zip(REFUSED, done.stderr.splitlines(), strict=True):
        assert line.startswith("error: ") and named in line
    assert "needs 245 GB and has 1.0 GB free" in done.stderr
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_without_a_compiler_kernels_are_refused_before_weights_are_made(
    run: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    for option in ("--backend=native", "--bits=8"):
        assert "no-such-compiler" in run("bench", "--shape=tiny", f"--folder={tmp_path}", option).error
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_refused_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(35_000_000))
    random_checkpoint(tmp_path, "tiny", 1)  # 34.7 MB
    with pytest.raises(InputError, match=r"needs 36\.6 MB and has 35\.0 MB free; lower layers, or name another folder"):
        random_checkpoint(tmp_path, "tiny", 2)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["tiny-1"]


# What the engine is asked for


class Recorder:
    """An engine that takes note."""

    def __init__(self) -> None:
        self.model = type("Model", (), {"args": replace(ARGS, sliding_windows=(None, 300))})
        self.joined, self.rows, self.steps = list[int](), set[int](), list[list[tuple[int, int, str]]]()

    def join(self, capacity: int) -> int:
        self.joined.append(capacity)
        self.rows.add(len(self.joined))
        return len(self.joined)

    def leave(self, row: int) -> None:
        self.rows.remove(row)

    def step(self, work: Sequence[Work]) -> list[np.ndarray[Any, Any]]:
        assert {piece.row for piece in work} <= self.rows
        assert all(0 <= token < ARGS.vocab_size for piece in work for token in piece.ids)
        self.steps.append([(piece.row, len(piece.ids), piece.logits) for piece in work])
        return []


def plan(tokens: int = 3, repeats: int = 2) -> MeasurementPlan:
    return MeasurementPlan((700,), (1, 2), (1, 2), tokens, repeats)


def stand_in(tiny: Path, plan: MeasurementPlan, max_seq_len: int | None = None) -> Measurement:
    checkpoint = open_checkpoint(tiny)
    args = replace(checkpoint.args, vocab_size=ARGS.vocab_size, max_seq_len=max_seq_len)
    return Measurement(replace(checkpoint, args=args), 16, "portable", "CPU", False, plan)


def test_a_prompt_is_read_in_chunks_with_the_head_on_its_last_token() -> None:
    engine: Any = Recorder()
    row = engine.join(1000)
    read_prompt(engine, row, [1] * 700)
    read_prompt(engine, row, [1] * 300)
    chunks = [(row, 512, "none"), (row, 188, "last"), (row, 300, "last")]
    assert engine.steps == [[chunk] for chunk in chunks]


def test_a_prompt_is_read_once_more_than_it_is_timed(tiny: Path) -> None:
    engine: Any = Recorder()
    assert len(stand_in(tiny, plan()).prefill_seconds(engine, 5)) == 2
    assert engine.joined == [5, 5, 5] and len(engine.steps) == 3 and not engine.rows


def test_rows_are_decoded_together_after_a_prompt_each(tiny: Path) -> None:
    engine: Any = Recorder()
    seconds = stand_in(tiny, plan()).decode_seconds(engine, 2)
    assert len(seconds) == 2 * 3 and min(seconds) > 0
    assert engine.joined == [128 + 1 + 3] * 4 and not engine.rows
    assert engine.steps[:2] == [[(1, 128, "last")], [(2, 128, "last")]]
    assert engine.steps[2:6] == [[(1, 1, "last"), (2, 1, "last")]] * 4
    assert len(engine.steps) == 2 * (2 + 4)


def test_what_a_context_limit_does_not_allow_is_left_out(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = stand_in(tiny, plan(), 700)
    assert (whole.plan, whole.decode_prompt) == (plan(), 128)
    assert capsys.readouterr().err == ""
    assert stand_in(tiny, plan(), 132).plan.answers == (1, 2)
    assert "no generation" not in capsys.readouterr().err
    assert stand_in(tiny, plan(), 131).plan.answers == ()
    shorter = stand_in(tiny, plan(), 100)
    assert (shorter.plan, shorter.decode_prompt) == (replace(plan(), prompts=(), answers=()), 96)
    found = capsys.readouterr().err
    assert "prompts longer than the context limit, 100 tokens, are left out" in found
    assert "no generation: a prompt of 128 tokens and 4 new ones do not fit into the context limit, 131" in found
    assert stand_in(tiny, plan(), 5).decode_prompt == 1
    assert stand_in(tiny, plan(), 4).plan.batches == ()
    assert "no decoding" in capsys.readouterr().err


def test_answers_are_generated_through_the_scheduler_with_sampling(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row a prompt of its own and a seed of its own, all rows at once, and not a token short."""
    asked, ends = list[tuple[list[Request], int]](), list[Generated]()

    def recorded(engine: Engine, requests: list[Request], *, max_rows: int) -> Generator[Prefilled | Generated]:
        asked.append((requests, max_rows))
        for event in generate_stream(engine, requests, max_rows=max_rows):
            yield event
            ends.extend([event] if isinstance(event, Generated) and event.finish_reason else [])

    monkeypatch.setattr(mistral.cli.bench.measure, "generate_stream", recorded)
    measurement = stand_in(tiny, plan())
    engine, _ = measurement.load()
    seconds = measurement.generate_seconds(engine, 3)
    assert len(seconds) == len(asked) == 2 and min(seconds) > 0
    for requests, max_rows in asked:
        assert len(requests) == max_rows == 3
        assert [request.settings for request in requests] == [SamplingSettings(0.7, 0.9, seed=n) for n in range(3)]
        assert {(len(request.prompt), request.max_tokens, request.eos_id) for request in requests} == {(128, 4, None)}
    assert len({tuple(request.prompt) for requests, _ in asked for request in requests}) == 6
    assert [event.finish_reason for event in ends] == ["length"] * 6
    assert ANSWER == 64  # outside of these tests
    monkeypatch.setattr(mistral.cli.bench.measure, "ANSWER", ANSWER)
    figure = measurement.generate_figure(3, [2.0, 4.0, 1.0])
    assert (figure.value, figure.least, figure.most, figure.unit) == (96, 48, 192, "tokens/s")
    assert (figure.batch, figure.prompt, figure.limit) == (3, 128, None)


# What is shown


def test_a_table_has_a_line_for_each_figure_in_columns() -> None:
    lines = table(
        [
            Figure("load", "load", 0.0123, "s", "import apart"),
            Figure("decode", "decode, batch 8", 412.34, "tokens/s", "what memory allows", 8, 128, 509.0),
            Figure("resident", "memory", 2345.6, "MB"),
        ]
    )
    assert lines == [
        "load             0.0123 s         import apart",
        "decode, batch 8     412 tokens/s  81 % of what memory allows",
        "memory             2346 MB",
    ]


def test_a_record_has_its_keys_and_four_digits() -> None:
    figure = Figure("decode", "decode", 1234.56, "tokens/s", "note", 8, 128, 3000.0, 1.23456, 2000.0)
    record = figure.record({"model": "m", "backend": "b", "threads": 2, "bits": 16})
    assert list(record) == KEYS
    assert [record[key] for key in ("value", "limit", "share_of_limit", "least")] == [1235, 3000, 0.4115, 1.235]


def check_figures(
    found: list[dict[str, Any]], batches: Sequence[int], answers: Sequence[int], prompts: Sequence[int]
) -> None:
    """That these figures are there, and that each agrees with itself."""
    speeds = [("decode", batch) for batch in batches] + [("generate", batch) for batch in answers]
    speeds += [("prefill", 1)] * len(prompts)
    assert [(line["figure"], line["batch"]) for line in found[3:-3]] == speeds
    assert [line["prompt"] for line in found if line["figure"] == "prefill"] == list(prompts)
    names = [line["figure"] for line in found]
    assert names[:3] == ["memory_bandwidth", "matrix_peak", "load"]
    assert names[-3:] == ["resident_peak", "resident_anonymous", "resident_mapped"]
    for line in found:
        assert list(line) == KEYS and line["value"] > 0
        if line["least"] is not None:
            assert line["least"] <= line["value"] <= line["most"]
        if line["limit"] is not None:
            assert line["share_of_limit"] == pytest.approx(line["value"] / line["limit"], rel=2e-3)
        assert (line["limit"] is not None) == (line["figure"] in ("decode", "prefill", "resident_peak"))
    generated = [line for line in found if line["figure"] == "generate"]
    assert {(line["note"], line["prompt"]) for line in generated} <= {("prompt and sampling included", 128)}
    values = {line["figure"]: line["value"] for line in found}
    assert values["resident_anonymous"] + values["resident_mapped"] <= 1.1 * values["resident_peak"]


def test_a_checkpoint_is_measured(run: CommandLine, tmp_path: Path) -> None:
    """With a window of 5 tokens, which its prompts are longer than, and a limit that one of them does not fit into."""
    model = write_model(tmp_path / "small", replace(ARGS, max_seq_len=12))
    outcome = run("bench", model, *QUICK)
    found = figures(outcome)
    check_figures(found, (1, 3), (), (3,))
    assert outcome.err == (
        "note: prompts longer than the context limit, 12 tokens, are left out\n"
        "note: no generation: a prompt of 128 tokens and 4 new ones do not fit into the context limit, 12\n"
    )
    assert {line["model"] for line in found} == {"small"} and {line["backend"] for line in found} == {"portable"}
    assert {line["prompt"] for line in found if line["figure"] == "decode"} == {12 - 2 - 1}


def test_the_limits_are_those_of_the_machine_that_was_measured(run: CommandLine, tiny: Path) -> None:
    found = figures(run("bench", tiny, "--backend=portable", *QUICK))
    machine = {line["figure"]: line["value"] * 1e9 for line in found[:2]}
    args = open_checkpoint(tiny).args
    weights = {name: 4 * each.size for name, each in parameters(args).items()}
    cache = 2 * 4 * 64 * (128 + 1 + 1)  # keys and values, float32, 2 heads of 32, a prompt and half of the tokens
    for line in found:
        if line["figure"] == "decode":
            nbytes = decode_nbytes(args, weights, line["batch"], line["batch"] * cache)
            assert line["limit"] == pytest.approx(line["batch"] * machine["memory_bandwidth"] / nbytes, rel=2e-3)
        if line["figure"] == "prefill":
            flops = prefill_flops(args, line["prompt"])
            assert line["limit"] == pytest.approx(line["prompt"] * machine["matrix_peak"] / flops, rel=2e-3)


def test_random_weights_are_measured_on_the_kernels(run: CommandLine, tiny: Path, folder: Path) -> None:
    outcome = run("bench", "--shape=tiny", "--layers=1", f"--folder={folder}", "--backend=native", *QUICK)
    found = figures(outcome)
    check_figures(found, (1, 3), (1, 3), (3, 40))
    assert outcome.err == f"note: random weights, 34.7 MB, are kept in {tiny}\n"
    assert {line["model"] for line in found} == {"tiny-1"} and {line["bits"] for line in found} == {16}
    assert "kernels" in found[0]["note"] and "in registers" in found[1]["note"]


def test_eight_bits_are_measured_from_a_file_and_while_loading(run: CommandLine, tiny: Path, folder: Path) -> None:
    both = [
        run("bench", "--shape=tiny", "--layers=1", f"--folder={folder}", "--bits=8", "--backend=portable", *QUICK),
        run("bench", tiny, "--bits=8", "--backend=portable", *QUICK),
    ]
    assert (folder / "tiny-1-Q8_0.gguf").is_file()
    for outcome in both:
        check_figures(figures(outcome), (1, 3), (1, 3), (3, 40))
        assert {line["bits"] for line in figures(outcome)} == {8}


def test_a_file_of_any_type_is_measured_as_it_lies(
    run: CommandLine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mistral.cli.bench.roofline, "kernels_flops", lambda library, number: 1e9 * (number + 1))
    options = (f"--folder={folder}", "--type=Q4_0", "--backend=native", "--prefill=40", "--batches=1,9")
    found = figures(run("bench", "--shape=tiny", "--layers=1", *options, "--tokens=1", "--repeats=1", "--json"))
    check_figures(found, (1, 9), (1, 9), (40,))
    checkpoint = open_checkpoint(folder / "tiny-1-Q4_0.gguf")
    assert checkpoint.type_name("layers.0.attention.wq.weight") == "Q4_0"
    assert {line["bits"] for line in found} == {4} and {line["model"] for line in found} == {"tiny-1"}
    assert found[1]["note"] == "tiles of 8-bit integers, in registers"  # its products are of integers


def test_people_get_a_table(run: CommandLine) -> None:
    """Of the checkpoint that ships, when none is named."""
    lines = run("bench", "--prefill=3", "--batches=1", "--tokens=1", "--repeats=1").out.splitlines()
    assert lines[0].startswith("tiny, 16 bits, portable backend, ")
    assert [line.split("  ")[0] for line in lines[1:7]] == [
        "memory bandwidth", "matrix peak", "load", "decode, batch 1", "generate, batch 1", "prefill, 3 tokens",
    ]  # fmt: skip
    assert "of what memory allows" in lines[4] and "of the matrix peak" in lines[6]
    assert lines[5].endswith("  prompt and sampling included") and "%" not in lines[5]


def test_the_help_says_which_figures_leave_the_choice_of_tokens_out(run: CommandLine) -> None:
    text = " ".join(run("bench", "--help").out.split())
    assert "decode and prefill are the model alone: tokens are not chosen" in text
    assert "generate is a whole answer: 64 new tokens to a prompt of 128" in text
    assert "sampling at temperature 0.7 and top_p 0.9" in text


def test_answers_are_generated_for_one_row_and_for_the_most() -> None:
    assert [Bench(batches=text).plan().answers for text in ("1", "8", "2,8,4")] == [(1,), (1, 8), (1, 8)]


def test_random_weights_are_kept_in_the_users_cache(
    run: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    quick = ("--prefill=3", "--batches=1", "--tokens=1", "--repeats=1", "--backend=portable")
    assert run("bench", "--shape=tiny", "--layers=1", *quick).code == 0
    assert (tmp_path / "mistral-mindspore" / "bench" / "tiny-1" / "params.json").is_file()
