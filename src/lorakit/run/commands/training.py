"""`lorakit train`: a configuration -> a trained adapter and all that a run leaves behind."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorakit.adapters import save_adapter
from lorakit.adapters.asking import asking_of
from lorakit.adapters.store import Store
from lorakit.adapters.store.references import check_name
from lorakit.config import RunConfig
from lorakit.data import Example, check_sources
from lorakit.execution.choices import ChoiceScores
from lorakit.extras import need
from lorakit.files.whole import write_json
from lorakit.forecast import reached_share
from lorakit.lora import attach
from lorakit.lora.invocation import with_tokens
from lorakit.run import folder as folders
from lorakit.run.against_parent import store_result
from lorakit.run.answer_limit import RECORDED
from lorakit.run.beginning import Begins, begin, checkpoints_of, outcome_of
from lorakit.run.choosing import MOST_CHOICES, choice_figures
from lorakit.run.continuing import Parent, attach_parent, find_parent, run_plan
from lorakit.run.estimating import estimate_run
from lorakit.run.fitting import Report, fit_model, peak_rate, steps_of
from lorakit.run.merge_aware import round_layers
from lorakit.run.prepared import Prepared, end_notes, recorded_scores, training_figures, way_notes
from lorakit.run.recorded import reading_rows, with_recorded
from lorakit.run.session import Session, open_base, recorded_template
from lorakit.run.unused import unused_options
from lorakit.tasks import AnswerPlan, TaskAnswer
from lorakit.tasks.causal_lm import default_limit
from lorakit.training import FitResult, Observers

LOSSES = ("train_loss", "eval_loss", "eval_loss_before")


def prepare(config: RunConfig, report: Report = lambda event: None) -> Prepared:
    """Load and check all that a run depends on, and forecast what it will need."""
    check_needs(config)
    parent = find_parent(config)
    if parent is not None:
        config = replace(config, model=with_recorded(config, parent.found, packing=True).model)
    session = open_base(
        config.model, config.data, progress=lambda *at: report({"kind": "progress", "at": at})
    )
    return prepare_on(session, config, parent)


def prepare_on(session: Session, config: RunConfig, parent: Parent | None = None) -> Prepared:
    """`prepare` on a base that is loaded already."""
    given, found = config, parent.found if parent else None
    config = with_recorded(config, found, base=False)
    config = replace(config, lora=with_tokens(config.lora, session.tokenizer))
    with reading_rows(given, config, found):
        data = session.task.rows(
            config.data,
            session,
            seed=config.train.seed,
            template=recorded_template(parent.info, config.data) if parent else None,
        )
    session = replace(session, template=data.template)
    config, chosen = run_plan(session, config, parent)
    ends, spec = end_notes(session, data, chosen), config.train
    steps = steps_of(len(data.train), spec)
    share = reached_share(session.model, chosen.targets)
    expected = estimate_run(
        *(session.model, data.train, spec), steps=steps, trainable=chosen.held, reached=share
    )
    rate = peak_rate(session.model, steps, spec)
    more = (*ends, *unused_options(config, len(data.eval)), *way_notes(session, chosen, spec))
    data = replace(data, notes=(*data.notes, *more))
    return Prepared(config, session, data, chosen, steps, rate, expected, parent)


def run_training(
    config: RunConfig,
    *,
    report: Report = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
    command: str = "",
) -> dict[str, Any]:
    """Train as the configuration says and return what `result.json` holds.

    Args:
        config: the whole run.
        report: told of each stage and step, as flat mappings with a "kind".
        should_stop: asked between steps; see `lorakit.training.fit`.
        command: how to repeat the run, for the result.

    Raises:
        InputError: something given cannot be used; nothing was trained.
        DivergedError, InterruptedRunError: see `lorakit.training.fit`.
    """
    started = time.perf_counter()
    folder = Path(config.output.out)
    folders.check_folder(folder, resume=config.output.resume)
    check_store(config)
    check_needs(config)
    report({"kind": "stage", "name": "load"})
    ready = prepare(config, report)
    config, session, data = ready.config, ready.session, ready.data
    model, spec = session.model, config.train
    report({"kind": "prepared", "prepared": ready})
    lost = attach_parent(session, ready.parent, ready.plan) if ready.parent else ()
    folders.make_folder(folder)
    if not config.output.resume:
        folders.write_recorded(folder, config.to_repeat(), config.outside())
    # What the base itself answers, or the adapter that the run goes on from.
    report({"kind": "stage", "name": "before"})
    before = ask_before(ready)
    if ready.parent is None:
        attach(model, ready.plan, seed=spec.seed)
    round_layers(model, spec)
    begins = begin(ready, report, should_stop, lost)
    report({"kind": "stage", "name": "train", "steps": ready.steps})
    with metrics_of(ready, report) as tell:
        fitted = fit_model(
            model,
            data.train,
            data.eval,
            begins.schedule,
            recompute=ready.estimate.recompute,
            task=session.task,
            observers=Observers(report=tell, should_stop=should_stop),
            checkpoints=checkpoints_of(ready, folder, resume=config.output.resume),
            moments=begins.moments,
            keep_moments=True,
            rehearsal=begins.rehearsal,
        )

    report({"kind": "stage", "name": "after"})
    return finish(ready.as_trained(), begins, fitted, before, command=command, started=started)


@dataclass(frozen=True)
class Asked:
    """Held-out prompts, and what was answered to them before training.

    Attributes:
        plan: how they are asked and judged, by all held-out answers.
        examples: those that are asked.
        references: their own answers, as the template writes them.
        answers: the model's.
        choices: how likely each label was to it; None where the answers are no labels.
    """

    plan: AnswerPlan
    examples: Sequence[Example]
    references: Sequence[TaskAnswer]
    answers: Sequence[TaskAnswer]
    choices: ChoiceScores | None = None


def ask_before(ready: Prepared) -> Asked:
    """The held-out prompts that the run will be shown by, and the model's answers as it is now."""
    config, session, data = ready.config, ready.session, ready.data
    task = session.task
    plan = task.plan_answers(
        data.eval_examples,
        session,
        (data.train, data.eval),
        limit=config.output.max_new_tokens,
    )
    examples = task.examples(data.eval_examples, config.output.samples)
    return Asked(
        plan,
        examples,
        task.references(session, examples),
        task.predict(session, examples, plan.limit),
        likelihoods(session, examples, plan.labels, config),
    )


