"""The settings of a comparison: the run's options that it has, and the protocol's own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorakit.comparing.spec import CompareSpec
from lorakit.experiments.settings import RUN_OPTIONS, Form, Settings, read_settings

SECTION = "compare"
OUT, SAMPLES = "runs/compare", 64
OPTIONS = RUN_OPTIONS
FORM = Form(CompareSpec, SECTION, OPTIONS, {"out": OUT, "samples": SAMPLES}, "the protocol")

CompareSettings = Settings[CompareSpec]


def settings(path: Path | None, flags: Mapping[str, Any]) -> CompareSettings:
    """The settings in a YAML file, with flags over it; see `read_settings`."""
    return read_settings(FORM, path, flags)
