"""The figures of docs/IDEAS.md: drawn from what the package computes, and checked in as they are drawn today."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from mistral.model.args import ModelArgs
from mistral.model.attention_plan import visible
from mistral.model.moe import Dispatch
from tools.draw_figures import DRAWINGS, FIGURES
from tools.figures.attention import MODELS, cache_bytes, influence, model_args
from tools.figures.cache import prefill_steps
from tools.figures.experts import route

ROOT = FIGURES.parent.parent
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command draws, run as a user runs it, and with MindSpore out of reach."""
    folder = tmp_path_factory.mktemp("figures") / "new"
    code = (
        "import runpy, sys; sys.modules['mindspore'] = None; runpy.run_module('tools.draw_figures', None, '__main__')"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    return folder


def test_the_command_draws_every_figure_and_no_other_is_checked_in(drawn: Path) -> None:
    names = {f"{name}.svg" for name in DRAWINGS}
    assert {file.name for file in drawn.iterdir()} == {file.name for file in FIGURES.iterdir()} == names


@pytest.mark.parametrize("name", DRAWINGS)
def test_the_checked_in_figure_is_the_one_drawn_today(drawn: Path, name: str) -> None:
    """Equal but for the last digits of coordinates, which may depend on the processor."""
    new, old = ((folder / f"{name}.svg").read_text(encoding="utf-8") for folder in (drawn, FIGURES))
    assert NUMBER.sub("#", new) == NUMBER.sub("#", old), "run python -m tools.draw_figures"
    now, then = (np.array(NUMBER.findall(text), np.float64) for text in (new, old))
    np.testing.assert_allclose(now, then, rtol=0, atol=0.01, err_msg="run python -m tools.draw_figures")


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_figure_is_small_dateless_and_on_a_white_card(drawn: Path, name: str) -> None:
    file = drawn / f"{name}.svg"
    root = ET.parse(file).getroot()
    text = file.read_text(encoding="utf-8")
    assert file.stat().st_size < 60_000
    assert root.attrib["width"] == "600pt"  # 800 pixels
    assert "dc:date" not in text and text.count("fill: #ffffff; stroke: #cbd2d9") == 1


@pytest.mark.parametrize(("window", "n_layers"), [(1, 3), (2, 1), (4, 3), (5, 2)])
def test_information_travels_n_layers_times_window_less_one(window: int, n_layers: int) -> None:
    positions = np.arange(20)
    behind = positions[:, None] - positions
    seen = influence(visible(positions, positions, window), n_layers)
    np.testing.assert_array_equal(seen, (behind >= 0) & (behind <= n_layers * (window - 1)))


def test_the_masks_of_a_chunked_prefill_are_the_window_by_position() -> None:
    steps = prefill_steps(prompt=10, chunk=4, window=5, slots=5)
    assert [len(step.queries) for step in steps] == [4, 4, 2, 1]
    assert steps[2].keys.tolist() == [5, 6, 7, 3, 4, 8, 9]
    assert steps[-1].after.tolist() == [10, 6, 7, 8, 9]
    for step in steps:
        np.testing.assert_array_equal(step.mask, visible(step.queries, step.keys, 5))


def test_a_token_of_mistral_7b_takes_256_kib_in_the_cache() -> None:
    assert cache_bytes(model_args("Mistral 7B")) == 2 * 4 * 32 * 8 * 128 == 256 * 1024
    assert all(isinstance(model_args(name), ModelArgs) for name in MODELS)


def test_routing_weighs_the_chosen_experts_and_drops_no_token() -> None:
    logits = np.array([[0.0, 2.0, 1.0], [3.0, -1.0, 3.0 + np.log(3)]])
    weights, chosen = route(logits, 2)
    assert chosen.tolist() == [[1, 2], [2, 0]]
    odds = np.e / (1 + np.e)
    np.testing.assert_allclose(weights, [[odds, 1 - odds], [0.75, 0.25]], rtol=1e-6)
    assert sorted(Dispatch.from_chosen(chosen, 3).tokens.tolist()) == [0, 0, 1, 1]
