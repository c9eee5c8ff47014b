"""What a run's files hold, and a reader of pages."""

from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "br", "hr", "img", "input", "link"}

RESULT: dict[str, Any] = {
    "model": "tiny",
    "adapter": "lora",
    "rank": 8,
    "alpha": 32.0,
    "targets": ["all-linear"],
    "train_loss": 0.38,
    "eval_loss": 0.412,
    "eval_loss_before": 2.311,
    "trainable_parameters": 2_442_240,
    "total_parameters": 134_515_008,
    "real_tokens_per_second": 1043.2,
    "fraction_of_limit": 0.71,
    "peak_memory_bytes": 1_304_567_808,
    "seconds": 212.4,
    "train_seconds": 190.0,
    "steps": 40,
    "rows": 160,
    "eval_rows": 20,
    "learning_rate": 2e-4,
    "seed": 0,
    "scores_before": {"field_accuracy": 0.031, "bleu": 0.015, "f1": 0.5},
    "scores_after": {"field_accuracy": 0.912, "bleu": 0.4, "f1": 0.25},
    "headline": "field_accuracy",
    "scores_change": {
        name: {"mean": mean, "low": low, "high": high, "level": 0.95, "n": 8, "resamples": 2000}
        for name, mean, low, high in [
            ("field_accuracy", 0.881, 0.7, 1.0), ("bleu", 0.385, -0.1, 0.6), ("f1", -0.25, -0.4, -0.1)
        ]
    },
    "forecast": {"peak_memory_bytes": 1_250_000_000, "seconds": 200.0, "flops_per_token": 6.1e8},
    "best_step": 30,
    "stopped_early": False,
    "versions": {"lorakit": "0.1.0"},
    "machine": {"cpu": "a processor", "cores": 2, "memory_bytes": 2**34},
    "command": "lorakit train --data a.jsonl",
    "layers": [
        {"path": f"model.layers.{i}.q_proj", "in_features": 64, "out_features": 32, "rank": 8,
         "trainable": 768}
        for i in range(3)
    ],
    "notes": ["a note to read"],
}  # fmt: skip

SAMPLES: list[dict[str, Any]] = [
    {"prompt": "<script>alert(1)</script>", "reference": '{"a": 1, "b": 2}',
     "before": "Sure, <b>here</b>", "after": '{"a": 1, "c": 3}', "after_score": 1 / 3},
    {"prompt": "plain", "reference": "yes", "before": "no & never", "after": "yes "},
]  # fmt: skip


class Page(HTMLParser):
    """Every tag closed in order, and what the tags held."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]
