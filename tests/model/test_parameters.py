"""What tensors a model has: names, shapes, what each belongs to, and which stage owns it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest

from mistral.model.args import ModelArgs
from mistral.model.parameters import PARTS, owns, parameters
from tests.support.checkpoint_forms import DENSE, SPARSE

TIED = replace(DENSE, tied_embeddings=True)
ATTENTION = ["wq", "wk", "wv", "wo"]


def test_shapes_of_a_dense_model() -> None:
    shapes = {name: parameter.shape for name, parameter in parameters(DENSE).items()}
    assert len(shapes) == 3 + 2 * 9
    assert shapes["tok_embeddings.weight"] == shapes["output.weight"] == (30, 16)
    assert shapes["layers.1.attention.wq.weight"] == (24, 16)
    assert shapes["layers.1.attention.wk.weight"] == shapes["layers.1.attention.wv.weight"] == (12, 16)
    assert shapes["layers.1.attention.wo.weight"] == (16, 24)
    assert shapes["layers.0.feed_forward.w1.weight"] == shapes["layers.0.feed_forward.w3.weight"] == (20, 16)
    assert shapes["layers.0.feed_forward.w2.weight"] == (16, 20)
    assert shapes["layers.0.attention_norm.weight"] == shapes["norm.weight"] == (16,)


def test_shapes_of_a_mixture_of_experts() -> None:
    shapes = {name: parameter.shape for name, parameter in parameters(SPARSE).items()}
    assert len(shapes) == 3 + 2 * (6 + 1 + 9)
    assert shapes["layers.1.feed_forward.gate.weight"] == (3, 16)
    assert shapes["layers.1.feed_forward.experts.2.w2.weight"] == (16, 20)
    assert "layers.1.feed_forward.w2.weight" not in shapes


def test_a_tied_model_has_no_output() -> None:
    assert parameters(DENSE).keys() - parameters(TIED).keys() == {"output.weight"}


def test_the_order_is_that_of_a_checkpoint() -> None:
    layer = [*ATTENTION, "attention_norm", "ffn_norm"]
    dense, sparse = ([parameter.weight for parameter in parameters(args).values()] for args in (DENSE, SPARSE))
    assert dense == ["tok_embeddings", *[*layer, "w1", "w2", "w3"] * 2, "norm", "output"]
    assert sparse == ["tok_embeddings", *[*layer, "gate", *["w1", "w2", "w3"] * 3] * 2, "norm", "output"]


@pytest.mark.parametrize("args", [DENSE, SPARSE, TIED], ids=["dense", "sparse", "tied"])
def test_the_fields_say_what_the_name_does(args: ModelArgs) -> None:
    """Each name written once more, from the other fields alone."""
    for name, parameter in parameters(args).items():
        inner = parameter.weight
        if parameter.part == "attention":
            inner = f"attention.{inner}"
        elif parameter.part == "experts":
            inner = f"feed_forward.experts.{parameter.expert}.{inner}"
        elif parameter.part in ("feed-forward", "router"):
            inner = f"feed_forward.{inner}"
        wanted = f"{inner}.weight" if parameter.layer is None else f"layers.{parameter.layer}.{inner}.weight"
        assert name == parameter.name == wanted
        assert parameter.is_matrix == (parameter.part != "norms")
        assert parameter.size == math.prod(parameter.shape)
        assert parameter.heads == {"wq": args.n_heads, "wk": args.n_kv_heads}.get(parameter.weight)


def test_every_part_has_its_share() -> None:
    found = Counter(parameter.part for parameter in parameters(SPARSE).values())
    assert found == {"embedding": 1, "attention": 8, "experts": 18, "norms": 5, "router": 2, "head": 1}
    assert {*found} | {"feed-forward"} == {*PARTS}


def test_the_mapping_is_made_once_and_cannot_be_changed() -> None:
    assert parameters(DENSE) is parameters(replace(DENSE))
    with pytest.raises(TypeError):
        parameters(DENSE)["norm.weight"] = None  # type: ignore[index]


@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_has_an_owner_and_tied_embeddings_have_two(tied: bool) -> None:
    args = replace(SPARSE, n_layers=3, sliding_windows=(None,) * 3, tied_embeddings=tied)
    stages = [range(0, 1), range(1, 2), range(2, 3)]
    for parameter in parameters(args).values():
        owners = [stage.start for stage in stages if owns(stage, parameter, args)]
        if parameter.layer is not None:
            assert owners == [parameter.layer]
        elif parameter.part == "embedding":
            assert owners == ([0, 2] if tied else [0])
        else:
            assert owners == [2]
        assert owns(range(3), parameter, args)
