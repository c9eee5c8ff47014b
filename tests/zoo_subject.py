"""A tiny model on disk, and what was found about it by checks that end in one of a few words."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lorakit
from lorakit.errors import LorakitError
from lorakit.models import ModelSpec
from zoo_oracle import DiffersError, OracleFailsError

RIGHT = "right"


@dataclass
class Architecture:
    """A tiny model on disk, and what was found about it.

    Attributes:
        name: of architectures.py.
        folder: where the model, its adapters and merged models are written.
        checks: verdict by check.
        facts: how it is run: adapted share, way of the loss, packed, fused.
    """

    name: str
    folder: Path
    checks: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def base(self) -> Path:
        """The folder of the base."""
        return self.folder / "base"

    def check(self, what: str, run: Callable[[], None]) -> bool:
        """Run one check and keep its verdict; whether it is right."""
        try:
            run()
            self.checks[what] = RIGHT
        except LorakitError as error:
            self.checks[what] = f"refused: {error}"
        except DiffersError as error:
            self.checks[what] = f"WRONG: {error}"
        except OracleFailsError as error:
            self.checks[what] = f"oracle: {error}"
        except Exception as error:
            at = traceback.extract_tb(error.__traceback__)[-1]
            where = "/".join(Path(at.filename).parts[-2:])
            text = f"{type(error).__name__}: {str(error)[:300]} ({where}:{at.lineno})"
            self.checks[what] = f"FAULT: {text}"
        return self.checks[what] == RIGHT


def load(subject: Architecture) -> Any:
    """The base as lorakit loads it."""
    return lorakit.load_model(ModelSpec(str(subject.base)))
