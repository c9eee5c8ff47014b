"""What transformers imports for others is left out of the command's process, or comes when it is used.

Measured on two Zen 3 cores, torch 2.13, transformers 5.24, of 4.1 s that `transformers.modeling_utils`
takes: scipy for the losses of object detection .45 s, tensors that lie on several machines (and sympy)
.6 s, torch's compiler for two marks on functions .6 s, and collecting garbage while nothing becomes
garbage .5 s. Only the command asks for this, once, before anything heavy is imported: a program that
imports lorakit has transformers as it is.
"""

import gc
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from functools import partial, wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from threading import RLock
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo"
# The one module below it that masks are made with; it needs nothing of the compiler.
_OF_MASKS = "_trace_wrapped_higher_order_op"
# Marks for the compiler, put on functions as their module is imported: kept until there is a compiler.
_MARKS = ("allow_in_graph", "assume_constant_result")


def import_light() -> None:
    """From now on import torch and transformers light; imports nothing itself."""
    # torchrun starts several processes, which need what one has no use for.
    if "WORLD_SIZE" not in os.environ and "transformers.modeling_utils" not in sys.modules:
        sys.meta_path.insert(0, _Light({"torch": _nothing, "transformers.modeling_utils": _light}))


class _Light(MetaPathFinder):
    """Finds a few modules as always, and has something done before they run."""

    def __init__(self, before: dict[str, Callable[[], None]]) -> None:
        self.before = before

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        before = self.before.pop(fullname, None)
        spec = None if before is None else PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None and before is not None:
            spec.loader = _Uncollected(spec.loader, before)
        return spec


class _Uncollected(Loader):
    """Runs a module without collecting garbage; afterwards the module knows its own loader."""

    def __init__(self, loader: Loader, before: Callable[[], None]) -> None:
        self.loader, self.before = loader, before

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        module.__loader__ = self.loader
        collects = gc.isenabled()
        gc.disable()
        try:
            self.before()
            self.loader.exec_module(module)
        finally:
            if collects:
                gc.enable()


def _nothing() -> None:
    """torch is only kept from collecting garbage."""


def _light() -> None:
    """Before transformers' models are imported: what this process has no use for."""
    import torch
    from transformers.utils import import_utils

    # transformers asks what there is once and remembers the answer. One process trains and serves here,
    # so that tensors over several are not met; attention is never compiled (transformers has none of that
    # kind on a TPU); and nobody detects objects, or drafts tokens by scikit-learn.
    # Where another version has no such question, its import takes its time.
    with suppress(AttributeError), _answering(torch.distributed, "is_available", lambda: False):
        _asked(import_utils.is_torch_distributed_available)
    with suppress(AttributeError), _answering(import_utils, "get_device_type", lambda: "tpu"):
        _asked(import_utils.is_torch_flex_attn_available)
    with suppress(AttributeError), _missing("scipy"):
        _asked(import_utils.is_scipy_available)
    with suppress(AttributeError), _missing("sklearn"):
        _asked(import_utils.is_sklearn_available)
    with suppress(ImportError):
        _later(_COMPILER, needed=_OF_MASKS)


def _asked(question: Any) -> None:
    """Ask anew: some were asked when transformers itself was imported."""
    question.cache_clear()
    question()


@contextmanager
def _answering(where: Any, name: str, function: Callable[..., Any]) -> Any:
    real = getattr(where, name)
    setattr(where, name, function)
    try:
        yield
    finally:
        setattr(where, name, real)


@contextmanager
def _missing(package: str) -> Any:
    """Python's own way to say that a package is not there; only for as long as the question lasts."""
    there = sys.modules.get(package)
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]
        if there is not None:
            sys.modules[package] = there


def _later(name: str, *, needed: str) -> None:
    """Put a package in its place that runs when something is wanted of it, but for one module of it."""
    if name in sys.modules:
        return
    spec = PathFinder.find_spec(name, sys.modules[name.rpartition(".")[0]].__path__)
    if spec is None or spec.loader is None:
        raise ImportError(name)
    module = _Later(name)
    module.__dict__.update(
        __spec__=spec, __loader__=spec.loader, __file__=spec.origin, __package__=name
    )
    module.__dict__.update(_marks=[], _lock=RLock())
    sys.modules[name] = module
    module.__dict__["__path__"] = spec.submodule_search_locations
    try:
        import_module(f"{name}.{needed}")
    finally:
        module.__dict__.pop("__path__", None)


class _Later(ModuleType):
    """A module that has not run yet. Marks on functions are taken down; anything else runs it."""

    def __getattribute__(self, name: str) -> Any:
        known = object.__getattribute__(self, "__dict__")
        if name in _MARKS and "_marks" in known:
            return partial(_mark, known["_marks"], name)
        if name == "disable" and "_marks" in known:
            return partial(_disabled, self)
        # Python and tools that list modules ask for these; whatever is missing of them is missing.
        if name in known or (name.startswith("__") and name != "__path__"):
            return object.__getattribute__(self, name)
        with known["_lock"]:
            if "_marks" in known:
                _run(self)
        return getattr(self, name)


def _mark(marks: list[tuple[str, Any]], name: str, function: Any) -> Any:
    """Take down that a function gets a mark that leaves it what it is."""
    marks.append((name, function))
    return function


def _disabled(module: ModuleType, function: Any = None, *args: Any, **options: Any) -> Any:
    """The function itself while there is no compiler, and what the compiler makes of it afterwards."""
    if function is None:
        return partial(_disabled, module, **options)
    made: list[Any] = []

    @wraps(function)
    def call(*values: Any, **keywords: Any) -> Any:
        if type(module) is _Later:
            return function(*values, **keywords)
        if not made:
            made.append(module.disable(function, *args, **options))
        return made[0](*values, **keywords)

    return call


def _run(module: ModuleType) -> None:
    """Run the module in its place, as if it were imported now, and put the marks."""
    known = module.__dict__
    marks, spec = known.pop("_marks"), known["__spec__"]
    known["__path__"] = spec.submodule_search_locations
    module.__class__ = ModuleType
    spec.loader.exec_module(module)
    parent, _, child = spec.name.rpartition(".")
    setattr(sys.modules[parent], child, module)
    for name, function in marks:
        getattr(module, name)(function)
