"""What is asked of an architecture: every way of lorakit against W + s·B·A in transformers' own code.

The oracle is zoo_oracle.py's; B is not zero. A check ends `right`, `refused` with the words of a
lorakit error, `WRONG` with what differs, `FAULT` with any other error and its place, or `oracle`
where transformers' own code fails.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

import lorakit
from architectures import tiny_folder
from lorakit.adapters import read_adapter
from lorakit.data.batches import micro_batches
from lorakit.data.table import Encoded
from lorakit.errors import AdapterError, TargetError
from lorakit.lora import LoraSpec, attach, detach, lora_layers, plan
from lorakit.lora.unreadable import refused_by_peft
from lorakit.training.loss import CausalLoss
from zoo_answers import check_generation, check_serving
from zoo_oracle import (
    LOGITS_CLOSE,
    DiffersError,
    Oracle,
    largest_apart,
    own_model,
    random_rows,
    within,
)
from zoo_subject import RIGHT, Architecture, load

LENGTHS = (9, 23, 37, 50)
LOSS_CLOSE, GRADIENT_CLOSE = 1e-4, 1e-3
MOST_ROUNDING = 2e-3
"""Where float32 alone changes gradients by more, other random weights are taken."""
TEXTS = [
    {"prompt": "say lamp", "completion": "pmal"},
    {"prompt": "write the number after twelve", "completion": "thirteen, and then fourteen"},
    {"prompt": "a", "completion": "b"},
]


def attach_pairs(model: Any, seed: int = 0, **spec: Any) -> bool:
    """Adapt what is adapted by default, B away from zero; whether the default rank fits."""
    fits = True
    try:
        attach(model, LoraSpec(**spec))
    except TargetError:
        attach(model, LoraSpec(rank=1, **spec))
        fits = False
    generator = torch.Generator().manual_seed(seed)
    for layer in lora_layers(model).values():
        layer.A.data.copy_(torch.randn(layer.A.shape, generator=generator) / 4)
        layer.B.data.copy_(torch.randn(layer.B.shape, generator=generator) / (6 * layer.rank**0.5))
    return fits


def check_loss(subject: Architecture, model: Any, oracle: Oracle) -> None:
    """Loss and gradients of every A and B of a batch of rows, as it trains."""
    rows = random_rows(LENGTHS)
    loss = CausalLoss(model)  # what cannot be trained is refused here
    wanted, gradients = oracle.loss(rows)
    table = [
        Encoded(row.numpy().astype(np.int32), np.ones(len(row), dtype=np.uint8), "") for row in rows
    ]
    (batch,) = micro_batches(table, range(len(rows)), sum(LENGTHS))
    if not oracle.is_causal(rows[-1]):
        raise DiffersError("it is trained although its tokens see later ones")
    nll, count = loss(batch, training=True)
    nll.backward()
    runnable = loss.runnable
    subject.facts["packs"] = runnable.packs
    subject.facts["by_sequence"] = sorted(runnable.by_sequence)
    subject.facts["fused"] = len(runnable.fused_blocks)
    subject.facts["way"] = runnable.way
    runnable.rest()
    apart = abs(float(nll) - wanted) / count
    subject.facts["loss_apart"] = apart
    if not apart <= LOSS_CLOSE:
        raise DiffersError(f"loss {float(nll) / count:.4f} in place of {wanted / count:.4f}")
    got = {path: (layer.A.grad, layer.B.grad) for path, layer in lora_layers(model).items()}
    worst, where = largest_apart(got, gradients)
    subject.facts["gradient_apart"] = worst
    if not worst <= GRADIENT_CLOSE:
        rounding = largest_apart(oracle.shaken.loss(rows)[1], gradients)[0]
        subject.facts["gradient_rounding"] = rounding
        if not worst <= within(GRADIENT_CLOSE, rounding):
            raise DiffersError(f"gradient of {where} is {worst:.1e} off (rounding {rounding:.1e})")
    unused = [p for p, pair in gradients.items() if not any(g.abs().max() for g in pair)]
    if unused:
        subject.facts["without_gradient"] = unused


def check_training(subject: Architecture) -> None:
    """Two steps by lorakit.train move every B that has a gradient."""
    model, tokenizer = load(subject)
    try:
        attach(model, LoraSpec())
    except TargetError:
        attach(model, LoraSpec(rank=1))
    result = lorakit.train(model, tokenizer, TEXTS, eval_share=0, max_steps=2, batch_size=3)
    if result.steps != 2:
        raise DiffersError(f"{result.steps} steps in place of 2")
    still = [path for path, layer in lora_layers(model).items() if not layer.B.abs().max() > 0]
    still = [path for path in still if path not in subject.facts.get("without_gradient", ())]
    subject.facts["still"] = len(still)
    if len(still) == len(lora_layers(model)):
        raise DiffersError("no B has moved")


def fused_experts(model: Any) -> list[str]:
    """Parameters of three axes, one for each expert that the configuration counts."""
    fields_ = model.config.get_text_config().to_dict().items()
    counts = {value for key, value in fields_ if "expert" in key and isinstance(value, int)}
    return [
        name
        for name, p in model.named_parameters()
        if p.ndim == 3 and p.shape[0] in counts - {0, 1}
    ]


def check_experts(subject: Architecture) -> None:
    """Loss and gradients of pairs on every expert, and peft's reading of them."""
    model, _ = load(subject)
    attach_pairs(model, target_parameters=("experts",))
    layers = lora_layers(model)
    oracle = Oracle(subject.base, layers)
    facts = dict(subject.facts)
    check_loss(subject, model, oracle)
    subject.facts.clear()
    subject.facts.update(facts)
    lorakit.save_adapter(model, subject.folder / "experts")
    check_peft(subject, subject.folder / "experts", oracle)


