"""The life of an adapter with pairs on experts: trained packed, merged, certified, compared, refused elsewhere."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from families import tokenizer
from lorakit.adapters import save_adapter
from lorakit.adapters.combine import combine
from lorakit.adapters.differences import differences, sizes
from lorakit.adapters.export.gguf import write_gguf_adapter
from lorakit.adapters.export.vllm import vllm_safe
from lorakit.adapters.pairs import StoredAdapter, read_stored
from lorakit.adapters.parents import Part
from lorakit.adapters.shrink import shrink
from lorakit.adapters.specs import CombineSpec, ShrinkSpec
from lorakit.config import load_config
from lorakit.errors import AdapterError
from lorakit.execution.runnable import Packed, Runnable
from lorakit.lora import LoraSpec, attach, lora_layers
from lorakit.merging.merge import merged_model, write_merged
from mixtures import mixture, rows


def adapted(family: str, seed: int = 3, **more: Any) -> Any:
    model = attach(
        mixture(family, **more),
        LoraSpec(rank=2, targets=("q_proj",), target_parameters=("experts",)),
    )
    generator = torch.Generator().manual_seed(seed)
    for layer in lora_layers(model).values():
        layer.B.data.copy_(torch.empty(layer.B.shape).normal_(0, 0.3, generator=generator))
    return model


def logits(model: Any, row: int = 1) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([rows()[row]])).logits


def by_hand(family: str, model: Any) -> Any:
    """The plain model with W + s·B_e A_e written into its weights, expert by expert."""
    plain = mixture(family)
    for path, layer in lora_layers(model).items():
        A, B, s, count = layer.A.detach(), layer.B.detach(), layer.scale, layer.geometry.experts
        if not count:
            plain.get_parameter(f"{path}.weight").data += s * B @ A
            continue
        W, rank = plain.get_parameter(path).data, len(A) // count
        for e in range(count):
            delta = s * B[:, e::count] @ A[e * rank : (e + 1) * rank]
            W[e] += delta.T if layer.geometry.swapped else delta
    return plain


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "llama4_text", "olmoe"])
def test_merging_gives_w_plus_the_update_of_each_expert(family: str) -> None:
    model = adapted(family)
    merged = merged_model(model)
    assert not lora_layers(merged)
    assert list(merged.state_dict()) == list(mixture(family).state_dict())
    expected = by_hand(family, model)
    for name, weight in expected.state_dict().items():
        torch.testing.assert_close(merged.state_dict()[name], weight)
    torch.testing.assert_close(logits(merged), logits(model), atol=1e-5, rtol=1e-4)
    assert lora_layers(model)


@pytest.mark.parametrize("family", ["mixtral", "granitemoe", "gpt_oss"])
def test_the_written_folder_is_certified_and_answers_the_same(family: str, tmp_path: Path) -> None:
    model = adapted(family, vocab_size=300)
    certificate = write_merged(model, tokenizer(), tmp_path / "merged", probes_ids=rows())
    assert certificate.passed
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(logits(again), logits(model), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_packed_rows_have_the_gradients_of_each_row_alone(family: str) -> None:
    model, held = adapted(family), rows()
    runnable = Runnable(model)
    assert runnable.packs
    ids_T = torch.tensor([token for row in held for token in row])
    positions_T = torch.cat([torch.arange(len(row)) for row in held])
    packed = Packed(ids_T, positions_T, [len(row) for row in held])
    together = runnable.logits(packed, torch.arange(len(ids_T)))
    together.square().sum().backward()
    mine = {path: (x.A.grad.clone(), x.B.grad.clone()) for path, x in lora_layers(model).items()}
    model.zero_grad()
    alone = adapted(family)
    parts = torch.cat([alone(torch.tensor([row])).logits[0] for row in held])
    parts.square().sum().backward()
    torch.testing.assert_close(together, parts, atol=1e-5, rtol=1e-4)
    for path, layer in lora_layers(alone).items():
        for got, wanted in zip(mine[path], (layer.A.grad, layer.B.grad), strict=True):
            assert float((got - wanted).abs().max()) <= 1e-3 * float(wanted.abs().max()), path


def stored(folder: Path, seed: int = 3) -> StoredAdapter:
    save_adapter(adapted("mixtral", seed=seed), folder)
    return read_stored(folder)


def test_sizes_and_differences_are_those_of_all_experts_together(tmp_path: Path) -> None:
    first, second = stored(tmp_path / "a"), stored(tmp_path / "b", seed=5)
    path = "model.layers.0.mlp.experts.down_proj"
    a, b = (x.pairs[path].delta() for x in (first, second))
    found = next(size for size in sizes(first) if size.path == path)
    assert found.rank == 2
    assert found.norm == pytest.approx(float(a.norm()), rel=1e-5)
    assert found.largest == pytest.approx(float(torch.linalg.matrix_norm(a, 2).max()), rel=1e-5)
    layer = next(x for x in differences(first, second).layers if x.path == path)
    assert layer.norm_difference == pytest.approx(float((a - b).norm()), rel=1e-5)
    cosine = float((a * b).sum() / (a.norm() * b.norm()))
    assert layer.cosine == pytest.approx(cosine, rel=1e-4, abs=1e-6)


def test_what_takes_linear_layers_only_says_so(tmp_path: Path) -> None:
    adapter = stored(tmp_path / "a")
    for work in (
        lambda: vllm_safe(adapter),
        lambda: write_gguf_adapter(adapter, tmp_path / "a.gguf", base=Any),  # type: ignore[arg-type]
        lambda: combine([Part(adapter)], CombineSpec(how="cat")),
        lambda: shrink(adapter, ShrinkSpec(rank=1)),
    ):
        with pytest.raises(AdapterError, match="holds a pair for each expert"):
            work()


def test_a_run_trains_the_experts_and_leaves_what_it_should(tmp_path: Path) -> None:
    from lorakit.run.commands.training import run_training

    base = tmp_path / "base"
    mixture("qwen2_moe", vocab_size=300, max_position_embeddings=512).save_pretrained(base)
    tokenizer().save_pretrained(base)
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(f'{{"text": "row {i} says {i * i}"}}' for i in range(12)))
    config = load_config(
        None,
        {
            "model": str(base),
            "data": str(data),
            "out": str(tmp_path / "out"),
            "rank": 2,
            "targets": "q_proj",
            "target_parameters": "experts",
            "max_steps": 2,
            "samples": 0,
            "dtype": "float32",  # experts of 24 columns are too narrow for torch's products in bfloat16
        },
    )
    run_training(config)
    adapter = read_stored(tmp_path / "out" / "adapter")
    assert all(bool(pair.B.any()) for pair in adapter.pairs.values())
    assert sum(bool(pair.experts) for pair in adapter.pairs.values()) == 4
