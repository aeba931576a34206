"""The pipeline under a real mpirun: the same tokens and logprobs as in one process.

Most jobs run on the native backend: a step of these small models takes it a fraction of the time, and its figures are
the same bits however a batch is divided. What is sent between ranks does not depend on the backend.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mistral.checkpoint.checkpoint import open_checkpoint
from mistral.engine.engine import Engine
from mistral.engine.prefix_slot import PrefixSlot
from mistral.engine.requests import Generated, Request
from mistral.engine.scheduler import generate_stream
from mistral.engine.snapshot_file import read_saved
from mistral.generate import generate
from mistral.load import Transformer
from mistral.model.parameters import owns, parameters
from tests.support.checkpoint_forms import float8_tensors, random_tensors, write_checkpoint
from tests.support.generation import PROMPTS, Found, close
from tests.support.mpi_cases import (
    CASES,
    DAMAGED,
    SHAPES,
    SHORT,
    SOUND,
    places,
    results,
    write_checkpoints,
    write_small,
)
from tests.support.mpirun import Job


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pipeline")
    write_checkpoints(path)
    return path


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, dict[int, Found]]:
    """What one process gives."""
    return {"portable": results(folder, 1, "portable", "few"), "native": results(folder, 1, "native")}


@pytest.mark.parametrize(
    ("ranks", "backend", "which"),
    [
        (1, "portable", "few"),
        (2, "portable", "few"),
        (3, "portable", "few"),
        (4, "portable", "few"),
        (2, "native", "all"),
        (3, "native", "some"),
        (4, "native", "few"),
    ],
)
def test_every_rank_gives_what_one_process_gives(
    folder: Path, alone: dict[str, dict[int, Found]], ranks: int, backend: str, which: str
) -> None:
    program = ["-m", "tests.support.mpi_job", "equal", str(ranks), str(folder), f"{backend},{which}"]
    network = ["--mca", "btl", "tcp,self"] if ranks == 3 else []  # as between machines
    code, _, err = Job.start(ranks, program, flags=network).end()
    assert (code, err) == (0, "")
    for rank in range(ranks):
        found = json.loads((folder / f"{backend}-{ranks}-{rank}.json").read_text())
        assert found.keys() == {str(place) for place in places(which)}
        for place, (tokens, logprobs) in found.items():
            wanted = alone[backend][int(place)]
            assert tokens == wanted[0], CASES[int(place)]
            close(logprobs, wanted[1], 1e-4 if backend == "portable" else 1e-6)


SHARDED = ("consolidated-sharded", "hf-sharded-index", "first-mixtral")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole checkpoints of several files, and beside them folders with the files that one rank needs of each."""
    folder = tmp_path_factory.mktemp("shards")
    for form in SHARDED:
        args = SHAPES["moe" if form == "first-mixtral" else "windowed"]
        change = float8_tensors if form == "consolidated-sharded" else dict
        whole = write_checkpoint(folder / form / "whole", args, random_tensors(args), form, change)
        checkpoint, lacking = open_checkpoint(whole), 0
        for rank, layers in enumerate((range(2), range(2, 4))):
            owned = [name for name, each in parameters(args).items() if owns(layers, each, args)]
            needed = {checkpoint.file_of(name) for name in owned}
            lacking += len(set(checkpoint.files) - needed)
            (folder / form / str(rank)).mkdir()
            for file in {*needed, *(file for file in whole.iterdir() if file.suffix == ".json")}:
                (folder / form / str(rank) / file.name).symlink_to(file)
        assert lacking
    return folder


