"""`lorakit rank --inspect ADAPTER`: the spectrum of an adapter that is there already, peft's too.

With p_i = σ_i / Σ σ of a module's singular values:

    effective rank   exp(-Σ p_i log p_i)         Roy and Vetterli, EUSIPCO 2007
    90 % rank        fewest values with 90 % of Σ σ²
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lorakit.adapters.pairs import StoredAdapter, read_stored
from lorakit.adapters.shrink import shrink
from lorakit.adapters.specs import ShrinkSpec
from lorakit.config import RunConfig
from lorakit.data import load_rows
from lorakit.data.notes import length_notes
from lorakit.experiments.measuring import measure_rows
from lorakit.extras import no_page
from lorakit.files.cache import Progress, no_progress
from lorakit.files.whole import write_json
from lorakit.lora import plan
from lorakit.lora.jobs import Jobs
from lorakit.ranking.pairs import put_pairs, spectra_of
from lorakit.ranking.trials import EVALUATION_TOKENS
from lorakit.report.rank_figures import spectra_figures
from lorakit.run import folder as folders
from lorakit.run.named import find_adapter
from lorakit.run.recorded import reading_rows, with_recorded
from lorakit.run.session import open_base, recorded_template

NOT_SAID = (
    "This says what it would cost to shrink this adapter. It does not say which rank the task "
    "needs: trained at a low rank from the start, an adapter is often as good where the cut of a "
    "high one is not. A search finds that out: `lorakit rank --help`."
)


@dataclass(frozen=True)
class LayerSpectrum:
    """The spectrum of one module in a few numbers."""

    path: str
    rank: int
    largest: float
    effective_rank: float
    rank_of_90: int
    rank_of_99: int


@dataclass(frozen=True)
class Cut:
    """All modules cut to a rank: what is kept of the squared singular values, and of the loss."""

    rank: int
    energy: float
    loss: float | None


@dataclass(frozen=True)
class Inspected:
    """What an adapter's spectrum says, and what it does not."""

    adapter: str
    layers: tuple[LayerSpectrum, ...]
    cuts: tuple[Cut, ...]
    base_loss: float | None
    rank_of_90: int
    rank_of_99: int
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self) | {"words": NOT_SAID}


def effective_rank(values: Sequence[float]) -> float:
    """exp of the entropy of the values over their sum; 0 where all are zero.

    >>> effective_rank([2.0, 2.0, 0.0]), effective_rank([3.0, 0.0])
    (2.0, 1.0)
    """
    total = math.fsum(values)
    shares = [value / total for value in values if value > 0] if total > 0 else []
    return round(math.exp(-math.fsum(p * math.log(p) for p in shares)), 12) if shares else 0.0


def rank_for_energy(spectra: Mapping[str, Sequence[float]], share: float) -> int:
    """The smallest rank for all modules that keeps this share of all squared singular values."""
    total = sum(value**2 for values in spectra.values() for value in values)
    longest = max(len(values) for values in spectra.values())
    for rank in range(1, longest + 1):
        energy = sum(value**2 for values in spectra.values() for value in values[:rank])
        if energy >= share * total:
            return rank
    return longest


def run_inspect(
    config: RunConfig,
    adapter: str,
    *,
    out: Path | None = None,
    force: bool = False,
    progress: Progress = no_progress,
) -> Inspected:
    """Look at an adapter's spectrum, and measure its cuts where rows are given.

    Args:
        config: `data.data` names rows to measure on, `model` the base: the adapter's own where
            none was given.
        adapter: a folder or a name of the store.
        out: a folder for inspect.json and plots; None for none.
        force: measure although the adapter belongs to another base.
        progress: told of a download of the built-in model.

    Raises:
        InputError: something given cannot be used.
    """
    if out is not None:
        folders.check_folder(out, resume=False)
    named = find_adapter(adapter, config.output.store)
    stored, spectra = read_stored(named.folder), spectra_of(named.folder)
    highest = max(pair.rank for pair in stored.pairs.values())
    ranks = [2**i for i in range(highest.bit_length()) if 2**i < highest] + [highest]
    losses: dict[int, float] = {}
    base_loss, notes = None, tuple[str, ...]()
    if config.data.data:
        given, config = config, with_recorded(config, named)
        with reading_rows(given, config, named):
            base_loss, losses, notes = _losses(
                config, stored, ranks, name=named.name, force=force, progress=progress
            )
    total = sum(value**2 for values in spectra.values() for value in values)
    inspected = Inspected(
        named.name,
        tuple(_layer(path, values) for path, values in spectra.items()),
        tuple(
            Cut(
                rank,
                sum(v**2 for values in spectra.values() for v in values[:rank]) / total
                if total
                else 1.0,
                losses.get(rank),
            )
            for rank in ranks
        ),
        base_loss,
        rank_for_energy(spectra, 0.9),
        rank_for_energy(spectra, 0.99),
        notes,
    )
    if out is not None:
        folders.make_folder(out)
        write_json(out / "inspect.json", inspected.to_dict() | {"spectra": spectra})
        if no_page() is None:
            spectra_figures(spectra, highest, out / "plots")
    return inspected


def _layer(path: str, values: Sequence[float]) -> LayerSpectrum:
    return LayerSpectrum(
        path,
        len(values),
        values[0],
        effective_rank(values),
        rank_for_energy({path: values}, 0.9),
        rank_for_energy({path: values}, 0.99),
    )


def _losses(
    config: RunConfig,
    stored: StoredAdapter,
    ranks: Sequence[int],
    *,
    name: str,
    force: bool,
    progress: Progress,
) -> tuple[float, dict[int, float], tuple[str, ...]]:
    """Held-out loss of the base, and of every cut; and how the rows were read."""
    from lorakit.adapters.provenance import check_base

    session = open_base(config.model, config.data, progress=progress)
    if not force:
        check_base(stored.source, stored.record, session.identity, name=name)
    template = recorded_template(stored.info, config.data) or session.template
    table, _, counts = load_rows(
        config.data.data,
        config.data,
        session.tokenizer,
        template,
        limit=config.data.max_rows,
        context_length=session.context_length,
        embeddings=session.embeddings,
    )
    model = session.model
    specs = [
        replace(
            stored.spec,
            rank=rank,
            rank_pattern={path: min(rank, p.rank) for path, p in stored.pairs.items()},
        )
        for rank in ranks
    ]
    tokens = min(EVALUATION_TOKENS, config.train.batch_tokens)
    base = measure_rows(model, table, tokens).loss
    jobs = Jobs(model, [plan(model, spec) for spec in specs], [0 for _ in ranks])
    losses = {}
    for job, rank in enumerate(ranks):
        # The highest cuts nothing: the adapter as it is, whose last bits other factors would change.
        whole = rank == ranks[-1]
        put_pairs(jobs, job, stored if whole else shrink(stored, ShrinkSpec(rank=rank)).adapter)
        jobs.install(job)
        losses[rank] = measure_rows(model, table, tokens).loss
    notes = (counts.reading, *length_notes(counts, "rows", config.data.too_long, config.data.cut))
    return base, losses, notes
