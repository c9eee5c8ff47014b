"""What a server may use and what it allows: small, frozen, quick to import."""

from dataclasses import dataclass, field
from typing import Literal

from lorakit.errors import ConfigError


@dataclass(frozen=True)
class EngineSpec:
    """How much the engine holds and does at once.

    Raises:
        ConfigError: a value is out of its range.
    """

    slots: int = field(
        default=16,
        metadata={"help": "Adapters held ready; the rest stay on disk until they are asked for."},
    )
    slot_rank: int = field(
        default=16,
        metadata={"help": "Rank of a slot; an adapter of a higher rank takes several."},
    )
    cache_gb: float = field(
        default=1.0, metadata={"help": "Memory for the keys and values of all sequences, in GB."}
    )
    max_running: int = field(
        default=32, metadata={"help": "Sequences computed at once; others wait."}
    )
    max_queue: int = field(
        default=128,
        metadata={"help": "Sequences that may wait; beyond it a request is answered with 429."},
    )
    step_tokens: int = field(
        default=256,
        metadata={
            "help": "Tokens of one step: the running sequences' next ones, then pieces of prompts. "
            "Smaller pauses running answers less, larger reads prompts faster."
        },
    )
    max_prompt: int = field(default=4096, metadata={"help": "Longest prompt, in tokens."})
    max_output: int = field(
        default=1024,
        metadata={"help": "Longest answer, in tokens; also what a request without a limit gets."},
    )
    patience: float = field(
        default=2.0,
        metadata={
            "help": "Seconds that a request may be overtaken by later ones whose adapters are "
            "ready; then they wait for it."
        },
    )

    def __post_init__(self) -> None:
        for name in (
            *("slots", "slot_rank", "max_running", "max_queue", "step_tokens"),
            *("max_prompt", "max_output"),
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1; it is {getattr(self, name)}")
        if self.cache_gb <= 0 or self.patience < 0:
            raise ConfigError("cache_gb must be above 0 and patience at least 0")


@dataclass(frozen=True)
class HttpSpec:
    """Where the server listens and what it lets a client do.

    Raises:
        ConfigError: a value is out of its range, or the server would be open to all.
    """

    host: str = field(
        default="127.0.0.1",
        metadata={"help": "Address to listen on; any but this machine's own needs --keys."},
    )
    port: int = field(default=8000, metadata={"help": "Port; 0 takes a free one and says which."})
    keys: str | None = field(
        default=None,
        metadata={"help": "File of API keys (see --new-key); without it every local user may ask."},
    )
    allow_loading: bool = field(
        default=False,
        metadata={"help": "Let clients register and remove adapters while the server runs."},
    )
    loading_dirs: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "Folders from which clients may register adapters, beside the store; with "
            "--allow-loading."
        },
    )
    runs: str | None = field(
        default=None,
        metadata={"help": "Folder of runs whose reports the page at / lists."},
    )
    max_body_kb: int = field(default=1024, metadata={"help": "Largest request body, in kB."})
    max_choices: int = field(
        default=16, metadata={"help": "Most answers to one request: prompts times n."}
    )
    drain_seconds: float = field(
        default=30.0,
        metadata={"help": "On SIGTERM, how long running answers may take to end."},
    )

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is out of range: {self.port}")
        if self.max_body_kb < 1 or self.max_choices < 1 or self.drain_seconds < 0:
            raise ConfigError(
                "max_body_kb and max_choices must be at least 1, drain_seconds at least 0"
            )
        if self.keys is None and self.host not in LOOPBACK:
            raise ConfigError(
                f"host {self.host!r} can be reached from other machines: give --keys FILE, so that "
                "not everyone may ask (lorakit serve --new-key NAME --keys FILE makes a key)"
            )


@dataclass(frozen=True)
class RuntimeSpec:
    """Which program computes: lorakit's own engine, or vLLM behind the same server.

    Raises:
        ConfigError: an option of vLLM's without vLLM, or a value out of its range.
    """

    engine: Literal["lorakit", "vllm"] = field(
        default="lorakit",
        metadata={
            "help": "What computes the answers: lorakit in this process, or vLLM, which lorakit "
            "starts, feeds with exported adapters and stands before."
        },
    )
    vllm: str | None = field(
        default=None,
        metadata={
            "help": "Which vLLM: its environment's folder, its python or its vllm command; without "
            "it the one of this environment, or the vllm command in the PATH."
        },
    )
    vllm_args: str = field(
        default="",
        metadata={"help": "More options for vLLM, in one text: '--tensor-parallel-size 2'."},
    )
    vllm_seconds: float = field(
        default=900.0, metadata={"help": "How long vLLM may take until it can answer."}
    )

    def __post_init__(self) -> None:
        if self.vllm_seconds <= 0:
            raise ConfigError(f"vllm_seconds must be above 0; it is {self.vllm_seconds}")
        if self.engine == "lorakit":
            for name in ("vllm", "vllm_args", "vllm_seconds"):
                if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                    flag = "--" + name.replace("_", "-")
                    raise ConfigError(f"{flag} is for vLLM: give --engine vllm as well")


LOOPBACK = ("127.0.0.1", "localhost", "::1")
