"""What is said aloud about the rows: one sentence for everything that was decided for the user."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorakit.data.encode import ends_turns
from lorakit.data.files import files_of
from lorakit.data.given import GivenRows, Source
from lorakit.data.preview import repeated_rows, shared_rows
from lorakit.data.shapes import Example, Shape
from lorakit.data.spec import DataSpec
from lorakit.data.table import TokenTable
from lorakit.data.template import Template, Tokenizer


@dataclass(frozen=True)
class Report:
    """What became of the rows of one kind. Lengths in tokens, before any cut.

    read: rows read; kept: rows left; too_long: rows above `limit`, of which `dropped` were left out
    and `cut` were cut (a row is dropped rather than cut where nothing of its answer would be left).
    Where a share of the training rows is held out, both kinds were read together, and their reports
    differ in `kept` alone.
    """

    read: int = 0
    kept: int = 0
    too_long: int = 0
    dropped: int = 0
    cut: int = 0
    longest: int = 0
    limit: int | None = None


def folder_notes(sources: Sequence[Source]) -> list[str]:
    """Which files a folder stands for."""
    found = []
    for source in sources:
        if isinstance(source, GivenRows):
            continue
        files = files_of(source) or []
        if Path(source).expanduser().is_dir():
            names = ", ".join(f.path.name for f in files[:8])
            more = f" and {len(files) - 8} more" if len(files) > 8 else ""
            found.append(f"The folder {source} stands for {names}{more}.")
    return found


def shape_note(shape: Shape, kind: str = "") -> str:
    """How the columns are read."""
    said = f"{kind} {shape.description}".strip()
    return f"{said[0].upper()}{said[1:]}."


def template_notes(
    template: Template, shape: Shape, first: Example, tokenizer: Tokenizer
) -> list[str]:
    """How prompts are put to the model, and what is odd about it."""
    if shape.kind == "text":
        return ["Text is learnt as it stands, its end token included; no chat template applies."]
    if template.kind == "raw":
        notes = ["Prompts are put to the model raw, as they stand, without a chat template."]
        prompt, answer = first.prompt or "", first.completion or ""
        if prompt and not prompt[-1:].isspace() and not answer[:1].isspace():
            notes.append(
                f"Nothing parts the prompt from its answer (…{prompt[-12:]!r} {answer[:12]!r}…): "
                "a newline at the end of prompt would."
            )
        return notes
    notes = [f"Prompts go through the chat template {template.sha256[:12]}."]
    if not ends_turns(first, tokenizer, template):
        notes.append(
            "This template ends an answer with no special token, so the tokenizer's eos is added "
            "to each row for the model to learn to stop."
        )
    if "strftime_now" in (template.source or ""):
        notes.append(
            "This template writes today's date into the prompt: the same rows give other tokens on "
            "another day. A template file without the date would not."
        )
    return notes


def length_notes(report: Report, rows: str, too_long: str) -> list[str]:
    """What was dropped or cut."""
    if not report.too_long:
        return []
    done = []
    if report.cut:
        done.append(f"{report.cut:,} were cut to their beginnings")
    if report.dropped:
        done.append(f"{report.dropped:,} were dropped")
    why = ""
    if too_long == "cut" and report.dropped:
        why = " (a row whose beginning holds nothing of its answer cannot be learnt from)"
    return [
        f"{report.too_long:,} of {report.read:,} {rows} are longer than {report.limit:,} tokens "
        f"(the longest has {report.longest:,}): {' and '.join(done)}{why}."
    ]


def split_note(train: int, held: int, spec: DataSpec, seed: int) -> str:
    """How the held-out rows were chosen."""
    if held:
        most = f", max_eval_rows {spec.max_eval_rows:,}" if held == spec.max_eval_rows else ""
        return (
            f"Held out {held:,} of {train + held:,} rows (eval_share {spec.eval_share:g}{most}, "
            f"seed {seed}); rows with the same prompt stay on the same side."
        )
    if spec.eval_share == 0:
        return "No rows are held out (eval_share 0), so nothing measures what was not learnt from."
    return "No rows could be held out: all rows have the same prompt."


def repeat_notes(train: TokenTable, held: TokenTable) -> list[str]:
    """Rows that occur more than once, or in both."""
    notes = []
    if shared := shared_rows(train, held):
        row, twin = shared[0]
        notes.append(
            f"{len(shared):,} of {len(held):,} held-out rows also occur in training (the first is "
            f"{held.origin(row)}, as {train.origin(twin)}): their loss measures memory."
        )
    if repeated := repeated_rows(train):
        first = repeated[0]
        extra = sum(len(group) - 1 for group in repeated)
        notes.append(
            f"{extra:,} training rows repeat an earlier one (the first is {train.origin(first[1])}, "
            f"as {train.origin(first[0])})."
        )
    return notes
