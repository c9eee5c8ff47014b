"""What an adapter changes of a model beside its pairs: modules whole, biases, rows of embeddings. Pure.

Each such change is a new value of one parameter, all of it or some of its rows; changing.py puts it
into a model.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lorakit.errors import TargetError, did_you_mean
from lorakit.lora.sharing import tied_parameters
from lorakit.lora.spec import LoraSpec

Kind = Literal["module", "bias", "rows", "added"]
"""Saved by modules_to_save; a bias of the base; rows of an embedding; a bias beside a pair."""


@dataclass(frozen=True)
class Whole:
    """One parameter of the base that an adapter has a value of its own for.

    Attributes:
        names: of the parameter in a model without pairs; several where modules share it.
        kind: what it is to peft.
        shape: of the value.
        rows: which rows of the parameter the value is; () for all of it.
        scale: of a bias beside a pair: s.
    """

    names: tuple[str, ...]
    kind: Kind
    shape: tuple[int, ...]
    rows: tuple[int, ...] = ()
    scale: float = 1.0

    @property
    def elements(self) -> int:
        """Trained elements."""
        return math.prod(self.shape)

    def applied(self, own: Tensor | None, value: Tensor) -> Tensor:
        """The parameter with the value, in the base's format; `own` is None of a bias that is not there."""
        if own is None:
            return value * self.scale if self.kind == "added" else value.clone()
        value = value.to(own.device, torch.promote_types(value.dtype, own.dtype))
        if self.kind == "added":
            return (own + self.scale * value).to(own.dtype)
        if not self.rows:
            return value.to(own.dtype, copy=True)
        where = torch.tensor(self.rows, device=own.device)
        return own.detach().index_copy(0, where, value.to(own.dtype))

    def value_in(self, parameter: Tensor, own: Tensor | None) -> Tensor:
        """The value again, out of the parameter: what `applied` was given."""
        held = parameter.detach()
        if self.kind == "added":
            return (held if own is None else held - own) / self.scale
        return held[list(self.rows)].clone() if self.rows else held


def whole_of(
    model: nn.Module, spec: LoraSpec, scales: Mapping[str, tuple[float, int]]
) -> tuple[Whole, ...]:
    """What of a model a spec changes beside the pairs; the model has no pairs, and may be on the meta device.

    Args:
        model: the base.
        spec: modules_to_save, token_rows, bias and lora_bias of it count.
        scales: of each module with a pair, by path: the scale of the pair, and the width of its output or
            0 of one that has no bias.

    Raises:
        TargetError: a name means nothing here; a row is beyond its embedding; a module whole has a pair.
    """
    if spec.train_tokens:
        raise TargetError(
            f"train_tokens names tokens by their text ({spec.train_tokens[0]!r}), which only a run with a "
            "tokenizer knows: name their rows, token_rows={'embed_tokens': (id, …)}"
        )
    parameters = dict(model.named_parameters(remove_duplicate=False))
    ties = {name: names for names in tied_parameters(model) for name in names}
    found: dict[tuple[str, bool], Whole] = {}

    def add(
        names: Iterable[str], kind: Kind, rows: tuple[int, ...] = (), scale: float = 1.0
    ) -> None:
        names = tuple(names)
        if (names[0], kind == "added") in found:
            return
        own = parameters.get(names[0])
        shape = (scales[names[0].rpartition(".")[0]][1],) if own is None else tuple(own.shape)
        what = Whole(names, kind, (len(rows), *shape[1:]) if rows else shape, rows, scale)
        found.update(dict.fromkeys(((name, kind == "added") for name in names), what))

    for name in _in_modules(model, spec.modules_to_save, scales):
        add(ties.get(name, (name,)) if spec.keep_ties else (name,), "module")
    wanted = _rows(model, spec.token_rows, parameters)
    # peft ties what is trained of the input embedding to the head, and nothing of the head to it.
    looked_up = f"{input_embedding(model)}.weight" if wanted else ""
    for name in sorted(wanted, key=lambda name: name != looked_up):
        rows = wanted[name]
        ties_of = ties.get(name, ()) if name == looked_up else ()
        shared = [other for other in ties_of if wanted.get(other, rows) == rows]
        names = (name, *(other for other in shared if other != name))
        if paired := [other for other in names if other.removesuffix(".weight") in scales]:
            raise TargetError(
                f"token_rows means rows of {name}, and {paired[0]} has a pair: a weight is trained by "
                "its rows or by a pair; exclude it from the targets"
            )
        add(names, "rows", rows)
    for name in parameters:
        beside_pair = name.removesuffix(".bias") in scales
        is_bias = name.split(".")[-1] == "bias"
        if is_bias and (spec.bias == "all" or (spec.bias == "lora_only" and beside_pair)):
            add((name,), "bias")
    if spec.lora_bias:
        for path, (scale, width) in scales.items():
            if width:
                add((f"{path}.bias",), "added", scale=scale)
    return tuple(dict.fromkeys(found.values()))


def _in_modules(model: nn.Module, ends: Sequence[str], pairs: Mapping[str, Any]) -> list[str]:
    """Parameters of the modules whose paths end so: peft (0.21) compares texts, not whole names."""
    paths = [path for path, _ in model.named_modules(remove_duplicate=False) if path]
    names: list[str] = []
    for end in ends:
        chosen = [path for path in paths if path.endswith(end)]
        if not chosen:
            last = {path.rsplit(".", 1)[-1] for path in paths}
            raise TargetError(
                f"modules_to_save {end!r} matches no module; {did_you_mean(end, last)}"
            )
        for path in chosen:
            if inside := [p for p in pairs if p == path or p.startswith(path + ".")]:
                raise TargetError(
                    f"modules_to_save {end!r} means {path}, and {inside[0]} gets a pair: a weight is "
                    "trained whole or by a pair; exclude it from the targets"
                )
            own = dict(model.get_submodule(path).named_parameters(remove_duplicate=False))
            names += [f"{path}.{name}" for name in own]
    return list(dict.fromkeys(names))


def _rows(
    model: nn.Module, token_rows: Mapping[str, Sequence[int]], parameters: Mapping[str, Tensor]
) -> dict[str, tuple[int, ...]]:
    """Rows by the weight that they are of; the key '' means the input embedding, as peft's plain list does."""
    paths = [path for path, _ in model.named_modules(remove_duplicate=False)]
    chosen: dict[str, tuple[int, ...]] = {}
    for end, rows in token_rows.items():
        means = [path for path in paths if path.endswith(end)] if end else [input_embedding(model)]
        means = [
            path for path in means if getattr(parameters.get(f"{path}.weight"), "ndim", 0) == 2
        ]
        if not means:
            last = {path.rsplit(".", 1)[-1] for path in paths}
            raise TargetError(f"token_rows {end!r} matches no embedding; {did_you_mean(end, last)}")
        for path in means:
            size = len(parameters[f"{path}.weight"])
            if bad := [row for row in rows if not 0 <= row < size]:
                raise TargetError(f"token_rows has row {bad[0]} of {path}, which has {size} rows")
            if len(set(rows)) < len(rows):
                raise TargetError(f"token_rows names a row of {path} twice: {list(rows)}")
            if rows:
                chosen[f"{path}.weight"] = tuple(rows)
    return chosen


def input_embedding(model: Any) -> str:
    """The path of the module that looks tokens up.

    Raises:
        TargetError: the model does not say which it is.
    """
    try:
        module = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        raise TargetError(
            f"a {type(model).__name__} does not say which module looks tokens up (no "
            "get_input_embeddings): rows of it cannot be trained"
        ) from None
    return next(path for path, each in model.named_modules() if each is module)
