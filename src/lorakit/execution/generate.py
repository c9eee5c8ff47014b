"""Answers from a model: many prompts at once, or one as it is written.

transformers' own `generate` does the work, key-value cache included; here are the order of the
batch, the tokens that end an answer, and a state of the model that is the same before and after.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lorakit.data import DataSpec, Template, resolve_template
from lorakit.data.ends import end_of_turn
from lorakit.errors import ConfigError
from lorakit.execution.chosen import ChosenLogProbs
from lorakit.execution.continuing import NEW, continued_apart
from lorakit.execution.own_caches import SequencesApart
from lorakit.execution.own_decoding import own_arguments
from lorakit.execution.prompts import check_prompts, left_padded
from lorakit.execution.ready_generation import ready_to_generate, seeded
from lorakit.execution.together import continues_together
from lorakit.models.quiet import quiet

_log = logging.getLogger("lorakit.execution")


@dataclass(frozen=True)
class Generation:
    """One answer.

    `ids` are the new tokens without the end token; `text` is their text, special tokens left out
    and cut before a stop string; `finished` is False where `max_new_tokens` ran out first; `logprob`
    is the natural logarithm of its probability, end token included, where it was asked for.
    """

    text: str
    ids: tuple[int, ...]
    finished: bool
    logprob: float | None = None


def generate(
    model: Any,
    tokenizer: Any,
    prompt_ids: Sequence[Sequence[int]],
    *,
    template: Template | None = None,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int | None = None,
    stop: Sequence[str] = (),
    batch_size: int = 16,
    logprobs: bool = False,
) -> list[Generation]:
    """Continue each prompt; the answers come in the order of the prompts.

    Prompts of similar length share a batch, padded on the left, where the model continues them so as
    it continues each alone (together.py); else it is given one at a time, by transformers' own loop
    or, where that is wrong for the model, by a loop of ours (continuing.py). Of the sampling settings that
    come with a model none is applied: what is not given here is off. Greedy answers do not depend
    on the batch (up to float rounding in ties); sampled ones repeat with the same seed, prompts
    and `batch_size`.

    Args:
        model: a causal LM, training or not: it is left as it was.
        tokenizer: its tokenizer, with a pad token.
        prompt_ids: token ids of each prompt, at least one each.
        template: how the prompts were written, which says what ends an answer (`end_tokens`).
        max_new_tokens: most tokens of an answer.
        temperature: 0 takes the likeliest token; otherwise logits are divided by it and sampled.
        top_p: sample from the likeliest tokens that hold this share of probability.
        top_k: sample from this many likeliest tokens; 0 from all.
        seed: of the sampling; None draws from torch's global generator.
        stop: an answer ends before the first of these strings.
        batch_size: prompts at once.
        logprobs: say how likely each answer is by the model's own distribution, before temperature
            and limits; not with `stop`.

    Raises:
        ConfigError: a setting is out of range.
        ModelError: an empty prompt, or one too long for the model's positions; or a model that answers
            otherwise each time it is asked.
    """
    settings = generation_settings(
        model, tokenizer, template, max_new_tokens, temperature, top_p, top_k
    )
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1; it is {batch_size}")
    check_prompts(model, prompt_ids, max_new_tokens, tokenizer)
    ends = frozenset(settings.eos_token_id)
    answers: dict[int, Generation] = {}
    batches, apart = _batches(model, tokenizer, prompt_ids, max_new_tokens, batch_size)
    extra = stopping(stop, tokenizer)
    if apart is not None:
        settings.use_cache = False  # of transformers' making
    with ready_to_generate(model, settings), seeded(seed, model):
        for members in batches:
            ids_BT, mask_BT = left_padded([prompt_ids[i] for i in members], tokenizer, model)
            if apart is not None:
                extra |= own_arguments(model, apart, ids_BT)
            watch = ChosenLogProbs(ids_BT.shape[1]) if logprobs else None
            if watch is not None:
                extra["logits_processor"] = [watch]
            new_BN = model.generate(
                ids_BT, attention_mask=mask_BT, generation_config=settings, **extra
            )[:, ids_BT.shape[1] :]
            logs = watch.all(new_BN) if watch is not None else None
            for number, (i, row) in enumerate(zip(members, new_BN.tolist(), strict=True)):
                answers[i] = _answer(tokenizer, row, ends, stop, max_new_tokens)
                if logs is not None:
                    counted = len(answers[i].ids) + answers[i].finished
                    answers[i] = replace(answers[i], logprob=sum(logs[number][:counted]))
    return [answers[i] for i in range(len(prompt_ids))]


def _batches(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], new: int, batch_size: int
) -> tuple[list[list[int]], SequencesApart | None]:
    """Which prompts share a batch, the longest first; one each where company changes the answers.

    And what continues each, where transformers' own loop does not: see `continued_by_itself`.
    """
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    batches = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    if not prompts:
        return batches, None
    longest = len(prompts[order[0]]) + new
    apart = continued_by_itself(model, tokenizer, longest)
    if apart is not None:
        return [[i] for i in order], apart
    if not any(len({len(prompts[i]) for i in members}) > 1 for members in batches):
        return batches, None

    def continue_greedily(some: Sequence[Sequence[int]]) -> list[Tensor]:
        return _greedy_logits(model, tokenizer, some)

    if continues_together(model, longest, continue_greedily):
        return batches, None
    _log.info("%s: prompts are continued one at a time", type(model).__name__)
    return [[i] for i in order], None


def continued_by_itself(model: Any, tokenizer: Any, longest: int) -> SequencesApart | None:
    """What computes the next tokens of a text of so many tokens, where transformers' `generate` does not.

    Raises:
        ModelError: see `continuing.continued_apart`.
    """
    return continued_apart(model, longest, lambda some: _greedy_logits(model, tokenizer, some))


def stopping(stop: Sequence[str], tokenizer: Any) -> dict[str, Any]:
    """Arguments of transformers' `generate` that end an answer at one of these strings."""
    from transformers.generation.stopping_criteria import StoppingCriteriaList, StopStringCriteria

    if not stop:
        return {}
    return {"stopping_criteria": StoppingCriteriaList([StopStringCriteria(tokenizer, list(stop))])}