def test_a_rank_needs_the_files_of_its_own_layers_only(shards: Path) -> None:
    code, _, err = Job.start(2, ["-m", "tests.support.mpi_job", "shards", "2", str(shards), ",".join(SHARDED)]).end()
    assert (code, err) == (0, "")
    for form in SHARDED:
        whole = Transformer.from_folder(shards / form / "whole", 1, "native", device="CPU")
        tokens, logprobs = generate(PROMPTS, whole, **SHORT)
        lines = {(shards / form / f"{rank}.txt").read_text() for rank in range(2)}
        for rank in range(2):
            found = json.loads((shards / form / f"{rank}.json").read_text())
            assert found[0] == tokens
            close(found[1], logprobs, 1e-6)
        assert len(lines) == 1
        assert "rank 0 on " in (line := lines.pop()) and "is not here, and weights of this rank's layers 0 to 2" in line


def test_a_row_that_is_kept_on_two_ranks_goes_on_as_on_one(folder: Path) -> None:
    """It is rewound on every rank alike, though its windows are full, and its file is that of one process."""
    shape = "interleaved"
    code, out, err = Job.start(2, ["-m", "tests.support.mpi_job", "kept", "2", str(folder), shape]).end()
    assert (code, out, err) == (0, "", "")
    said = json.loads((folder / f"kept-{shape}").read_text())
    model = Transformer.from_folder(folder / shape, 1, "native", device="CPU")
    assert [turn["ids"] for turn in said] == generate([turn["prompt"] for turn in said], model, 3)[0]
    assert [(turn["shared"], turn["reused"]) for turn in said] == [(0, 0), (14, 14), (24, 24), (6, 6)]
    snapshot = read_saved(folder / f"saved-{shape}", "key", model.args, model.ops.SLOT_BYTES).snapshot
    assert snapshot
    slot = PrefixSlot(Engine(model))
    slot.restore(snapshot)
    events = generate_stream(slot.engine, [Request(said[2]["prompt"], 3, slot=slot)])
    assert [event.id for event in events if isinstance(event, Generated)] == said[2]["ids"]
    assert slot.reused == 24


def test_drafts_change_nothing_on_three_ranks(folder: Path) -> None:
    write_small(folder / "drafted", SHAPES["interleaved"], 3, damaged=DAMAGED)
    code, out, err = Job.start(3, ["-m", "tests.support.mpi_job", "drafts", "3", str(folder), "drafted"]).end()
    assert (code, out, err) == (0, "", "")
    found = json.loads((folder / "drafts-drafted").read_text())
    right, damaged = found["guessed"]
    assert right == [True, True, True], "ids, log-probabilities, and some drafts were right"
    assert damaged == [True, True, False], "a row whose drafts do damage has no more of them"
    assert found["rows"] == 0


def test_requests_of_a_pipeline_come_go_and_fail_alone(folder: Path) -> None:
    write_small(folder / "damaged", SHAPES["interleaved"], 3, damaged=DAMAGED)
    code, out, err = Job.start(2, ["-m", "tests.support.mpi_job", "scheduled", "2", str(folder), "damaged"]).end()
    assert (code, out, err) == (0, "", "")
    found = json.loads((folder / "scheduled-damaged").read_text())
    model = Transformer.from_folder(folder / "damaged", 1, "native", device="CPU")
    first, late = generate([PROMPTS[1], PROMPTS[3]], model, 6)[0]
    assert found["ids"] == {"0": first, "1": [], "2": [], "3": late}
    fault = "logits hold NaN: the checkpoint's weights are damaged or overflow; check its files (`info` with `verify`)"
    assert found["ends"] == {"0": "length", "1": "cancelled", "2": fault, "3": "length"}
    assert found["rows"] == 0
    assert found["guessed"] == [True, True, True], "drafts change nothing on two ranks"
    short, long = generate([SOUND[:20], SOUND], model, 12)[0]
    assert found["crowded"] == [short, long, short]
    alone = generate([SOUND[: 20 + i] for i in range(4)], model, 7)[0]
    for time in range(2):
        assert [ids for ids, _ in found["stored"][time]] == alone
    assert [cached for _, cached in found["stored"][1]] == [19, 20, 21, 22], "a prefix store of the first rank"
