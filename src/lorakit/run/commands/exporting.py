"""`lorakit export`: an adapter -> what another runtime loads.

Longer than 300 lines: every form is a few lines of the same few steps.
"""

import json
import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lorakit.adapters.export import (
    Finding,
    lint,
    vllm_safe,
    write_gguf_adapter,
    write_gguf_model,
)
from lorakit.adapters.export.families import GgufBase
from lorakit.adapters.export.gguf_fields import Speech, read_field
from lorakit.adapters.export.gguf_model import converter
from lorakit.adapters.export.ollama import check_family, go_template, modelfile
from lorakit.adapters.export.quantizing import check_type, quantizer
from lorakit.adapters.model_paths import stored_for_model
from lorakit.adapters.pairs import StoredAdapter, read_stored, write_stored
from lorakit.adapters.peft_experts import taken_of
from lorakit.adapters.peft_names import moved_for_peft
from lorakit.adapters.provenance import check_base
from lorakit.config import RunConfig
from lorakit.data import DataSpec, Example, Template, encode_prompt, resolve_template
from lorakit.data.ends import end_of_turn
from lorakit.errors import ConfigError, OutputError
from lorakit.files.cache import Progress, no_progress
from lorakit.files.whole import write_folder, write_text
from lorakit.merging.chat_files import write_chat_files
from lorakit.models import empty_model, identify, identify_settings, load_tokenizer, resolve
from lorakit.run.commands.merging import run_merge
from lorakit.run.named import Found, find_adapter
from lorakit.run.recorded import with_recorded
from lorakit.run.recorded_chat import RecordedChat, prompt_notes, recorded_chat

Form = Literal["peft", "vllm", "gguf", "gguf-merged", "ollama"]
Kind = Literal["f32", "f16", "bf16", "q8_0"]
_WHOLE: tuple[Kind, ...] = ("f32", "f16", "bf16", "q8_0")
_KINDS: dict[str, tuple[Kind, ...]] = {
    "gguf": ("f32", "f16"),
    "gguf-merged": _WHOLE,
    "ollama": _WHOLE,
}
_MODEL = "model.gguf"


@dataclass(frozen=True)
class Exported:
    """What was written, and what is to be said about it."""

    path: Path
    sentences: tuple[str, ...]


def run_export(
    config: RunConfig,
    *,
    adapter: str | Path,
    form: Form,
    out: Path,
    kind: Kind | None = None,
    quantize: str | None = None,
    force: bool = False,
    progress: Progress = no_progress,
) -> Exported:
    """Write an adapter for another runtime.

    Args:
        config: names the base, which all forms but peft and vLLM need (by default the one that the
            adapter records), and the store. The names that peft reads depend on a base that was given.
        adapter: a folder, or a name in the store.
        form: which runtime.
        out: a folder for peft, vLLM and Ollama, a file for GGUF; missing, or an empty folder.
        kind: number format of a GGUF file; where None f32, and for Ollama f16.
        quantize: a type of llama.cpp's quantizer for a whole model, such as Q4_K_M; not with `kind`.
        force: use the adapter although it was trained on another base.
        progress: told of a download of the built-in model.

    Raises:
        InputError: something given cannot be used, or the runtime has no place for the adapter.
        CertificateError: the merged model differs by more than the tolerance.
    """
    if kind is not None and kind not in _KINDS.get(form, ()):
        has = ", ".join(_KINDS.get(form, ())) or "the format of the adapter alone"
        raise ConfigError(f"--to {form} has no --type {kind}: it has {has}")
    if quantize is not None:
        if _KINDS.get(form) != _WHOLE:
            raise ConfigError(
                f"--to {form} has no --quantize, which is for whole models: gguf-merged and ollama"
            )
        if kind is not None:
            raise ConfigError("--quantize gives the number format itself: leave --type out")
        quantize = check_type(quantize)
        quantizer()
    found = find_adapter(adapter, config.output.store)
    stored = read_stored(found.folder)
    # vLLM's form takes of the base its tokenizer, and that only beside a recorded template.
    opens = form != "peft" and not (form == "vllm" and not stored.info.provenance)
    if form == "peft" and "model" in config.given:
        stored = _as_peft_reads(stored, empty_model(config.model))
    config = with_recorded(config, found, base=opens)
    if form == "peft":
        return Exported(write_stored(out, stored), stored.notes)
    if form in ("vllm", "gguf"):
        gguf = form == "gguf"
        made = (
            _gguf(config, found, stored, out, kind, force) if gguf else _vllm(config, stored, out)
        )
        return replace(made, sentences=(*made.sentences, *prompt_notes([stored.info])))
    ask = _Whole(config, found, stored, kind, quantize, force, progress)
    return ask.ollama(out) if form == "ollama" else ask.gguf(out)


