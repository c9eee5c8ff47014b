"""Prepare a base to be served by vLLM."""

import contextlib
import os
import secrets
from collections.abc import Collection
from pathlib import Path

from lorakit.adapters.vllm_ranks import next_rank
from lorakit.data import DataSpec, resolve_template
from lorakit.errors import EngineError
from lorakit.execution.generate import end_tokens
from lorakit.execution.lengths import UNNAMED, context_length
from lorakit.execution.prompts import embedding_count
from lorakit.execution.stepping import adaptable
from lorakit.files.cache import Progress
from lorakit.lora.parameters import bare_parameters
from lorakit.models import ModelSpec, identify, load_outline
from lorakit.serving.answers import Deliver, Observer
from lorakit.serving.catalog import Catalog
from lorakit.serving.opening import MakeCatalog, PreparedBase
from lorakit.serving.spec import EngineSpec, RuntimeSpec
from lorakit.serving.vllm.child import Child
from lorakit.serving.vllm.command import Launch, arguments, check_options, environment
from lorakit.serving.vllm.engine import VllmEngine
from lorakit.serving.vllm.exports import NOTHING, Exports
from lorakit.serving.vllm.program import Program, find_program
from lorakit.serving.vllm.stream import message_of


def open_vllm(
    model: ModelSpec,
    spec: EngineSpec,
    runtime: RuntimeSpec,
    make_catalog: MakeCatalog,
    progress: Progress,
    given: Collection[str] = (),
) -> PreparedBase:
    """Find vLLM and what it needs of a base; it is started by `PreparedBase.begin`.

    Args:
        model: the base.
        spec: limits.
        runtime: which vLLM.
        make_catalog: as for `PreparedBase`.
        progress: called during a download of the built-in model and vLLM's start.
        given: names of the options in `spec` that the user gave.

    Raises:
        ConfigError: there is no vLLM, or an option means nothing to it.
        ModelError: the base's files cannot be used.
    """
    check_options(runtime, model, spec, given)
    program = find_program(runtime.vllm)
    empty, tokenizer, folder = load_outline(model, progress=progress)
    identity = identify(model)
    template = resolve_template(DataSpec(), tokenizer)
    context = context_length(empty.config) or UNNAMED
    lowest = next_rank(spec.slot_rank)
    assert lowest is not None
    exports = Exports(Path(), adaptable(empty), lowest, bare_parameters(empty))
    catalog = make_catalog(identity, template, exports)
    exports.rank = _rank(catalog, lowest)

    def begin(deliver: Deliver, observer: Observer) -> VllmEngine:
        child = Child()
        try:
            exports.root = child.folder
            key = secrets.token_urlsafe(32)
            launch = Launch(
                folder=folder.resolve(),
                name=catalog.base,
                socket=child.socket,
                rank=exports.rank,
                context=min(context, spec.max_prompt + spec.max_output),
                given=given,
            )
            command = arguments(program, launch, model, spec, runtime)
            child.start(command, environment(os.environ, key), key)
            child.wait(runtime.vllm_seconds, lambda waited: progress("vllm", int(waited), 0))
            base = catalog.base if program.apart else NOTHING
            if not program.apart:
                _register_nothing(child, exports.nothing())
            return VllmEngine(child, exports, base, spec, deliver, observer)
        except BaseException:  # Ctrl-C while it starts, too
            child.stop()
            raise

    return PreparedBase(
        catalog,
        tokenizer,
        frozenset(end_tokens(empty, tokenizer)),
        context,
        embedding_count(empty),
        begin,
        tuple(_notes(program, catalog, spec, exports)),
        "by vLLM",
    )


def _rank(catalog: Catalog, lowest: int) -> int:
    """The rank to start vLLM for: the configured one, or more where a present adapter needs it.

    lorakit's own engine gives such an adapter several slots; vLLM's slots are all of one rank.
    """
    highest = lowest
    for card in catalog.list():
        if card.ranks is not None and (needed := next_rank(card.ranks[1])) is not None:
            highest = max(highest, needed)
    return highest


def _register_nothing(child: Child, folder: Path) -> None:
    """Let vLLM load the adapter that changes nothing.

    Raises:
        EngineError: it refuses.
    """
    body = {"lora_name": NOTHING, "lora_path": str(folder)}
    with child.client() as client:
        answer = client.post("/v1/load_lora_adapter", json=body)
    if answer.status_code != 200:
        content: object = answer.text
        with contextlib.suppress(ValueError):
            content = answer.json()
        raise EngineError(f"vLLM cannot serve adapters on this base: {message_of(content)}")


def _notes(program: Program, catalog: Catalog, spec: EngineSpec, exports: Exports) -> list[str]:
    notes = [
        f"{len(catalog.list()) - 1} adapters; vLLM {program.version} on {program.device} has "
        f"{spec.slots} slots of rank {exports.rank}"
    ]
    if exports.rank != next_rank(spec.slot_rank):
        notes.append(
            f"its slots have rank {exports.rank} and not {spec.slot_rank}, because an adapter that "
            "is there needs it"
        )
    if not program.apart:
        notes.append(
            "in this vLLM a request for the base would get another request's adapter: it is sent "
            "to an adapter that changes nothing"
        )
    return notes
