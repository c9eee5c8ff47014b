"""The settings of a search: the run's options that it has, and its own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorakit.experiments.settings import RUN_OPTIONS, Form, Settings, read_settings
from lorakit.ranking.spec import RankSpec

SECTION = "search"
OUT, SAMPLES = "runs/rank", 64
# A search has one length and may be given the learning rate; a comparison decides both.
OPTIONS = (*RUN_OPTIONS, "learning_rate", "epochs", "max_steps")
FORM = Form(RankSpec, SECTION, OPTIONS, {"out": OUT, "samples": SAMPLES}, "the search")

RankSettings = Settings[RankSpec]


def settings(path: Path | None, flags: Mapping[str, Any]) -> RankSettings:
    """The settings in a YAML file, with flags over it; see `read_settings`."""
    return read_settings(FORM, path, flags)
