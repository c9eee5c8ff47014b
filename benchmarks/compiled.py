"""Compiled kernels beside plain torch: forward, loss and backward of whole passes, in turn in one process.

    python benchmarks/compiled.py --threads 2 --rounds 5 --rows e2e,gsm8k,packed

A random model of SmolLM2-135M's shapes with rank 8 on all linear layers, and rows of the lengths that the data
sets have. Both sides compute the same pass in turn (plain, compiled, plain, …). Printed are the least seconds of each,
their ratio, and how far loss and gradients are apart. With one thread the seconds are processor time, which other
processes disturb less; with several they are wall time, which needs a quiet machine.
"""

import argparse
import os
import random
import time

import bench
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from lorakit.data.batches import Batch
from lorakit.execution.runnable import Runnable
from lorakit.kernels import native
from lorakit.lora import LoraSpec, attach
from lorakit.training import CausalLoss

WORDS = 49152


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    draw = random.Random(0)
    rows = {
        "e2e": batch([draw.randint(40, 95) for _ in range(16)], 0.6),
        "gsm8k": batch([draw.randint(100, 300) for _ in range(8)], 0.6),
        "packed": batch([2048], 0.95),
    }
    parser.add_argument("--rows", default=",".join(rows), help="kinds of rows, commas between")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=30, help="of the model")
    parser.add_argument("--set", default="avx2", help="kernels that are held against plain torch")
    options = parser.parse_args()
    kinds = bench.pick(parser, options.rows, rows)
    torch.set_num_threads(options.threads)
    dtype = native.FORMATS[options.set]
    os.environ[native.VARIABLE] = options.set
    model = smol(options.layers, dtype)
    loss = CausalLoss(Runnable(model, longest=2048))
    print("| rows | tokens | plain | compiled | ratio | loss apart | gradients apart |")
    print("|---|---|---|---|---|---|---|")
    for kind in kinds:
        seconds: dict[str, list[float]] = {native.PLAIN: [], options.set: []}
        results: dict[str, tuple[float, torch.Tensor]] = {}
        for _ in range(options.rounds):
            for name in seconds:
                os.environ[native.VARIABLE] = name
                taken, nats, grads = one_pass(model, loss, rows[kind], options.threads)
                results[name] = nats, grads
                seconds[name].append(taken)
        (nll, gradient), (other_nll, other) = results.values()
        plain, compiled = map(min, seconds.values())
        apart = float((other - gradient).norm() / gradient.norm())
        print(
            f"| {kind} | {sum(rows[kind].lengths_S):,} | {plain:.2f} s | {compiled:.2f} s "
            f"| {plain / compiled:.2f} | {abs(other_nll / nll - 1):.0e} | {apart:.0e} |",
            flush=True,
        )


def batch(lengths: list[int], supervised: float) -> Batch:
    """Random tokens, the last so many of each row supervised."""
    generator = torch.Generator().manual_seed(1)
    weights = [torch.arange(n) >= n - max(1, int(n * supervised)) for n in lengths]
    return Batch(
        torch.randint(WORDS, (sum(lengths),), generator=generator),
        torch.cat([torch.arange(n) for n in lengths]),
        torch.cat(weights).float(),
        tuple(lengths),
        tuple(range(len(lengths))),
    )


def smol(layers: int, dtype: torch.dtype) -> torch.nn.Module:
    """A model of SmolLM2-135M's shapes with pairs whose B is not zero."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        vocab_size=WORDS,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).requires_grad_(False)
    attach(model, LoraSpec(rank=8), seed=0)
    for name, parameter in model.named_parameters():
        if name.endswith(".B"):
            parameter.data.normal_(std=0.02)
    return model


def one_pass(
    model: torch.nn.Module, loss: CausalLoss, rows: Batch, threads: int
) -> tuple[float, float, torch.Tensor]:
    """Seconds, the loss and all gradients of A and B."""
    clock = time.process_time if threads == 1 else time.perf_counter
    trained = [p for p in model.parameters() if p.requires_grad]
    start = clock()
    nll, tokens = loss(rows, training=True)
    (nll / tokens).backward()
    taken = clock() - start
    gradient = torch.cat([p.grad.flatten() for p in trained if p.grad is not None])
    model.zero_grad()
    return taken, nll.item() / tokens, gradient


if __name__ == "__main__":
    main()
