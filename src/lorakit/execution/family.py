"""The parts of a llama-like decoder by their names: known here once, for training and for serving.

A model qualifies by its parts and not by its name: embedding, blocks of RMSNorm, attention with q, k,
v and o projections (with or without norms on the heads), residual, RMSNorm, gated MLP, residual, and
a last norm. Llama, Mistral, Qwen 2, Qwen 3, SmolLM2 and their like have them. That the parts mean
what they seem to is for a trial to say (trial.py).
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lorakit.kernels.groups import Linear
from lorakit.kernels.packed.linear import PackedLinear
from lorakit.lora.jobs import JointLinear
from lorakit.lora.layers import LoraLinear

_TOP = {"embed_tokens", "layers", "norm", "rotary_emb"}
_BLOCK = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_HEAD_NORMS = {"q_norm", "k_norm"}
_MLP = ("gate_proj", "up_proj", "down_proj")
INPUTS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
"""Linear layers of a block that share their input, in the order they run."""


class DecoderBlock:
    """One block of a model. It reads the model's modules at each use, pairs on them included.

    Attributes:
        module: the model's own block.
        path: where it stands in the model.
    """

    def __init__(self, module: nn.Module, path: str) -> None:
        self.module, self.path = module, path

    @property
    def attention(self) -> nn.Module:
        """The attention module."""
        return self.module.get_submodule("self_attn")

    @property
    def norms(self) -> tuple["Norm", "Norm"]:
        """Of the attention's input and of the MLP's."""
        block: Any = self.module
        return Norm.of(block.input_layernorm), Norm.of(block.post_attention_layernorm)

    @property
    def head_norms(self) -> tuple[nn.Module, nn.Module] | None:
        """On the heads of q and of k, or None."""
        attention: Any = self.attention
        return (attention.q_norm, attention.k_norm) if "q_norm" in children(attention) else None

    @property
    def rms_of_heads(self) -> tuple["Norm", "Norm"] | None:
        """Those of `head_norms`, where each is w · x / sqrt(mean(x²) + ε): seen by trying them."""
        modules = self.head_norms
        if modules is None or not all(map(_is_plain_rms, modules)):
            return None
        return Norm.of(modules[0]), Norm.of(modules[1])

    def linears(self, names: Sequence[str] = (*_ATTENTION, *_MLP)) -> list[nn.Module]:
        """The modules of linear layers by their short names."""
        block: Any = self.module
        return [
            getattr(block.self_attn if name in _ATTENTION else block.mlp, name) for name in names
        ]

    def paths(self, names: Sequence[str]) -> tuple[str, ...]:
        """Where linear layers stand in the model."""
        return tuple(
            f"{self.path}.{'self_attn' if name in _ATTENTION else 'mlp'}.{name}" for name in names
        )

    @property
    def fits(self) -> bool:
        """Whether every linear layer is a plain one, with or without pairs beside it."""
        return all(map(fits, self.linears()))

    @property
    def bare(self) -> bool:
        """Whether every linear layer is a plain one without pairs, dense or packed; alike in that and in
        bias where they share an input."""
        groups = [self.linears(names) for names in INPUTS]
        return all(
            all(type(each) in (nn.Linear, PackedLinear) for each in linears)
            and len({(type(each), each.bias is None) for each in linears}) == 1
            for linears in groups
        )


@dataclass(frozen=True, eq=False)
class Norm:
    """An RMSNorm: its weight and its ε."""

    weight: Tensor
    eps: float

    @classmethod
    def of(cls, module: Any) -> "Norm":
        """That of a module which `is_rms`."""
        return cls(module.weight, _eps(module))


@dataclass(frozen=True, eq=False)
class Decoder:
    """What stands between token ids and the last hidden states.

    Attributes:
        base: the model without its head; its modules are read at each use.
        blocks: every block, in the order they run.
        qualified: whether each block has the parts; the model's own code runs the others.
    """

    base: Any
    blocks: tuple[DecoderBlock, ...]
    qualified: tuple[bool, ...]

    def embed(self, ids: Tensor) -> Tensor:
        """(…) token ids -> (…, D)."""
        vectors: Tensor = self.base.embed_tokens(ids)
        return vectors

    def angles(self, x_1TD: Tensor, positions_1T: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of rotary position embedding, (1, T, E) each."""
        cosines, sines = self.base.rotary_emb(x_1TD, position_ids=positions_1T)
        return cosines, sines

    @property
    def norm(self) -> nn.Module:
        """The last norm."""
        module: nn.Module = self.base.norm
        return module

    @property
    def whole(self) -> bool:
        """Whether every block has the parts."""
        return all(self.qualified)


