"""TRL's SFTTrainer: tuned to its best on a processor, and as it comes.

    python benchmarks/trl_loop.py rows.jsonl --model FOLDER --out FOLDER

is what a user of TRL writes to train on prompts and completions; benchmarks/startup.py times it
up to the end of its first step. benchmarks/contenders.py trains through the same settings.
"""

import argparse
import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer


class Clock(TrainerCallback):
    """Seconds, loss and real tokens of each step; a step lasts until the next one begins."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self._tokens_so_far: list[int] = [0]
        self._at = 0.0

    @property
    def tokens(self) -> list[int]:
        """Real tokens of each step: TRL counts those that its attention mask lets through."""
        seen = self._tokens_so_far
        return [after - before for before, after in pairwise(seen)]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._at = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self._at)
        self._at = now
        if state.global_step == 1:
            print(json.dumps({"kind": "train", "seconds": self.seconds[0]}), flush=True)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs and "loss" in logs:
            self.losses.append(logs["loss"])
            self._tokens_so_far.append(int(logs["num_tokens"]))


def pair(rank: int, alpha: float) -> LoraConfig:
    """peft's LoRA on all linear layers of the blocks."""
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def tuned(out: Path, *, batch_size: int, steps: int, rate: float, **changes: Any) -> SFTConfig:
    """The fastest settings on a processor that change nothing of what is learnt.

    The base stays in the format it was loaded in (no autocast, which would cast the frozen weights
    again at every use), activations are kept, rows come in the order given, and nothing is saved,
    drawn or sent. One log line a step costs a dictionary, against seconds of arithmetic.
    """
    settings: dict[str, Any] = {
        "output_dir": str(out),
        "per_device_train_batch_size": batch_size,
        "max_steps": steps,
        "learning_rate": rate,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused",
        "bf16": False,
        "gradient_checkpointing": False,
        "max_length": None,
        "packing": False,
        "train_sampling_strategy": "sequential",
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
    }
    return SFTConfig(**settings | changes)


def defaults(out: Path, *, batch_size: int, steps: int, rate: float, max_length: int) -> SFTConfig:
    """TRL as it comes: bf16 autocast, activation checkpointing, rows drawn at random.

    Only what is to be learnt is set, and that each step is logged, so that it can be read.
    """
    return SFTConfig(
        output_dir=str(out),
        per_device_train_batch_size=batch_size,
        max_steps=steps,
        learning_rate=rate,
        max_length=max_length,
        logging_steps=1,
        use_cpu=not torch.cuda.is_available(),
    )


def train(
    model: Any, rows: Dataset, settings: SFTConfig, tokenizer: Any, adapter: LoraConfig | None
) -> Clock:
    """Train, and say how long each step took; `adapter` is None where the model has one."""
    clock = Clock()
    trainer = SFTTrainer(
        model=model,
        args=settings,
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=adapter,
        callbacks=[clock],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", help="JSONL file with prompt and completion")
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    parser.add_argument("--dtype", default="float32", help="number format of the base")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, default=1)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=options.dtype)
    rows = load_dataset(
        "json", data_files=options.rows, split="train", cache_dir=str(options.out / "cache")
    )
    settings = tuned(
        options.out,
        batch_size=options.batch_size,
        steps=options.steps,
        rate=options.rate,
        completion_only_loss=True,
    )
    train(model, rows, settings, tokenizer, pair(options.rank, 32.0))


if __name__ == "__main__":
    main()
