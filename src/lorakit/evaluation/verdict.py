"""What an interval allows to be said of a difference, as a value. Three words, and nothing between them.

With d = ours - theirs, [low, high] its interval, and a margin that was named before anything was
measured (d and margin in one unit; `lower_is_better` for losses, KL, bytes and seconds):

    better             the interval lies on our side of 0; `worse` where it lies on theirs
    equal              the interval lies within ±margin: whatever the difference is, it is less
    cannot be told     everything else, and wherever there is no interval

`equal` goes before better and worse: a difference that is certain and certainly below the margin is one
that was declared not to matter. This is the test of equivalence of Schuirmann (1987), at half of its
risk. No word is said of fewer than `LEAST_ROWS` rows, nor of one seed where seeds matter: an interval
over rows then says what these two trainings came to, and not what the two ways of training do.

An interval that holds the truth with probability 95 % says better or worse of equals in at most 5 of
100 cases, and equal of what differs by the margin or more in at most 5. `share_of_level` is the level
of each of several intervals, of which all hold together with the level that is wanted (Bonferroni).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from lorakit.evaluation.crossed import CrossedInterval

Word = Literal["better", "worse", "equal", "cannot be told"]
UNKNOWN: Word = "cannot be told"
LEVEL = 0.95
# Below it the interval of a mean as skewed as that of exponential values misses it, on one side, more
# than one time in twenty (tests/evaluation/test_verdict.py).
LEAST_ROWS = 12


@dataclass(frozen=True)
class Verdict:
    """A judgement on one difference.

    Attributes:
        word: what may be said.
        difference: ours - theirs; None where there are too few rows for an interval.
        margin: within which two count as equal; None where none can be named.
        beyond: with better and worse: whether the interval lies beyond the margin too.
        needs: what would tell; empty where a word is said.
    """

    word: Word
    difference: "CrossedInterval | None"
    margin: float | None
    beyond: bool = False
    needs: tuple[str, ...] = field(default=())

    @property
    def told(self) -> bool:
        """Whether anything can be said."""
        return self.word != UNKNOWN

    def to_dict(self) -> dict[str, Any]:
        """As result.json has it, without the interval, which stands beside it."""
        return {
            "word": self.word,
            "margin": self.margin,
            "beyond": self.beyond,
            "needs": list(self.needs),
        }


def judge(
    d: "CrossedInterval | None",
    margin: float | None,
    *,
    lower_is_better: bool = True,
    least_seeds: int = 2,
    least_rows: int = LEAST_ROWS,
    rows_measured: int = 0,
    refused: Sequence[str] = (),
    more_seeds: str = "more seeds",
    more_rows: str = "more held-out rows",
) -> Verdict:
    """Judge a difference.

    Args:
        d: ours - theirs.
        margin: within which two count as equal, in the unit of d; None where there is none.
        lower_is_better: of what is measured.
        least_seeds: below which nothing is said; 1 where the seeds' part of the interval was
            estimated elsewhere, or where there is no such part.
        least_rows: the same for rows; 0 for what has none, such as bytes that processes took.
        rows_measured: where d is None, how many rows there were.
        refused: reasons for which nothing may be said whatever the interval is, each as what would do.
        more_seeds, more_rows: what to give for a narrower interval, such as the option's name.

    >>> from lorakit.evaluation.crossed import CrossedInterval
    >>> narrow = CrossedInterval(0.002, -0.001, 0.005, 0.95, 3, 200, 0.9, 1000)
    >>> judge(narrow, 0.01).word, judge(narrow, 0.004).word
    ('equal', 'cannot be told')
    """
    if refused:
        return Verdict(UNKNOWN, d, margin, needs=tuple(refused))
    rows = rows_measured if d is None else d.rows
    needs = []
    if rows < least_rows:
        needs.append(f"{more_rows} ({least_rows} at least; there are {rows})")
    if (d is not None and d.seeds < least_seeds) or (d is None and rows >= least_rows):
        needs.append(f"{more_seeds} (one says nothing of others)")
    if needs or d is None:
        return Verdict(UNKNOWN, d, margin, needs=tuple(needs))
    if margin is not None and margin > 0 and -margin <= d.low and d.high <= margin:
        return Verdict("equal", d, margin)
    if d.low > 0 or d.high < 0:
        word: Word = "better" if (d.high < 0) == lower_is_better else "worse"
        beyond = margin is not None and (d.low > margin or d.high < -margin)
        return Verdict(word, d, margin, beyond)
    return Verdict(UNKNOWN, d, margin, needs=(_what_would_tell(d, margin, more_seeds, more_rows),))


def share_of_level(level: float, questions: int) -> float:
    """The level of each of so many intervals that together hold with `level`.

    >>> round(share_of_level(0.95, 5), 4)
    0.99
    """
    return 1 - (1 - level) / max(1, questions)


def _what_would_tell(
    d: "CrossedInterval", margin: float | None, more_seeds: str, more_rows: str
) -> str:
    """Of what there are too few, and about how many times as many would do.

    An interval narrows with the root of what it rests on. To be told apart from 0 it has to be half as
    wide as the estimate is far from it; to be held equal, as wide as the estimate leaves to the margin.
    """
    half = max(d.high - d.mean, d.mean - d.low)
    room = max(abs(d.mean), (margin or 0.0) - abs(d.mean))
    what = more_rows if d.of_rows >= 0.5 else more_seeds
    if room <= 0:
        return what
    times = (half / room) ** 2
    about = f"{times:.0f}" if times >= 1.5 else "one and a half"
    return (
        f"{what}, about {about} times as many" if times < 100 else f"{what}, over 100 times as many"
    )
