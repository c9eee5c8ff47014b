"""`lorakit.rank` for Python and notebooks: the same search on a file or on rows you hold."""

from pathlib import Path
from typing import Any

from lorakit.experiments import Report
from lorakit.experiments.sources import call, given_rows
from lorakit.extras import need


def rank(
    data: Any,
    *,
    eval_data: Any = None,
    out: str | Path = "runs/rank",
    report: Report = lambda event: None,
    **options: Any,
) -> dict[str, Any]:
    """Find the smallest rank that suffices beside the highest on these rows, and train the adapter.

    >>> import lorakit
    >>> rows = [{"prompt": f"say {i}", "completion": "yes"} for i in range(40)]
    >>> options = {"max_rank": 2, "max_steps": 2, "rates": 1, "tolerance": "2%", "allow_short": True}
    >>> result = lorakit.rank(rows, model="tiny-model", **options)
    >>> result["recommended_rank"] in result["ranks"]
    True
    >>> result["gaps"]["1"]["verdict"]["word"]  # two steps say nothing of ranks
    'cannot be told'
    >>> lorakit.read_adapter("runs/rank/adapter").spec.rank == result["recommended_rank"]
    True

    The search lies in `out`, with its page, and the adapter in `out`/adapter. Called again with the
    same `out` it goes on where it was killed, or gives the finished result at once.

    Args:
        data: a file, a folder or a hub id; or rows: a list of mappings, a datasets.Dataset, a
            pandas.DataFrame. Rows in memory are kept in `out`, where every trial reads them.
        eval_data: held-out rows in the same forms; they choose the rank.
        out: the folder.
        report: told of phases, trials, steps and decisions.
        **options: any option of `lorakit rank`, such as prompt, completion, max_rank, method.

    Returns:
        What result.json holds.

    Raises:
        InputError: an option is unknown, the rows cannot be used, or `out` holds another search.
        DivergedError, TrialError: see `lorakit rank`; finished trials are kept.
    """
    need("metrics", "lorakit.rank")
    from lorakit.ranking.command import run_rank
    from lorakit.ranking.spec import FORM

    rows = given_rows(data, eval_data, out, options)
    return rows.run(run_rank, FORM, command=call("lorakit.rank", options), report=report)
