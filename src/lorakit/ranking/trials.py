"""What the trials of a search are given and what they return."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lorakit.evaluation.metrics import Scores
from lorakit.experiments.kinds import TrialKind
from lorakit.experiments.measuring import RowLosses
from lorakit.experiments.profile import Profile, StepEstimate
from lorakit.experiments.stamps import Stamp

# Most tokens of a forward pass in an evaluation on a CPU, whose memory more would cost and whose
# time less would not save. Elsewhere a pass costs its launches, and is as large as a training pass.
EVALUATION_TOKENS = 1024


@dataclass(frozen=True)
class RankProfileRequest:
    """The profile of a search: candidates, rising, and how many concurrent runs a trial may hold."""

    stamp: Stamp
    ranks: tuple[int, ...]
    concurrent: int


@dataclass(frozen=True)
class Prior:
    """Bits of the completions under the base, and the rank whose parameters would hold them."""

    bits: float
    rows: int
    bits_a_parameter: float
    parameters_of_rank_1: int
    rank: float


@dataclass(frozen=True)
class RankProfile:
    """What there is before ranks are searched.

    Attributes:
        profile: rows and base.
        steps: of a whole run.
        estimate: of a step of one run; its memory is that of all concurrent ones.
        trainable: parameters of an adapter by rank.
        base_loss: of the base, nats per token, on `base_rows` held-out rows of `base_tokens`.
        prior: see `lorakit.ranking.profile`, measured on `prior_tokens`.
    """

    profile: Profile
    steps: int
    estimate: StepEstimate
    trainable: Mapping[str, int]
    base_loss: float
    base_rows: int
    base_tokens: int
    prior_tokens: int
    prior: Prior

    @property
    def highest(self) -> int:
        """The highest candidate."""
        return max(int(rank) for rank in self.trainable)

    def parameters(self, rank: int) -> int:
        """Of an adapter of this rank."""
        lowest = min(self.trainable, key=int)
        return self.trainable[lowest] // int(lowest) * rank

    @property
    def run_flops(self) -> float:
        """FLOPs of training once at the highest rank."""
        tokens = self.steps * self.profile.tokens_per_step
        return self.profile.training_flops(self.parameters(self.highest), tokens)


@dataclass(frozen=True)
class AdapterRef:
    """An adapter that a trial left: the trial's key, and the folder in its own."""

    trial: str
    adapter: str

    def folder(self, trials: Path) -> Path:
        """Where it lies, given the folder of the trials."""
        return trials / self.trial / self.adapter


@dataclass(frozen=True)
class RunRef:
    """A run that a trial left with its checkpoint: the trial's key, and the number of the run."""

    trial: str
    run: int


@dataclass(frozen=True)
class RankRun:
    """One of the concurrent runs of a trial.

    Attributes:
        rank, rate, seed: of the run.
        pattern: other ranks of some modules.
        resumes: the run whose checkpoint it goes on from.
        starts_with: the adapter whose pairs it begins with.
    """

    rank: int
    rate: float
    seed: int
    pattern: Mapping[str, int]
    resumes: RunRef | None = None
    starts_with: AdapterRef | None = None


@dataclass(frozen=True, order=True)
class Candidate:
    """A run from its initialisation: rank, learning rate and seed; ranks by module where they differ."""

    rank: int
    rate: float
    seed: int = 0
    pattern: tuple[tuple[str, int], ...] = ()

    def run(self, resumes: RunRef | None = None) -> RankRun:
        """As a trial is given it: from its initialisation, or from where another trial left it."""
        return RankRun(self.rank, self.rate, self.seed, dict(self.pattern), resumes)


@dataclass(frozen=True)
class TrainRequest:
    """Concurrent runs to a step, then their losses on held-out rows.

    Attributes:
        stamp: common to all trials.
        runs: on one base.
        steps: that the schedules span.
        until: rest after this step.
        rows: held-out rows to measure on, spread over all.
        save: whether adapters and checkpoints are left behind.
        recompute: activation checkpointing.
        average: measure with the mean of the pairs over so many last steps; 0 for the pairs as
            they are.
    """

    stamp: Stamp
    runs: tuple[RankRun, ...]
    steps: int
    until: int
    rows: int
    save: bool
    recompute: bool
    average: int = 0


@dataclass(frozen=True)
class RunLosses:
    """What a run came to.

    Attributes:
        diverged: why, empty where it did not; then there is no `held_out`.
        held_out: losses of the held-out rows.
        tokens: trained on in this trial.
        train_losses: of the steps of this trial.
        seconds: of these steps.
    """

    diverged: str
    held_out: RowLosses | None
    tokens: int
    train_losses: tuple[float, ...]
    seconds: float


@dataclass(frozen=True)
class TrainResult:
    """Of each run what it came to, and the tokens of the rows that each was measured on."""

    runs: tuple[RunLosses, ...]
    measured_tokens: int


@dataclass(frozen=True)
class AnswerRequest:
    """Answers of an adapter to held-out prompts, scored by one metric."""

    stamp: Stamp
    adapter: AdapterRef
    metric: str
    samples: int
    max_new_tokens: int | None


@dataclass(frozen=True)
class AnswerResult:
    """The scores, the answers, and the tokens of these."""

    scores: Scores
    answers: tuple[str, ...]
    tokens: int


PROFILE = TrialKind("lorakit.ranking.profile:profile", RankProfileRequest, RankProfile)
TRAIN = TrialKind("lorakit.ranking.workers:train", TrainRequest, TrainResult)
ANSWER = TrialKind("lorakit.ranking.workers:answer", AnswerRequest, AnswerResult)