def read_decoder(model: Any) -> Decoder | None:
    """The parts of a model, or None where it has others."""
    base = model.base_model
    if children(base) != _TOP or not is_rms(base.norm) or not len(base.layers):
        return None
    prefix = next(path for path, module in model.named_modules() if module is base)
    blocks = tuple(
        DecoderBlock(module, f"{prefix}.layers.{number}" if prefix else f"layers.{number}")
        for number, module in enumerate(base.layers)
    )
    return Decoder(base, blocks, tuple(_qualifies(block.module) for block in blocks))


def head_path(model: Any) -> str | None:
    """Where the output head stands, where it is a plain linear layer; None for any other."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return None
    return next((path for path, module in model.named_modules() if module is head), None)


def linear_of(module: Any) -> Linear:
    """The tensors of a linear layer that fits, as the kernels take them."""
    if isinstance(module, JointLinear | LoraLinear):
        return module.linear()
    packed = isinstance(module, PackedLinear)
    return Linear(module.frozen if packed else module.weight, module.bias)


def as_taken_by(head: nn.Module | None, hidden: Tensor) -> Tensor:
    """Hidden states in the head's number format, where it has one: Mamba's residual stays float32."""
    if head is None or not fits(head):
        return hidden
    weight = linear_of(head).weight
    return hidden.to(weight.dtype) if isinstance(weight, Tensor) else hidden


def is_rms(module: nn.Module) -> bool:
    """One weight, no bias, and an ε under one of the two names that transformers gives it."""
    return [name for name, _ in module.named_parameters()] == ["weight"] and bool(_eps(module))


_plain_rms: "WeakKeyDictionary[nn.Module, bool]" = WeakKeyDictionary()


@torch.no_grad()
def _is_plain_rms(module: nn.Module) -> bool:
    """Whether a norm on heads is what an RMSNorm is in this house: some give w + 1 for w."""
    if module not in _plain_rms:
        if not is_rms(module):
            return _plain_rms.setdefault(module, False)
        tried = _with_numbers(module) if module.weight.is_meta else module
        norm = Norm.of(tried)
        x = torch.linspace(-3, 5, 3 * norm.weight.numel()).view(3, -1).to(norm.weight)
        wanted = norm.weight * x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt()
        _plain_rms[module] = torch.allclose(tried(x), wanted, rtol=1e-2, atol=1e-3)
    return _plain_rms[module]


def _with_numbers(module: nn.Module) -> Any:
    """A copy, in memory, of a norm of which there is only an outline."""
    twin: Any = copy.deepcopy(module).to_empty(device="cpu")
    twin.weight.copy_(torch.linspace(0.5, 1.5, twin.weight.numel()))
    return twin


def children(module: nn.Module) -> set[str]:
    """Names of a module's children."""
    return {name for name, _ in module.named_children()}


def _qualifies(block: nn.Module) -> bool:
    if children(block) != _BLOCK:
        return False
    attention, mlp = block.get_submodule("self_attn"), block.get_submodule("mlp")
    parts = children(attention) - {"rotary_emb"}
    if parts not in (set(_ATTENTION), {*_ATTENTION} | _HEAD_NORMS):
        return False
    norms = [block.get_submodule(name) for name in sorted(_BLOCK - {"self_attn", "mlp"})]
    return children(mlp) == {*_MLP, "act_fn"} and all(map(is_rms, norms))


def fits(module: nn.Module) -> bool:
    """Whether the kernels may compute a linear layer from its tensors: `linear_of` gives them."""
    if isinstance(module, LoraLinear | JointLinear):
        return module.fits
    return type(module) in (nn.Linear, PackedLinear)


def _eps(norm: nn.Module) -> float:
    known = vars(norm)
    return float(known.get("variance_epsilon", known.get("eps", 0.0)))


def expert_matrices(module: Any) -> tuple[str, str]:
    """The names of the two matrices of transformers' experts (5.24): into the expert, and out of it.

    Args:
        module: experts that say whether they have a gate, which then shares the first matrix.
    """
    return "gate_up_proj" if module.has_gate else "up_proj", "down_proj"