def close_logits(got: Callable[[Tensor], Tensor], oracle: Oracle) -> None:
    """Another model's logits of rows alone against the oracle's."""
    for row in random_rows(LENGTHS[:3], seed=1):
        right = oracle.logits(row)
        with torch.no_grad():
            apart = (got(row) - right).abs().max() / right.abs().max()
        if apart <= LOGITS_CLOSE:
            continue
        rounding = float((right - oracle.shaken.logits(row)).abs().max() / right.abs().max())
        if not apart <= within(LOGITS_CLOSE, rounding):
            raise DiffersError(
                f"logits of {len(row)} tokens are {apart:.1e} of the largest off "
                f"(rounding {rounding:.1e})"
            )


def check_peft(subject: Architecture, adapter: Path, oracle: Oracle) -> None:
    """peft reads the saved adapter and answers with the oracle's logits."""
    from peft import PeftModel

    base = own_model(subject.base)
    refused = refused_by_peft(base.config.model_type, read_adapter(adapter).paths)
    if refused:  # what `lorakit export --lint` says of it
        raise AdapterError(f"peft refuses pairs on {refused[0]} beside a {base.config.model_type}")
    theirs = PeftModel.from_pretrained(base, adapter).eval()
    close_logits(lambda row: theirs(input_ids=row[None], use_cache=False).logits[0].float(), oracle)


def check_merge(subject: Architecture, adapter: Path, oracle: Oracle) -> None:
    """transformers reads the merged model and answers with the oracle's logits."""
    merged_folder = subject.folder / "merged"
    lorakit.merge(adapter, merged_folder, model=str(subject.base))
    merged = own_model(merged_folder)
    close_logits(lambda row: merged(input_ids=row[None], use_cache=False).logits[0].float(), oracle)


