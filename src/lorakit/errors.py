"""Every error a user can meet.

    LorakitError
    ├── InputError            the user can mend it; the command line prints it and exits with 2
    │   ├── ConfigError       an unknown key or flag, a value out of range
    │   ├── DataError         a file or row that cannot be read or has no supervised token
    │   │   └── ColumnError   a row has not the column that a mapping reads
    │   ├── ModelError        an unknown model, broken weights, remote code not allowed
    │   ├── TargetError       a target that matches nothing or cannot be adapted
    │   ├── AdapterError      a missing, extra or misshapen tensor; a foreign or pickled file
    │   │   └── BaseMismatchError  the adapter was trained on another base
    │   ├── StoreError        a name or version that the store has not; a store that is damaged
    │   ├── OutputError       a folder that is not empty, a disk that is full
    │   └── MissingExtraError an optional package is not installed
    ├── DivergedError         a loss or gradient is not finite; its batch was saved
    ├── TrialError            a trial's process ended without a result
    ├── EngineError           another program that answers for the server does not start, or ended
    ├── CertificateError      a merged model answers differently from its adapter
    └── InterruptedRunError   Ctrl-C; a checkpoint was written

Each message says where (file, line, key), what was found, and what to do.
"""

import difflib
from collections.abc import Iterable


class LorakitError(Exception):
    """Root of the tree; its text is one clear message for a person."""


class InputError(LorakitError):
    """Something the user gave cannot be used. Exit code 2."""


class ConfigError(InputError):
    """An unknown key or flag, or a value out of range."""


class DataError(InputError):
    """A file or a row cannot be read, or no token of it is supervised."""


class ColumnError(DataError):
    """A row has not the column that a mapping of rows reads."""


class ModelError(InputError):
    """A model is unknown, its files are broken, or it wants to run remote code."""


class TargetError(InputError):
    """A target pattern matches nothing, or a module that cannot be adapted."""


class AdapterError(InputError):
    """An adapter's files do not fit their description or the model."""


class BaseMismatchError(AdapterError):
    """The adapter was trained on another base model."""


class StoreError(InputError):
    """The store has no such name or version, will not have it, or is damaged."""


class OutputError(InputError):
    """The output cannot be written where it should go."""


class MissingExtraError(InputError):
    """An optional package is not installed; the message names the command that brings it."""


class DivergedError(LorakitError):
    """A loss or a gradient stopped being finite. The message names the saved batch."""


class TrialError(LorakitError):
    """The process of a trial failed or was killed; finished trials are kept."""


class EngineError(LorakitError):
    """Another program that answers for the server does not start, refuses its work, or has ended."""


class CertificateError(LorakitError):
    """A merged model differs from its adapter by more than the tolerance."""


class InterruptedRunError(LorakitError):
    """The run was interrupted and saved; the message says how to go on."""


def did_you_mean(name: str, known: Iterable[str], *, most: int = 3) -> str:
    """A clause that names the valid names nearest to `name`, or lists all where none is near.

    >>> did_you_mean("rnak", ["rank", "alpha"])
    "did you mean 'rank'?"
    >>> did_you_mean("zzz", ["rank", "alpha"])
    "known: 'alpha', 'rank'"
    """
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=most, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(repr(n) for n in near) + "?"
    if not names:
        return "there are none"
    shown = ", ".join(repr(n) for n in names[:12])
    return f"known: {shown}" + (f" and {len(names) - 12} more" if len(names) > 12 else "")
