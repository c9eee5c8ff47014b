"""Who trains in benchmarks/train_speed.py, and on what: one contender on one kind of rows.

All of them get the same tokens, in the same steps, with the same rank, scale, learning rate and
start of A (where they let one give it), and are judged by the same held-out loss, through the
model's own padded forward.
"""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import bench
import numpy as np
import peft_loop

from lorakit import forecast, machine_rates
from lorakit.config import RunConfig, load_config
from lorakit.data import TokenTable, load_data, order
from lorakit.data.table import Encoded
from lorakit.lora import attach, detach, lora_layers, plan
from lorakit.models import load_model
from lorakit.run.fitting import fit_model
from lorakit.run.machine import peak_memory
from lorakit.training import Observers, Schedule

RATE, RATE_FULL, CLIP = 1e-3, 1e-4, 1.0
PACKED = 2048
# Steps' worth of rows among which TRL's sampler groups those of like length.
WINDOW = 50


@dataclass(frozen=True)
class Rows:
    """Files below the data folder, and how their columns are read.

    batch_size: rows of a step. split: rows of one forward pass for those who split a step.
    packed: laid together to long sequences.
    """

    train: str
    held_out: str
    prompt: str
    completion: str
    batch_size: int
    split: int
    packed: bool = False


_E2E = Rows("e2e/train.jsonl.gz", "e2e/valid.jsonl.gz", "{context} ||", " {completion}", 16, 4)
_GSM8K = Rows("gsm8k/train.jsonl.gz", "gsm8k/test.jsonl.gz", "{question}\n", "{answer}", 8, 2)
ROWS = {
    "e2e": _E2E,
    "gsm8k": _GSM8K,
    "packed": replace(_GSM8K, batch_size=1, split=1, packed=True),
}


@dataclass
class Task:
    """What a contender is given; `steps` are the rows of each step, the same for everyone."""

    model: Any
    tokenizer: Any
    train: TokenTable
    held_out: TokenTable
    config: RunConfig
    steps: list[tuple[int, ...]]
    rate: float
    forward_rows: int
    full: bool

    @property
    def batch_size(self) -> int:
        return self.config.train.batch_size


@dataclass
class Trained:
    """The model as it came out; seconds, loss (nats per token) and real tokens of each step."""

    model: Any
    seconds: list[float]
    losses: list[float]
    tokens: list[int]


@dataclass(frozen=True)
class Contender:
    """How to train.

    dtype: of the base. full: every weight is trained. split: a step takes several forward passes
    over a few rows each. ours: the process also measures the limit. grouped: steps are formed of
    rows of like length, from a larger window.
    """

    train: Callable[[Task], Trained]
    dtype: str = "auto"
    full: bool = False
    split: bool = False
    ours: bool = False
    grouped: bool = False
    kernels: str | None = None
    dora: bool = False

    @property
    def needs_rows(self) -> bool:
        """Whether it differs from its plain way only where a step has several rows."""
        return self.split or self.grouped


Report = Callable[[Any], None]


def lorakit(task: Task, report: Report = lambda event: None) -> Trained:
    """lorakit as `lorakit train` runs it; `report` is told of each step."""
    events: list[Any] = []

    def told(event: Any) -> None:
        if event["kind"] == "train":
            events.append(event)
            report(event)

    if not task.full:
        attach(task.model, task.config.lora, seed=task.config.train.seed)
    empty = task.held_out.take(())
    fit_model(
        task.model,
        task.train,
        empty,
        Schedule(len(task.steps), task.rate, task.config.train),
        observers=Observers(report=told),
    )
    seconds, losses, tokens = ([e[k] for e in events] for k in ("seconds", "loss", "tokens"))
    return Trained(task.model, seconds, losses, tokens)


def peft(task: Task, report: Report = lambda event: None) -> Trained:
    """The careful loop around peft; `report` is told of each step."""
    return _loop(task, with_peft(task), report)


def full(task: Task) -> Trained:
    """The same loop around the bare model: every weight is trained."""
    return _loop(task, task.model)


def _loop(task: Task, model: Any, report: Report = lambda event: None) -> Trained:
    run = peft_loop.train(
        model,
        task.train,
        task.steps,
        [task.rate] * len(task.steps),
        pad=task.tokenizer.pad_token_id,
        clip=CLIP,
        micro_rows=task.forward_rows,
        report=report,
    )
    return Trained(model, run.step_seconds, run.train_losses, run.step_tokens)