def adapted_share(model: Any) -> tuple[float, int]:
    """Share of the blocks' weights that have a pair beside them; and pairs."""
    layers = lora_layers(model)
    ends = [m for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    ends += [head] if (head := model.get_output_embeddings()) is not None else []
    outside = {id(p) for module in ends for p in module.parameters()}
    own = {id(x) for layer in layers.values() for x in layer.tensors.values()}
    every = {id(p): p for p in model.parameters() if p.ndim > 1}
    whole = sum(p.numel() for key, p in every.items() if key not in outside | own)
    adapted = {
        id(p): p.numel()
        for layer in layers.values()
        for p in layer.base.parameters()
        if p.ndim > 1 and id(p) not in outside
    }
    return sum(adapted.values()) / max(whole, 1), len(layers)


def examine(name: str, folder: Path, *, short: bool = False) -> Architecture:
    """All checks of one architecture, on random weights that rounding does not decide about.

    Args:
        name: of architectures.py.
        folder: an empty folder to write to.
        short: without training, peft and merge: what `make test` has the time for.
    """
    for seed in range(4):
        subject = Architecture(name, folder / str(seed))
        tiny_folder(name, subject.base, seed)
        if seed < 3 and not is_steady(subject):
            continue
        _examine(subject, short)
        if subject.facts.get("gradient_rounding", 0.0) <= MOST_ROUNDING:
            break
    return subject


def is_steady(subject: Architecture) -> bool:
    """Whether weights that are off by their last bit leave the oracle's logits about as they are."""
    try:
        model, _ = load(subject)
        attach_pairs(model)
        oracle = Oracle(subject.base, lora_layers(model))
        (row,) = random_rows(LENGTHS[-1:])
        right = oracle.logits(row)
        apart = (oracle.shaken.logits(row) - right).abs().max() / right.abs().max()
    except Exception:
        return True  # the checks say what it is
    return bool(apart <= LOGITS_CLOSE / 4)


def _examine(subject: Architecture, short: bool) -> None:
    held: dict[str, Any] = {}

    def loads() -> None:
        held["model"], held["tokenizer"] = load(subject)

    def adapts() -> None:
        held["fits"] = attach_pairs(held["model"])
        share, pairs = adapted_share(held["model"])
        subject.facts |= {"share": share, "pairs": pairs, "default_rank_fits": held["fits"]}

    if not (subject.check("loads", loads) and subject.check("adapts", adapts)):
        return
    model, tokenizer = held["model"], held["tokenizer"]
    first = Oracle(subject.base, lora_layers(model))
    subject.check("loss", lambda: check_loss(subject, model, first))
    if subject.checks["loss"].startswith(("refused", "oracle")):
        return
    adapter = subject.folder / "first"
    subject.check("saves", lambda: save(model, adapter))
    subject.check("generates", lambda: check_generation(subject, model, tokenizer, first))
    if not short:
        if fused_experts(model):
            subject.facts["experts"] = subject.check("experts", lambda: check_experts(subject))
        subject.check("trains", lambda: check_training(subject))
        subject.check("peft", lambda: check_peft(subject, adapter, first))
        subject.check("merges", lambda: check_merge(subject, adapter, first))
    detach(model)
    attach_pairs(model, seed=1)
    second = Oracle(subject.base, lora_layers(model))
    other = subject.folder / "second"
    if subject.check("saves", lambda: save(model, other)):
        served = {"": (None, Oracle(subject.base, {})), "a": (adapter, first), "b": (other, second)}
        subject.check("serves", lambda: check_serving(subject, served))


def default_plan(name: str) -> dict[str, Any]:
    """What is adapted of a family's own default sizes, on the meta device."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name))
    made = plan(model, LoraSpec())
    adapted = {
        id(p): p.numel()
        for target in made.targets
        for p in model.get_submodule(target.path).parameters(recurse=False)
        if p.ndim > 1
    }
    return {
        "modules": len(made.targets),
        "parameters": made.total_parameters,
        "trainable": made.trainable,
        "share": sum(adapted.values()) / made.total_parameters,
    }


def save(model: Any, folder: Path) -> None:
    """Write the adapter of a model."""
    lorakit.save_adapter(model, folder)


def verdict(checks: Mapping[str, str]) -> str:
    """`right`, `refused`, `oracle`, `partly` (training is right, something later is refused) or
    `WRONG`; serving and experts are counted apart."""
    apart = ("serves", "experts")
    values = {what: text.split(":")[0] for what, text in checks.items() if what not in apart}
    if {"WRONG", "FAULT"} & set(values.values()):
        return "WRONG"
    if "oracle" in values.values():
        return "oracle"
    if "refused" in (values.get(what) for what in ("loads", "adapts", "loss")):
        return "refused"
    return "partly" if "refused" in values.values() else RIGHT
