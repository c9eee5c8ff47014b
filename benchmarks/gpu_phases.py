"""The phases of benchmarks/gpu.py, each in a process of its own: one model, and who trains or serves it."""

import gc
import importlib.util
import logging
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench
import contenders
import numpy as np
import torch

from lorakit import forecast, machine_rates
from lorakit.adapters import save_adapter
from lorakit.adapters.pairs import read_stored
from lorakit.config import load_config
from lorakit.data import TokenTable, order
from lorakit.data.table import Encoded
from lorakit.execution import attention
from lorakit.lora import LoraSpec, attach, detach, lora_layers, plan
from lorakit.run.machine import peak_memory

Say = Callable[[bench.Line], None]
RANK, FLIGHT, SERVED_RANK = 8, 32, 16

# Sizes of SmolLM2-135M, Llama 3.2 1B and Llama 3.1 8B; weights are random where no folder is here.
_LLAMA_3 = {"vocab_size": 128256, "num_attention_heads": 32, "num_key_value_heads": 8}
SIZES: dict[str, dict[str, Any]] = {
    "builtin": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "1b": {
        **_LLAMA_3,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "tie_word_embeddings": True,
    },
    "8b": {**_LLAMA_3, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
}
_TINY = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
# Of a step: rows, and the shortest and the longest; the answer takes the last third.
ROWS: dict[str, dict[str, tuple[int, int, int]]] = {
    "builtin": {"short": (16, 35, 95), "packed": (4, 2048, 2048)},
    "1b": {"mixed": (8, 64, 512), "packed": (4, 2048, 2048)},
    "8b": {"mixed": (8, 64, 512), "packed": (1, 2048, 2048)},
}
# Dense bfloat16 FLOP/s by the makers' sheets, the first name that is part of the card's.
CARDS = {
    "B200": 2.25e15,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 5090": 210e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def run(given: bench.Line, say: Say) -> None:
    """Do a phase, and say each line as it is there."""
    torch.manual_seed(0)
    # Every contender may use TF32 where it multiplies float32, as peft's adapters are.
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if given["phase"] == "serving":
        serve(given, device, say)
    else:
        train(given, device, say)


def fresh_model(name: str, device: torch.device, *, dry: bool) -> Any:
    """A Llama of these sizes with random weights, in bfloat16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **(_TINY if dry else SIZES[name]),
        max_position_embeddings=8192,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        initializer_range=0.05 if dry else 0.02,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return model.requires_grad_(False).eval()


def loaded(name: str, device: torch.device, *, dry: bool) -> tuple[Any, str]:
    """The model of a phase, and what its weights are."""
    if name == "builtin" and not dry:
        from lorakit.errors import LorakitError
        from lorakit.models import ModelSpec, load_model

        try:
            return load_model(ModelSpec(dtype="bfloat16"))[0], "smollm2-135m"
        except (LorakitError, OSError):
            pass  # it is fetched once from a registry, which this machine may not reach
    return fresh_model(name, device, dry=dry), "random"


def any_tokenizer(vocabulary: int) -> Any:
    """What TRL wants beside rows of tokens: a tokenizer that knows how to pad."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(vocabulary)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w3"))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="w1", pad_token="w2", unk_token="w3"
    )


