"""The architecture of a model, as read from `params.json` or a Hugging Face `config.json`, checked."""

from __future__ import annotations

from dataclasses import dataclass, field

from mistral.errors import InputError
from mistral.model.rope import Llama4Scaling, RopeScaling, YarnScaling


@dataclass(frozen=True)
class MoeArgs:
    """A sparse mixture of experts (Mixtral): each token uses `num_experts_per_tok` of `num_experts` feed-forwards."""

    num_experts: int
    num_experts_per_tok: int


@dataclass(frozen=True)
class ModelArgs:
    """Architecture of one model; field names are the keys of `params.json`.

    `sliding_windows` holds one entry per *global* layer: the number of positions a query sees, itself included, or None
    for all of them. `max_seq_len` is None where the file does not limit the context. `rope_scaling` is the scaling of
    rotary frequencies for a longer context, `llama_4_scaling` that of queries by position. `towers` names the encoders
    of a multimodal model ("images", "audio"), which are not read: this is its text decoder. `ignored_keys` are unknown
    keys of the file. Raises InputError for inconsistent numbers.
    """

    dim: int
    n_layers: int
    head_dim: int
    hidden_dim: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    norm_eps: float
    rope_theta: float
    sliding_windows: tuple[int | None, ...]
    moe: MoeArgs | None = None
    tied_embeddings: bool = False
    max_seq_len: int | None = None
    rope_scaling: RopeScaling | None = None
    llama_4_scaling: Llama4Scaling | None = None
    towers: tuple[str, ...] = field(default=(), compare=False, repr=False)
    ignored_keys: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if self.n_heads % self.n_kv_heads:
            raise InputError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")
        if self.head_dim % 2:
            raise InputError(f"head_dim {self.head_dim} is odd: rotary embeddings rotate pairs")
        if isinstance(self.rope_scaling, YarnScaling):
            self.rope_scaling.ramp(self.head_dim, self.rope_theta)
        if len(self.sliding_windows) != self.n_layers:
            raise InputError(f"{len(self.sliding_windows)} sliding windows are given for {self.n_layers} layers")
        if self.moe and not 1 <= self.moe.num_experts_per_tok <= self.moe.num_experts:
            chosen, experts = self.moe.num_experts_per_tok, self.moe.num_experts
            raise InputError(f"num_experts_per_tok {chosen} must be from 1 to num_experts {experts}")
