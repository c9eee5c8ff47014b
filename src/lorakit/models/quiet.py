"""Keep transformers' progress bars and advice off the user's terminal, within one call."""

import contextlib
import io
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within the block transformers logs errors only and draws no bars; its settings come back.

    What matters of what it would have said is checked and raised by lorakit itself: missing
    tensors, a missing pad token, remote code.
    """
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def no_stderr() -> Iterator[None]:
    """Swallow stderr: for the one progress bar of transformers that no setting reaches (GGUF)."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
