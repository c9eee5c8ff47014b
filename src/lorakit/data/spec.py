"""Which rows to train on and how they become tokens: one frozen description."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from lorakit.data.given import GivenRows, Source
from lorakit.errors import ConfigError, did_you_mean

TooLong = Literal["error", "drop", "cut"]
Cut = Literal["end", "prompt-start", "prompt-middle"]

DROPPABLE = {
    "thinking": "the thinking",
    "content": "the text",
    "tool_calls": "the tool calls",
    "tools": "the tool definitions",
    "tool": "the tool result",
    "system": "the system text",
    "developer": "the developer text",
    "user": "the text",
    "empty": "an empty answer",
}
"""What `drop` takes, each in words: what a chat template may leave out, and empty answers."""


@dataclass(frozen=True)
class DataSpec:
    """Where the rows are, how their columns are read, and which tokens are supervised.

    Raises:
        ConfigError: a value is out of its range, or two options contradict each other.
    """

    data: tuple[Source, ...] = field(
        default=(),
        metadata={
            "kind": tuple[str, ...],
            "help": "Training rows: files (.jsonl .json .csv .tsv .parquet .arrow .txt; each also "
            "with .gz, .zst or .bz2), folders of such files (one that holds train and valid or "
            "test by name is split so), or Hugging Face dataset ids (id, id:split, "
            "id:config:split).",
        },
    )
    eval_data: tuple[Source, ...] = field(
        default=(),
        metadata={
            "kind": tuple[str, ...],
            "help": "Held-out rows, from the same kinds of sources as data. Without it, a random "
            "share of the training rows is held out (see eval_share).",
        },
    )
    prompt: str | None = field(
        default=None,
        metadata={
            "help": "How the prompt is written from a row's columns, such as 'Question: "
            "{question}'. {a.b} reads key b inside column a; lists and objects are written as "
            "JSON; {{ and }} are literal braces. Give completion too. Without both, the columns "
            "are recognised by their names (prompt + completion, messages or conversations, "
            "instruction + output, chosen + rejected, text)."
        },
    )
    completion: str | None = field(
        default=None,
        metadata={
            "help": "How the answer is written from a row's columns, such as '{answer}'. The model "
            "is trained to generate it after the prompt."
        },
    )
    text: str | None = field(
        default=None,
        metadata={
            "help": "Train on whole texts, written from a row's columns in the same way, such as "
            "'{text}': every token is supervised, and there is no prompt. Not with prompt or "
            "completion."
        },
    )
    row_weight: str | None = field(
        default=None,
        metadata={
            "help": "A column of numbers above 0: how much each row's loss weighs in training, such as 2 "
            "for a row that counts twice. Held-out losses weigh all alike. Default: all alike."
        },
    )
    system: str | None = field(
        default=None,
        metadata={
            "help": "A system message that is put before every row without one of its own. Needs "
            "a chat template. Default: none."
        },
    )
    template: str = field(
        default="auto",
        metadata={
            "help": "How a prompt is written for the model: auto (the model's chat template where "
            "it has one, otherwise raw), chat (the model's chat template, or an error), raw (the "
            "prompt as it stands), or the name of a file with a Jinja chat template."
        },
    )
    template_options: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={
            "name": "template_option",
            "help": "A variable of the chat template, such as enable_thinking=false; repeat the "
            "flag for another. It is recorded with the adapter, and used wherever the adapter "
            "is. Default: none.",
        },
    )
    drop: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "What may be missing in training. A row with a part that the chat template "
            "does not write is an error, unless the part is named here: "
            + ", ".join(name for name in DROPPABLE if name != "empty")
            + ". empty: rows whose answer is empty are left out. Default: none."
        },
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "The most tokens a row may have, template included. Default: the most that "
            "the model can read."
        },
    )
    too_long: TooLong = field(
        default="error",
        metadata={
            "help": "What happens to a row of more than max_length tokens: error (the run stops "
            "and says how many there are), drop (they are left out), or cut (they are truncated: see "
            "cut)."
        },
    )
    cut: Cut = field(
        default="end",
        metadata={
            "help": "What too_long cut takes away: end (the end of the row, its answer first), "
            "prompt-start or prompt-middle (the beginning or the middle of the prompt, so that every "
            "answer stays whole)."
        },
    )
    max_rows: int | None = field(
        default=None,
        metadata={
            "help": "Read only the first N training rows, before a share of them is held out. "
            "Default: all."
        },
    )
    max_eval_rows: int | None = field(
        default=None,
        metadata={
            "help": "Hold out at most N rows. Of eval_data, the first N are taken. Default: no "
            "limit."
        },
    )
    eval_share: float = field(
        default=0.1,
        metadata={
            "help": "The share of the training rows that is held out where eval_data is not given, "
            "from 0 (none) to below 1. Rows with the same prompt stay on the same side. The seed "
            "decides which."
        },
    )

    def __post_init__(self) -> None:
        for name in ("data", "eval_data"):
            sources = getattr(self, name)
            if isinstance(sources, str) or not all(
                s if isinstance(s, str) else isinstance(s, GivenRows) for s in sources
            ):
                raise ConfigError(f"{name} must be a list of file names or ids; it is {sources!r}")
        for name in ("max_length", "max_rows", "max_eval_rows"):
            value = getattr(self, name)
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int) or value < 1
            ):
                raise ConfigError(f"{name} must be a whole number of at least 1; it is {value!r}")
        if self.max_length == 1:
            raise ConfigError("max_length is 1, but a row needs 2 tokens for one to be predicted")
        if self.too_long not in get_args(TooLong):
            known = did_you_mean(str(self.too_long), get_args(TooLong))
            raise ConfigError(f"too_long is {self.too_long!r}; {known}")
        if self.cut not in get_args(Cut):
            raise ConfigError(f"cut is {self.cut!r}; {did_you_mean(str(self.cut), get_args(Cut))}")
        if self.cut != "end" and self.too_long != "cut":
            raise ConfigError(
                f"cut {self.cut!r} says what is cut of rows that are too long, and too_long is "
                f"{self.too_long!r}: give --too-long cut as well"
            )
        for name in self.drop:
            if name not in DROPPABLE:
                raise ConfigError(f"drop names {name!r}; {did_you_mean(name, DROPPABLE)}")
        if self.template_options and self.template == "raw":
            raise ConfigError(
                "template_option has no place in template 'raw', which has no variables"
            )
        if not 0.0 <= self.eval_share < 1.0:
            raise ConfigError(f"eval_share must lie in [0, 1); it is {self.eval_share}")
        if self.text is not None and (self.prompt is not None or self.completion is not None):
            raise ConfigError(
                "text is given beside prompt or completion: a row is either a text, or a prompt and "
                "its completion"
            )
        if (self.prompt is None) != (self.completion is None):
            given, missing = ("prompt", "completion")[:: 1 if self.completion is None else -1]
            raise ConfigError(
                f"{given} is given without {missing}: both are needed to map the columns of a row, "
                f"for example prompt '{{question}}' and completion '{{answer}}'"
            )
        if not self.template:
            raise ConfigError("template is empty: give auto, chat, raw or the name of a file")
        if self.system and self.template == "raw":
            raise ConfigError(
                "system has no place in template 'raw': write it into prompt, for example "
                "prompt '" + self.system[:30] + " {question}'"
            )
