"""The compiled library: found or not, forced or not, and no instruction of a higher set in a lower one."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from families import saved
from lorakit.errors import ConfigError, OutputError
from lorakit.kernels import native
from lorakit.kernels.gpu import dispatch
from lorakit.training.checkpoint import Progress, load_checkpoint, save_checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def fresh(monkeypatch):
    """Nothing forced, and the library looked for again, here and after the test."""
    monkeypatch.delenv(native.VARIABLE, raising=False)
    native.library.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    native.library.cache_clear()


def pretend(monkeypatch, machine=(), built=tuple(native.FORMATS), avx512=False, amd=False):
    """A library of these sets."""
    sets = frozenset(machine), frozenset(built)
    found = native.Library(
        SimpleNamespace(), "liblorakit_kernels.so", *sets, avx512, amd, "threads"
    )
    monkeypatch.setattr(native, "library", lambda: found)


def test_without_the_package_torch_computes_and_one_line_says_so(fresh):
    fresh.setitem(sys.modules, "lorakit_kernels", None)
    choice = native.choose(torch.float32, CPU)
    assert choice.line == "kernels: plain torch (lorakit-kernels is not installed)"
    assert native.function("slots_add", "i" * 8, torch.float32, CPU) is None


def test_a_package_without_its_library_is_no_failure(fresh, tmp_path):
    def absent():
        raise FileNotFoundError(f"{tmp_path} holds no library")

    fresh.setitem(sys.modules, "lorakit_kernels", SimpleNamespace(library=absent))
    assert "holds no library" in native.choose(torch.float32, CPU).why
    broken = tmp_path / "liblorakit_kernels.so"
    broken.write_bytes(b"no library")
    fresh.setitem(sys.modules, "lorakit_kernels", SimpleNamespace(library=lambda: broken))
    native.library.cache_clear()
    assert "cannot be loaded" in native.choose(torch.float32, CPU).why


def test_a_library_of_another_release_is_not_called(fresh):
    pytest.importorskip("lorakit_kernels")
    fresh.setattr(native, "CALLS", native.CALLS + 1)
    choice = native.choose(torch.float32, CPU)
    assert choice.name == native.PLAIN
    assert "pip install ./native" in choice.why


def test_both_distributions_have_one_version():
    root = Path(__file__).parents[2]
    texts = [root / "pyproject.toml", root / "native" / "pyproject.toml"]
    assert len({tomllib.loads(text.read_text())["project"]["version"] for text in texts}) == 1


def test_without_gnus_openmp_torch_computes(fresh):
    pytest.importorskip("lorakit_kernels")
    fresh.setattr(native, "openmp_runtime", lambda: None)
    choice = native.choose(torch.float32, CPU)
    assert (choice.name, "libgomp" in choice.why) == (native.PLAIN, True)


ZEN = ("avx2", "avx512bf16")
XEON = ("avx2", "avx512bf16", "amx")


@pytest.mark.parametrize(
    ("machine", "maker", "dtype", "name", "why"),
    [
        (("avx2",), "", torch.float32, "avx2", "lorakit-kernels"),
        (("avx2",), "amd", torch.float32, "avx2", "lorakit-kernels"),
        (("avx2",), "", torch.bfloat16, "plain", "avx2 computes in float32"),
        (("avx2",), "", torch.float64, "plain", "avx2 computes in float32"),
        (("avx2",), "avx512", torch.float32, "plain", "can force avx2"),
        (ZEN, "amd, avx512", torch.float32, "avx2", "lorakit-kernels"),
        (ZEN, "amd, avx512", torch.bfloat16, "avx512bf16", "lorakit-kernels"),
        (ZEN, "avx512", torch.bfloat16, "avx512bf16", "lorakit-kernels"),
        (ZEN, "amd, avx512", torch.float16, "plain", "compute in bfloat16 and float32"),
        (
            XEON,
            "avx512",
            torch.bfloat16,
            "plain",
            "AMX; LORAKIT_KERNELS can force avx512bf16 or amx",
        ),
        (XEON, "avx512", torch.float32, "plain", "can force avx2"),
        ((), "", torch.float32, "plain", "no AVX2"),
    ],
)
def test_what_is_chosen_where_nothing_is_forced(fresh, machine, maker, dtype, name, why):
    pretend(fresh, machine, avx512="avx512" in maker, amd="amd" in maker)
    choice = native.choose(dtype, CPU)
    assert choice.name == name
    assert why in choice.why


def test_a_set_is_forced_for_models_of_its_format(fresh):
    pretend(fresh, ("avx2", "avx512bf16", "amx"), avx512=True)
    for name, dtype in native.FORMATS.items():
        fresh.setenv(native.VARIABLE, name)
        assert native.choose(dtype, CPU).name == name
    assert native.choose(torch.float32, CPU).name == native.PLAIN
    assert native.choose(torch.bfloat16, torch.device("mps")).name == native.PLAIN
    fresh.setenv(native.VARIABLE, "plain")
    assert native.choose(torch.bfloat16, CPU).why == "LORAKIT_KERNELS=plain"


@pytest.mark.parametrize(
    ("value", "machine", "built", "says"),
    [
        ("avx3", ("avx2",), ("avx2",), "did you mean 'avx2'"),
        ("AVX2", ("avx2",), ("avx2",), "there is no such set"),
        (
            "amx",
            ("avx2",),
            ("avx2", "amx"),
            "this processor has it not; here it can be plain, avx2",
        ),
        ("amx", ("avx2", "amx"), ("avx2",), "the compiler .* did not know it; it has avx2"),
    ],
)
def test_a_set_that_cannot_be_is_an_error(fresh, value, machine, built, says):
    pretend(fresh, machine, built)
    fresh.setenv(native.VARIABLE, value)
    with pytest.raises(ConfigError, match=says):
        native.choose(torch.float32, CPU)


def test_a_forced_set_without_the_package_is_an_error(fresh):
    fresh.setitem(sys.modules, "lorakit_kernels", None)
    fresh.setenv(native.VARIABLE, "avx2")
    with pytest.raises(ConfigError, match=r"not installed\. Leave it out"):
        native.requested()


def test_an_error_of_the_environment_ends_a_command_with_two(fresh, capsys, tmp_path):
    from lorakit.cli.main import run

    fresh.setenv(native.VARIABLE, "avx3")
    assert run(["generate", "--model", str(saved(tmp_path / "model")), "hi"]) == 2
    said = capsys.readouterr().err
    assert "LORAKIT_KERNELS=avx3" in said
    assert "Traceback" not in said


def test_another_set_does_not_go_on_from_a_checkpoint(tmp_path):
    state = {"flat": torch.ones(3)}
    save_checkpoint(tmp_path, Progress(step=4), state, None, run="a", kernels="avx2")
    with pytest.raises(OutputError, match="set LORAKIT_KERNELS=avx2"):
        load_checkpoint(tmp_path, run="a")
    progress, _, _ = load_checkpoint(tmp_path, run="a", kernels="avx2")
    assert progress.step == 4


# --- the instructions of each set

# Registers of AVX512 and of tiles; a mnemonic of vdpbf16ps' kind; anything that AVX brought.
_TILES = re.compile(r"%tmm|\b(ldtilecfg|sttilecfg|tile\w+|tdp\w+)\b")
_WIDE = re.compile(r"%zmm|%[xy]mm(1[6-9]|2\d|3[01])\b|%k[0-7]\b|\bv(dpbf16ps|cvtne\w*bf16)")
_AVX = re.compile(r"%ymm|\tv[a-z0-9]+ ")
FORBIDDEN = {
    "amx": (),
    "avx512bf16": (_TILES,),
    "avx2": (_TILES, _WIDE),
    "": (_TILES, _WIDE, _AVX),  # runs on any processor
}
_FUNCTION = re.compile(r"^[0-9a-f]+ <(.+)>:$")


def set_of(symbol):
    """The set that a function was compiled for: it is in its name, or the name of its namespace."""
    return next((s for s in ("avx512bf16", "avx2", "amx") if re.search(rf"lk_{s}", symbol)), "")


def above(disassembly):
    """(function, instruction) of every instruction of a set above the function's own."""
    symbol, found = "", []
    for line in disassembly.splitlines():
        if head := _FUNCTION.match(line):
            symbol = head[1]
        elif any(each.search(line) for each in FORBIDDEN[set_of(symbol)]):
            found.append((symbol, line.strip()))
    return found


