"""Time to the first token of a long prompt that many adapters are asked, activated LoRA against plain.

    python benchmarks/alora.py                       # the built-in model, eight adapters, 1,500 tokens

Eight adapters of each kind, of one rank and with the same numbers, answer one prompt one after the other on
lorakit's own engine, in this process and without HTTP. The first of a round finds nothing of the prompt in the
cache. A round of the one kind and one of the other take turns. Activated adapters share what the base read;
plain ones read all of it, each for itself.
"""

import argparse
import json
import queue
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from lorakit.adapters import save_adapter
from lorakit.lora import LoraSpec, attach, detach, lora_layers
from lorakit.models import ModelSpec
from lorakit.run.session import open_base
from lorakit.serving.answers import CompletionEvent, Prompt
from lorakit.serving.cache import size_for
from lorakit.serving.catalog import Catalog
from lorakit.serving.engine import Engine
from lorakit.serving.forward import open_forward
from lorakit.serving.sampling import Sampling
from lorakit.serving.spec import EngineSpec
from lorakit.serving.thread import ComputeThread


def make_adapters(
    session: Any, root: Path, count: int, rank: int, invocation: tuple[int, ...]
) -> None:
    """The same pairs twice: plain, and acting from the invocation on."""
    for number in range(count):
        for kind, tokens in (("plain", ()), ("activated", invocation)):
            attach(session.model, LoraSpec(rank=rank, alora=tokens), seed=number)
            generator = torch.Generator().manual_seed(number)
            for layer in lora_layers(session.model).values():
                layer.B.data.normal_(std=0.01, generator=generator)
            save_adapter(session.model, root / f"{kind}-{number}", identity=session.identity)
            detach(session.model)


def first_token(engine: Engine, events: Any, prompt: Prompt) -> tuple[float, int]:
    """Seconds from the request to its first token, and how many tokens of the prompt were in the cache."""
    began = time.perf_counter()
    engine.submit([prompt], 0)
    seconds, event = None, None
    while event is None or event.finish is None:
        event = events.get()
        if event.finish == "error":
            raise RuntimeError(event.text)
        seconds = seconds or time.perf_counter() - began
    assert seconds is not None
    return seconds, event.reused


def main() -> None:
    """Measure and print one line of JSON a round, then the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="auto")
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    thread = ComputeThread()
    spec = (
        ModelSpec(dtype=options.dtype)
        if options.model == "auto"
        else ModelSpec(options.model, dtype=options.dtype)
    )
    session = thread.call(lambda: open_base(spec))
    invocation = tuple(
        session.tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    )
    with tempfile.TemporaryDirectory() as root:
        thread.call(
            lambda: make_adapters(session, Path(root), options.adapters, options.rank, invocation)
        )
        longest = size_for(options.tokens + 64)
        limits = EngineSpec(
            slots=2 * options.adapters,
            slot_rank=options.rank,
            cache_gb=1.5,
            max_prompt=longest,
            max_output=16,
        )
        forward = thread.call(lambda: open_forward(session.model, limits, longest))
        folders = {path.name: path for path in sorted(Path(root).iterdir())}
        catalog = Catalog("base", session.identity, session.template, forward.bank, folders=folders)
        events: Any = queue.SimpleQueue()

        def deliver(some: list[tuple[Any, CompletionEvent]]) -> None:
            for _, event in some:
                events.put(event)

        engine = Engine(
            *(forward, session.tokenizer, limits, longest),
            deliver,
            thread=thread,
        )
        engine.start()
        models = {name: catalog.resolve(name) for name in folders}
        draw = torch.Generator().manual_seed(0)

        def ask(name: str, ids: list[int]) -> tuple[float, int]:
            acts = models[name].on(ids)
            wish = Sampling(temperature=0.0)
            prompt = Prompt(
                ids,
                acts.key,
                acts.load,
                name,
                2,
                frozenset(),
                sampling=wish,
                unadapted=acts.unadapted,
            )
            return first_token(engine, events, prompt)

        for name in models:  # every adapter into its slots, and the products warm
            ask(name, [100, *invocation, 101])
        found: dict[str, list[float]] = {"plain": [], "activated": []}
        ratios = []
        for number in range(options.rounds):
            round_of = {}
            for kind in sorted(found, reverse=bool(number % 2)):
                text = torch.randint(
                    1000, 20000, (options.tokens - len(invocation) - 20,), generator=draw
                )
                times, reused = [], []
                for one in range(options.adapters):
                    question = torch.randint(1000, 20000, (20,), generator=draw).tolist()
                    seconds, known = ask(f"{kind}-{one}", [*text.tolist(), *invocation, *question])
                    times.append(seconds)
                    reused.append(known)
                round_of[kind] = statistics.mean(times)
                found[kind] += times
                print(
                    json.dumps(
                        {
                            "round": number,
                            "kind": kind,
                            "seconds": [round(t, 3) for t in times],
                            "reused": reused,
                        }
                    )
                )
            ratios.append(round_of["activated"] / round_of["plain"])
        engine.stop()
    mean = {kind: round(statistics.mean(times), 3) for kind, times in found.items()}
    median = {kind: round(statistics.median(times), 3) for kind, times in found.items()}
    print(
        json.dumps(
            {"mean": mean, "median": median, "ratio of means": [round(r, 3) for r in ratios]}
        )
    )


if __name__ == "__main__":
    main()
