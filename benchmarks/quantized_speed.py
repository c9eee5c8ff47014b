"""Speed of a base in fewer bits beside bfloat16, on a CPU: whole training steps, and decoding at one request.

    python benchmarks/quantized_speed.py train --out benchmarks/results/quantized_speed.jsonl
    python benchmarks/quantized_speed.py serve generate --sides full,nf4,int4,int8,packed

All sides lie in one process and take turns, one step each, after a step that is not counted; printed are the median
tokens/s of each side, and over those of the first. With one thread processor time is counted, which other processes
on the machine change little; else wall time, which needs a quiet machine.

train      16 rows of 64 tokens of random ids, all of them supervised, rank 16 on all linear layers: forward, loss,
           backward and AdamW. `peft` is peft over bitsandbytes' NF4 with double quantization, where that is installed
serve      steps of the serving engine for one sequence of 100 tokens, one token each
generate   `lorakit.generate` of 24 tokens after a prompt of 32
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench
import torch

from quantized import RANK, ROWS, SHAPES, TOKENS, make

SIDES = {name: name for name in ("full", "nf4", "int4", "int8", "fp8", "packed", "peft")}
PAST, PROMPT, NEW = 100, 32, 24


def trained(model: Any) -> Callable[[], int]:
    """A training step of ours; it gives the tokens that went through."""
    from lorakit import LoraSpec, attach
    from lorakit.execution.runnable import Packed
    from lorakit.training import CausalLoss
    from lorakit.training.loss import head_loss

    attach(model, LoraSpec(rank=RANK))
    loss = CausalLoss(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    ids = torch.randint(model.config.vocab_size, (ROWS * TOKENS,))
    rows = Packed(ids, torch.arange(TOKENS).repeat(ROWS), [TOKENS] * ROWS)

    def step() -> int:
        hidden_TD = loss.runnable.hidden(rows, training=True)
        head = loss.runnable.head
        assert head is not None
        head_loss(head, hidden_TD, ids.roll(-1)).div(len(ids)).backward()
        optimizer.step()
        optimizer.zero_grad()
        return len(ids)

    return step


def trained_by_peft(folder: str) -> Callable[[], int]:
    """The same by peft over bitsandbytes' 4 bits; in training mode throughout, see docs/quantized.md."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    if not Path(folder).is_dir():
        from lorakit.models import load_model

        with tempfile.TemporaryDirectory() as made:
            load_model(folder, dtype="bfloat16", device="cpu")[0].save_pretrained(made)
            return trained_by_peft(made)
    packing = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    base = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=packing, dtype=torch.bfloat16, device_map="cpu"
    )
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    ids = torch.randint(base.config.vocab_size, (ROWS, TOKENS))

    def step() -> int:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return ids.numel()

    return step


def served(model: Any) -> Callable[[], int]:
    """A step of the serving engine for one sequence."""
    from lorakit.execution.stepping import open_blocks
    from lorakit.execution.steps import Place
    from lorakit.serving.forward import Forward, cell_bytes
    from lorakit.serving.room import room_in_cells
    from lorakit.serving.spec import EngineSpec

    blocks, settings = open_blocks(model)
    bench.note(f"serve: {blocks.way}")
    spec = EngineSpec(slots=1, slot_rank=RANK)
    room = room_in_cells(spec, cell_bytes(settings, model.dtype), 256)
    forward = Forward(blocks, settings, model, spec, room)

    def step() -> int:
        for i in range(NEW):
            forward.run([1000], [Place(0, 256, PAST + i, 1)], [0], [])
        return NEW

    return step


def generated(model: Any, tokenizer: Any) -> Callable[[], int]:
    """`generate` for one prompt."""
    from lorakit.execution.generate import generate

    prompt = [list(range(100, 100 + PROMPT))]

    def step() -> int:
        answer = generate(model, tokenizer, prompt, max_new_tokens=NEW)[0]
        return len(answer.ids) + answer.finished

    return step


def opened(what: str, side: str, folder: str) -> Callable[[], int]:
    """What a side does, ready."""
    from lorakit.models import load_model

    torch.manual_seed(0)
    if side == "peft":
        return trained_by_peft(folder)
    model, tokenizer = load_model(folder, dtype="bfloat16", device="cpu", base_dtype=side)
    if what == "train":
        return trained(model)
    return served(model) if what == "serve" else generated(model, tokenizer)


def measured(what: str, sides: list[str], folder: str, rounds: int) -> dict[str, float]:
    """Median tokens/s of each side."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    steps = {side: opened(what, side, folder) for side in sides}
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(rounds + 1):
        for side, step in steps.items():
            began = clock()
            tokens = step()
            if turn:
                rates[side].append(tokens / (clock() - began))
    return {side: statistics.median(each) for side, each in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="+", choices=["train", "serve", "generate"])
    parser.add_argument("--sides", default="full,nf4,int4,int8", help="of " + ",".join(SIDES))
    parser.add_argument("--model", default="smollm2-135m", help=f"or one of {', '.join(SHAPES)}")
    parser.add_argument("--folder", help="where that random model lies, or is written to stay")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="JSONL file to append to")
    options = parser.parse_args()
    sides = list(bench.pick(parser, options.sides, SIDES))
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as made:
        folder = options.model
        if options.model in SHAPES:
            folder = options.folder or made
            if not Path(folder, "config.json").exists():
                make(Path(folder), SHAPES[options.model])
        for what in options.what:
            found = measured(what, sides, folder, options.rounds)
            line = {"what": what, "model": options.model, "threads": options.threads}
            line |= {"tokens_per_second": {k: round(v, 1) for k, v in found.items()}}
            line |= {"over_full": {k: round(v / found[sides[0]], 3) for k, v in found.items()}}
            print(json.dumps(line), flush=True)
            bench.append(options.out, [line | bench.surroundings(torch.device("cpu"))])


if __name__ == "__main__":
    main()