def _greedy_logits(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Logits of the tokens that follow each prompt, greedily, in one batch; see together.py."""
    from transformers import GenerationConfig

    with quiet():
        settings = GenerationConfig(
            max_new_tokens=NEW,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            use_cache=True,
            output_logits=True,
            return_dict_in_generate=True,
        )
    ids_BT, mask_BT = left_padded(prompts, tokenizer, model)
    with ready_to_generate(model, settings):
        steps = model.generate(ids_BT, attention_mask=mask_BT, generation_config=settings).logits
    return list(torch.stack(steps, dim=1).float())


def end_tokens(model: Any, tokenizer: Any, template: Template | None = None) -> tuple[int, ...]:
    """The ids that end an answer: the model's, the tokenizer's, and the template's end of turn.

    template: how the prompts are written; None where they are the tokenizer's own chat.
    """
    declared = model.generation_config.eos_token_id if model.generation_config else None
    ends = set(declared if isinstance(declared, list) else [declared])
    if template is None:
        try:
            template = resolve_template(DataSpec(), tokenizer)
        except ConfigError:
            template = Template("raw")  # several templates, none of them the default
    ends |= {tokenizer.eos_token_id, *end_of_turn(tokenizer, template)}
    return tuple(sorted(int(i) for i in ends if i is not None))


def generation_settings(
    model: Any,
    tokenizer: Any,
    template: Template | None,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
) -> Any:
    """The settings of a generation, as transformers takes them.

    Raises:
        ConfigError: one is out of range.
    """
    from transformers import GenerationConfig

    for name, value, fits, limits in [
        ("max_new_tokens", max_new_tokens, max_new_tokens >= 1, "at least 1"),
        ("temperature", temperature, temperature >= 0, "0 or more"),
        ("top_p", top_p, 0 < top_p <= 1, "above 0 and at most 1"),
        ("top_k", top_k, top_k >= 0, "0 (all tokens) or more"),
    ]:
        if not fits:
            raise ConfigError(f"{name} is out of range: it must be {limits}, and is {value}")
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k} if temperature else {}
    with quiet():
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=temperature > 0,
            eos_token_id=list(end_tokens(model, tokenizer, template)),
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            use_cache=True,
            **sampling,
        )


def _answer(
    tokenizer: Any, row: list[int], ends: frozenset[int], stop: Sequence[str], most: int
) -> Generation:
    length = next((i for i, token in enumerate(row) if token in ends), len(row))
    finished = length < len(row)
    ids = row[:length]
    text = decode(tokenizer, ids)
    if cuts := [at for s in stop if (at := text.find(s)) >= 0]:
        text, finished = text[: min(cuts)], True
        # What follows in the row is padding or the rest of a token: keep what the text needs.
        while ids and len(decode(tokenizer, ids[:-1])) >= len(text):
            ids = ids[:-1]
    return Generation(text, tuple(ids), finished)


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of tokens, special ones left out, spaces as they are."""
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text)
