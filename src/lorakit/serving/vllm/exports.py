"""Adapters as vLLM takes them, and the adapter that changes nothing."""

import contextlib
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from lorakit.adapters.export import vllm_safe
from lorakit.adapters.pairs import StoredAdapter, read_stored, unit_pair, write_stored
from lorakit.adapters.peft_config import PeftConfig
from lorakit.adapters.vllm_ranks import next_rank
from lorakit.errors import AdapterError
from lorakit.files.cache import cache_dir, locked
from lorakit.lora.planning import Target
from lorakit.lora.spec import LoraSpec
from lorakit.lora.variant import Capability
from lorakit.serving.bank import check_paths

NOTHING = "lorakit-changes-nothing"
"""What the adapter that changes nothing is called, here and in vLLM."""


class Exports:
    """A folder of adapters in the form that vLLM takes, each under its content id.

    Args:
        root: the folder.
        targets: layers of the base that can be adapted, by path.
        rank: highest rank of an adapter; one of vLLM's.
        parameters: paths of the base's bare parameters, such as fused experts.
    """

    needs = (Capability.VLLM, Capability.FOLD)

    def __init__(
        self,
        root: Path,
        targets: Mapping[str, Target],
        rank: int,
        parameters: Collection[str] = (),
    ) -> None:
        self.root, self.targets, self.rank = root, dict(targets), rank
        self._parameters = frozenset(parameters)

    @property
    def largest_file(self) -> int:
        """Bytes of the widest adapter of the highest rank, and some to spare."""
        shapes = [target.geometry for target in self.targets.values()]
        widths = sum(shape.in_features + shape.out_features for shape in shapes)
        return 8 * self.rank * widths + (64 << 20)

    def width(self, ranks: Mapping[str, int], name: str) -> int:
        """1, the slots that an adapter takes.

        Raises:
            AdapterError: its rank is above the highest, or it adapts what a server does not.
        """
        if bare := sorted(self._parameters & ranks.keys()):
            raise AdapterError(
                f"{name} has pairs on {bare[0]} and {len(bare) - 1} more bare parameters (experts), which "
                "are not given to vLLM: serve it without --engine vllm, or merge it into a model of its own"
            )
        check_paths(ranks, self.targets, name)
        highest = max(ranks.values())
        if highest > self.rank:
            needed = next_rank(highest)
            hint = (
                f"give --slot-rank {needed}"
                if needed
                else "truncate it to a lower rank (`lorakit adapters shrink`), or merge it"
            )
            raise AdapterError(
                f"{name} has rank {highest}, and vLLM was started for ranks up to {self.rank}: "
                f"{hint}"
            )
        return 1

    def open(self, folder: Path, key: str) -> Path:
        """Write the adapter in a folder as vLLM takes it; where that is.

        Raises:
            AdapterError: it cannot be read, or vLLM has no place for it.
        """
        stored = read_stored(folder)
        self.width({path: pair.rank for path, pair in stored.pairs.items()}, str(folder))
        if stored.whole:
            raise AdapterError(f"{folder} holds whole weights ({', '.join(stored.whole)})")
        return write_stored(self.root / key, vllm_safe(stored), overwrite=True)

    def nothing(self) -> Path:
        """Write an adapter of zeros on every layer; where it is."""
        pairs = {
            path: unit_pair(
                torch.zeros(1, target.geometry.in_features),
                torch.zeros(target.geometry.out_features, 1),
                target.geometry.kind,
            )
            for path, target in self.targets.items()
        }
        names = tuple(sorted({path.rpartition(".")[2] for path in pairs}))
        config = PeftConfig(LoraSpec(rank=1, alpha=1.0), names, task_type="CAUSAL_LM")
        folder = self.root / NOTHING
        return write_stored(folder, StoredAdapter(folder, config, None, pairs), overwrite=True)

    def forget(self, key: str) -> None:
        """Remove what `open` wrote."""
        shutil.rmtree(self.root / key, ignore_errors=True)


@contextlib.contextmanager
def own_folder() -> Iterator[Path]:
    """A folder in the user's cache for as long as the block; what dead processes left goes first."""
    root = cache_dir() / "vllm"
    name = secrets.token_hex(6)
    lock = FileLock(root / f"{name}.lock", thread_local=False)
    with locked(root / "folders"):
        _sweep(root)
        lock.acquire()
    folder = root / name
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with locked(root / "folders"):
            (root / f"{name}.lock").unlink(missing_ok=True)
            lock.release()


def _sweep(root: Path) -> None:
    """Remove the folders whose owner does not live any more."""
    for file in root.glob("*.lock"):
        if file.name.startswith("."):
            continue  # of `locked` itself
        lock = FileLock(file)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        shutil.rmtree(file.with_suffix(""), ignore_errors=True)
        file.unlink(missing_ok=True)
        lock.release()
