"""A loaded model made ready to be run, once: what its calls may do is an argument of the call.

    runnable = Runnable(model)
    hidden_TD = runnable.hidden(rows, training=True)          # packed, fused where it may be
    logits_LV = runnable.logits(rows, keep_L)                 # by the model's own head

Packed sequences are one row of T tokens: everything but attention works on the row as it is, with no
padding. Whether a model can be run so, whether its blocks may be fused and whether its head is a plain
matrix is found by trying (trial.py), and remembered for the model. What cannot be packed is padded
where that is right, and else each row is run alone. All of it holds up to the next limit that the
configuration names; the first longer row has it tried again. Module paths never change: pairs that are
attached or detached later are seen at the next call.
"""
# ruff: noqa: N815  (the fields carry their shapes in their names)

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor

from lorakit.errors import ModelError
from lorakit.execution import apart, attention
from lorakit.execution.by_sequence import kept_within
from lorakit.execution.facts import facts_of, settings_in_training, try_fused, try_head
from lorakit.execution.family import DecoderBlock, as_taken_by, fits, linear_of, read_decoder
from lorakit.execution.fused import all_compiled, elements_kept, fused_hidden
from lorakit.execution.own import own_hidden, own_logits
from lorakit.execution.packing import try_packing
from lorakit.execution.settings import AttentionSettings
from lorakit.execution.waiting import watch
from lorakit.kernels.groups import Linear
from lorakit.kernels.layout import Layout, compiles_shapes, layout, rounded
from lorakit.lora.acting import told
from lorakit.models.dimensions import block_count


class Sequences(Protocol):
    """Packed sequences: `ids_T`, each token's place in its sequence from 0, and the lengths."""

    @property
    def ids_T(self) -> Tensor:
        """Token ids, int64."""

    @property
    def positions_T(self) -> Tensor:
        """Places, int64."""

    @property
    def lengths_S(self) -> Sequence[int]:
        """Tokens of each sequence; they sum to T."""


@dataclass(frozen=True)
class Packed:
    """Sequences given as tensors."""

    ids_T: Tensor
    positions_T: Tensor
    lengths_S: Sequence[int]


