"""Packed against padded training, for models of other families than the llama's.

    python benchmarks/packed_families.py --data DATA
    python benchmarks/packed_families.py --data DATA --families deepseek_v3 --rows e2e --rounds 2

Random models of about 100 million parameters in the manner of DeepSeek-V3, gpt-oss, Qwen3.5 and Bamba
train plain LoRA of rank 8 on every linear layer, forward and backward. The rows are as long as those of
E2E and GSM8K (a token for every four bytes; the answer is supervised), the tokens are random. Each step
is computed padded and packed in turn (A B A B …), in one process, after one of each that does not count.

A row of the table: seconds of a step, medians; how much faster packed is; padded tokens over real
tokens, which is what padding costs; and the first of the two as a share of the second.
"""

import argparse
import gzip
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import bench

_WIDTH: dict[str, Any] = {
    "vocab_size": 32_000,
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek_v3": (
        "DeepSeek-V3",
        {
            "num_key_value_heads": 8,
            "intermediate_size": 2048,
            "moe_intermediate_size": 384,
            "q_lora_rank": 256,
            "kv_lora_rank": 128,
            "qk_nope_head_dim": 64,
            "qk_rope_head_dim": 32,
            "v_head_dim": 64,
            "n_routed_experts": 16,
            "num_experts_per_tok": 4,
            "n_shared_experts": 1,
            "n_group": 4,
            "topk_group": 2,
            "first_k_dense_replace": 1,
        },
    ),
    "gpt_oss": (
        "gpt-oss",
        {
            "num_key_value_heads": 2,
            "head_dim": 64,
            "intermediate_size": 384,
            "num_local_experts": 16,
            "num_experts_per_tok": 4,
            "sliding_window": 128,
            "rope_parameters": {"rope_type": "default", "rope_theta": 150_000.0},
        },
    ),
    "qwen3_5_text": (
        "Qwen3.5",
        {
            "num_key_value_heads": 2,
            "head_dim": 64,
            "num_hidden_layers": 16,
            "intermediate_size": 2048,
            "linear_num_key_heads": 8,
            "linear_num_value_heads": 8,
            "linear_key_head_dim": 64,
            "linear_value_head_dim": 64,
        },
    ),
    "bamba": (
        "Bamba",
        {
            "num_key_value_heads": 2,
            "num_hidden_layers": 16,
            "intermediate_size": 2048,
            "attn_layer_indices": [3, 7, 11, 15],
            "mamba_n_heads": 16,
            "mamba_d_head": 64,
            "mamba_d_state": 64,
            "mamba_chunk_size": 128,
        },
    ),
}
ROWS = {"e2e": ("context", "completion", 16), "gsm8k": ("question", "answer", 8)}


def main() -> None:
    """Measure what is asked for, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder that holds e2e/, gsm8k/")
    parser.add_argument("--families", default=",".join(FAMILIES), help="commas between")
    parser.add_argument("--rows", default=",".join(ROWS), help="commas between")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each way that count")
    parser.add_argument("--out", type=Path, help="JSONL file to append to")
    options = parser.parse_args()
    families = bench.pick(parser, options.families, FAMILIES)
    kinds = bench.pick(parser, options.rows, ROWS)
    session, rows = bench.session(), []
    for family, kind in itertools.product(families, kinds):
        given = {"family": family, "rows": kind, "rounds": options.rounds}
        line = session | bench.measure(given | {"data": str(options.data)})
        bench.append(options.out, [line])
        bench.note(f"{family} {kind}: {line['faster']:.2f} of {line['padding']:.2f}")
        rows.append(
            [
                FAMILIES[family][0],
                kind,
                f"{line['parameters'] / 1e6:.0f} M",
                f"{line['padded_seconds']:.2f}",
                f"{line['packed_seconds']:.2f}",
                f"{line['faster']:.2f}",
                f"{line['padding']:.2f}",
                f"{line['faster'] / line['padding']:.2f}",
            ]
        )
    head = ["model", "rows", "parameters", "padded, s", "packed, s", "faster", "padding", "share"]
    print(bench.table(head, rows))


def work(given: bench.Line) -> bench.Line:
    """One family on one kind of rows."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from lorakit.execution.runnable import Runnable
    from lorakit.lora import LoraSpec, attach, lora_layers
    from lorakit.training.loss import CausalLoss, unpacked_loss

    torch.manual_seed(0)
    settings = _WIDTH | FAMILIES[given["family"]][1]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(given["family"], **settings))
    parameters = sum(p.numel() for p in model.parameters())
    attach(model.eval(), LoraSpec(rank=8))
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.B, std=0.01)
    runnable = Runnable(model)
    loss = CausalLoss(runnable)
    if not runnable.packs:
        raise SystemExit(f"{given['family']} does not pack")
    batches = [
        _batch(lengths, number) for number, lengths in enumerate(_lengths(given, given["rounds"]))
    ]
    seconds: dict[str, list[float]] = {"padded": [], "packed": []}
    losses: dict[str, list[float]] = {"padded": [], "packed": []}
    for batch in [batches[0], *batches]:
        for way in seconds:
            model.zero_grad()
            start = time.perf_counter()
            if way == "padded":
                nll = unpacked_loss(runnable, batch, training=True)
            else:
                nll = loss(batch, training=True)[0]
            nll.backward()
            seconds[way].append(time.perf_counter() - start)
            losses[way].append(float(nll.detach()) / batch.token_count)
    apart = max(abs(a - b) / a for a, b in zip(losses["padded"], losses["packed"], strict=True))
    if apart > 1e-4:
        raise SystemExit(f"{given['family']}: losses differ by {apart:.1e}")
    counted = {way: each[1:] for way, each in seconds.items()}
    faster = statistics.median(a / b for a, b in zip(*counted.values(), strict=True))
    padded = sum(len(b.lengths_S) * max(b.lengths_S) for b in batches)
    line: bench.Line = {key: given[key] for key in ("family", "rows", "rounds")}
    line |= {f"{way}_seconds": statistics.median(each) for way, each in counted.items()}
    line |= {"parameters": parameters, "faster": faster, "loss_apart": apart}
    line["padding"] = padded / sum(b.tokens for b in batches)
    return line | bench.surroundings(model.device, "transformers")


def _lengths(given: bench.Line, steps: int) -> list[list[tuple[int, int]]]:
    """Of each step's rows the tokens of the question and of the answer."""
    question, answer, size = ROWS[given["rows"]]
    file = Path(given["data"]) / given["rows"] / "train.jsonl.gz"
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        # Rows that stand beside each other are alike: take some from everywhere.
        every = [json.loads(line) for line in lines]
    chosen = every[:: len(every) // (steps * size)][: steps * size]
    sizes = [
        tuple(max(1, len(row[key].encode()) // 4) for key in (question, answer)) for row in chosen
    ]
    return [sizes[i::steps] for i in range(steps)]  # type: ignore[misc]


def _batch(lengths: list[tuple[int, int]], seed: int) -> Any:
    import torch

    from lorakit.data.batches import Batch

    totals = tuple(a + b for a, b in lengths)
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.tensor([0.0] * a + [1.0] * b) for a, b in lengths]
    return Batch(
        ids_T=torch.randint(1, _WIDTH["vocab_size"], (sum(totals),), generator=generator),
        positions_T=torch.cat([torch.arange(n) for n in totals]),
        weight_T=torch.cat(parts),
        lengths_S=totals,
        rows_S=tuple(range(len(totals))),
    )


if __name__ == "__main__":
    bench.run(main, work)
