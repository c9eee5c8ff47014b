"""The run file (YAML) and the flags -> the frozen specs of each room.

Every option is declared once, as a field of the spec of the room that reads it. This file only
composes them: one flat namespace, strict, where flags win over the file. What an option is, and how its
value is read, is in option.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from lorakit.adapters.store.default import STORE_HELP
from lorakit.data.given import GivenRows
from lorakit.data.spec import DataSpec
from lorakit.errors import ConfigError
from lorakit.lora.spec import LoraSpec
from lorakit.models.spec import ModelSpec
from lorakit.option import Option, options_of, parse
from lorakit.training.spec import TrainSpec


@dataclass(frozen=True)
class StartSpec:
    """Which adapter a run continues, if any."""

    parent: str | None = field(
        default=None,
        metadata={
            "name": "from",
            "help": "Continue training this adapter: a folder, or a name in the store. Its rank, "
            "alpha and targets are used, and its optimizer's moments where it has them; with "
            "learning_rate auto a short probe finds the rate.",
        },
    )


@dataclass(frozen=True)
class OutputSpec:
    """Where a run writes, and what besides the adapter.

    Raises:
        ConfigError: a value is out of its range.
    """

    out: str = field(
        default="runs/train",
        metadata={"help": "The run folder. It must be empty or not exist, unless resume is given."},
    )
    resume: bool = field(
        default=False,
        metadata={"help": "Continue the run in this folder from its newest checkpoint."},
    )
    samples: int = field(
        default=8,
        metadata={
            "help": "Number of held-out prompts whose completions are generated and scored before "
            "and after training; 0 for none."
        },
    )
    max_new_tokens: int | Literal["auto"] = field(
        default="auto",
        metadata={
            "help": "The most tokens of a completion. auto: by the longest reference answer, which "
            "an adapter records; 128 where there is none."
        },
    )
    tensorboard: bool = field(
        default=False,
        metadata={"help": "Also write TensorBoard event files into the run folder."},
    )
    save_as: str | None = field(
        default=None,
        metadata={
            "help": "Also put the adapter into the store, as a new version of this name; "
            "the current one only if it is no worse than what it was trained from. A run's own "
            "config.yaml leaves it out."
        },
    )
    store: str | None = field(default=None, metadata={"help": STORE_HELP})

    @property
    def answer_limit(self) -> int | None:
        """`max_new_tokens` where it is a number; None where reference answers decide."""
        return None if self.max_new_tokens == "auto" else self.max_new_tokens

    def __post_init__(self) -> None:
        if not self.out:
            raise ConfigError("out is empty: name a folder for the run")
        if self.samples < 0 or (self.max_new_tokens != "auto" and self.max_new_tokens < 1):
            raise ConfigError("samples must be at least 0 and max_new_tokens at least 1")


@dataclass(frozen=True)
class TogetherSpec:
    """Several adapters trained concurrently on one base.

    Raises:
        ConfigError: a rank is below 1 or named twice.
    """

    ranks: tuple[int, ...] = field(
        default=(),
        metadata={
            "help": "Train one adapter of each rank, such as 4,8,16,32, concurrently on one base."
        },
    )
    tasks: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "Train one adapter for each source of rows, concurrently on one base: "
            "NAME=SOURCE or a file. Replaces data."
        },
    )

    task_options: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={
            "name": "task_option",
            "help": "An option of one task: NAME.OPTION=VALUE, such as mails.eval_data=held.jsonl or "
            "mails.prompt='{subject}'; repeat the flag for another. Options about rows, from, "
            "epochs, max_steps, learning_rate and new_row_weight. Default: none.",
        },
    )

    def __post_init__(self) -> None:
        if any(rank < 1 for rank in self.ranks):
            raise ConfigError(f"ranks must be whole numbers of at least 1; they are {self.ranks}")
        if len(set(self.ranks)) < len(self.ranks):
            raise ConfigError(f"ranks names a rank twice: {self.ranks}")

    def __bool__(self) -> bool:
        return bool(self.ranks or self.tasks)


@dataclass(frozen=True)
class RunConfig:
    """A whole run: one frozen spec for each room.

    `given` are the names of the options that a file or a flag has set, be it to their default;
    `notes` say what of a file was left out.
    """

    model: ModelSpec = field(default_factory=ModelSpec)
    data: DataSpec = field(default_factory=DataSpec)
    lora: LoraSpec = field(default_factory=LoraSpec)
    start: StartSpec = field(default_factory=StartSpec)
    train: TrainSpec = field(default_factory=TrainSpec)
    together: TogetherSpec = field(default_factory=TogetherSpec)
    output: OutputSpec = field(default_factory=OutputSpec)
    given: frozenset[str] = field(default=frozenset(), compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    def to_repeat(self) -> dict[str, Any]:
        """All options by name, but those that write outside the run folder: a run's config.yaml."""
        return {name: value for name, value in self.to_flat().items() if name not in OUTSIDE}

    def outside(self) -> dict[str, Any]:
        """The options that write outside the run folder, where they are set."""
        flat = self.to_flat()
        return {name: flat[name] for name in OUTSIDE if flat[name] is not None}

    def to_flat(self) -> dict[str, Any]:
        """All options by name, complete, as plain values for YAML and JSON."""
        return {
            option.name: plain(getattr(getattr(self, option.section), option.field))
            for option in options()
        }


