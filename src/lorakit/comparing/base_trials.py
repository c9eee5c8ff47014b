"""Trials without training: what a comparison will need, and what the base itself does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from lorakit.comparing import general
from lorakit.comparing.methods import trained_parameters
from lorakit.comparing.trials import (
    BaseMeasured,
    BaseRequest,
    BaseResult,
    CompareProfile,
    CompareProfileRequest,
    GeneralSummary,
)
from lorakit.evaluation.forgetting import forgetting, reference
from lorakit.evaluation.likelihood import per_token
from lorakit.experiments import Report
from lorakit.experiments.kinds import typed
from lorakit.experiments.measuring import measure_rows
from lorakit.experiments.opening import ask_held_out, open_trial, split_validation
from lorakit.experiments.profile import estimate_step, profile_of, reached_in
from lorakit.experiments.stamps import Sources
from lorakit.models.kept_packed import bytes_kept
from lorakit.models.packable import bytes_held
from lorakit.models.spec import PACKED, ModelSpec
from lorakit.run.machine import peak_memory

REFERENCE = "general.npz"


@typed(CompareProfileRequest)
def profile(
    request: CompareProfileRequest, sources: Sources, folder: Path, report: Report
) -> CompareProfile:
    """Find out what is there, and estimate what every arm will need.

    Args:
        request: what is asked for.
        sources: of rows and base.
        folder: of the trial; nothing is written.
        report: told of the stages.
    """
    context = open_trial(request.stamp, sources)
    model, config = context.model, context.config.train
    train, validation = split_validation(context.data.train, config.seed)
    estimates = tuple(
        estimate_step(
            *(model, train, config, trained_parameters(model, method)),
            full=method.kind == "full",
            frozen_bytes=_bytes_in(model, context.config.model, method.base_dtype),
            reached=1.0 if method.lora is None else reached_in(model, method.lora),
        )
        for method in request.methods
    )
    common = profile_of(context, train)
    # A forward pass is about half of a step of an adapter, which is the shortest of the arms.
    step = min(each.seconds_per_step for each in estimates)
    held_out = context.data.eval_examples
    return CompareProfile(
        profile=common,
        validation_rows=len(validation),
        validation_tokens=validation.tokens,
        prompts=len(context.session.task.examples(held_out, len(context.data.eval))),
        general_sha256=general.content_hash(sources.general_data, context),
        estimates=estimates,
        seconds_per_eval_token=0.5 * step / common.tokens_per_step,
    )


def _bytes_in(model: Any, spec: ModelSpec, base_dtype: str | None) -> int | None:
    """Bytes of a base that an arm will hold in another way than this one; None where it will not."""
    if base_dtype is None:
        return None
    if base_dtype == PACKED:
        return bytes_kept(model, replace(spec, base_dtype=PACKED))
    return bytes_held(model, base_dtype)


@typed(BaseRequest)
def base(request: BaseRequest, sources: Sources, folder: Path, report: Report) -> BaseResult:
    """Measure the base before any training: held-out loss, answers, and the general rows.

    Leaves `general.npz`, its next-token distributions on the general rows.

    Args:
        request: what is asked for.
        sources: of rows and base.
        folder: of the trial.
        report: told of the stages.
    """
    context = open_trial(request.stamp, sources)
    model = context.model
    tokens = context.config.train.batch_tokens
    report({"kind": "stage", "name": "general"})
    rows = general.rows(sources.general_data, context, request.general_tokens)
    report({"kind": "stage", "name": "measure"})
    distributions = reference(model, rows.table, tokens)
    itself = forgetting(model, distributions, tokens)
    held_out = measure_rows(model, context.data.eval, tokens)
    distributions.save(folder / REFERENCE)
    report({"kind": "stage", "name": "answer"})
    asked = ask_held_out(context, request.asking.samples, request.asking.max_new_tokens)
    return BaseResult(
        held_out=held_out,
        prompts=asked.prompts,
        references=asked.references,
        answers=asked.answers,
        scores=asked.scores,
        general=GeneralSummary(
            source=rows.source,
            rows=len(rows.table),
            tokens=int(itself.tokens_S.sum()),
            mass=distributions.mass,
            words=distributions.words_NK.shape[1],
            loss=per_token(itself.loss_S, itself.tokens_S),
            kl=per_token(itself.kl_S, itself.tokens_S),
            texts=tuple(rows.texts),
        ),
        measured=BaseMeasured(peak_memory(model.device)),
    )
