"""--draft under mpirun: the model that guesses is on the first rank, and answers are those without it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.checkpoint_forms import random_tensors, write_checkpoint
from tests.support.command_line import ARGS, write_model
from tests.support.mpirun import Job
from tests.support.small_tokenizers import byte_level, hugging_face_folder


def test_a_model_guesses_for_two_ranks(tmp_path: Path) -> None:
    """Its own copy and a smaller one, bit for bit; one that fails has no effect; another vocabulary is refused."""
    write_model(tmp_path / "small")
    (tmp_path / "other").mkdir()
    hugging_face_folder(tmp_path / "other", byte_level())
    write_checkpoint(tmp_path / "other", ARGS, random_tensors(ARGS), "consolidated.safetensors")
    code, out, err = Job.start(2, ["-m", "tests.support.mpi_drafts", "2", str(tmp_path)]).end(120)
    assert (code, out) == (0, ""), err
    for name in ("self", "small"):
        found = json.loads((tmp_path / f"{name}.json").read_text())
        for state in ("sound", "broken"):
            assert found[state]["same"] == [True, True], f"{name}, {state}: several answers, and one in a slot"
            assert found[state]["rows"] == 0
        assert found["broken"]["right"] == [0, 0]
        if name == "self":
            several, alone = found["sound"]["right"]
            assert several > 10 and alone > 3
    cancelled = found["cancelled"]
    assert any(under_way for under_way, _, _ in cancelled), "a slot's step"
    assert all(other and later for _, other, later in cancelled)
    for name, reason in (("other", "has another vocabulary, of "), ("nowhere", "no such folder")):
        lines = {(tmp_path / f"{name}-{rank}").read_text() for rank in range(2)}
        assert len(lines) == 1, "the same on every rank"
        line = lines.pop()
        assert line.startswith("--draft") and reason in line and "rank" not in line