class Runnable:
    """A causal language model and the fastest right way to run it.

    Args:
        model: a causal LM of transformers, with or without pairs attached. It keeps its modules
            and weights; its attention goes through lorakit's function where sequences can be
            packed, and answers everybody else as before.
        fused: False keeps the model's own code in every block: the oracle of the fused way.
        longest: tokens of the longest row to come, where that is known; else see `prepare`.

    Raises:
        ModelError: the model sees later tokens, or does not run on rows of token ids.
    """

    def __init__(self, model: Any, *, fused: bool = True, longest: int = 0) -> None:
        self.model = model
        if model.device.type == "cpu":
            watch()
        self._facts = facts_of(model)
        self._decoder = read_decoder(model) if fused else None
        if not self._facts.causal:
            apart.check_causality(model)
            self._facts.causal = True
        # Now and not in the middle of a step: a trial draws random numbers where there is dropout.
        self._facts.reach(model.config, longest)
        if self.packs:
            self._fusible()

    def prepare(self, longest: int) -> None:
        """See that what was tried holds for rows of so many tokens; cheap where it does.

        Rows that cross a limit of the configuration for the first time (lengths.py) are tried just above
        it, some forward passes of that length. `packs`, `way` and `fused_blocks` may be others afterwards.
        """
        if self._facts.reach(self.model.config, longest) and self.packs:
            self._fusible()

    @property
    def packs(self) -> bool:
        """Whether packed sequences give what each gives alone; see `try_packing`."""
        if self._facts.packs is None:
            self._facts.packs = try_packing(self.model, self._facts)
        return self._facts.packs

    @property
    def way(self) -> str:
        """How rows are run: "packed", "padded" or "alone", each of them only where it is right."""
        if self.packs:
            return "packed"
        if self._facts.pads is None:
            self._facts.pads = apart.try_padding(self.model, self._facts.lengths)
        return "padded" if self._facts.pads else "alone"

    @property
    def why_not_packed(self) -> str:
        """Why rows are padded or run alone, for a person; "" where they are packed."""
        tried = f"tried on rows of {' and '.join(map(str, self._facts.lengths))} tokens"
        match self.way:
            case "padded":
                return f"rows are padded: packed they have other logits or gradients ({tried})"
            case "alone":
                said = "each row is run alone: packed or padded they have other logits or gradients"
                return f"{said} ({tried})"
        return ""

    @property
    def by_sequence(self) -> tuple[str, ...]:
        """Paths of modules that mix tokens and get the sequences of a packed row apart."""
        return self._facts.by_sequence if self.packs else ()

    @property
    def head(self) -> Linear | None:
        """The output head as the kernels take it, a pair beside it included.

        Logits are then exactly its product with `hidden`, so that a loss may run it in chunks. None where
        they are not: a soft cap, a scale, another kind of head, a pair that drops activations, a hook on it.
        """
        head = self.model.get_output_embeddings()
        if head is None or not fits(head) or head._forward_hooks or head._forward_pre_hooks:
            return None
        linear = linear_of(head)
        if not isinstance(linear.weight, Tensor):
            return None
        if self._facts.plain_head is None:
            self._facts.plain_head = try_head(self.model, head)
        return linear if self._facts.plain_head else None

    @property
    def fused_blocks(self) -> tuple[str, ...]:
        """Paths of the blocks that run fused, () where the model's own code stays."""
        return tuple(block.path for block in self._fusible()) if self.packs else ()

    def hidden(
        self, rows: Sequences, *, training: bool = False, recompute: bool = False, where: Layout | None = None
    ) -> Tensor:  # fmt: skip
        """The last hidden states of packed sequences, (T, hidden), after the final norm, in the head's format.

        Row t depends on the tokens of its own sequence up to t, and on nothing else.

        Args:
            rows: the sequences.
            training: dropout is on. The model stays in that mode until the next call.
            recompute: keep the inputs of the blocks alone and run them again in the backward.
            where: the sequences lie, instead of `lengths_S`.

        Raises:
            ModelError: the model cannot run packed sequences: see `packs`.
            ValueError: the lengths do not sum to T.
        """
        ids_T, positions_T, where = self._pack(rows, where, fused=True)
        blocks = self._fusible()
        self._set_mode(training, recompute)
        with told(self.model, ids_T, rows.lengths_S):
            if blocks and self._decoder is not None:
                known = self._decoder, self._settings(), {block.path for block in blocks}
                hidden_TD = fused_hidden(*known, ids_T, positions_T, where, recompute=recompute)
            else:
                hidden_TD = own_hidden(self.model, ids_T, positions_T, where)
        return as_taken_by(self.model.get_output_embeddings(), hidden_TD[: rows.ids_T.shape[0]])

    def logits(
        self, rows: Sequences, keep_L: Tensor, *, training: bool = False, recompute: bool = False
    ) -> Tensor:
        """Next-token logits at the places `keep_L` of the row, (L, vocabulary).

        They come through the model's own forward, so its scales and soft caps are in them.

        Args:
            rows: the sequences.
            keep_L: int64 indices into the row of T tokens.
            training, recompute: as for `hidden`.

        Raises:
            ModelError, ValueError: as `hidden`.
        """
        packed = self._pack(rows, None)
        self._set_mode(training, recompute)
        with told(self.model, packed[0], rows.lengths_S):
            return own_logits(self.model, *packed, keep_L)

    def unpacked_logits(
        self, rows: Sequences, keep_L: Tensor, *, training: bool = False, recompute: bool = False
    ) -> Tensor:
        """The same as `logits` for a model that does not pack: padded on the right, or one by one.

        The model attends as it was loaded to. Memory grows with the padding. Which of the two, see `way`.
        """
        _check_lengths(rows)
        self.prepare(max(rows.lengths_S))
        alone = self.way == "alone"
        self._set_mode(training, recompute)
        compute = apart.logits_alone if alone else apart.padded_logits
        return compute(self.model, rows.ids_T, rows.lengths_S, keep_L)

    def elements_kept(self, lengths: Sequence[int]) -> float | None:
        """Elements kept for the backward pass for each token, see `fused.elements_kept`; None where a
        block of the model would not run fused."""
        blocks, model = self._fusible() if self.packs else [], self.model
        if not blocks or len(blocks) != block_count(model.config):
            return None
        return elements_kept(blocks, self._settings(), lengths, model.dtype, model.device)

    def rest(self) -> None:
        """Evaluation mode, without recomputation: how a loaded model was."""
        self._set_mode(False, False)

    def _set_mode(self, training: bool, recompute: bool) -> None:
        if self.model.training != training:
            self.model.train(training)
        if recompute != self._facts.recomputes:
            if recompute:
                self.model.activation_checkpointing_enable(
                    {"use_reentrant": False, "context_fn": kept_within}
                )
            else:
                self.model.activation_checkpointing_disable()
            self._facts.recomputes = recompute

    def _pack(
        self, rows: Sequences, where: Layout | None = None, *, fused: bool = False
    ) -> tuple[Tensor, Tensor, Layout]:
        if where is not None:
            return rows.ids_T, rows.positions_T, where
        _check_lengths(rows)
        self.prepare(max(rows.lengths_S))
        if not self.packs:
            raise ModelError(
                f"the sequences of {type(self.model).__name__} cannot be packed: unpacked_logits can"
            )
        ids_T, positions_T = rows.ids_T, rows.positions_T
        few_sizes = compiles_shapes(self.model.dtype, ids_T.device) and not (
            fused and self._compiled()
        )
        if few_sizes:  # tokens of no sequence at the end, which nothing attends to and nobody reads
            more = rounded(len(ids_T)) - len(ids_T)
            ids_T, positions_T = (F.pad(x, (0, more)) for x in (ids_T, positions_T))
        return ids_T, positions_T, layout(rows.lengths_S, ids_T.device, few_sizes=few_sizes)

    def _compiled(self) -> bool:
        """Whether compiled kernels, to which every shape is alike, compute all blocks."""
        blocks, model = self._fusible(), self.model
        every = bool(blocks) and len(blocks) == block_count(model.config)
        return every and all_compiled(blocks, self._settings(), model.dtype, model.device)

    def _settings(self) -> dict[str, AttentionSettings]:
        if self._facts.settings is None:
            assert self._decoder is not None
            self._facts.settings = settings_in_training(self.model, self._decoder)
        return self._facts.settings

    def _fusible(self) -> list[DecoderBlock]:
        """Those that fit now and give the same answer fused."""
        decoder = self._decoder
        if decoder is None or not attention.is_switched(self.model):
            return []
        settings = self._settings()
        blocks = [
            block
            for block, qualified in zip(decoder.blocks, decoder.qualified, strict=True)
            # Dropout of attention is the model's own business: it differs between the modes.
            if qualified
            and block.path in settings
            and not settings[block.path].dropout
            and block.fits
        ]
        paths = {block.path for block in blocks}
        if paths - self._facts.tried:
            self._facts.tried |= paths
            if try_fused(self.model, decoder, settings, paths, self._facts.lengths):
                self._facts.right |= paths
        return [block for block in blocks if block.path in self._facts.right]


def _check_lengths(rows: Sequences) -> None:
    total, tokens = sum(rows.lengths_S), rows.ids_T.shape[0]
    if total != tokens:
        raise ValueError(f"lengths sum to {total}, but there are {tokens} tokens")
