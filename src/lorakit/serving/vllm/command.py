"""lorakit's options -> vLLM's. Pure.

What has no default of its own in vLLM is always said; what vLLM fits to the device it runs on (the
tokens of a step, the cache on a GPU) only where the user gave it.
"""

import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from lorakit.adapters.vllm_ranks import RANKS, next_rank
from lorakit.errors import ConfigError
from lorakit.models.spec import FULL, ModelSpec
from lorakit.serving.spec import EngineSpec, RuntimeSpec
from lorakit.serving.vllm.program import Program

# Options of vLLM's that lorakit gives itself, and which of lorakit's is meant by each; None where
# there is no choice.
_OURS: dict[str, str | None] = {
    "--model": "--base",
    "--tokenizer": "--base",
    "--revision": "--revision",
    "--trust-remote-code": "--trust-remote-code",
    "--dtype": "--dtype",
    "--max-loras": "--slots",
    "--max-lora-rank": "--slot-rank",
    "--max-model-len": "--max-prompt and --max-output",
    "--max-num-seqs": "--max-running",
    "--max-num-batched-tokens": "--step-tokens",
    "--kv-cache-memory-bytes": "--cache-gb",
    "--api-key": "--keys",
    "--host": "--host",
    "--port": "--port",
    "--lora-modules": "--adapters",
    "--uds": None,
    "--served-model-name": None,
    "--enable-lora": None,
    "--generation-config": None,
    "--structured-outputs-config": None,
    "--enable-prompt-tokens-details": None,
    "--ssl-keyfile": None,
    "--ssl-certfile": None,
    "--root-path": None,
}


@dataclass(frozen=True)
class Launch:
    """What one vLLM is started with.

    Attributes:
        folder: the base's files.
        name: what the base is called.
        socket: where it listens.
        rank: highest rank of an adapter, one of `RANKS`.
        context: longest sequence, in tokens.
        given: names of the options of `EngineSpec` that the user gave.
    """

    folder: Path
    name: str
    socket: Path
    rank: int
    context: int
    given: Collection[str] = ()


def check_options(
    runtime: RuntimeSpec, model: ModelSpec, engine: EngineSpec, given: Collection[str]
) -> None:
    """Refuse what means nothing where vLLM computes.

    Raises:
        ConfigError: an option has no counterpart in vLLM, or is one that lorakit gives itself.
    """
    if "patience" in given:
        raise ConfigError("--patience is for lorakit's own engine: vLLM has an order of its own")
    if model.device != "auto":
        raise ConfigError(
            f"--device {model.device} is for lorakit's own engine: vLLM computes on what it was "
            "built for, and CUDA_VISIBLE_DEVICES says which of several GPUs"
        )
    if model.base_dtype != FULL:
        raise ConfigError(
            f"--base-dtype {model.base_dtype} is for lorakit's own engine: vLLM reads the model's files "
            "itself; give it a folder that is quantized in a way it knows"
        )
    if next_rank(engine.slot_rank) is None:
        raise ConfigError(f"slot_rank is {engine.slot_rank}, and vLLM has none above {RANKS[-1]}")
    for word in _split(runtime.vllm_args):
        name = word.partition("=")[0].replace("_", "-")
        # vLLM's parser takes the beginning of an option's name for the option.
        meant = [ours for ours in _OURS if name.startswith("--") and ours.startswith(name)]
        if meant:
            instead = _OURS[meant[0]]
            hint = f"give lorakit's {instead}" if instead else "leave it out"
            raise ConfigError(f"--vllm-args: lorakit gives {meant[0]} itself; {hint}")


def arguments(
    program: Program, launch: Launch, model: ModelSpec, engine: EngineSpec, runtime: RuntimeSpec
) -> list[str]:
    """The command that starts vLLM."""
    # A request for the base may need an adapter that changes nothing, in a slot of its own.
    slots = engine.slots + (not program.apart)
    said: dict[str, object] = {
        "--served-model-name": launch.name,
        "--uds": launch.socket,
        "--dtype": model.dtype,
        "--max-model-len": launch.context,
        "--max-num-seqs": engine.max_running,
        "--max-loras": slots,
        "--max-lora-rank": launch.rank,
        # What a model's files say of temperatures and penalties is not what a client asked for.
        "--generation-config": "vllm",
        # The library that checked a request's schema here is the one that keeps to it there.
        "--structured-outputs-config": '{"backend": "guidance"}',
    }
    if "step_tokens" in launch.given:
        said["--max-num-batched-tokens"] = engine.step_tokens
    # Without a word vLLM takes most of the memory: its own rule is right for a GPU alone.
    if "cache_gb" in launch.given or program.device == "cpu":
        said["--kv-cache-memory-bytes"] = round(engine.cache_gb * 1e9)
    flags = ["--enable-lora", "--enable-prompt-tokens-details", "--disable-uvicorn-access-log"]
    if model.trust_remote_code:
        flags.append("--trust-remote-code")
    words = [str(part) for pair in said.items() for part in pair]
    more = _split(runtime.vllm_args)
    return [*program.serve(launch.folder), *words, *flags, *more]


def environment(before: Mapping[str, str], key: str) -> dict[str, str]:
    """The variables that vLLM is started with: its key is in none of its arguments, for all to read.

    Args:
        before: this process's own.
        key: what requests have to present.
    """
    # An older way to say what --cache-gb says, which would win over it.
    inherited = {name: value for name, value in before.items() if name != "VLLM_CPU_KVCACHE_SPACE"}
    return {
        **inherited,
        "VLLM_API_KEY": key,
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"--vllm-args cannot be read: {error}") from None