def run_lint(
    config: RunConfig, *, adapter: str | Path, with_base: bool
) -> tuple[str, tuple[Finding, ...]]:
    """What each runtime would refuse or mis-scale; nothing is written.

    Args:
        config: names the base and the store.
        adapter: a folder, or a name in the store.
        with_base: whether the base is looked at as well.

    Returns:
        What the adapter is called, and the findings.
    """
    found = find_adapter(adapter, config.output.store)
    if not with_base:
        return found.name, lint(found.folder)
    model = empty_model(config.model)
    return found.name, lint(found.folder, GgufBase.of(model.config), model)


def _as_peft_reads(stored: StoredAdapter, model: Any) -> StoredAdapter:
    """The adapter in the names and paths under which peft finds every layer of this base."""
    stored = stored_for_model(model, stored)
    moved, lost = moved_for_peft(model, {path: pair.kind for path, pair in stored.pairs.items()})
    notes = stored.notes
    if lost:
        notes += (
            f"peft leaves out the pair on {lost[0]} ({len(lost)} such) beside this base, whatever its name "
            "in the file: merge the adapter for it",
        )
    config = replace(stored.config, taken=taken_of(model), moved=moved)
    return replace(stored, config=config, notes=notes)


def _vllm(config: RunConfig, stored: StoredAdapter, out: Path) -> Exported:
    safe = vllm_safe(stored)
    notes = (*stored.notes, _changed(stored, safe))
    written = write_stored(out, safe)
    # What vLLM needs beside the adapter, it takes from its command line.
    if not stored.info.provenance:
        return Exported(written, notes)
    chat, _ = recorded_chat([stored.info], config.model)
    if chat is None or chat.template.kind == "raw":
        return Exported(written, notes)
    where = resolve(config.model, weights=False).folder
    write_chat_files(written, chat.template, (*chat.ends, *_declared(where)))
    flags = f"--chat-template {written / 'chat_template.jinja'} --generation-config {written}"
    return Exported(written, (*notes, f"vLLM takes the template and the end tokens by {flags}"))


def _gguf(
    config: RunConfig,
    found: Found,
    stored: StoredAdapter,
    out: Path,
    kind: Kind | None,
    force: bool,
) -> Exported:
    """An adapter file. Of the base its configuration is needed, and its tokenizer for the template."""
    notes = [*stored.notes]
    if not force and stored.record is not None and stored.record.base is not None:
        if any(resolve(config.model, weights=False).folder.glob("*.safetensors")):
            check_base(stored.source, stored.record, identify(config.model), name=found.name)
        else:
            trained_on = str(stored.record.base.get("weights_sha256"))
            settings = identify_settings(config.model, weights_sha256=trained_on)
            check_base(stored.source, stored.record, settings, name=found.name)
            notes.append(
                "the base's weights are not here: its tokenizer and template were compared"
            )
    base = GgufBase.of(empty_model(config.model).config)
    written = write_gguf_adapter(stored, out, base=base, kind="f16" if kind == "f16" else "f32")
    chat, _ = recorded_chat([stored.info], config.model)
    if chat is None or chat.template.kind == "raw":
        return Exported(written, tuple(notes))
    tokenizer = load_tokenizer(config.model)
    flags = []
    if chat.template.baked() != tokenizer.chat_template:
        beside = written.with_suffix(".jinja")
        write_text(beside, chat.template.baked())
        flags.append(f"--jinja --chat-template-file {beside}")
    own = end_of_turn(tokenizer, resolve_template(DataSpec(), tokenizer))
    for end in chat.ends:
        if end not in own and end != tokenizer.eos_token_id:
            flags.append(f"--override-kv tokenizer.ggml.eot_token_id=int:{end}")
            break
    if flags:
        notes.append(
            "an adapter file says nothing of prompts and ends: llama-server takes them by "
            + " ".join(flags)
        )
    return Exported(written, tuple(notes))


