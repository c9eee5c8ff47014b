"""The compiled kernels of the package lorakit-kernels: found, and one instruction set of them chosen.

Each set computes in one number format: avx2 in float32, avx512bf16 and amx in bfloat16. A set gives other
bits than plain torch and than another set, so that a checkpoint records which one trained it.

    LORAKIT_KERNELS   what runs
    (nothing)         the set that was measured to be faster than plain torch on such a processor: see `_best`
    plain             plain torch
    avx2, ...         that set, for models of its number format; an error where it cannot be
    triton            on a GPU what is chosen there anyway where Triton is installed (gpu/dispatch.py)

The library holds no OpenMP runtime of its own: it is handed the one that torch has loaded, whose team of
threads is then the only one in the process. Sources, and what they promise, are in native/ of the repository.
"""

import ctypes
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lorakit.errors import ConfigError, did_you_mean
from lorakit.kernels.gpu import dispatch

VARIABLE, PLAIN, TRITON = "LORAKIT_KERNELS", "plain", "triton"
FORMATS = {"avx2": torch.float32, "avx512bf16": torch.bfloat16, "amx": torch.bfloat16}
"""The sets, in the order of the library's bits, and the number format of each."""
CALLS = 3
"""What the library's functions take, as a number: LK_CALLS of native/src/base.cpp has to be the same."""
_PACKAGE = "lorakit_kernels"
_TYPES: dict[str, Any] = {"i": ctypes.c_int64, "f": ctypes.c_float}
_RUNTIME = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")


@dataclass(frozen=True)
class KernelChoice:
    """What computes where a compiled kernel and plain torch could: the set's name or "plain", and why.

    Attributes:
        name: of the set, or "plain".
        why: it is that.
        beside: what something else computes, in words.
    """

    name: str
    why: str
    beside: str = ""

    @property
    def line(self) -> str:
        """For the user, one line."""
        name, more = "plain torch" if self.name == PLAIN else self.name, self.beside
        return f"kernels: {name} ({self.why})" + (f"; {more}" if more else "")


@dataclass(frozen=True)
class Library:
    """The library of an installation.

    Attributes:
        code: it, loaded.
        path: where it lies.
        machine, built: sets that this machine has, and that are compiled into it.
        avx512: whether the processor has AVX512 in whatever form.
        amd: whether AMD made it.
        threads: whose threads it computes with.
    """

    code: ctypes.CDLL
    path: Path
    machine: frozenset[str]
    built: frozenset[str]
    avx512: bool
    amd: bool
    threads: str


def requested() -> str | None:
    """The set that the environment forces, None where it leaves the choice.

    Raises:
        ConfigError: there is no such set, or this machine or this build lacks it.
    """
    name = os.environ.get(VARIABLE, "")
    if name in ("", PLAIN):
        return name or None
    if name == TRITON:
        if not dispatch.installed():
            raise ConfigError(
                f'{VARIABLE}={name}: Triton is not installed; `pip install "lorakit[gpu]"` brings it'
            )
        return name
    if name not in FORMATS:
        known = (PLAIN, *FORMATS, TRITON)
        raise ConfigError(f"{VARIABLE}={name}: there is no such set; {did_you_mean(name, known)}")
    found = library()
    if isinstance(found, str):
        raise ConfigError(f"{VARIABLE}={name}: {found}. Leave it out, or give {VARIABLE}={PLAIN}")
    if name not in found.built:
        raise ConfigError(
            f"{VARIABLE}={name}: the compiler that built {found.path} did not know it; it has "
            f"{', '.join(sorted(found.built)) or 'no set'}. `pip install ./native` builds it again"
        )
    if name not in found.machine:
        can = ", ".join(s for s in (PLAIN, *FORMATS) if s == PLAIN or s in usable(found))
        raise ConfigError(f"{VARIABLE}={name}: this processor has it not; here it can be {can}")
    return name


def choose(dtype: torch.dtype, device: torch.device) -> KernelChoice:
    """What computes with a model.

    Args:
        dtype: of its weights.
        device: where they lie.

    Raises:
        ConfigError: see `requested`.
    """
    forced = requested()
    if forced == PLAIN:
        return KernelChoice(PLAIN, f"{VARIABLE}={PLAIN}")
    if device.type == "cuda" and dtype in dispatch.FORMATS and dispatch.installed():
        return KernelChoice(TRITON, f"Triton {version('triton')}")
    if device.type != "cpu":
        return KernelChoice(PLAIN, f"on {device.type} the compiled kernels are not used")
    if forced == TRITON:
        return KernelChoice(PLAIN, f"{TRITON} computes on a GPU, and the model is on the CPU")
    found = library()
    if isinstance(found, str):
        return KernelChoice(PLAIN, found)
    name = forced or _best(found, dtype)
    if name is None:
        return KernelChoice(PLAIN, _why_none(found, dtype))
    if dtype != FORMATS[name]:
        return KernelChoice(
            PLAIN, f"{name} computes in {_said(FORMATS[name])}, and the model is in {_said(dtype)}"
        )
    return KernelChoice(name, f"lorakit-kernels {_version()}, {found.threads}")