def with_peft(task: Task) -> Any:
    """peft's adapter on the model, its A as lorakit's begins."""
    seed, lora = task.config.train.seed, task.config.lora
    attach(task.model, lora, seed=seed)
    start = {path: layer.A.detach().clone() for path, layer in lora_layers(task.model).items()}
    adapted = peft_loop.attach(detach(task.model), rank=lora.rank, alpha=lora.alpha, seed=seed)
    peft_loop.copy_start(adapted, start)
    return adapted


def trl(task: Task, *, flat: bool = False, liger: bool = False) -> Trained:
    """SFTTrainer at its best; with `flat` it lays the rows of a step end to end itself, with `liger`
    it takes Liger's kernels, which stay in the model."""
    import trl_loop

    lengths = task.train.lengths
    # Sorted within the step, so that forward passes of fewer rows pad little.
    ordered = [row for rows in task.steps for row in sorted(rows, key=lambda i: lengths[i])]
    with tempfile.TemporaryDirectory() as folder:
        settings = trl_loop.tuned(
            Path(folder),
            batch_size=task.forward_rows,
            steps=len(task.steps),
            rate=task.rate,
            seed=task.config.train.seed,
            gradient_accumulation_steps=task.batch_size // task.forward_rows,
            padding_free=flat,
            use_liger_kernel=liger,
        )
        model = with_peft(task)
        clock = trl_loop.train(model, dataset(task, ordered), settings, task.tokenizer, None)
    return Trained(model, clock.seconds, clock.losses, clock.tokens)