@dataclass(frozen=True)
class _Whole:
    """A merged model as a GGUF file: what was asked for."""

    config: RunConfig
    adapter: Found
    stored: StoredAdapter
    kind: Kind | None
    quantize: str | None
    force: bool
    progress: Progress

    def gguf(self, out: Path) -> Exported:
        """The file alone."""
        converter()  # before minutes of merging, whether it is there at all
        if out.exists():
            raise OutputError(f"{out} exists: give the GGUF model another name")
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        tokenizer = load_tokenizer(self.config.model)
        chat = self._chat(tokenizer)
        speech = _speech(tokenizer, chat) if chat else None
        return Exported(out, self._write(out, self.kind or "f32", speech))

    def ollama(self, out: Path) -> Exported:
        """A folder with the file and a Modelfile."""
        converter()
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise OutputError(f"{out} is there and not an empty folder: give another")
        check_family(empty_model(self.config.model).config.get_text_config().model_type)
        tokenizer = load_tokenizer(self.config.model)
        chat = self._chat(tokenizer) or RecordedChat(Template("raw"), (tokenizer.eos_token_id,))
        found, notes = go_template(tokenizer, chat.template)
        speech = _speech(tokenizer, chat)
        sentences: list[str] = []

        def fill(partial: Path) -> None:
            file = partial / _MODEL
            sentences.extend(self._write(file, self.kind or "f16", speech))
            text = modelfile(
                _MODEL,
                found,
                bos=read_field(file, "tokenizer.ggml.add_bos_token") is not True,
                stops=[tokenizer.decode([end]) for end in chat.ends],
                system=chat.template.system,
            )
            write_text(partial / "Modelfile", text)

        write_folder(out, fill, what="Ollama model")
        create = f"ollama create NAME -f {out / 'Modelfile'}"
        return Exported(out, (*sentences, *notes, create))

    def _chat(self, tokenizer: Any) -> RecordedChat | None:
        """The adapter's template, or else the base's own; None where there is none."""
        chat, _ = recorded_chat([self.stored.info], self.config.model)
        if chat is not None:
            return chat
        template = resolve_template(DataSpec(), tokenizer)
        if template.kind == "raw":
            return None
        eos = tokenizer.eos_token_id
        ends = dict.fromkeys([*end_of_turn(tokenizer, template), *([] if eos is None else [eos])])
        return RecordedChat(template, tuple(ends))

    def _write(self, file: Path, kind: Kind, speech: Speech | None) -> tuple[str, ...]:
        kind = "f32" if self.quantize else kind
        # Beside the file: a whole model may not fit the system's own temporary folder.
        with tempfile.TemporaryDirectory(dir=file.absolute().parent) as place:
            merged = Path(place) / self.stored.source.absolute().name
            certificate = run_merge(
                self.config,
                adapters=[(self.adapter, 1.0)],
                out=merged,
                dtype="float32",
                force=self.force,
                progress=self.progress,
            )
            write_gguf_model(merged, file, kind=kind, quantize=self.quantize, speech=speech)
        format = self.quantize or kind
        note = f"the certificate is of the merge in float32; {format} rounds after it"
        return (*certificate.sentences(), *(() if format == "f32" else (note,)))


def _speech(tokenizer: Any, chat: RecordedChat) -> Speech:
    """What a GGUF file has to say so that llama.cpp prompts and stops as lorakit does."""
    eos = tokenizer.eos_token_id
    prompt = encode_prompt(Example("export", prompt="question"), tokenizer, chat.template)
    others = [end for end in chat.ends if end != eos]
    if len(others) > 1 and chat.template.kind == "chat":
        # The end of a plain answer first: others end a call of a tool.
        turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
        text = tokenizer.apply_chat_template(
            turns, chat_template=chat.template.baked(), tokenize=False
        )
        others.sort(key=lambda end: not text.rstrip().endswith(tokenizer.decode([end])))
    bos = tokenizer.bos_token_id
    return Speech(tuple(others), bos is not None and int(prompt[0]) == bos)


def _declared(base: Path) -> list[int]:
    """The end tokens that a base's generation_config.json declares."""
    file = base / "generation_config.json"
    held = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    ids = held.get("eos_token_id")
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


def _changed(stored: StoredAdapter, safe: StoredAdapter) -> str:
    """What folding did, in a sentence."""
    spec = safe.spec
    both = [(stored.pairs[path], pair) for path, pair in safe.pairs.items()]
    folded = sum(not math.isclose(old.scale, new.scale) for old, new in both)
    padded = sum(old.rank != new.rank for old, new in both)
    return (
        f"rank {spec.rank} and alpha {spec.alpha:g} everywhere: {folded} of {len(both)} scales "
        f"folded into B, {padded} pairs padded with zeros"
    )
