"""Engines on tiny models, driven step by step, and adapters of several ranks."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from architectures import tiny_model
from families import FAMILIES, tiny, tokenizer
from lorakit.adapters.load import load_adapter
from lorakit.adapters.pairs import read_stored
from lorakit.adapters.save import save_adapter
from lorakit.lora import LoraSpec, attach, detach, lora_layers
from lorakit.serving.answers import CompletionEvent, Prompt
from lorakit.serving.cache import size_for
from lorakit.serving.engine import Engine
from lorakit.serving.forward import open_forward
from lorakit.serving.sampling import Sampling
from lorakit.serving.spec import EngineSpec
from mixing_families import KINDS, tiny_kind

SPEC = EngineSpec(
    slots=6,
    slot_rank=8,
    cache_gb=0.01,
    max_running=8,
    step_tokens=24,
    max_prompt=200,
    max_output=50,
)


def base(family: str) -> Any:
    """A tiny model; of `families`, with room for rank 32 in its smallest linear layer."""
    if family in KINDS:
        return tiny_kind(family)
    return tiny(family, head_dim=16) if family in FAMILIES else tiny_model(family)


def make_adapter(model: Any, folder: Path, rank: int, seed: int, **spec: Any) -> Path:
    """An adapter that changes answers: B away from zero, by the seed."""
    attach(model, LoraSpec(rank=rank, alpha=float(rank), **spec))
    generator = torch.Generator().manual_seed(seed)
    for layer in lora_layers(model).values():
        layer.A.data.copy_(torch.randn(layer.A.shape, generator=generator) / 4)
        layer.B.data.copy_(torch.randn(layer.B.shape, generator=generator) / (2 * rank**0.5))
        for name, tensor in layer.tensors.items():
            if name not in ("A", "B"):
                tensor.data.mul_(0.75 + torch.rand(tensor.shape, generator=generator) / 2)
    save_adapter(model, folder)
    detach(model)
    return folder


@dataclass
class Answer:
    text: str = ""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: str | None = None
    reused: int = 0


class Driven(Engine):
    """An engine without its thread, whose answers are kept and whose logits are looked at."""

    def __init__(
        self,
        family: str = "llama",
        spec: EngineSpec = SPEC,
        dtype: Any = None,
        device: str | None = None,
    ) -> None:
        model = base(family).to(device, dtype)
        context = getattr(model.config.get_text_config(), "max_position_embeddings", 512)
        largest = size_for(min(context, spec.max_prompt + spec.max_output))
        self.answers: dict[Any, Answer] = {}
        self.logits: dict[Any, list[torch.Tensor]] = {}
        self.folders: dict[str, Path] = {}
        forward = open_forward(model, spec, largest)
        super().__init__(forward, tokenizer(), spec, largest, self._keep)

    def _keep(self, events: list[tuple[Any, CompletionEvent]]) -> None:
        for tag, event in events:
            answer = self.answers.setdefault((tag, event.choice), Answer())
            answer.text += event.text
            answer.ids += [token.id for token in event.tokens]
            answer.logprobs += [t.logprob for t in event.tokens if t.logprob is not None]
            answer.finish = event.finish
            answer.reused = event.reused or answer.reused

    def ask(self, tag: Any, ids: list[int], key: str = "", n: int = 1, **more: Any) -> Any:
        sampling = {
            k: more.pop(k)
            for k in ("temperature", "top_p", "top_k", "seed", "logprobs")
            if k in more
        }
        sampling.setdefault("temperature", 0.0)
        folder = self.folders.get(key)
        more.setdefault("most", 6)
        more.setdefault("ends", frozenset({1}))
        return self.submit(
            [
                Prompt(
                    ids=ids,
                    key=key,
                    load=(lambda: self.forward.bank.stage(read_stored(folder))) if key else None,
                    name=key or "base",
                    sampling=Sampling(**sampling),
                    choice=choice,
                    **more,
                )
                for choice in range(n)
            ],
            tag,
        )

    def settle(self, limit: int = 2000) -> None:
        """Run until nothing is left to do."""
        for _ in range(limit):
            self.step()
            for future in list(self._loading.values()):
                future.exception()
            if not self._answers and self._inbox.empty():
                return
        raise AssertionError("the engine did not come to rest")

    def alone(self, ids: list[int], key: str = "", **more: Any) -> Answer:
        """One request with the engine to itself, nothing cached."""
        for known in ("", *self.folders):
            self.cache.forget(known)
        self.ask("alone", ids, key, **more)
        self.settle()
        return self.answers.pop(("alone", 0))


class Alone:
    """The model's own code, one request at a time, everything computed anew for each token."""

    def __init__(self, family: str, folders: dict[str, Path], most: int = 5) -> None:
        self.models, self.most = {"": base(family)}, most
        for key, folder in folders.items():
            self.models[key] = base(family)
            load_adapter(self.models[key], folder)
        self.known: dict[Any, Any] = {}

    @torch.no_grad()
    def answer(self, ids: list[int], key: str) -> Any:
        if (tuple(ids), key) not in self.known:
            have, logits = list(ids), []
            while len(have) < len(ids) + self.most:
                row = self.models[key](torch.tensor([have]), use_cache=False).logits[0, -1]
                logits.append(row)
                have.append(int(row.argmax()))
                if have[-1] == 1:
                    break
            self.known[tuple(ids), key] = have[len(ids) :], torch.stack(logits)
        return self.known[tuple(ids), key]


class Watched(Driven):
    """Keeps the logits that each answer's tokens were chosen from."""

    def _compute(self, work: Any) -> Any:
        rows: dict[str, Any] = {}
        run = self.forward.run

        def keep(*arguments: Any) -> Any:
            rows["logits"] = run(*arguments)
            return rows["logits"]

        self.forward.run = keep  # type: ignore[method-assign]
        try:
            order = [
                w.sequence
                for w in sorted(
                    work, key=lambda w: w.sequence.resident.slot if w.sequence.resident else 1 << 30
                )
                if w.last
            ]
            tags = [(self._answers[s].tag, self._answers[s].prompt.choice) for s in order]
            return super()._compute(work)
        finally:
            self.forward.run = run  # type: ignore[method-assign]
            for tag, row in zip(tags, rows["logits"], strict=True):
                self.logits.setdefault(tag, []).append(row)
