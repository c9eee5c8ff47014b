"""What training rows say of layers, against float64 decompositions, autograd, and peft's EVA."""

import peft
import pytest
import torch
from peft.tuners.lora.config import EvaConfig
from transformers import LlamaConfig, LlamaForCausalLM

from lorakit.data.batches import Batch
from lorakit.execution.evidence import Directions, layer_inputs, weight_gradients
from lorakit.lora import LoraSpec, attach, detach, lora_layers
from lorakit.run.initialising import begin_from_rows

TARGETS = ("q_proj", "k_proj", "o_proj", "up_proj", "down_proj")


def llama(dtype=torch.float32):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def batch(lengths=(24, 30, 17), seed=0):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 64, (sum(lengths),), generator=g)
    positions = torch.cat([torch.arange(n) for n in lengths])
    weight = (positions > 4).float()  # the first five tokens of each row are its prompt
    return Batch(ids, positions, weight, tuple(lengths), tuple(range(len(lengths))))


@pytest.mark.parametrize("parts", [(40,), (1030, 5), (700, 700, 1500)])
def test_directions_are_those_of_all_vectors_at_once(parts):
    g = torch.Generator().manual_seed(1)
    stretch = torch.diag(0.8 ** torch.arange(12.0)).double()
    all_TI = torch.randn(sum(parts), 12, generator=g, dtype=torch.float64) @ stretch + 3.0
    found = Directions(most=12)
    for part in all_TI.split(parts):
        found.add(part)
    ours, shares = found.finish()
    centred = all_TI - all_TI.mean(0)
    _, S, Vh = torch.linalg.svd(centred, full_matrices=False)
    assert torch.allclose(shares, S**2 / (S**2).sum(), atol=1e-9)
    assert torch.allclose((ours @ Vh.T).abs(), torch.eye(12).double(), atol=1e-5)


def test_what_is_cut_between_parts_keeps_the_first_directions():
    g = torch.Generator().manual_seed(1)
    stretch = torch.diag(0.5 ** torch.arange(30.0)).double()
    all_TI = torch.randn(6000, 30, generator=g, dtype=torch.float64) @ stretch
    found = Directions(most=12)
    for part in all_TI.split(1500):
        found.add(part)
    ours, shares = found.finish()
    _, S, Vh = torch.linalg.svd(all_TI - all_TI.mean(0), full_matrices=False)
    assert torch.allclose(shares[:4], (S**2 / (S**2).sum())[:4], rtol=1e-4)
    assert torch.allclose((ours[:4] @ Vh[:4].T).abs(), torch.eye(4).double(), atol=1e-3)


def test_inputs_are_seen_at_supervised_tokens_of_every_row():
    model, rows = llama(torch.float64), batch()
    paths = {path: 4 for path, _ in model.named_modules() if path.endswith(TARGETS)}
    found = layer_inputs(model, paths, [rows])
    assert found.tokens == int(rows.weight_T.sum())
    # q and k read the same vectors; no other layer of these shares any.
    assert set(found.same) == {f"model.layers.{i}.self_attn.k_proj" for i in (0, 1)}
    seen = []
    path = "model.layers.1.mlp.down_proj"
    hook = model.get_submodule(path).register_forward_hook(lambda m, x, y: seen.append(x[0][0]))
    with torch.no_grad():
        for ids in rows.ids_T.split(rows.lengths_S):
            model(ids[None])
    hook.remove()
    x = torch.cat(seen)[rows.weight_T > 0]
    _, S, Vh = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    ours, shares = found.directions[path]
    assert torch.allclose((ours[:4] * Vh[:4]).sum(1).abs(), torch.ones(4).double(), atol=1e-8)
    assert torch.allclose(shares[:4], (S**2 / (S**2).sum())[:4], atol=1e-9)


def test_gradients_are_those_of_autograd():
    model, rows = llama(torch.float64), batch()
    paths = [path for path, _ in model.named_modules() if path.endswith(TARGETS)]
    attach(model, LoraSpec(rank=2))  # a model as training has it: frozen
    found = weight_gradients(detach(model), paths, [rows])
    assert not any(p.requires_grad for p in model.parameters())
    other = llama(torch.float64)
    loss = 0.0
    at = 0
    for n in rows.lengths_S:
        ids, weight = rows.ids_T[at : at + n], rows.weight_T[at : at + n]
        labels = torch.where(weight > 0, ids, -100)
        kept = int((labels[1:] != -100).sum())
        loss = loss + other(ids[None], labels=labels[None]).loss * kept
        at += n
    (loss / rows.token_count).backward()
    assert set(found) == set(paths)
    for path, gradient in found.items():
        expected = other.get_submodule(path).weight.grad.float()
        assert torch.allclose(gradient, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("rho", [1.0, 2.0])
@pytest.mark.filterwarnings("ignore:lora with eva initialization:UserWarning")
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_eva_gives_the_ranks_and_the_directions_of_peft(rho):
    rows = batch((60,))
    config = peft.LoraConfig(
        r=3,
        lora_alpha=6,
        target_modules=list(TARGETS),
        init_lora_weights="eva",
        task_type="CAUSAL_LM",
        eva_config=EvaConfig(rho=rho, tau=0.999),
    )
    theirs = peft.get_peft_model(llama(), config)
    labels = torch.where(rows.weight_T > 0, rows.ids_T, -100)
    data = [{"input_ids": rows.ids_T[None], "labels": labels[None]}]
    peft.initialize_lora_eva_weights(theirs, data, show_progress_bar=False)
    expected = {
        path.removeprefix("base_model.model."): module
        for path, module in theirs.named_modules()
        if hasattr(module, "lora_A")
    }
    model = llama()
    before = model(rows.ids_T[None]).logits.detach()
    spec = LoraSpec(rank=3, alpha=6.0, targets=TARGETS, init="eva", eva_rho=rho)
    attach(model, spec)
    notes = begin_from_rows(model, lambda step: [rows], 1)
    ours = lora_layers(model)
    ranks = {path: layer.rank for path, layer in ours.items()}
    assert ranks == {path: module.r["default"] for path, module in expected.items()}
    assert (len(set(ranks.values())) > 1) == (rho > 1)
    assert sum(ranks.values()) == 3 * 10
    assert "1 rows of its first steps" in notes[0]
    assert torch.equal(model(rows.ids_T[None]).logits, before)
    for path, layer in ours.items():
        A = expected[path].lora_A["default"].weight
        assert layer.scale == pytest.approx(expected[path].scaling["default"]) == 2.0
        # The first direction is far from the second; later ones of peft's low-rank SVD are near only.
        assert torch.allclose((layer.A[0] @ A[0]).abs(), torch.tensor(1.0), atol=1e-3)
        assert torch.allclose(layer.A @ layer.A.T, torch.eye(layer.rank), atol=1e-5)
