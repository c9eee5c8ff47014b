"""What answers the rows of a file, opened: a base or a model with pairs, its adapter, the way to compute."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorakit.adapters import load_adapter, read_adapter
from lorakit.config import RunConfig
from lorakit.data import PromptForm
from lorakit.errors import AdapterError, BaseMismatchError, ModelError
from lorakit.files.cache import Progress
from lorakit.run.answer_limit import most_tokens
from lorakit.run.machine import machine, versions
from lorakit.run.named import Found, find_adapter
from lorakit.run.session import Session, open_base, recorded_template
from lorakit.serving.answering import kept
from lorakit.serving.answering.asked import AskedRows, Survey
from lorakit.serving.answering.by_batches import BatchAnswerer, ChoiceAnswerer
from lorakit.serving.answering.by_engine import EngineAnswerer
from lorakit.serving.answering.output import Report
from lorakit.serving.answering.row_answer import Answerer, RowDecoding
from lorakit.serving.answering.spec import AnswerSpec

_ENDS = 8  # tokens that may stand around a label: white space, and the end of a turn


@dataclass(frozen=True)
class AskedModel:
    """Everything that answers are made of, opened.

    Attributes:
        session: the base, or a model that the caller holds with its pairs.
        found: an adapter that is not attached yet, None where there is none or it is.
        held: what identifies the pairs of a model that the caller holds.
    """

    session: Session
    found: Found | None = None
    held: str | None = None


def open_asked(config: RunConfig, adapter: str | Path | None, progress: Progress) -> AskedModel:
    """The base without its adapter, and the template that the adapter was trained with."""
    found = None if adapter is None else find_adapter(adapter, config.output.store)
    template = None
    if found is not None:
        template = recorded_template(read_adapter(found.folder), config.data)
    session = open_base(config.model, config.data, progress=progress)
    return AskedModel(replace(session, template=template or session.template), found)


def rows_of(config: RunConfig, asked: AskedModel, spec: AnswerSpec) -> AskedRows:
    """The rows of a configuration, to be read with this model's tokenizer."""
    session, most = asked.session, most_tokens(config)
    if spec.choices:
        ids = session.tokenizer(list(spec.choices), add_special_tokens=False)["input_ids"]
        most = max(map(len, ids)) + _ENDS
    form = PromptForm.of(config.data)
    data = config.data
    return AskedRows(data.data, form, session, session.template, most, _lead(config), data.max_rows)


def _lead(config: RunConfig) -> str:
    """The white space that a mapping of completions begins with."""
    text = (config.data.completion or "").replace("\\n", "\n").replace("\\t", "\t")
    return text[: len(text) - len(text.lstrip())]


def open_answerer(
    asked: AskedModel,
    rows: AskedRows,
    decoding: RowDecoding,
    spec: AnswerSpec,
    found: Survey,
    *,
    force: bool,
    report: Report,
) -> Answerer:
    """What answers: the engine where it can, else batches; labels in their own way."""
    session, adapter = asked.session, asked.found
    attached = asked.held is not None
    if not spec.choices and not attached:
        folder = None if adapter is None else adapter.folder
        rank = 1 if folder is None else max(read_adapter(folder).ranks.values())
        try:
            return EngineAnswerer(
                *(session, folder, session.template, decoding, found.longest),
                window=spec.keep_every,
                rank=rank,
                force=force,
            )
        except BaseMismatchError:
            raise
        except (ModelError, AdapterError) as error:
            report({"kind": "note", "text": f"answered in batches of like length, because {error}"})
    if adapter is not None:
        load_adapter(session.model, adapter.folder, identity=session.identity, force=force)
    if spec.choices:
        return ChoiceAnswerer(session, spec.choices, rows.lead)
    return BatchAnswerer(session, decoding)


def begun_of(
    asked: AskedModel,
    rows: AskedRows,
    decoding: RowDecoding,
    spec: AnswerSpec,
    found: Survey,
    answerer: Answerer,
) -> kept.Begun:
    """What the answers depend on, as it is recorded beside them."""
    session = asked.session
    adapter = asked.held if asked.found is None else asked.found.content
    depends = {
        "rows": f"{found.rows} rows, {found.sha256}",
        "model": [session.identity.weights_sha256, session.identity.tokenizer_sha256],
        "adapter": adapter,
        "template": _sha256(session.template.to_dict()),
        "prompt": rows.form.prompt,
        "max_new_tokens": decoding.most,
        "sampling": [decoding.temperature, decoding.top_p, decoding.top_k],
        "choices": list(spec.choices),
        "bad_rows": spec.bad_rows,
        "keep_every": spec.keep_every,
        "dtype": str(session.model.dtype),
    }
    depends |= {"seed": decoding.seed} if decoding.temperature > 0 else {}
    environment = {
        **versions(),
        **machine(session.model.device, session.model),
        "way": answerer.way,
    }
    return kept.Begun(json.loads(json.dumps(depends)), environment, decoding.seed)


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
