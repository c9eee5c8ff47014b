"""Adapters with pairs on experts in mixed batches: each answer equals that of its request alone.

The oracle is transformers' own code over the weights W + s·B·A, formed expert by expert, one request at a
time, without a cache.
"""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import SPEC, Alone, Watched, base, make_adapter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorakit.adapters import read_adapter
from lorakit.adapters.pairs import read_stored
from lorakit.errors import AdapterError
from lorakit.execution.stepping import OwnBlocks, adaptable
from lorakit.kernels.slot_plan import SlotRun
from lorakit.lora.parameters import bare_parameters
from lorakit.serving.opening import expert_notes
from lorakit.serving.vllm.exports import Exports
from older_adapters import merged, older_adapter, older_checkpoint

ADAPTERS: dict[str, dict[str, Any]] = {
    "both": {"rank": 3, "target_parameters": ("experts",)},
    "wide": {"rank": 11, "targets": (), "target_parameters": ("experts",)},
    "down": {"rank": 2, "targets": ("q_proj",), "target_parameters": ("experts.down_proj",)},
    "attention": {"rank": 4},
}
ROUTER = {"rank": 2, "targets": (), "target_parameters": ("experts", "gate.weight")}


class Merged(Alone):
    """The model's own code over merged weights."""

    def __init__(self, family: str, folders: dict[str, Path]) -> None:
        super().__init__(family, {})
        for key, folder in folders.items():
            model = self.models[key] = base(family)
            weights = dict(model.named_parameters())
            for path, pair in read_stored(folder).pairs.items():
                weight = weights[path if pair.experts else f"{path}.weight"]
                owner = model.get_submodule(path.rpartition(".")[0])
                turned = getattr(owner, "is_transposed", False)
                weight.data += update(pair, turned).view(weight.shape)


def update(pair: Any, turned: bool) -> torch.Tensor:
    """ΔW expert by expert: A's rows by expert, B's columns with the expert innermost."""
    deltas = []
    for e in range(pair.experts or 1):
        A = pair.A[e * pair.rank : (e + 1) * pair.rank]
        columns = [r * (pair.experts or 1) + e for r in range(pair.rank)]
        delta = pair.scale * (pair.B[:, columns] @ A)
        deltas.append(delta.T if pair.experts and turned else delta)
    return torch.stack(deltas)


def engine_and_oracle(family: str, root: Path, adapters: dict[str, Any]) -> tuple[Watched, Merged]:
    folders = {
        key: make_adapter(base(family), root / key, seed=number, **spec)
        for number, (key, spec) in enumerate(adapters.items())
    }
    engine = Watched(family, replace(SPEC, slot_rank=4))
    engine.folders = folders
    return engine, Merged(family, folders)


def check(engine: Watched, oracle: Merged, asked: list[tuple[str, list[int], int]]) -> None:
    """Ask all, each some steps after the one before, and compare every answer."""
    engine.answers.clear()
    engine.logits.clear()
    for number, (key, ids, later) in enumerate(asked):
        engine.ask(number, ids, key, most=5)
        for _ in range(later):
            engine.step()
    engine.settle()
    for number, (key, ids, _) in enumerate(asked):
        tokens, logits = oracle.answer(ids, key)
        assert engine.answers[number, 0].ids == tokens, (number, key)
        assert (torch.stack(engine.logits[number, 0]) - logits).abs().max() <= 2e-4
    assert engine.pool.users == 0


@pytest.fixture(scope="module", params=["mixtral", "qwen3_moe", "gpt_oss"])
def pair(request: Any, tmp_path_factory: Any) -> tuple[Watched, Merged]:
    engine, oracle = engine_and_oracle(
        request.param, tmp_path_factory.mktemp(request.param), ADAPTERS
    )
    assert isinstance(engine.forward.blocks, OwnBlocks)
    return engine, oracle


request = st.tuples(
    st.sampled_from(["", *ADAPTERS]),  # whose
    st.integers(1, 40),  # tokens
    st.integers(0, 3),  # begins like others of this number
    st.integers(0, 4),  # steps before the next comes
)


@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(asked=st.lists(request, min_size=2, max_size=12))
def test_each_answer_equals_the_request_alone(pair: Any, asked: list[Any]) -> None:
    rows = []
    # All adapters and the base are always among them.
    for key, length, group, later in [*asked, *((key, 7, 0, 1) for key in ("", *ADAPTERS))]:
        numbers = random.Random(group)
        shared = [numbers.randrange(5, 200) for _ in range(24)]
        own = [random.Random(100 * length + group).randrange(5, 200) for _ in range(length)]
        rows.append((key, (shared + own)[: length + 8] if length > 16 else own, later))
    check(*pair, rows)
    # All in one step: no adapter's tokens were computed apart from the others'.
    assert in_slots(pair[0])
    assert not pair[0].forward.experts.parts(in_slots(pair[0]))


def in_slots(engine: Watched) -> list[SlotRun]:
    """The adapters in slots that have pairs on experts."""
    return [SlotRun(r.slot, r.width, 1) for r in set(engine.pool._in) if r and r.key != "attention"]