def likelihoods(
    session: Session, examples: Sequence[Example], labels: Sequence[str], config: RunConfig
) -> ChoiceScores | None:
    """How likely each label is to the model as it is now; None where there are no labels."""
    if not labels or len(labels) > MOST_CHOICES or not examples:
        return None
    return session.task.likelihoods(
        *(session, examples, labels),
        drop=config.data.drop,
        batch_tokens=config.train.batch_tokens,
    )


@contextmanager
def metrics_of(ready: Prepared, report: Report) -> Iterator[Report]:
    """Whom a run's events go to: its metrics.jsonl, `report`, and TensorBoard where asked for."""
    output = ready.config.output
    folder = Path(output.out)
    kept = output.resume and any((folder / "checkpoints").glob("step-*"))
    with folders.MetricsFile(folder / folders.METRICS, keep=kept) as log:
        watchers: list[Report] = [log, report]
        if output.tensorboard:
            from lorakit.run.tensorboard import TensorBoard

            watchers.append(TensorBoard(folder))

        def tell(event: Mapping[str, Any]) -> None:
            for watch in watchers:
                watch(event)

        yield tell


def finish(
    ready: Prepared,
    begins: Begins,
    fitted: FitResult,
    before: Asked,
    *,
    command: str,
    started: float,
) -> dict[str, Any]:
    """Measure, save and describe a run whose trained pairs are in the model.

    Args:
        ready: what was trained.
        begins: what it began with.
        fitted: what the training came to.
        before: of `ask_before`.
        command: how to repeat the run.
        started: of the whole, by `time.perf_counter`.

    Returns:
        What result.json now holds.
    """
    config, session, data = ready.config, ready.session, ready.data
    model, folder = session.model, Path(config.output.out)
    after = session.task.predict(session, before.examples, before.plan.limit)
    scores = session.task.figures(
        before.examples, before.references, before.answers, after, before.plan
    )
    write_json(folder / folders.SAMPLES, scores.samples)
    choices = tuple(
        choice_figures(each, before.references)
        for each in (
            before.choices,
            likelihoods(session, before.examples, before.plan.labels, config),
        )
    )
    outcome, more = outcome_of(ready, begins, fitted)
    figures = (
        training_figures(ready, fitted, scores, choices, command=command, started=started) | more
    )
    figures["notes"] += [*begins.notes, *outcome.notes()]
    save_adapter(
        model,
        folder / "adapter",
        identity=session.identity,
        provenance={
            "template": session.template.to_dict(),
            "data_sha256": data.data_sha256,
            "config": config.to_flat(),
            "asking": asking_of(config.model, vars(config.data)),
            "versions": figures["versions"],
            "metrics": {name: figures[name] for name in LOSSES} | recorded_scores(scores),
            RECORDED: default_limit(before.plan.longest),
        }
        | ({"parents": [ready.parent.to_dict()]} if ready.parent else {}),
        overwrite=True,
    )
    stored = store_result(config.output, folder / "adapter", outcome)
    figures["saved_as"], figures["current"] = stored.saved_as, stored.current
    figures["notes"] += [stored.note] if stored.note else []
    write_json(folder / folders.RESULT, figures)
    return figures


def check_needs(config: RunConfig) -> None:
    """Refuse rows that are not here, and what is not installed, before a model is loaded.

    Raises:
        DataError: a file of rows is not there, or of no known format.
        MissingExtraError: an optional package is not installed.
    """
    check_sources((*config.data.data, *config.data.eval_data))
    if config.output.tensorboard:
        need("tensorboard", "--tensorboard")


def check_store(config: RunConfig) -> None:
    """Refuse a bad name, or a folder that is no store, before anything is trained.

    Raises:
        InputError: the adapter could not be kept there.
    """
    if config.output.save_as is not None:
        check_name(config.output.save_as)
        Store(config.output.store).index.exists()
