"""What a trial opens in its own process: base, rows, and which rows are for what.

training rows ──┬── learnt from, by every arm of a comparison in the same order
                └── tuning rows: its probe chooses learning rates by them, and nothing else
held-out rows ───── reported; a comparison chooses nothing by them

`lorakit rank` learns from all training rows, and chooses rate and rank by the held-out ones.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lorakit.config import RunConfig, load_config
from lorakit.data import Dataset, TokenTable, load_data
from lorakit.data.split import held_out
from lorakit.errors import DataError
from lorakit.run.session import Session, open_base

TUNING_SHARE, MOST_TUNING_ROWS = 0.1, 128

# Options that say where something lies or what the answers are, and change no trained number.
PLACES = ("model", "data", "eval_data")


@dataclass(frozen=True)
class Opened:
    """A base and its rows, ready.

    Attributes:
        config: the run's options.
        session: base, tokenizer, identity, template.
        data: as it was loaded; `data.eval` are the held-out rows.
        train: rows to learn from.
        tuning: rows of the probe.
    """

    config: RunConfig
    session: Session
    data: Dataset
    train: TokenTable
    tuning: TokenTable


def open_run(spec: Mapping[str, Any], where: Mapping[str, Any]) -> Opened:
    """The base and the rows of a trial.

    Args:
        spec: "config", options of `RunConfig` by name without the places; and "data_sha256" and
            "base" where they are known already.
        where: the places.

    Raises:
        DataError: the rows or the base are not those that the command began with.
    """
    config = load_config(None, {**spec["config"], **{name: where[name] for name in PLACES}})
    session = open_base(config.model, config.data)
    data = load_data(
        config.data,
        session.tokenizer,
        seed=config.train.seed,
        context_length=session.context_length,
    )
    if not len(data.eval):
        raise DataError("nothing is held out: give --eval-data, or an --eval-share above 0")
    for name, now in (("data_sha256", data.data_sha256), ("base", base_hash(session))):
        if spec.get(name, now) != now:
            what = "rows" if name == "data_sha256" else "base model"
            raise DataError(f"the {what} changed while the trials were running: start them anew")
    session = replace(session, template=data.template)
    aside = tuning_rows(data.train, config.train.seed)
    return Opened(
        config,
        session,
        data,
        train=data.train.take(np.flatnonzero(~aside)),
        tuning=data.train.take(np.flatnonzero(aside)),
    )


def base_hash(session: Session) -> str:
    """One hash of the base's weights, tokenizer, template and number format."""
    identity = session.identity
    parts = (identity.weights_sha256, identity.tokenizer_sha256, identity.template_sha256)
    return hashlib.sha256("|".join((*parts, str(session.model.dtype))).encode()).hexdigest()


def tuning_rows(table: TokenTable, seed: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which training rows the probe judges by, bool (n,): a tenth of them, at most 128.

    Rows that begin alike up to their first loss-bearing token stay together, so that no prompt of
    them is trained on.
    """
    keys = []
    for row in table:
        first = int(np.argmax(row.weight))
        asked = row.ids[:first] if first > 1 else row.ids
        digest = hashlib.blake2b(asked.tobytes(), digest_size=8, key=str(seed).encode())
        keys.append(int.from_bytes(digest.digest(), "little"))
    return held_out(np.array(keys, dtype=np.uint64), TUNING_SHARE, MOST_TUNING_ROWS)
