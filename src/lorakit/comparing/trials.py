"""What the trials of a comparison are given and what they return.

Whatever is called `measured` is seconds or bytes that a process took; everything else follows from
rows, base, options and software alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorakit.comparing.methods import Method
from lorakit.evaluation.metrics import Scores
from lorakit.experiments.kinds import TrialKind
from lorakit.experiments.measuring import Pace, RowLosses
from lorakit.experiments.profile import Profile, StepEstimate
from lorakit.experiments.stamps import Stamp


@dataclass(frozen=True)
class CompareProfileRequest:
    """The profile of a comparison: rows, base, and what a step of every method takes."""

    stamp: Stamp
    methods: tuple[Method, ...]


@dataclass(frozen=True)
class CompareProfile:
    """What there is, and what every method will need.

    Attributes:
        profile: rows and base.
        validation_rows, validation_tokens: of the rows that the probe is judged by.
        prompts: held-out rows that a prompt can be made of.
        general_sha256: hash of what the general rows are made of.
        estimates: of a step of each method.
        seconds_per_eval_token: estimate of a forward pass.
    """

    profile: Profile
    validation_rows: int
    validation_tokens: int
    prompts: int
    general_sha256: str
    estimates: tuple[StepEstimate, ...]
    seconds_per_eval_token: float


@dataclass(frozen=True)
class Asking:
    """How many held-out prompts are answered, and how long an answer may be, in tokens."""

    samples: int
    max_new_tokens: int | None


@dataclass(frozen=True)
class BaseRequest:
    """What the base does before any training.

    Attributes:
        stamp: common to all trials.
        asking: its answers to held-out prompts.
        general_sha256: hash of what the general rows are made of.
        general_tokens: longest of its own answers to the general prompts.
    """

    stamp: Stamp
    asking: Asking
    general_sha256: str
    general_tokens: int


@dataclass(frozen=True)
class GeneralSummary:
    """The general rows, on which forgetting is measured.

    Attributes:
        source: where they come from.
        rows, tokens: how many.
        mass: probability that the kept words of a distribution hold together.
        words: kept of a distribution.
        loss, kl: of the base, nats per token; its KL from itself says how exact the measure is.
        texts: the first of them.
    """

    source: str
    rows: int
    tokens: int
    mass: float
    words: int
    loss: float
    kl: float
    texts: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class BaseMeasured:
    """Bytes of the base's process."""

    peak_memory_bytes: int


@dataclass(frozen=True)
class BaseResult:
    """What the base does.

    Attributes:
        held_out: losses of the held-out rows.
        prompts, references: of the held-out rows that were answered.
        answers: the base's.
        scores: of the answers; None where nothing can be asked.
        general: the general rows.
        measured: the process.
    """

    held_out: RowLosses
    prompts: tuple[str, ...]
    references: tuple[str, ...]
    answers: tuple[str, ...]
    scores: Scores | None
    general: GeneralSummary
    measured: BaseMeasured


@dataclass(frozen=True)
class Training:
    """What every training run of an arm is given: the probe's, and those that are reported."""

    method: Method
    rate: float
    steps: int
    recompute: bool


@dataclass(frozen=True)
class ProbeRequest:
    """One rate in one round of the probe."""

    stamp: Stamp
    training: Training


@dataclass(frozen=True)
class ProbeResult:
    """The loss on the validation rows; None where it diverged, with the reason in `diverged`."""

    loss: float | None
    diverged: str
    measured: Pace


@dataclass(frozen=True)
class CoursePoint:
    """Learning and forgetting at a step: held-out loss, KL from the base and loss on general rows."""

    step: int
    tokens: int
    loss: float
    kl: float
    general_loss: float


@dataclass(frozen=True)
class RunRequest:
    """An arm with one seed.

    Attributes:
        stamp, training, asking: as of the others.
        seed: of the rows' order and of A's initialisation.
        base_trial: key of the base's trial, which holds its distributions.
        before: first point of the course, which is the base's.
        evaluations: over the run.
    """

    stamp: Stamp
    training: Training
    asking: Asking
    seed: int
    base_trial: str
    before: CoursePoint
    evaluations: int


@dataclass(frozen=True)
class GeneralLosses:
    """Of each general row: KL from the base and loss, summed over tokens, and its tokens."""

    kl: tuple[float, ...]
    loss: tuple[float, ...]
    tokens: tuple[float, ...]


@dataclass(frozen=True)
class RunMeasured:
    """Seconds and bytes of a run's process.

    Attributes:
        peak_memory_bytes: up to the end of training, evaluations within it included.
        process_peak_bytes: answers and writing included.
        train_seconds: of the steps.
        course_seconds: of the steps up to each point of the course.
        pace: of the steps.
    """

    peak_memory_bytes: int
    process_peak_bytes: int
    train_seconds: float
    course_seconds: tuple[float, ...]
    pace: Pace


@dataclass(frozen=True)
class RunResult:
    """All that is measured of an arm with one seed.

    Attributes:
        trainable_parameters, optimizer_state_bytes, bytes_on_disk: sizes.
        steps, tokens: of the run.
        train_loss: of its last step; `train_losses` of every one.
        held_out: losses of the held-out rows at the end.
        general: of the general rows at the end.
        course: learning and forgetting over the run.
        answers, scores: to held-out prompts; no scores where nothing can be asked.
        notes: what the user should know.
        measured: the process.
    """

    trainable_parameters: int
    optimizer_state_bytes: int
    bytes_on_disk: int
    steps: int
    tokens: int
    train_loss: float
    train_losses: tuple[float, ...]
    held_out: RowLosses
    general: GeneralLosses
    course: tuple[CoursePoint, ...]
    answers: tuple[str, ...]
    scores: Scores | None
    notes: tuple[str, ...]
    measured: RunMeasured

    @property
    def loss(self) -> float:
        """Held-out loss at the end, nats per token."""
        return self.course[-1].loss


PROFILE = TrialKind("lorakit.comparing.base_trials:profile", CompareProfileRequest, CompareProfile)
BASE = TrialKind("lorakit.comparing.base_trials:base", BaseRequest, BaseResult)
PROBE = TrialKind("lorakit.comparing.arm_trials:probe", ProbeRequest, ProbeResult)
RUN = TrialKind("lorakit.comparing.arm_trials:run", RunRequest, RunResult)
