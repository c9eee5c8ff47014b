"""`lorakit merge`: a base and an adapter -> an ordinary model folder with a certificate."""

from pathlib import Path

import torch

from lorakit.adapters.certify import Certificate
from lorakit.adapters.merge import write_merged
from lorakit.config import RunConfig
from lorakit.data import Example, encode_prompt
from lorakit.models.cache import Progress, no_progress
from lorakit.run.session import open_adapted

# Texts that the certificate compares on: prose, code, numbers, another language, a list.
PROBES = (
    "Write a short letter to a neighbour about a parcel that was left at the wrong door.",
    "def area(width, height):\n    return width * height\n\nprint(area(3, 4))",
    "In 1969 the crew needed 4 days, 6 hours and 45 minutes; how many minutes is that?",
    "Übersetze bitte: The train to Vienna leaves at half past seven from platform 9.",
    'Order 10482: {"items": ["lamp", "desk"], "total": 129.90, "currency": "EUR"}',
)


def run_merge(
    config: RunConfig,
    *,
    adapter: Path,
    out: Path,
    dtype: str,
    force: bool = False,
    progress: Progress = no_progress,
) -> Certificate:
    """Merge and write the folder; see `lorakit.adapters.merge.write_merged`.

    Args:
        config: names the base.
        adapter: folder.
        out: the new model folder, missing or empty.
        dtype: 'base' or a format of torch's.
        force: use the adapter although it was trained on another base.
        progress: told of a download of the built-in model.

    Raises:
        CertificateError: the merged model differs by more than the tolerance.
        InputError: something given cannot be used.
    """
    session = open_adapted(config.model, adapter, force=force, progress=progress)
    probes = [
        encode_prompt(
            Example(origin=f"probe {i}", prompt=text), session.tokenizer, session.template
        ).tolist()
        for i, text in enumerate(PROBES)
    ]
    return write_merged(
        session.model,
        session.tokenizer,
        out,
        dtype=None if dtype == "base" else getattr(torch, dtype),
        probes_ids=probes,
    )