def test_no_set_holds_an_instruction_of_a_higher_one():
    package = pytest.importorskip("lorakit_kernels")
    if shutil.which("objdump") is None:
        pytest.skip("objdump, of binutils, is not here")
    command = ["objdump", "-d", "--no-show-raw-insn", str(package.library())]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    symbols = [m[1] for m in map(_FUNCTION.match, shown.splitlines()) if m]
    found = native.library()
    assert {set_of(s) for s in symbols} >= {"", *found.built}
    assert above(shown) == []


@pytest.mark.parametrize(
    ("symbol", "instruction"),
    [
        ("lk_avx2_slots_add", "vmovups (%rax),%zmm3"),
        ("_ZN7lk_avx23dotEv", "vaddps %ymm17,%ymm1,%ymm0"),
        ("_ZN7lk_avx23dotEv", "kmovw %k1,%eax"),
        ("_ZN12_GLOBAL__N_113lk_avx512bf163dotEv", "tdpbf16ps %tmm0,%tmm1,%tmm2"),
        ("lk_parallel", "vxorps %xmm0,%xmm0,%xmm0"),
        ("_ZSt4swapIfEvRT_S1_", "vmovaps %ymm0,%ymm1"),
    ],
)
def test_the_check_of_instructions_can_fail(symbol, instruction):
    assert above(f"0000000000001000 <{symbol}>:\n    1000:\t{instruction}\n")