def trl_grouped(task: Task) -> Trained:
    """SFTTrainer on steps of rows of like length, as its group_by_length forms them.

    Its sampler sorts a window of 50 steps' rows by length and begins with the longest, so that a
    run of few steps would meet no others. Here the steps are taken evenly from the whole window,
    in seeded order, after one from its middle to warm up.
    """
    n, size = len(task.steps), task.batch_size
    by_length = np.argsort(task.train.lengths, kind="stable").reshape(WINDOW, size)
    spread = ((np.arange(n - 1) + 0.5) * WINDOW / max(1, n - 1)).astype(int)
    draw = np.random.default_rng(task.config.train.seed)
    chosen = [WINDOW // 2, *draw.permutation(spread)]
    return trl(replace(task, steps=[tuple(by_length[i].tolist()) for i in chosen]))


def trl_defaults(task: Task) -> Trained:
    """SFTTrainer as it comes: only what is to be learnt is set."""
    import trl_loop

    lora = task.config.lora
    with tempfile.TemporaryDirectory() as folder:
        settings = trl_loop.defaults(
            Path(folder),
            batch_size=task.batch_size,
            steps=len(task.steps),
            rate=task.rate,
            max_length=PACKED,
        )
        rows = dataset(task, [row for rows in task.steps for row in rows])
        adapter = trl_loop.pair(lora.rank, lora.alpha)
        clock = trl_loop.train(task.model, rows, settings, task.tokenizer, adapter)
    return Trained(task.model, clock.seconds, clock.losses, clock.tokens)


def dataset(task: Task, order: list[int]) -> Any:
    """The rows as TRL takes tokens: ids, and labels that are -100 where no loss falls."""
    from datasets import Dataset

    rows = [task.train[i] for i in order]
    labels = [np.where(row.weight == 1, row.ids, -100) for row in rows]
    return Dataset.from_dict({"input_ids": [row.ids for row in rows], "labels": labels})


CONTENDERS = {
    "lorakit": Contender(lorakit, ours=True),
    "peft": Contender(peft),
    "trl": Contender(trl),
    "trl-grouped": Contender(trl_grouped, grouped=True),
    "trl-flat": Contender(partial(trl, flat=True)),
    "lorakit-split": Contender(lorakit, split=True, ours=True),
    "peft-split": Contender(peft, split=True),
    "trl-split": Contender(trl, split=True),
    "lorakit-full": Contender(lorakit, full=True, ours=True),
    "lorakit-plain": Contender(lorakit, ours=True, kernels="plain"),
    "lorakit-dora": Contender(lorakit, dora=True),
    "full": Contender(full, full=True),
    "peft-bf16": Contender(peft, dtype="bfloat16"),
    "trl-defaults": Contender(trl_defaults, dtype="float32"),
}


def work(given: bench.Line) -> bench.Line:
    """Train one contender for the steps asked for, and say how it went."""
    contender = CONTENDERS[given["contender"]]
    if contender.kernels is not None:
        os.environ["LORAKIT_KERNELS"] = contender.kernels
    task = prepare(given, contender)
    model = task.model
    shape, chosen = forecast.shape_of(model), plan(model, task.config.lora)
    lengths = task.train.lengths[[row for rows in task.steps for row in rows]]
    share = task.train.loss_tokens / task.train.tokens
    mean = float((lengths**2).sum() / lengths.sum())
    packages = ("peft", "trl") if given["contender"].startswith("trl") else ("peft",)
    line = given | {
        "dtype": str(model.dtype).removeprefix("torch."),
        "mean_length": float(lengths.mean()),
        "loss_share": share,
        "flops_per_token": forecast.flops_per_token(
            shape, chosen.trainable, mean, share, full=contender.full
        ),
        **bench.surroundings(model.device, *packages),
    }
    line.pop("data")
    measure_limit = partial(machine_rates.matmul_rate, shape, model.dtype, model.device)
    before = measure_limit() if contender.ours else 0.0
    done = contender.train(task)
    line |= {"seconds": done.seconds, "losses": done.losses, "tokens": done.tokens}
    line["peak_memory_bytes"] = peak_memory(model.device)
    if contender.ours:
        # Before and after, because other programs can only slow it down.
        line["matmul_flops"] = max(before, measure_limit())
    if len(task.held_out):
        at_once = max(1, 4096 // int(task.held_out.lengths.max()))
        line["held_out_loss"] = peft_loop.evaluate(
            done.model, task.held_out, task.tokenizer.pad_token_id, at_once
        )
    return line


def prepare(given: bench.Line, contender: Contender) -> Task:
    """Model and rows, as lorakit loads them, and which rows each step takes."""
    rows = ROWS[given["rows"]]
    size = given["batch_size"] or rows.batch_size
    count = max(given["steps"], WINDOW if contender.grouped else 0) * size
    data = Path(given["data"])
    # GSM8K's rows have about 200 tokens: 20 of them fill a long sequence.
    read = count * 20 if rows.packed else count
    options = {
        "data": (str(data / rows.train),),
        "prompt": rows.prompt,
        "completion": rows.completion,
        "template": "raw",
        "max_rows": read,
        "eval_share": 0.0,
        "rank": given["rank"],
        "dora": contender.dora,
        "batch_size": size,
        "clip": CLIP,
        "warmup": 0.0,
        "schedule": "constant",
        "dtype": contender.dtype,
        "seed": given["seed"],
    }
    if given["held_out"]:
        options |= {"eval_data": (str(data / rows.held_out),), "max_eval_rows": given["held_out"]}
    config = load_config(None, options)
    model, tokenizer = load_model(config.model)
    model.requires_grad_(contender.full)
    loaded = load_data(config.data, tokenizer, seed=0)
    train, held_out = loaded.train, loaded.eval
    if rows.packed:
        train, held_out = laid_together(train).take(range(count)), laid_together(held_out)
    steps = list(order(min(len(train), count), size, steps=given["steps"], seed=given["seed"]))
    rate = RATE_FULL if contender.full else RATE
    forward = rows.split if contender.split else size
    if contender.split:
        tokens = int(forward * train.lengths.mean())
        config = replace(config, train=replace(config.train, batch_tokens=tokens))
    return Task(model, tokenizer, train, held_out, config, steps, rate, forward, contender.full)


def laid_together(table: TokenTable) -> TokenTable:
    """All rows end to end, cut to sequences of 2,048 tokens that bear loss everywhere."""
    ids, ones = table.ids_N, np.ones(PACKED, np.uint8)
    ones[0] = 0
    starts = range(0, len(ids) - PACKED + 1, PACKED)
    return TokenTable.build(Encoded(ids[i : i + PACKED], ones, f"packed:{i}") for i in starts)