def _best(found: Library, dtype: torch.dtype) -> str | None:
    """The set that is chosen where none is forced, None for plain torch.

    float32: avx2 on processors without AVX512, and on AMD's with it. Torch multiplies float32 by MKL, which on
    an AMD EPYC (Zen 5) reached 110 of the 257 GFLOP/s of a core, so that the narrower vectors still win: forward,
    loss and backward took 1/1.34 to 1/1.46 of the time. On Intel's nothing was measured yet.
    bfloat16: avx512bf16 where there is no AMX, which torch's matmuls use and no set of ours does.
    """
    if dtype == torch.float32 and "avx2" in usable(found) and (found.amd or not found.avx512):
        return "avx2"
    if dtype == torch.bfloat16 and "avx512bf16" in usable(found) and "amx" not in found.machine:
        return "avx512bf16"
    return None


def _why_none(found: Library, dtype: torch.dtype) -> str:
    sets = [name for name in FORMATS if name in usable(found)]
    fitting = [name for name in sets if FORMATS[name] == dtype]
    if not sets:
        return "the processor has no AVX2 with FMA"
    if dtype == torch.bfloat16 and "amx" in found.machine:
        return f"torch's matmuls use AMX; {VARIABLE} can force {' or '.join(fitting)}"
    if fitting:
        return f"not measured yet on such a processor; {VARIABLE} can force {' or '.join(fitting)}"
    formats = " and ".join(sorted({_said(FORMATS[name]) for name in sets}))
    return f"{', '.join(sets)} compute{'s' * (len(sets) == 1)} in {formats}, and the model is in {_said(dtype)}"


def _said(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def function(
    name: str, arguments: str, dtype: torch.dtype, device: torch.device
) -> Callable[..., None] | None:
    """A kernel of the chosen set, `lk_<set>_<name>`; None where plain torch computes, or it has none.

    Ask once and keep the answer. The caller has looked that tensors are contiguous and of the set's
    number format; other Python threads run while a kernel computes.

    Args:
        name: of the kernel.
        arguments: a letter for each: "i" int64 or the address of a tensor, "f" float.
        dtype, device: as for `choose`.
    """
    choice = choose(dtype, device)
    return _function(choice.name, name, arguments) if choice.name in FORMATS else None


def beside(
    name: str, arguments: str, dtype: torch.dtype, device: torch.device
) -> Callable[..., None] | None:
    """A kernel that may stand beside torch's products: of any usable set, whichever set is chosen for them.

    So packed weights are unpacked by the library on a processor whose products torch computes faster.
    Arguments are those of `function`.

    Raises:
        ConfigError: see `requested`.
    """
    found = library()
    if device.type != "cpu" or isinstance(found, str):
        return None
    return _beside(found, os.environ.get(VARIABLE, ""), name, arguments, dtype)


@lru_cache
def _beside(
    found: Library, forced: str, name: str, arguments: str, dtype: torch.dtype
) -> Callable[..., None] | None:
    if forced:
        requested()
    for each in FORMATS:
        if FORMATS[each] == dtype and each in usable(found) and forced in ("", each):
            kernel = _function(each, name, arguments)
            if kernel is not None:
                return kernel
    return None


@lru_cache
def _function(set: str, name: str, arguments: str) -> Callable[..., None] | None:
    found = library()
    assert isinstance(found, Library)
    if not hasattr(found.code, f"lk_{set}_{name}"):
        return None
    kernel = found.code[f"lk_{set}_{name}"]
    kernel.restype = None
    kernel.argtypes = [_TYPES[letter] for letter in arguments]
    return kernel


def usable(found: Library) -> frozenset[str]:
    """Sets that run here."""
    return found.machine & found.built


@lru_cache
def library() -> Library | str:
    """The library, ready to be called, or why there is none."""
    try:
        package: Any = importlib.import_module(_PACKAGE)
    except ModuleNotFoundError:
        return "lorakit-kernels is not installed"
    try:
        path = package.library()
        code = ctypes.CDLL(str(path))
    except OSError as error:
        return f"lorakit-kernels cannot be loaded: {error}"
    if not hasattr(code, "lk_calls") or code.lk_calls() != CALLS:
        return (
            f"lorakit-kernels {_version()} belongs to another version of lorakit: `pip install ./native` "
            "or `pip install -U lorakit-kernels` brings this one's"
        )
    runtime = openmp_runtime()
    if runtime is None:
        return "torch has loaded no libgomp, whose threads the compiled kernels compute with"
    functions = [ctypes.cast(getattr(runtime, name), ctypes.c_void_p) for name in _RUNTIME]
    code.lk_init(*functions, 0)
    return Library(
        code,
        path,
        _named(code.lk_machine_sets()),
        _named(code.lk_built_sets()),
        bool(code.lk_machine_has_avx512()),
        bool(code.lk_machine_is_amd()),
        "torch's threads",
    )


def openmp_runtime() -> ctypes.CDLL | None:
    """The OpenMP runtime that torch computes with, as its own library finds it; None where it is not GNU's.

    Not any libgomp of the process: other packages bring one of their own (sentencepiece, scikit-learn), and
    the threads of two wait awake for the same cores. With the kernels on sentencepiece's, a prompt of 1,500
    tokens took 2.5 to 6.8 s to read on two cores.
    """
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if not path.exists():
        return None
    runtime = ctypes.CDLL(str(path))
    return runtime if all(hasattr(runtime, name) for name in _RUNTIME) else None


def _named(bits: int) -> frozenset[str]:
    return frozenset(name for place, name in enumerate(FORMATS) if bits >> place & 1)


def _version() -> str:
    try:
        return version("lorakit-kernels")
    except PackageNotFoundError:
        return "of no known version"