def test_triton_computes_on_a_gpu_where_it_is_installed(monkeypatch):
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr(native, "version", lambda package: "3.7.1")
    monkeypatch.setattr(dispatch, "installed", lambda: True)
    for value in (None, native.TRITON):
        _set(monkeypatch, value)
        assert native.choose(torch.bfloat16, cuda).line == "kernels: triton (Triton 3.7.1)"
        assert native.choose(torch.float64, cuda).name == native.PLAIN
    assert native.choose(torch.float32, cpu).name == native.PLAIN
    assert native.function("slots", "i", torch.float32, cpu) is None
    _set(monkeypatch, native.PLAIN)
    assert native.choose(torch.bfloat16, cuda).name == native.PLAIN
    monkeypatch.setattr(dispatch, "installed", lambda: False)
    _set(monkeypatch, None)
    assert native.choose(torch.bfloat16, cuda).name == native.PLAIN
    _set(monkeypatch, native.TRITON)
    with pytest.raises(ConfigError, match=r'`pip install "lorakit\[gpu\]"` brings it'):
        native.choose(torch.bfloat16, cuda)


def _set(monkeypatch, value):
    monkeypatch.delenv(native.VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(native.VARIABLE, value)


OTHER = """
import ctypes, sys
ctypes.CDLL(sys.argv[1])  # as a package that brings a libgomp of its own does
import torch
from lorakit.kernels import native

class Where(ctypes.Structure):
    _fields_ = [("file", ctypes.c_char_p), ("a", ctypes.c_void_p), ("b", ctypes.c_char_p), ("c", ctypes.c_void_p)]

where = Where()
address = ctypes.cast(native.openmp_runtime().GOMP_parallel, ctypes.c_void_p)
ctypes.CDLL(None).dladdr(address, ctypes.byref(where))
print(where.file.decode())
"""


def test_the_threads_are_torchs_whatever_else_has_some(tmp_path):
    """sentencepiece and scikit-learn bring a libgomp each: two teams on the same cores slow both."""
    own = [p for p in (Path(torch.__file__).parent / "lib").iterdir() if "libgomp" in p.name]
    if not own:
        pytest.skip("torch brings no libgomp here")
    # A path that stands before torch's in every order, and a name of its own: by the same name the loader
    # would give torch this one.
    other = tmp_path / "libgomp-0.so.9"
    whole = own[0].read_bytes()
    name = own[0].name.encode()
    assert name + b"\0" in whole
    other.write_bytes(whole.replace(name + b"\0", name[:-1] + b"9\0"))
    done = subprocess.run(
        [sys.executable, "-c", OTHER, str(other)], capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()).resolve() == own[0].resolve()
