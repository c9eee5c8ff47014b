"""vLLM's process: started, waited for, ended. It ends with this one, however this one ends."""

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import httpx2

from lorakit.errors import EngineError
from lorakit.files.cache import cache_dir
from lorakit.serving.vllm.exports import own_folder
from lorakit.serving.vllm.log import end_of
from lorakit.serving.vllm.tied import GRACE, end_group

_POLL_SECONDS = 0.2
_READ = 1 << 18
"""Bytes of the end of a log that are looked at."""
_URL = "http://vllm"
_TIMEOUT = httpx2.Timeout(None, connect=10.0)


class Child:
    """One vLLM, and the folders that live as long as it.

    It listens on a socket in a folder that only this user can enter: vLLM asks for its key on some
    of its paths and not on all.

    Attributes:
        folder: for what it reads: exported adapters.
        socket: where it listens.
    """

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self.folder = self._stack.enter_context(own_folder())
        # Not in the cache: a socket's path may have a hundred bytes, and a user's cache lies deep.
        self._place = Path(tempfile.mkdtemp(prefix="lorakit-"))
        self._stack.callback(shutil.rmtree, self._place, ignore_errors=True)
        self.socket = self._place / "vllm"
        self._log = self.folder / "vllm.log"
        self._process: subprocess.Popen[str] | None = None
        self._leader = 0
        self._key = ""
        self._stopped = False

    def start(self, command: Sequence[str], environment: Mapping[str, str], key: str) -> None:
        """Start it; see `wait`.

        Args:
            command: what runs vLLM.
            environment: its variables.
            key: what requests have to present.

        Raises:
            EngineError: it cannot be started.
        """
        self._key = key
        tied = [
            sys.executable,
            "-m",
            "lorakit.serving.vllm.tied",
            str(self.folder),
            str(self._place),
        ]
        with self._log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [*tied, "--", *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=dict(environment),
                start_new_session=True,  # Ctrl-C is for this process, which then ends the other
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise EngineError(self._why("vLLM could not be started"))
        self._leader = int(line)

    def wait(self, seconds: float, tell: Callable[[float], None] = lambda waited: None) -> None:
        """Return once it can answer.

        Args:
            seconds: how long that may take.
            tell: called with the seconds that have passed, again and again.

        Raises:
            EngineError: it ended, or takes longer; the text has the end of its log.
        """
        began = time.monotonic()
        with self.client() as client:
            while (waited := time.monotonic() - began) < seconds:
                tell(waited)
                if not self.alive:
                    raise EngineError(self._why("vLLM did not start"))
                with contextlib.suppress(httpx2.TransportError):
                    if self._listens() and client.get("/health").status_code == 200:
                        return
                time.sleep(_POLL_SECONDS)
        raise EngineError(
            self._why(f"vLLM cannot answer after {seconds:.0f} s (--vllm-seconds gives it longer)")
        )

    def _listens(self) -> bool:
        """Whether somebody takes connections; httpcore2 2.16 leaves a socket open where nobody does."""
        with socket.socket(socket.AF_UNIX) as line, contextlib.suppress(OSError):
            line.connect(str(self.socket))
            return True
        return False

    def client(self) -> httpx2.Client:
        """An HTTP client of it, for one thread that may wait."""
        return httpx2.Client(
            transport=httpx2.HTTPTransport(uds=str(self.socket), verify=False),
            headers=self._headers,
            base_url=_URL,
            timeout=_TIMEOUT,
            trust_env=False,
        )

    def client_in_loop(self) -> httpx2.AsyncClient:
        """An HTTP client of it, for an event loop."""
        return httpx2.AsyncClient(
            transport=httpx2.AsyncHTTPTransport(uds=str(self.socket), verify=False),
            headers=self._headers,
            base_url=_URL,
            timeout=_TIMEOUT,
            trust_env=False,  # a proxy of the user's is not between the two
        )

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key}"}

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def failure(self) -> str | None:
        """How it ended without being asked to; None while it runs, or where it was."""
        if self._stopped or self._process is None or self.alive:
            return None
        return self._why("vLLM has ended")

    def stop(self) -> None:
        """End it, and remove its folders; what is in them is used by nobody else."""
        self._stopped = True
        process = self._process
        if process is not None:
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            try:
                process.wait(GRACE + 5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()
            if process.returncode < 0 and self._leader:
                end_group(self._leader)  # who should have done it was killed
        self._stack.close()

    def _why(self, what: str) -> str:
        """A sentence, and the end of the log; all of it is copied into the cache."""
        code = self._process.poll() if self._process is not None else None
        how = "" if code is None else f": it ended with code {code}"
        copy = cache_dir() / "vllm" / "failed.log"
        said = ""
        with contextlib.suppress(OSError):
            with self._log.open("rb") as file:
                file.seek(max(0, self._log.stat().st_size - _READ))
                said = end_of(file.read().decode("utf-8", "replace"))
            shutil.copyfile(self._log, copy)
        return f"{what}{how}" + (f"; the end of its log ({copy}):\n{said}" if said else "")
