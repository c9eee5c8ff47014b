"""`lorakit.compare` for Python and notebooks: the same comparison on a file or on rows you hold."""

from pathlib import Path
from typing import Any

from lorakit.experiments import Report
from lorakit.experiments.sources import call, given_rows
from lorakit.extras import need


def compare(
    data: Any,
    *,
    eval_data: Any = None,
    out: str | Path = "runs/compare",
    report: Report = lambda event: None,
    **options: Any,
) -> dict[str, Any]:
    """Measure LoRA against full fine-tuning on a file of rows or a list of mappings.

    >>> import lorakit
    >>> rows = [{"prompt": f"say {i}", "completion": "yes"} for i in range(40)]
    >>> options = {"ranks": (2,), "seeds": 1, "rates": 1, "budget": "2 steps", "evaluations": 1}
    >>> options |= {"samples": 2, "max_new_tokens": 8, "general_data": ("rows.jsonl",)}
    >>> result = lorakit.compare(rows, model="tiny-model", **options)
    >>> [arm["name"] for arm in result["arms"]]
    ['full fine-tuning', 'LoRA r=2']
    >>> result["measured"]["headline"].startswith("LoRA r=2 trains ")
    True

    The comparison lies in `out`, with its page. Called again with the same `out` it goes on where
    it was killed, or gives the finished result at once.

    Args:
        data: a file, a folder or a hub id; or rows: a list of mappings, a datasets.Dataset, a
            pandas.DataFrame. Rows in memory are kept in `out`, where every trial reads them.
        eval_data: held-out rows in the same forms.
        out: the folder.
        report: told of phases, trials and steps.
        **options: any option of `lorakit compare`, such as prompt, completion, ranks, seeds.

    Returns:
        What result.json holds.

    Raises:
        InputError: an option is unknown, the rows cannot be used, or `out` holds another
            comparison.
        DivergedError, TrialError: see `lorakit compare`; finished trials are kept.
    """
    need("metrics", "lorakit.compare")
    from lorakit.comparing.command import run_compare
    from lorakit.comparing.spec import FORM

    rows = given_rows(data, eval_data, out, options)
    return rows.run(run_compare, FORM, command=call("lorakit.compare", options), report=report)
