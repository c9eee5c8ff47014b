"""What a server may use and what it allows: frozen specs, quick to import."""

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
        metadata={
            "help": "Number of slots for adapters in memory. Adapters without a slot stay on disk "
            "until a request names them."
        },
    )
    slot_rank: int = field(
        default=16,
        metadata={"help": "Rank of one slot; an adapter of a higher rank takes several slots."},
    )
    cache_gb: float = field(
        default=1.0, metadata={"help": "Memory of the KV cache, in GB, for all sequences."}
    )
    max_running: int = field(
        default=32, metadata={"help": "The most sequences that run concurrently; others wait."}
    )
    max_queue: int = field(
        default=128,
        metadata={
            "help": "The most sequences that may wait; a request beyond it gets the HTTP status 429."
        },
    )
    step_tokens: int = field(
        default=256,
        metadata={
            "help": "The most tokens of one step: one for each running sequence, then parts of new "
            "prompts. A smaller value delays running answers less, a larger one reads prompts "
            "faster."
        },
    )
    max_prompt: int = field(default=4096, metadata={"help": "The most tokens of a prompt."})
    max_output: int = field(
        default=1024,
        metadata={
            "help": "The most tokens of a completion, also for a request that sets no limit."
        },
    )
    patience: float = field(
        default=2.0,
        metadata={
            "help": "Seconds for which later requests may overtake a request whose adapter has no "
            "slot yet; after that they wait for it."
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
        metadata={
            "help": "Address to listen on. An address that other machines can reach needs --keys."
        },
    )
    port: int = field(
        default=8000, metadata={"help": "Port; 0 takes a free one, which is then printed."}
    )
    keys: str | None = field(
        default=None,
        metadata={
            "help": "File of API keys (see --new-key). Without it, every user of this machine may "
            "send requests."
        },
    )
    allow_loading: bool = field(
        default=False,
        metadata={"help": "Allow clients to register and remove adapters while the server runs."},
    )
    loading_dirs: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "Folders, besides the store, from which clients may register adapters. Needs "
            "--allow-loading."
        },
    )
    runs: str | None = field(
        default=None,
        metadata={
            "help": "Folder of run folders; the page at / lists their reports. Default: none."
        },
    )
    max_body_kb: int = field(default=1024, metadata={"help": "The largest request body, in kB."})
    max_choices: int = field(
        default=16, metadata={"help": "The most completions of one request: prompts times n."}
    )
    drain_seconds: float = field(
        default=30.0,
        metadata={"help": "Seconds that running requests may still take after SIGTERM or Ctrl-C."},
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
                "only clients with a key may send requests (lorakit serve --new-key NAME --keys "
                "FILE makes a key)"
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
            "help": "The program that generates: lorakit (in this process), or vllm (lorakit starts "
            "vLLM, exports the adapters for it, and passes requests on to it)."
        },
    )
    vllm: str | None = field(
        default=None,
        metadata={
            "help": "The vLLM to start: the folder of its environment, its python, or its vllm "
            "command. Default: vLLM in this environment, else the vllm command in the PATH."
        },
    )
    vllm_args: str = field(
        default="",
        metadata={
            "help": "More options for vLLM in one string, such as '--tensor-parallel-size 2'."
        },
    )
    vllm_seconds: float = field(
        default=900.0, metadata={"help": "Seconds that vLLM may take to start."}
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
