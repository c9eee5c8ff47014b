"""What is reported about the rows: one sentence for each decision that was taken for the user."""

from dataclasses import dataclass

from lorakit.data.encode import ends_turns
from lorakit.data.preview import repeated_rows, shared_rows
from lorakit.data.shapes import Example, Shape
from lorakit.data.spec import DROPPABLE, DataSpec
from lorakit.data.table import TokenTable
from lorakit.data.template import Template, Tokenizer


@dataclass(frozen=True)
class RowCounts:
    """How many rows of one kind were read, dropped and truncated.

    read: rows read. kept: rows left. too_long: rows of more than `limit` tokens, of which `dropped`
    were left out and `truncated` were truncated (a row whose truncated form would hold nothing of
    its answer is dropped). longest: tokens of the longest row, before truncation. empty: rows left
    out because their answer is empty. split: conversations that became several sequences,
    `sequences` in all; each sequence then counts as a row of its own, but for `read`. context: rows
    whose first message is an answer, which is read and not learnt. dropped_parts: (kind, rows) of
    what the template leaves out. cut_tokens: how many tokens truncating took away, and cut_answers how
    many of them were supervised. reading: how their columns were read, as a sentence. Where a share of the training rows is held out, both kinds are
    read in one pass, and their counts differ in `kept` alone.
    """

    read: int = 0
    kept: int = 0
    too_long: int = 0
    dropped: int = 0
    truncated: int = 0
    longest: int = 0
    limit: int | None = None
    empty: int = 0
    split: int = 0
    sequences: int = 0
    context: int = 0
    dropped_parts: tuple[tuple[str, int], ...] = ()
    cut_tokens: int = 0
    cut_answers: int = 0
    reading: str = ""


def shape_note(shape: Shape, kind: str = "") -> str:
    """How the columns are read."""
    sentence = f"{kind} {shape.description}".strip()
    return f"{sentence[0].upper()}{sentence[1:]}."


def template_notes(
    template: Template, shape: Shape, first: Example, tokenizer: Tokenizer, spec: DataSpec
) -> list[str]:
    """How prompts are written for the model, and what is unusual about it."""
    if shape.kind == "text":
        return [
            "The whole text is supervised, its end token included; no chat template is applied."
        ]
    if template.kind == "raw":
        notes = ["Prompts are given to the model as they stand, without a chat template (raw)."]
        prompt, answer = first.prompt or "", first.completion or ""
        if prompt and not prompt[-1:].isspace() and not answer[:1].isspace():
            notes.append(
                "No white space separates the prompt from its answer "
                f"(…{prompt[-12:]!r} {answer[:12]!r}…): end the prompt with a newline (\\n) to "
                "separate them."
            )
        return notes
    notes = [f"Prompts are written by the chat template {template.sha256[:12]}."]
    if template.options:
        given = ", ".join(f"{name}={value!r}" for name, value in template.options.items())
        notes.append(f"The template's variables: {given}.")
    if not ends_turns(first, tokenizer, template, spec.drop):
        notes.append(
            "This template ends an answer without a special token, so the tokenizer's eos is added "
            "to each row: the model learns from it where to stop."
        )
    if "strftime_now" in (template.source or ""):
        notes.append(
            "This template writes today's date into the prompt, so the same rows give other tokens "
            "on another day. To avoid that, give template a file whose template has no date."
        )
    return notes


def turn_notes(counts: RowCounts, rows: str) -> list[str]:
    """What became of conversations: turns of their own, parts and answers left out."""
    notes = []
    if counts.split:
        notes.append(
            f"{counts.split:,} of {counts.read:,} {rows} became {counts.sequences:,} sequences, "
            "because the chat template writes an answer otherwise once another turn follows, or "
            "without a token that ends it: each answer is trained after the prompt that will be "
            "served for it."
        )
    if counts.context:
        notes.append(
            f"{counts.context:,} of {counts.read:,} {rows} begin with an answer to nothing: it is "
            "read as context and not supervised."
        )
    if counts.empty:
        notes.append(
            f"{counts.empty:,} of {counts.read:,} {rows} were left out, because nothing is left of "
            "their answers (drop)."
        )
    notes += [
        f"The chat template leaves out {DROPPABLE[kind]} of {number:,} of {counts.read:,} {rows} "
        f"(drop {kind})."
        for kind, number in counts.dropped_parts
    ]
    return notes


def length_notes(counts: RowCounts, rows: str, too_long: str, cut: str = "end") -> list[str]:
    """How many rows were dropped or truncated, and what was cut of them."""
    if not counts.too_long:
        return []
    actions = []
    if counts.truncated:
        actions.append(f"{counts.truncated:,} were truncated")
    if counts.dropped:
        actions.append(f"{counts.dropped:,} were dropped")
    why = ""
    if too_long == "cut" and counts.dropped:
        why = " (truncated, they would hold nothing of their answers)"
        if cut != "end":
            why = " (without their prompts they are too long as well)"
    notes = [
        f"{counts.too_long:,} of {counts.read:,} {rows} are longer than {counts.limit:,} tokens "
        f"(the longest has {counts.longest:,}): {' and '.join(actions)}{why}."
    ]
    if counts.truncated and cut == "end":
        notes.append(
            f"{counts.cut_tokens:,} tokens were cut off the ends of these rows, "
            f"{counts.cut_answers:,} of them of answers (--cut prompt-middle keeps every answer whole)."
        )
    elif counts.truncated:
        where = "beginning" if cut == "prompt-start" else "middle"
        notes.append(
            f"{counts.cut_tokens:,} tokens were cut out of the {where} of their prompts; every answer "
            "is whole."
        )
    return notes


def split_note(train: int, held: int, spec: DataSpec, seed: int, counts: RowCounts) -> str:
    """How the held-out rows were chosen."""
    if held:
        most = f", max_eval_rows {spec.max_eval_rows:,}" if held == spec.max_eval_rows else ""
        return (
            f"Held out {held:,} of {train + held:,} "
            f"{'sequences' if counts.split else 'rows'} (eval_share {spec.eval_share:g}{most}, "
            f"seed {seed}); rows with the same prompt stay on the same side."
        )
    if spec.eval_share == 0:
        return "No rows are held out (eval_share 0), so no loss on unseen rows is measured."
    return "No rows could be held out: all rows have the same prompt."


def repeat_notes(train: TokenTable, held: TokenTable) -> list[str]:
    """Rows that occur more than once, or in both."""
    notes = []
    if shared := shared_rows(train, held):
        row, twin = shared[0]
        notes.append(
            f"{len(shared):,} of {len(held):,} held-out rows are also training rows (the first is "
            f"{held.origin(row)}, equal to {train.origin(twin)}): their loss measures memory, not "
            "generalisation."
        )
    if repeated := repeated_rows(train):
        first = repeated[0]
        extra = sum(len(group) - 1 for group in repeated)
        notes.append(
            f"{extra:,} training rows repeat an earlier one (the first is {train.origin(first[1])}, "
            f"equal to {train.origin(first[0])})."
        )
    return notes
