"""RoPE scaling and query scaling in params.json and config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from mistral.checkpoint.keys import Keys
from mistral.errors import InputError
from mistral.model.rope import LinearScaling, Llama3Scaling, Llama4Scaling, RopeScaling, YarnScaling, yarn_sharpness
from mistral.text import shown

LONGEST = 1 << 40  # positions, more than any context has
ORIGIN = "original_max_position_embeddings"
Scaling = TypeVar("Scaling", LinearScaling, Llama3Scaling, YarnScaling)


def official_rotary(keys: Keys) -> tuple[RopeScaling | None, Llama4Scaling | None]:
    """The scaling of frequencies and of queries in params.json: `yarn` and `llama_4_scaling`.

    `rope_scaling` is written by this program itself, with Hugging Face's keys. Raises InputError if two differ.
    """
    plain, yarn = rope_scaling(keys, "rope_scaling"), official_yarn(keys)
    if plain and yarn and plain != yarn:
        raise InputError(f"{keys.source}: yarn and rope_scaling differ; keep the one that holds")
    return yarn or plain, official_llama_4(keys)


def official_yarn(keys: Keys) -> YarnScaling | None:
    """The table `yarn` of params.json; None if it is absent. An absent `apply_scale` means true."""
    inner = table_at(keys, "yarn")
    if inner is None:
        return None
    factor = inner.number("factor")
    scaled = inner.take("apply_scale") is None or inner.boolean("apply_scale")
    found = within(inner, lambda: YarnScaling(
        factor, inner.integer(ORIGIN, limit=LONGEST), inner.number("beta", 32.0), inner.number("alpha", 1.0),
        yarn_sharpness(factor) if scaled else 1.0,
    ))  # fmt: skip
    inner.refuse_unknown()
    return found


def official_llama_4(keys: Keys) -> Llama4Scaling | None:
    """The table `llama_4_scaling`; None if it is absent or its beta is 0."""
    inner = table_at(keys, "llama_4_scaling")
    if inner is None:
        return None
    beta, origin = inner.number("beta", zero=True), inner.integer(ORIGIN, limit=LONGEST)
    inner.refuse_unknown()
    return Llama4Scaling(origin, beta) if beta else None


def table_at(keys: Keys, key: str) -> Keys | None:
    """The table of a key; None if it is absent, null or false. Raises InputError for any other value."""
    table = keys.take(key)
    if table is None or table is False:
        return None
    if not isinstance(table, Mapping):
        raise InputError(f"{keys.source}: {key} must be a table, not {shown(table)}")
    return Keys(table, f"{keys.source}: {key}")


def rope_scaling(keys: Keys, key: str, limit: int | None = None, origin: int | None = None) -> RopeScaling | None:
    """The scaling of rotary angles in the table of this key, as `rope_type` (or `type`) calls it; None for default.

    `origin` is the context that the model had before, where the table does not say; `limit` that which it has now.
    """
    table = keys.take(key) or {}
    if not isinstance(table, Mapping):
        raise InputError(f"{keys.source}: {key} must be a table, not {shown(table)}")
    if any(isinstance(value, Mapping) for value in table.values()):
        raise InputError(f"{keys.source}: {key} differs by layer type, which is not supported")
    inner, kind = Keys(table, f"{keys.source}: {key}"), table.get("rope_type", table.get("type"))
    if "type" in table and table["type"] != kind:
        raise InputError(
            f"{inner.source}: rope_type {shown(kind)} and type {shown(table['type'])} differ; keep the one that holds"
        )
    if kind in (None, "default"):
        return None
    if kind == "linear":
        return within(inner, lambda: LinearScaling(inner.number("factor")))
    if kind == "llama3":
        return within(inner, lambda: Llama3Scaling(
            inner.number("factor"), inner.number("low_freq_factor"), inner.number("high_freq_factor"),
            inner.integer(ORIGIN, default=origin or limit, limit=LONGEST),
        ))  # fmt: skip
    if kind == "yarn":
        return within(inner, lambda: yarn(inner, origin))
    raise InputError(
        f"{keys.source}: {key} of type {shown(kind)} is not supported (default, linear, llama3 and yarn are)"
    )


def yarn(inner: Keys, origin: int | None) -> YarnScaling:
    """YaRN in Hugging Face's keys: attention_factor wins, then mscale and mscale_all_dim if both are set."""
    factor = inner.number("factor")
    over, under = inner.number("mscale", 0.0, zero=True), inner.number("mscale_all_dim", 0.0, zero=True)
    sharpness = (
        yarn_sharpness(factor, over) / yarn_sharpness(factor, under) if over and under else yarn_sharpness(factor)
    )
    return YarnScaling(
        factor, inner.integer(ORIGIN, default=origin, limit=LONGEST), inner.number("beta_fast", 32.0),
        inner.number("beta_slow", 1.0), inner.number("attention_factor", sharpness),
        inner.take("truncate") is None or inner.boolean("truncate"),
    )  # fmt: skip


def within(inner: Keys, made: Callable[[], Scaling]) -> Scaling:
    """The result of `made`; an InputError that does not name the table is raised again with its name."""
    try:
        return made()
    except InputError as error:
        raise error if str(error).startswith(inner.source) else error.within(inner.source) from None


def rotary(
    keys: Keys, default: float, limit: int | None, unsaid: Mapping[str, Any] | None = None
) -> tuple[float, RopeScaling | None, Llama4Scaling | None]:
    """The base of the rotary angles and the scalings of a config.json.

    The base is `rope_theta` at the top level, or inside `rope_parameters` (or `rope_scaling`) as newer files have it;
    `default` where it is nowhere. `limit` is the context by the file; `unsaid` the table of a class whose file has
    none. Raises InputError for two tables that differ.
    """
    origin = keys.integer(ORIGIN, default=0) or None
    top = keys.number("rope_theta", default=default)
    if keys.number("partial_rotary_factor", default=1.0) != 1:
        raise InputError(f"{keys.source}: partial_rotary_factor is not supported")
    names = ("rope_scaling", "rope_parameters")
    if unsaid and all(keys.table.get(name) is None for name in names):
        said = Keys({"rope_parameters": unsaid}, keys.source)
        keys.taken.update(names)
    else:
        said = keys
    found: list[tuple[float, RopeScaling | None, Llama4Scaling | None]] = []
    for name in names:
        scaling = rope_scaling(said, name, limit, origin)
        if table := said.table.get(name):
            inner = Keys(table, f"{keys.source}: {name}")
            if inner.number("partial_rotary_factor", default=1.0) != 1:
                raise InputError(f"{inner.source}: partial_rotary_factor is not supported")
            found.append((inner.number("rope_theta", default=top), scaling, query_scaling(inner, origin)))
    keys.taken |= said.taken
    if len(set(found)) > 1:
        raise InputError(f"{keys.source}: rope_scaling and rope_parameters differ; keep the one that holds")
    theta, scaling, queries = found[0] if found else (top, None, None)
    apart = official_llama_4(keys)
    if apart and queries and apart != queries:
        raise InputError(f"{keys.source}: llama_4_scaling and llama_4_scaling_beta differ; keep the one that holds")
    return theta, scaling, queries or apart


def query_scaling(inner: Keys, origin: int | None) -> Llama4Scaling | None:
    """`llama_4_scaling_beta` of a table; None if it is absent or 0."""
    beta = inner.number("llama_4_scaling_beta", 0.0, zero=True)
    return Llama4Scaling(inner.integer(ORIGIN, default=origin, limit=LONGEST), beta) if beta else None