def drawn_rows(count: int, shortest: int, longest: int, vocabulary: int) -> TokenTable:
    """Random tokens, the last third of each row supervised."""
    draw = np.random.default_rng(0)
    rows = []
    for i in range(count):
        length = int(draw.integers(shortest, longest + 1))
        ids = draw.integers(5, vocabulary, length).astype(np.int32)
        weight = (np.arange(length) >= (2 * length) // 3).astype(np.uint8)
        rows.append(Encoded(ids, weight, f"drawn:{i + 1}"))
    return TokenTable.build(rows)


# ---- training


def train(given: bench.Line, device: torch.device, say: Say) -> None:
    """Contenders in turn on one model, round after round, as long as there is time."""
    name, dry = given["phase"], given["dry"]
    model, weights = loaded(name, device, dry=dry)
    shape = forecast.shape_of(model)
    same = {"model": name, "weights": weights, "dtype": str(model.dtype).removeprefix("torch.")}
    same |= bench.surroundings(device, "peft") | peak_rate(shape, model.dtype, device)
    tasks = {kind: task_of(model, given, size) for kind, size in ROWS[name].items()}
    out: dict[tuple[str, str], str] = {}
    longest = 0.0
    # Liger changes the model's modules for good: its turns come after those of the others.
    turns = [
        (turn, [w for w in given["contenders"] if w != "trl-liger"])
        for turn in range(given["rounds"])
    ]
    turns += [(turn, ["trl-liger"]) for turn, _ in turns if "trl-liger" in given["contenders"]]
    for turn, names in turns:
        began = time.time()
        # A round is begun only where there is time for one as long as the last.
        if turn and began + longest > given["until"]:
            break
        for kind, task in tasks.items():
            for who in names:
                if (who, kind) in out or time.time() > given["until"]:
                    continue
                line = {"rows": kind, "contender": who, "turn": turn}
                missing = what_is_missing(who)
                try:
                    line |= {"failed": missing} if missing else turn_of(who, task, shape)
                except (RuntimeError, ImportError, TypeError, ValueError) as error:
                    line["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
                if "failed" in line:
                    out[who, kind] = line["failed"]
                say(same | line)
                restored(task.model)
        longest = max(longest, time.time() - began)


def what_is_missing(who: str) -> str:
    """Which package a contender lacks here; "" for none."""
    needs = {"peft": ["peft"], "trl": ["peft", "trl"], "trl-liger": ["trl", "liger_kernel"]}
    gone = [name for name in needs.get(who, []) if importlib.util.find_spec(name) is None]
    return f"{' and '.join(gone)} is not installed" if gone else ""


def task_of(model: Any, given: bench.Line, size: tuple[int, int, int]) -> contenders.Task:
    """The same rows and steps for everyone."""
    count, shortest, longest = size
    if given["dry"]:
        shortest, longest = min(shortest, 24), min(longest, 48)
    vocabulary = model.config.vocab_size
    steps = given["steps"]
    table = drawn_rows(count * steps, shortest, longest, vocabulary)
    options = {"rank": RANK, "batch_size": count, "clip": contenders.CLIP, "seed": 0}
    options |= {"warmup": 0.0, "schedule": "constant", "data": ("rows.jsonl",)}
    config = load_config(None, options | {"batch_tokens": max(8192, longest)})
    return contenders.Task(
        model,
        any_tokenizer(vocabulary),
        table,
        table.take(()),
        config,
        list(order(len(table), count, steps=steps, seed=0)),
        contenders.RATE,
        count,
        False,
    )


def turn_of(who: str, task: contenders.Task, shape: forecast.ModelShape) -> bench.Line:
    """One contender's turn."""
    device, model = task.model.device, task.model
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    if who == "lorakit" and _packed:
        attention.switch(model)
    else:
        attention.switch_back(model)
    trained = plan(model, task.config.lora).trainable
    lengths = task.train.lengths
    flops = forecast.flops_per_token(
        shape,
        trained,
        float((lengths**2).sum() / lengths.sum()),
        task.train.loss_tokens / task.train.tokens,
    )
    said = Said()
    if who == "lorakit":
        with said:
            done = contenders.lorakit(task)
    elif who == "peft":
        done = contenders.peft(task)
    else:
        done = contenders.trl(task, liger=who == "trl-liger")
    line = {"seconds": done.seconds, "tokens": done.tokens, "losses": done.losses}
    line |= {"flops_per_token": flops, "peak_memory_bytes": peak_memory(device)}
    line["warm"] = len(done.seconds) // 2
    if who == "lorakit":
        # Which kernels, which attention, what was captured; of some of these the first turn knows alone.
        line["said"] = sorted(set(said.lines))
        _packed.append(attention.is_switched(model))
    return line


class Said(logging.Handler):
    """What lorakit's rooms say within the block of what computes."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []
        self._rooms = [logging.getLogger(f"lorakit.{room}") for room in ("kernels", "training")]

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def __enter__(self) -> None:
        for room in self._rooms:
            room.addHandler(self)
            room.setLevel(logging.INFO)

    def __exit__(self, *_: object) -> None:
        for room in self._rooms:
            room.removeHandler(self)


# Whether lorakit has found that the model packs: then its attention is switched back for the peers, and on again.
_packed: list[bool] = []


def restored(model: Any) -> None:
    """The model without whatever adapter a contender left beside its layers."""
    if lora_layers(model):
        detach(model)
    for path, module in list(model.named_modules()):
        if hasattr(module, "get_base_layer"):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, module.get_base_layer())
    # peft notes on the model itself which adapters it has: it would take those for there already.
    vars(model).pop("peft_config", None)
    model.requires_grad_(False).eval()


def peak_rate(shape: forecast.ModelShape, dtype: torch.dtype, device: torch.device) -> bench.Line:
    """The rate that MFU is a share of: the card's by its maker, else that of one large product."""
    size = 8192 if device.type == "cuda" else 256
    x = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        y = x @ x
        float(y[0, 0])  # waits for it
        best = min(best, time.perf_counter() - began)
    measured = 2.0 * size**3 / best
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    known = next((rate for card, rate in CARDS.items() if card in name), None)
    return {
        "peak_flops": known or measured,
        "peak_is": "the maker's" if known else "of one large product",
        "product_flops": measured,
        "matmul_flops": machine_rates.matmul_rate(shape, dtype, device),
    }


# ---- serving


def serve(given: bench.Line, device: torch.device, say: Say) -> None:
    """A batch of 32 with no adapter, with 8, with 32: lorakit's engine, and peft's mixed batch."""
    dry = given["dry"]
    model, weights = loaded("builtin", device, dry=dry)
    same = {"model": "builtin", "weights": weights} | bench.surroundings(device, "peft")
    new, count = (4, 8) if dry else (64, FLIGHT)
    many = (8,) if dry else (8, 32)
    draw = random.Random(0)
    asked = [
        [draw.randrange(5, model.config.vocab_size) for _ in range(16 if dry else 48 + i % 32)]
        for i in range(count)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        folders = adapters_in(Path(scratch), model, max(many))
        for turn in range(given["rounds"]):
            for who, adapters in (
                ("lorakit", 0),
                *((w, n) for n in many for w in ("lorakit", "peft")),
            ):
                if time.time() > given["until"]:
                    return
                answer = served if who == "lorakit" else mixed
                line = {"contender": who, "adapters": adapters, "turn": turn}
                try:
                    line["tokens_per_second"] = answer(model, asked, folders[:adapters], new)
                except (RuntimeError, ImportError, TypeError, ValueError) as error:
                    line["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
                say(same | line)
                restored(model)


def adapters_in(scratch: Path, model: Any, count: int) -> list[Path]:
    """Adapters with random numbers, saved."""
    attach(model, LoraSpec(rank=SERVED_RANK))
    folders = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        for layer in lora_layers(model).values():
            drawn = torch.randn(layer.B.shape, generator=generator) * 0.01
            layer.B.data.copy_(drawn)
        folders.append(scratch / f"a{number:02}")
        save_adapter(model, folders[-1])
    detach(model)
    return folders


def served(model: Any, asked: list[list[int]], folders: list[Path], new: int) -> float:
    """Answered tokens/s of lorakit's engine; the second time, when adapters are in their slots."""
    from lorakit.serving.answers import Prompt
    from lorakit.serving.cache import size_for
    from lorakit.serving.engine import Engine
    from lorakit.serving.forward import open_forward
    from lorakit.serving.sampling import Sampling
    from lorakit.serving.spec import EngineSpec

    spec = EngineSpec(
        slots=FLIGHT,
        slot_rank=SERVED_RANK,
        max_running=FLIGHT,
        max_prompt=256,
        max_output=max(64, new),
    )
    largest = size_for(spec.max_prompt + spec.max_output)
    ended = [0]

    def deliver(events: Any) -> None:
        ended[0] += sum(event.finish is not None for _, event in events)

    forward = open_forward(model, spec, largest)
    engine = Engine(forward, any_tokenizer(model.config.vocab_size), spec, largest, deliver)
    engine.start()
    seconds = 0.0
    for round_ in range(2):
        ended[0] = 0
        began = time.perf_counter()
        for i, ids in enumerate(asked):
            folder = folders[i % len(folders)] if folders else None
            prompt = Prompt(
                ids=[(t + round_) % model.config.vocab_size for t in ids],
                key=folder.name if folder else "",
                load=(lambda at=folder: forward.bank.stage(read_stored(at))) if folder else None,
                name=folder.name if folder else "base",
                sampling=Sampling(temperature=0.0),
                most=new,
                ends=frozenset(),
            )
            engine.submit([prompt], i)
        while ended[0] < len(asked):
            if not engine.alive or time.perf_counter() - began > 60:
                raise RuntimeError(f"the engine stopped: {engine.failure}")
            time.sleep(0.0005)
        seconds = time.perf_counter() - began
    engine.stop()
    return len(asked) * new / seconds


def mixed(model: Any, asked: list[list[int]], folders: list[Path], new: int) -> float:
    """Answered tokens/s of transformers' generate with peft's mixed batch; the second time."""
    from peft import PeftModel

    attention.switch_back(model)
    adapted = PeftModel.from_pretrained(model, folders[0], adapter_name=folders[0].name)
    for folder in folders[1:]:
        adapted.load_adapter(folder, folder.name)
    adapted.eval()
    longest = max(map(len, asked))
    ids = torch.full((len(asked), longest), 2)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(asked):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    seconds = 0.0
    for tokens in (2, new):
        began = time.perf_counter()
        with torch.no_grad():
            answer = adapted.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=2,
                adapter_names=[folders[i % len(folders)].name for i in range(len(asked))],
            )
        assert answer.shape[1] == longest + tokens
        seconds = time.perf_counter() - began
    return len(asked) * new / seconds