RECORDED_BASE = {"model": "the base that the adapter records, else smollm2-135m"}
"""What the help of a command that takes an adapter says of its model's default."""
OUTSIDE = ("save_as",)
"""Names of the options that write outside the run folder: repeating a recorded run leaves them out."""
RESUME = "resume.yaml"
"""The file in a run folder that keeps them for --resume."""
_RECORDED = ("metrics.jsonl", "result.json", "checkpoints", RESUME)
MODEL_OPTIONS = (
    *("model", "revision", "device", "dtype", "base_dtype", "trust_remote_code", "ignore_adapter"),
)
"""Names of the options that say which base a command opens, and how."""
ROW_OPTIONS = (
    *("prompt", "completion", "text", "system", "template", "template_option", "drop"),
    *("max_length", "too_long", "cut", "max_rows"),
)
"""Names of the options that say how rows are read, wherever they lie."""


def options() -> tuple[Option, ...]:
    """Every option of a run, in the order of the sections."""
    result: list[Option] = []
    for section in fields(RunConfig):
        spec = section.type
        if section.name in ("given", "notes"):
            continue
        assert isinstance(spec, type)
        result += options_of(spec, section.name)
    return tuple(result)


def load_config(path: Path | None, flags: Mapping[str, Any]) -> RunConfig:
    """The configuration in a YAML file, with `flags` (by option name) over it.

    Of a file that a run has recorded, what writes outside the run folder is taken where that run
    is resumed, and left out with a note where it is repeated.

    Raises:
        ConfigError: the file cannot be read, a key is unknown (the nearest is named), or a value
            is not of its kind.
    """
    from_file = dict(read_yaml(path)) if path is not None else {}
    notes = list[str]()
    if path is not None and _is_recorded(path):
        kept = path.parent / RESUME
        outside = dict(read_yaml(kept)) if kept.is_file() else {}
        outside |= {n: from_file.pop(n) for n in OUTSIDE if from_file.get(n) is not None}
        if flags.get("resume") and Path(str(flags.get("out", path.parent))) == path.parent:
            from_file |= outside
        else:
            notes += [
                f"{name}: {value} of {path} is not repeated, so that it replaces no version; "
                f"--{name.replace('_', '-')} NAME stores this run's adapter"
                for name, value in outside.items()
                if name not in flags
            ]
    config = _apply(replace(RunConfig(), notes=tuple(notes)), from_file, str(path))
    return _apply(config, flags, "the command line")


def _is_recorded(path: Path) -> bool:
    """Whether a run has written this file, as what lies beside it tells."""
    return path.name == "config.yaml" and any((path.parent / n).exists() for n in _RECORDED)


def read_yaml(path: Path) -> Mapping[str, Any]:
    """The 'name: value' lines of a run file.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    import yaml  # with pydantic below a fifth of the time of `--help`

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder; give the config.yaml in it") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path} must hold 'name: value' lines, one for each option")
    return content


def changed(config: RunConfig, values: Mapping[str, Any], source: str) -> RunConfig:
    """A configuration with other values of some options, checked as those of a file are.

    Raises:
        ConfigError: a name is unknown, or a value is not of its kind.
    """
    return _apply(config, values, source)


def _apply(config: RunConfig, values: Mapping[str, Any], source: str) -> RunConfig:
    known = {option.name: option for option in options()}
    changes: dict[str, dict[str, Any]] = {}
    for name, value in parse(known, values, source).items():
        option = known[name]
        changes.setdefault(option.section, {})[option.field] = value
    sections: dict[str, Any] = {
        section: replace(getattr(config, section), **changed)
        for section, changed in changes.items()
    }
    return replace(config, **sections, given=config.given | {str(name) for name in values})


def plain(value: Any) -> Any:
    """A value of an option as JSON and YAML write it."""
    if isinstance(value, tuple):
        return [str(item) if isinstance(item, GivenRows) else item for item in value]
    return dict(value) if isinstance(value, Mapping) else value