def test_the_adapters_change_answers(pair: Any) -> None:
    _, oracle = pair
    ids = list(range(20, 40))
    plain = oracle.answer(ids, "")[1][0]
    for key in ADAPTERS:
        assert (oracle.answer(ids, key)[1][0] - plain).abs().max() > 0.05


# Experts that are not transformers' usual ones, a router, and sequences that are computed apart anyway.
@pytest.mark.parametrize("family", ["dbrx", "jetmoe", "llama4_text", "olmoe"])
def test_experts_of_every_other_kind(family: str, tmp_path: Path) -> None:
    adapters = {key: ADAPTERS[key] for key in ("both", "attention")}
    if family == "olmoe":
        adapters["router"] = ROUTER
    engine, oracle = engine_and_oracle(family, tmp_path, adapters)
    numbers = random.Random(5)
    rows = []
    for key in ("", *adapters, *adapters, "", "both"):
        length = numbers.randrange(1, 30)
        rows.append((key, [numbers.randrange(5, 200) for _ in range(length)], 1))
    check(engine, oracle, rows)
    alone = {"olmoe": 1}.get(family, len(in_slots(engine)))
    assert alone
    assert len(engine.forward.experts.parts(in_slots(engine))) == alone


def test_slots_are_taken_and_given_up_with_the_pairs_on_experts(tmp_path: Path) -> None:
    adapters = {f"a{i}": {"rank": 2, "target_parameters": ("experts",)} for i in range(3)}
    adapters |= {"wide": ADAPTERS["wide"], "plain": {"rank": 4}}
    engine, oracle = engine_and_oracle("mixtral", tmp_path, adapters)
    order = ["a0", "a1", "a2", "wide", "plain", "a0", "wide", "a1", ""]
    check(engine, oracle, [(key, [7, 9, 30 + i], 2) for i, key in enumerate(order)])
    held = {r.slot for r in set(engine.pool._in) if r and r.key != "plain"}
    served = engine.forward.experts._served.values()
    assert all(set(each.held) == held for each in served)


def test_pairs_of_experts_that_were_modules_are_served(tmp_path: Path) -> None:
    model = base("mixtral")
    held = older_checkpoint(model, tmp_path / "base")
    pairs = older_adapter(held, tmp_path / "old", ("q_proj", "w1", "w2", "w3", "gate"))
    engine = Watched("mixtral", replace(SPEC, slot_rank=4))
    engine.folders["old"] = tmp_path / "old"
    info = read_adapter(tmp_path / "old")
    # Of one fused matrix two parts of rank 2: a slot of rank 4.
    assert engine.forward.bank.width(info.ranks, "old") == 1
    oracle = Merged("mixtral", {})
    oracle.models["old"] = merged(tmp_path / "base", held, pairs, lambda _, r: 6 / r)
    check(engine, oracle, [("old", [7, 9, 30], 1), ("", [7, 9, 30], 1), ("old", [40, 8], 0)])


def test_what_the_pairs_take_is_said() -> None:
    forward = Watched("mixtral").forward
    W = [forward.experts._served[p].weight for p in forward.experts._served]
    rows = sum(len(w) * (w.shape[1] + w.shape[2]) for w in W)
    assert forward.bank.expert_bytes == 4 * SPEC.slot_rank * rows
    assert "in the step of all others" in expert_notes(forward)[0]
    assert "a step for each adapter" in expert_notes(Watched("dbrx").forward)[0]
    assert expert_notes(Watched("llama").forward) == ()


def test_vllm_gets_no_pairs_on_experts(tmp_path: Path) -> None:
    model = base("mixtral")
    folder = make_adapter(model, tmp_path / "a", 2, 1, target_parameters=("experts",))
    exports = Exports(tmp_path, adaptable(model), 16, bare_parameters(model))
    with pytest.raises(AdapterError, match="serve it without --engine vllm"):
        exports.open(folder, "key")


def test_what_has_no_place_is_refused_with_the_nearest(tmp_path: Path) -> None:
    folder = make_adapter(base("mixtral"), tmp_path / "a", 2, 1, target_parameters=("experts",))
    stored, bank = read_stored(folder), Watched("mixtral").forward.bank
    path = next(p for p, pair in stored.pairs.items() if pair.experts)
    odd = {path.replace("gate_up", "gate_down"): stored.pairs[path]}
    with pytest.raises(AdapterError, match=r"adapts .*gate_down_proj.*experts\.gate_up_proj"):
        bank.stage(replace(stored, pairs=odd))
    pair = stored.pairs[path]
    few = {path: replace(pair, A=pair.A[:4], B=pair.B[:, :4], experts=2)}
    with pytest.raises(AdapterError, match=r"does not fit this model at .*for 4 matrices"):
        bank.stage(replace(stored, pairs=few))
    huge = {path: replace(pair, B=torch.full_like(pair.B, 3e38), scale=10.0)}
    with pytest.raises(AdapterError, match="is not finite"):
        bank.stage(replace(stored, pairs=huge))
