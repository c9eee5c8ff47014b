"""Where the compiled kernels lie. lorakit/kernels/native.py is what calls them."""

from pathlib import Path

__all__ = ["library"]


def library() -> Path:
    """The shared library of this installation.

    Raises:
        FileNotFoundError: it is not there: the package was copied and not built.
    """
    here = Path(__file__).parent
    for suffix in (".so", ".dylib", ".dll"):
        path = here / f"liblorakit_kernels{suffix}"
        if path.exists():
            return path
    raise FileNotFoundError(f"{here} holds no library; `pip install ./native` builds it")
