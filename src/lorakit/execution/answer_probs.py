"""How likely a model finds answers to a prompt, the end of the answer included.

    log p(answer | prompt) = Σ_t log p(token_t | prompt, tokens of the answer before it)

The sum runs over the supervised tokens of the answer, the one that ends it among them: without the
end, "card" would be likelier than "card lost" wherever both begin alike. The prompt is computed once:
its keys and values stay in a KV cache, and each answer is a step after them. Models without such a
cache read prompt and answer anew for each answer.

Legend: R prompts, C answers to each, T tokens of a step, L places that are read, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorakit.data import Encoded, micro_batches
from lorakit.errors import ModelError
from lorakit.execution.cached import cached_layers, step_logits
from lorakit.execution.facts import facts_of
from lorakit.execution.lengths import context_length
from lorakit.execution.modes import evaluating
from lorakit.execution.runnable import Runnable
from lorakit.execution.settings import AttentionSettings
from lorakit.execution.steps import Place, plan_step
from lorakit.execution.trial import random_ids, same_answer
from lorakit.execution.trial_memory import asked_once
from lorakit.lora.acting import acting_on

Floats = NDArray[np.float64]
# Places whose distribution over the vocabulary is held at once.
_CHUNK = 128


def answered(prompt: Sequence[int], answer: Sequence[int], origin: str = "") -> Encoded:
    """A prompt and the tokens of its answer, its end token among them, as `answer_log_probs` takes it."""
    ids = np.array([*prompt, *answer], dtype=np.int32)
    return Encoded(ids, (np.arange(len(ids)) >= len(prompt)).astype(np.uint8), origin)


def answer_log_probs(
    model: Any, groups: Sequence[Sequence[Encoded]], *, batch_tokens: int = 4096
) -> list[Floats]:
    """log p of each answer, in nats, summed over its supervised tokens.

    Args:
        model: a causal LM, with or without pairs attached; it is left as it was.
        groups: for each prompt its rows, one for each answer: prompt and answer as tokens. What
            they have in common before the first supervised token is computed once.
        batch_tokens: as for `score_choices`.

    Returns:
        For each group one float64 (C,), C its number of rows.

    Raises:
        ModelError: a row is longer than the model reads.
    """
    _check_lengths(model, groups)
    longest = max((len(row) for group in groups for row in group), default=0)
    facts_of(model).reach(model.config, longest)
    shared = [_shared(group) for group in groups]
    found = [np.zeros(len(group)) for group in groups]
    # A group of one row has nothing to share, and packed rows need no steps.
    stepped = [i for i, group in enumerate(groups) if len(group) > 1 and shared[i]]
    with torch.no_grad(), evaluating(model):
        layers = _layers(model) if stepped else None
        if layers is None:
            stepped = []
        else:
            for members in _parts(groups, stepped, batch_tokens):
                _step_through(model, layers, groups, shared, members, found)
        rest = sorted({*range(len(groups))} - {*stepped})
        _read_whole(model, groups, rest, batch_tokens, found)
    return found


def _check_lengths(model: Any, groups: Sequence[Sequence[Encoded]]) -> None:
    most = context_length(model.config)
    for group in groups:
        for row in group:
            if most is not None and len(row) > most:
                raise ModelError(
                    f"{row.origin}: prompt and answer have {len(row)} tokens, and the model has "
                    f"{most} positions: shorten the prompt, or leave the row out (--too-long drop)"
                )


def _shared(group: Sequence[Encoded]) -> int:
    """How many tokens all rows of a group begin with, before any supervised one."""
    if not group:
        return 0
    most = min(min(int(np.flatnonzero(row.weight)[0]), len(row) - 1) for row in group)
    first = group[0].ids[:most]
    for row in group[1:]:
        differs = np.flatnonzero(row.ids[: len(first)] != first)
        first = first[: differs[0]] if len(differs) else first
    return len(first)


def _parts(
    groups: Sequence[Sequence[Encoded]], members: Sequence[int], batch_tokens: int
) -> list[list[int]]:
    """The groups in parts of like length that fit so many cells."""
    lengths = {i: max(map(len, groups[i])) for i in members}
    parts: list[list[int]] = []
    for i in sorted(members, key=lambda i: -lengths[i]):
        size = _cells(lengths[parts[-1][0]]) if parts else 0
        if parts and (len(parts[-1]) + 1) * size <= batch_tokens:
            parts[-1].append(i)
        else:
            parts.append([i])
    return parts


def _cells(length: int) -> int:
    return 1 << max(0, length - 1).bit_length()


def _step_through(
    model: Any,
    layers: dict[torch.nn.Module, AttentionSettings],
    groups: Sequence[Sequence[Encoded]],
    shared: Sequence[int],
    members: Sequence[int],
    found: list[Floats],
) -> None:
    """The prompts of a part in one step, then answer by answer: each overwrites the one before."""
    size = _cells(max(len(row) for i in members for row in groups[i]))
    caches = _caches(model, layers, len(members) * size)
    prompts = [groups[i][0].ids[: shared[i]] for i in members]
    places = [Place(r * size, size, 0, len(ids)) for r, ids in enumerate(prompts)]
    last_R = np.cumsum([len(ids) for ids in prompts]) - 1
    after_RV = _log_p(_run(model, prompts, places, last_R, caches))
    for c in range(max(len(groups[i]) for i in members)):
        rows = [(r, i) for r, i in enumerate(members) if c < len(groups[i])]
        pieces, places, keep, labels, of = [], [], [], [], []
        tokens = 0
        for r, i in rows:
            row, past = groups[i][c], shared[i]
            if row.weight[past]:
                found[i][c] += float(after_RV[r, int(row.ids[past])])
            piece = row.ids[past:-1]
            if not len(piece):
                continue
            read = np.flatnonzero(row.weight[past + 1 :])
            pieces.append(piece)
            places.append(Place(r * size, size, past, len(piece)))
            keep += (tokens + read).tolist()
            labels += row.ids[past + 1 :][read].tolist()
            of += [i] * len(read)
            tokens += len(piece)
        if keep:
            logits_LV = _run(model, pieces, places, np.array(keep), caches)
            for low in range(0, len(keep), _CHUNK):
                part = slice(low, low + _CHUNK)
                label = torch.tensor(labels[part], device=logits_LV.device)[:, None]
                picked = _log_p(logits_LV[part]).gather(1, label)[:, 0].double().tolist()
                for i, value in zip(of[part], picked, strict=True):
                    found[i][c] += value


def _run(
    model: Any,
    pieces: Sequence[NDArray[np.int32]],
    places: Sequence[Place],
    keep_L: NDArray[Any],
    caches: dict[torch.nn.Module, tuple[Tensor, AttentionSettings]],
) -> Tensor:
    """Logits (L, V) of one step."""
    device = model.device
    ids_T = torch.from_numpy(np.concatenate(pieces).astype(np.int64)).to(device)
    keep = torch.from_numpy(keep_L.astype(np.int64)).to(device)
    return step_logits(model, ids_T, plan_step(places, device), keep, caches)


def _read_whole(
    model: Any,
    groups: Sequence[Sequence[Encoded]],
    members: Sequence[int],
    batch_tokens: int,
    found: list[Floats],
) -> None:
    """Each prompt and answer read as a sequence of its own."""
    rows = [(i, c, row) for i in members for c, row in enumerate(groups[i])]
    if not rows:
        return
    runnable = Runnable(model, longest=max(len(row) for *_, row in rows))
    logits_of = runnable.logits if runnable.packs else runnable.unpacked_logits
    for batch in micro_batches([row for *_, row in rows], range(len(rows)), batch_tokens):
        moved = batch.to(model.device)
        of_T = np.repeat(np.array(batch.rows_S), np.array(batch.lengths_S))
        of_L = of_T[batch.predict_L.cpu().numpy()]
        for low in range(0, len(of_L), _CHUNK):
            part = slice(low, low + _CHUNK)
            log_p_LV = _log_p(logits_of(moved, moved.predict_L[part]))
            picked = log_p_LV.gather(1, moved.labels_L[part, None])[:, 0].double().tolist()
            for number, value in zip(of_L[part].tolist(), picked, strict=True):
                i, c, _ = rows[number]
                found[i][c] += value


def _log_p(logits_LV: Tensor) -> Tensor:
    return torch.log_softmax(
        logits_LV, -1, dtype=torch.promote_types(logits_LV.dtype, torch.float32)
    )


def _caches(
    model: Any, layers: dict[torch.nn.Module, AttentionSettings], cells: int
) -> dict[torch.nn.Module, tuple[Tensor, AttentionSettings]]:
    options = {"dtype": model.dtype, "device": model.device}
    return {
        module: (torch.zeros(cells, 2, x.key_heads, x.width, **options), x)
        for module, x in layers.items()
    }


# Two prompts and two answers to each, in tokens: what the steps are tried on.
_TRIAL = ((5, (1, 3)), (4, (4, 2)))


def _layers(model: Any) -> dict[torch.nn.Module, AttentionSettings] | None:
    """What the attention modules ask for; None where steps do not give what whole rows give."""
    if facts_of(model).answers_step is False or acting_on(model) is not None:
        return None
    try:
        layers = cached_layers(model)
    except ModelError:
        facts_of(model).answers_step = False
        return None
    if facts_of(model).answers_step is None:
        facts_of(model).answers_step = asked_once(
            model, f"answers in steps, {_TRIAL}", lambda: _same(model, layers)
        )
    return layers if facts_of(model).answers_step else None


def _same(model: Any, layers: dict[torch.nn.Module, AttentionSettings]) -> bool:
    ids = iter(random_ids(model, sum(p + sum(answers) for p, answers in _TRIAL)).tolist())
    groups = []
    for length, answers in _TRIAL:
        prompt = [next(ids) for _ in range(length)]
        groups.append([answered(prompt, [next(ids) for _ in range(n)]) for n in answers])
    members, shared = range(len(groups)), [length for length, _ in _TRIAL]

    def steps() -> Tensor:
        found = [np.zeros(len(group)) for group in groups]
        _step_through(model, layers, groups, shared, members, found)
        return torch.from_numpy(np.concatenate(found))

    def whole() -> Tensor:
        found = [np.zeros(len(group)) for group in groups]
        for group, log_p in zip(groups, found, strict=True):
            for c, row in enumerate(group):
                ids_1T = torch.from_numpy(row.ids.astype(np.int64)).to(model.device)[None]
                log_p_TV = _log_p(model(input_ids=ids_1T, use_cache=False).logits[0, :-1])
                picked = log_p_TV.gather(1, ids_1T[0, 1:, None])[:, 0]
                log_p[c] = float(picked[torch.from_numpy(row.weight[1:] > 0)].double().sum())
        return torch.from_numpy(np.concatenate(found))

    return same_answer(model, "answers as steps after their prompt", steps, whole)
