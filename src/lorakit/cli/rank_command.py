"""`lorakit rank`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from lorakit.cli.options import flatten, with_options
from lorakit.cli.printed import asking
from lorakit.cli.progress import fetching
from lorakit.cli.show import console, duration, report_line, say
from lorakit.cli.trial_progress import TrialWatcher
from lorakit.config import load_config
from lorakit.errors import ConfigError, InterruptedRunError
from lorakit.extras import need, no_page
from lorakit.files.wording import command_line, count, size
from lorakit.ranking.spec import FORM, RankSettings
from lorakit.run.folder import CONFIG, repeating
from lorakit.run.present import require_present, require_run_folder

if TYPE_CHECKING:
    from lorakit.ranking.expenses import Expenses
    from lorakit.ranking.trials import RankProfile


def rank(
    config: Annotated[
        Path | None, typer.Argument(help="The config.yaml of a search; a flag overrides its line.")
    ] = None,
    inspect: Annotated[
        str | None,
        typer.Option(
            "--inspect",
            metavar="ADAPTER",
            help="Search nothing; print the singular values of an existing adapter (a folder or a "
            "name in the store), and with --data the held-out loss after truncation to lower ranks.",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="With --inspect: use the adapter even if its base was another one."
        ),
    ] = False,
    *,
    flags: Mapping[str, Any],
) -> None:
    """Find the smallest rank that suffices beside the highest on your rows, and train the adapter.

    `lorakit rank --data rows.jsonl --eval-data test.jsonl --max-rank 32 --out runs/rank`

    `lorakit rank --data rows.csv --prompt '{question}' --completion '{answer}' --tolerance 0.5%`

    `lorakit rank --inspect runs/first/adapter --data test.jsonl`

    Short runs find the learning rate. Then the lowest and the highest rank train concurrently and
    are compared row by row on the held-out rows. The folder then holds `adapter/` (trained at the
    recommended rank), `report.html` (the evidence) and `result.json`. A search costs two to three runs,
    and says before it begins how many at most.

    Finished trials are kept: after an interruption, `--resume --out FOLDER` runs the missing ones.
    With `--verify` or `--exhaustive` it adds those checks to a finished search.
    """
    need("metrics", "`lorakit rank`")
    given = flatten(flags)
    if inspect is not None:
        _inspect(inspect, given, force=force)
        return
    if force:
        raise ConfigError("force goes with --inspect")
    search = resolve(config, given)
    require_run_folder(search.config)
    require_present(search.config)
    with RankWatcher() as watcher:
        result = _run(search, watcher)
    summarise(result, Path(search.config.output.out), search.config.data.prompt)


command = with_options(
    rank, (*FORM.options, "store"), also=(FORM.section, FORM.spec), shown=FORM.defaults
)


def resolve(path: Path | None, flags: Mapping[str, Any]) -> RankSettings:
    """The settings; with --resume and no file, those in the folder."""
    if "store" in flags:
        raise ConfigError("store goes with --inspect, which looks names up there")
    if flags.get("resume") and path is None and "out" in flags:
        earlier = Path(str(flags["out"])) / CONFIG
        path = earlier if earlier.is_file() else None
    return FORM.read(path, flags)


def _run(search: RankSettings, watcher: "RankWatcher") -> dict[str, Any]:
    from lorakit.ranking.command import run_rank

    command = repeating("rank", search.config.output.out)
    try:
        return run_rank(search, command=command, report=watcher)
    except KeyboardInterrupt:
        again = command_line("rank", "--resume", "--out", search.config.output.out)
        raise InterruptedRunError(
            f"interrupted; finished trials are kept. Continue with: {again}"
        ) from None


class RankWatcher(TrialWatcher):
    """Shows what `run_rank` reports: trials as a comparison's are shown, and the decisions."""

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Show one event."""
        match event["kind"]:
            case "profile":
                _show_profile(event["profile"], event["expenses"], event["margin"])
            case "decided":
                say([f"  {event['text']}"])
            case _:
                super().__call__(event)


def _show_profile(ranks: "RankProfile", expenses: "Expenses", margin: float | None) -> None:
    """Rows, the prior, the margin, and what a run and the search take."""
    from lorakit.ranking import wording

    profile, estimate, prior = ranks.profile, ranks.estimate, ranks.prior
    say(profile.notes)
    say(
        [
            f"{count(profile.rows)} training rows; {count(profile.eval_rows)} held-out rows, by which "
            "learning rate and rank are chosen",
            f"a run is {count(ranks.steps)} steps, about "
            f"{duration(ranks.steps * estimate.seconds_per_step)}, in "
            f"{size(estimate.peak_memory_bytes)} of memory",
            wording.forecast(expenses),
            f"margin, within which two ranks count as equal: {wording.margin(margin)}",
            *(f"nothing will be said of any rank: give {each}" for each in expenses.short),
            f"prior (it decides nothing): the completions are {prior.bits / 1000:,.1f} kbit under "
            f"the base, which at two bits a parameter rank {prior.rank:.2g} could hold",
            *([estimate.note] if estimate.note else []),
        ]
    )


def summarise(result: Mapping[str, Any], out: Path, prompt: str | None = None) -> None:
    """Print the answer and its evidence; `prompt` is the mapping by which rows became prompts."""
    console.print()
    say([result["words"]])
    if result["gaps"]:
        console.print(_compared(result))
    confidence = result["confidence"]
    say(
        [
            f"held-out loss at rank {result['recommended_rank']}: {result['loss']:.4f} nats per token, "
            f"{result['base_loss']:.4f} before training",
            *(
                [f"likely to be within the tolerance: {confidence:.0%}"]
                if confidence is not None
                else []
            ),
            f"margin {result['margin']['words']}; tolerance of the search {result['tolerance']['words']}",
            f"cost: {result['cost']['runs']:.2f} runs at rank {max(result['ranks'])}, evaluation "
            "included",
            *(f"note: {note}" for note in result["notes"]),
            f"adapter: {out / 'adapter'}, rank {result['recommended_rank']}",
            report_line(out),
            f"try it:  {asking(out / 'adapter', prompt)}",
        ]
    )


def _compared(result: Mapping[str, Any]) -> Table:
    """Each rank less the reference, after the same steps of both: losses of other lengths stand elsewhere."""
    table = Table(box=None, pad_edge=False)
    for name in ("rank", "after", f"less rank {result['reference']}", "interval", "margin", ""):
        table.add_column(name, justify="right" if name else "left")
    for rank, gap in result["gaps"].items():
        ends = "" if gap["low"] is None else f"{gap['low']:+.4f} to {gap['high']:+.4f}"
        margin, share = gap["verdict"]["margin"], gap["share"]
        table.add_row(
            rank,
            "the whole run" if share >= 1 else f"{share:.0%} of a run",
            f"{gap['mean']:+.4f}",
            ends,
            "" if margin is None else f"±{margin:.4f}",
            gap["verdict"]["word"],
        )
    return table


def _inspect(adapter: str, flags: Mapping[str, Any], *, force: bool) -> None:
    own = {name for name in flags if name not in load_config(None, {}).to_flat()}
    if own:
        raise ConfigError(f"{sorted(own)[0]} goes with a search, not with --inspect")
    require_present(load_config(None, flags), adapter)
    from lorakit.ranking.inspect import NOT_SAID, run_inspect

    out = Path(str(flags["out"])) if "out" in flags else None
    with fetching() as progress:
        inspected = run_inspect(
            load_config(None, flags), adapter, out=out, force=force, progress=progress
        )
    table = Table(box=None, pad_edge=False)
    for name in ("module", "rank", "largest value", "effective rank", "90 %", "99 %"):
        table.add_column(name, justify="left" if name == "module" else "right")
    for layer in inspected.layers:
        table.add_row(
            layer.path, str(layer.rank), f"{layer.largest:.3g}", f"{layer.effective_rank:.1f}",
            str(layer.rank_of_90), str(layer.rank_of_99),
        )  # fmt: skip
    console.print(table)
    lines = [
        *inspected.notes,
        f"rank {inspected.rank_of_90} for all modules keeps 90 % of the squared singular values, "
        f"rank {inspected.rank_of_99} 99 %",
    ]
    for cut in inspected.cuts:
        loss = "" if cut.loss is None else f", held-out loss {cut.loss:.4f}"
        lines.append(f"cut to rank {cut.rank}: {cut.energy:.2%} kept{loss}")
    if inspected.base_loss is None:
        lines.append("give held-out rows with --data to have the loss of every cut measured")
    else:
        lines.append(f"the base without an adapter: held-out loss {inspected.base_loss:.4f}")
    if out is not None:
        lines = [*lines, *([f"note: {why}"] if (why := no_page()) else [])]
    say([*lines, NOT_SAID, *([f"figures: {out}"] if out else [])])
