"""The draft model that an option names: a smaller checkpoint, or the model itself in 4 bits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mistral.checkpoint.checkpoint import Checkpoint, open_checkpoint
from mistral.engine.draft_model import DraftModel
from mistral.engine.engine import Engine
from mistral.engine.self_draft import SelfDraft
from mistral.engine.speculation import NewDrafter
from mistral.errors import InputError, setting
from mistral.load import Progress, Transformer, load_whole
from mistral.tokenizer.tokenizer import Tokenizer

SELF = "self"  # names the model's own copy; a folder of that name is ./self
COPY_BITS = 4


@dataclass(frozen=True)
class DraftFiles:
    """The checkpoint of the draft model, opened and checked; no weights are loaded yet."""

    checkpoint: Checkpoint
    is_self: bool

    @classmethod
    def open(cls, draft: str | Path, checkpoint: Checkpoint, tokenizer: Tokenizer, bits: int) -> DraftFiles:
        """Open the checkpoint that `draft` names, for a model that is loaded with `bits`.

        Raises InputError for a checkpoint that cannot be opened or has another vocabulary, and for a copy of a model
        that is already quantized.
        """
        if str(draft) == SELF:
            if bits != 16 or checkpoint.has_blocks:
                raise InputError(
                    "the model's weights are quantized already, and a copy would not be faster; name a smaller"
                    " checkpoint, or leave it out",
                    option="draft", value=SELF,
                )  # fmt: skip
            return cls(checkpoint, True)
        try:
            opened = open_checkpoint(draft)
            other = read_tokenizer(opened)
        except InputError as error:
            raise error.within(setting("draft")) from None
        require_same_pieces(tokenizer, other, draft)
        return cls(opened, False)

    def load(
        self,
        backend: str = "auto",
        bits: int = 16,
        device: str = "auto",
        threads: int | None = None,
        precise: bool = False,
        progress: Progress | None = None,
    ) -> Transformer:
        """Load the whole draft model in this process, before the engine is opened, which uses the remaining memory.

        Raises InputError as `load_whole` does.
        """
        kept = COPY_BITS if self.is_self else bits
        try:
            return load_whole(self.checkpoint, backend, kept, device, threads, progress, precise)
        except InputError as error:
            raise error.within(setting("draft")) from None

    def drafter(self, model: Transformer, engine: Engine) -> NewDrafter:
        """The function that makes drafters for an engine's rows, with the model that `load` returned.

        A copy shares the engine's cache, except on a pipeline: there it has rows of its own, on the first rank.
        """
        if self.is_self and engine.num_pipeline_ranks == 1:
            return SelfDraft(model, engine).drafter
        return DraftModel(model, engine.spare_bytes).drafter


def read_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer of a checkpoint. Raises InputError if there is none, or it does not fit the weights."""
    gguf = checkpoint.gguf
    tokenizer = Tokenizer.from_gguf(gguf) if gguf else Tokenizer.from_folder(checkpoint.folder)
    return tokenizer.for_rows(checkpoint.args.vocab_size)


def require_same_pieces(one: Tokenizer, other: Tokenizer, name: str | Path) -> None:
    """Raise InputError if an id has different meanings in two tokenizers."""
    if one.vocab_size != other.vocab_size:
        raise InputError(
            f"has another vocabulary, of {other.vocab_size} ids and not {one.vocab_size}; name a checkpoint with the"
            " same tokenizer",
            option="draft", value=str(name),
        )  # fmt: skip
    differing = next((token for token in range(one.vocab_size) if one.piece(token) != other.piece(token)), None)
    specials = {token.id: name for name, token in one.vocabulary.specials.items()}
    others = {token.id: name for name, token in other.vocabulary.specials.items()}
    if differing is None and specials != others:
        differing = min(token for token in {*specials, *others} if specials.get(token) != others.get(token))
    if differing is not None:
        raise InputError(
            f"has another vocabulary: its id {differing} stands for something else; name a checkpoint with the same"
            " tokenizer",
            option="draft", value=str(name),
        )  # fmt: skip
